"""A small package folder with one card, one system and one experiment, to run claims in."""

from pathlib import Path

from regardant.atlas.card import Card, write

CLAIM = '''
"""Counts its units in a file, and dies where it is told to."""

from regardant.claim.outcome import Figure, Outcome, exact, quality

LOG = []
DIE_AT = None


class Killed(BaseException):
    pass


def unit(offset):
    def measurement(run):
        if (offset, run.seed) == DIE_AT:
            raise Killed
        LOG.append((offset, run.seed))
        return {"score": offset + run.seed, "steps": run.steps(100)}

    return measurement


def claim(context):
    checked = context.check("exactness", lambda: LOG.append("exactness") or {"difference": 0.0})
    found = context.measure({"ours": unit(10), "theirs": unit(5)})
    gain = found["ours"]["score"].mean - found["theirs"]["score"].mean
    return Outcome(
        setting="nothing much",
        figures=[Figure.of("score", found, "score", ours="ours")],
        criteria=[
            quality("ours is 5 better", gain, at_least=5),
            exact("no difference", checked["difference"], at_most=0),
        ],
    )
'''


def small_package(root: Path, *, claim: str | None = CLAIM) -> Path:
    """Cards `tiny` (with an experiment) and `bare` (without one)."""
    package = root / "regardant"
    for slug in ("tiny", "bare"):
        card = Card(
            slug=slug, title=f"The {slug} paper", arxiv="2401.00001", year=2024, code="", kind="mixer",
            fidelity="paper", summary="For trying out.", claim="5 points better.",
            provides={slug: f"regardant.sequence.{slug}:Layer"},
        )  # fmt: skip
        put(package / "atlas" / "cards" / f"{slug}.toml", write(card))
        put(package / "sequence" / f"{slug}.py", "class Layer:\n    pass\n")
    for folder in ("core", "train", "task"):
        put(package / folder / "part.py", "x = 1\n")
    if claim is not None:
        put(package / "claim" / "tiny.py", claim)
    return package


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
