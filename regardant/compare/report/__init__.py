"""The report of a comparison: one HTML file that opens without a server or a network.

    from regardant.compare.report import write
    write(Findings.read(folder), folder / "report.html")

`document.py` puts the page together: `overview.py` (what it says in brief), `large_table.py`, the figures
(`cost_figures.py`, `front_figures.py`, `standing_figures.py`, `curve_figures.py`, `map_figures.py`),
`systems.py` (the cards) and `method.py` (what was done, and what was left out). Python says what is drawn, in
plain data; `page/` holds the template, the style and the script, which gives figures their colours and
labels, dark or light, wide or narrow.
"""

from regardant.compare.report.document import NoReport, write

__all__ = ["NoReport", "write"]
