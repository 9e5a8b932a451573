"""Facts that a language model may know: countries with their capital, main language and two more cities."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Country:
    name: str
    capital: str
    language: str
    others: tuple[str, ...]
    """Cities that are not the capital."""

    @property
    def cities(self) -> tuple[str, ...]:
        return (self.capital, *self.others)


_ROWS = """
France|Paris|French|Lyon,Marseille
Germany|Berlin|German|Munich,Hamburg
Italy|Rome|Italian|Milan,Naples
Spain|Madrid|Spanish|Barcelona,Seville
Portugal|Lisbon|Portuguese|Porto,Braga
Greece|Athens|Greek|Thessaloniki,Patras
Poland|Warsaw|Polish|Krakow,Gdansk
Austria|Vienna|German|Salzburg,Graz
Sweden|Stockholm|Swedish|Gothenburg,Malmo
Norway|Oslo|Norwegian|Bergen,Trondheim
Finland|Helsinki|Finnish|Tampere,Turku
Denmark|Copenhagen|Danish|Aarhus,Odense
Hungary|Budapest|Hungarian|Debrecen,Szeged
Romania|Bucharest|Romanian|Cluj,Timisoara
Bulgaria|Sofia|Bulgarian|Plovdiv,Varna
Russia|Moscow|Russian|Novosibirsk,Kazan
Ukraine|Kiev|Ukrainian|Odessa,Kharkiv
Turkey|Ankara|Turkish|Istanbul,Izmir
Ireland|Dublin|English|Cork,Galway
Japan|Tokyo|Japanese|Osaka,Kyoto
China|Beijing|Chinese|Shanghai,Wuhan
India|Delhi|Hindi|Mumbai,Chennai
Thailand|Bangkok|Thai|Phuket,Pattaya
Vietnam|Hanoi|Vietnamese|Hue,Danang
Iran|Tehran|Persian|Isfahan,Shiraz
Iraq|Baghdad|Arabic|Basra,Mosul
Egypt|Cairo|Arabic|Alexandria,Luxor
Kenya|Nairobi|Swahili|Mombasa,Kisumu
Morocco|Rabat|Arabic|Casablanca,Marrakesh
Cuba|Havana|Spanish|Santiago,Holguin
Mexico|Mexico City|Spanish|Guadalajara,Cancun
Canada|Ottawa|English|Toronto,Vancouver
Brazil|Brasilia|Portuguese|Salvador,Recife
Argentina|Buenos Aires|Spanish|Rosario,Mendoza
Chile|Santiago|Spanish|Valparaiso,Antofagasta
Peru|Lima|Spanish|Cusco,Arequipa
Colombia|Bogota|Spanish|Medellin,Cali
Australia|Canberra|English|Sydney,Melbourne
England|London|English|Manchester,Liverpool
Scotland|Edinburgh|English|Glasgow,Aberdeen
Belgium|Brussels|Dutch|Antwerp,Ghent
Israel|Jerusalem|Hebrew|Haifa,Eilat
Lebanon|Beirut|Arabic|Tripoli,Sidon
Syria|Damascus|Arabic|Aleppo,Homs
Pakistan|Islamabad|Urdu|Karachi,Lahore
Nepal|Kathmandu|Nepali|Pokhara,Lumbini
Serbia|Belgrade|Serbian|Novi Sad,Nis
Croatia|Zagreb|Croatian|Split,Dubrovnik
"""

COUNTRIES = tuple(
    Country(name, capital, language, tuple(others.split(",")))
    for name, capital, language, others in (row.split("|") for row in _ROWS.split("\n") if row)
)
