"""The parts of a small package folder: cards, a mixer, a system."""

from pathlib import Path

from regardant.atlas.card import Card, write

MIXER = """
from dataclasses import dataclass, replace

from regardant.core.supports import Supports


class MultiHead:
    supports = Supports(step=False, time=1.5)

    def __init__(self, dim: int, heads: int, *, causal: bool = False, context_dim: int | None = None) -> None:
        self.dim = dim
"""

SYSTEM = '''
"""One system."""

from regardant.core.mixer import MultiHead
from regardant.core.supports import Supports


class Moth(MultiHead):
    supports = Supports(cross=False, time=1.0, exempt={"step": "it looks ahead"})

    def __init__(self, *, chosen: int = 2, **shared) -> None:
        super().__init__(**shared)
        self.chosen = chosen
'''


def a_card(slug: str, **facts) -> Card:
    given = dict(
        slug=slug,
        title=f"The {slug} paper",
        arxiv="2401.00001",
        year=2024,
        code="",
        kind="mixer",
        fidelity="paper",
        summary=f"What {slug} is for.",
        claim="It is better.",
    )
    return Card(**given | facts)


def put_card(package: Path, card: Card, folder: str = "cards") -> Path:
    path = package / "atlas" / folder / f"{card.slug}.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(write(card), encoding="utf-8")
    return path


def put_source(package: Path, module: str, text: str) -> Path:
    path = package.joinpath(*module.split(".")[1:]).with_suffix(".py")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path
