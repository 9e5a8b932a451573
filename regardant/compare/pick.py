"""Which system to take for a need, from what was measured: the ranking rule, and its reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from regardant.compare.front import Contender, Quality, beaten_by, better, cheaper
from regardant.compare.outlook import Outlook
from regardant.core.errors import require


@dataclass(frozen=True)
class Need:
    """What a model asks of its attention. `memory` is in bytes, `causal` is None where either will do."""

    length: int
    causal: bool | None = None
    decode: bool = False
    train: bool = False
    memory: float | None = None

    def __post_init__(self) -> None:
        require(self.length >= 1, f"length is {self.length}, but the shortest is 1")
        require(
            not (self.decode and self.train),
            "decode and train are both asked for, but the ranking is by one time: ask twice",
        )
        require(
            not (self.decode and self.causal is False),
            "decode is asked for without causal, but only a causal layer writes token by token",
        )
        require(
            self.memory is None or self.memory > 0, f"memory is {self.memory}, but it must be above 0 bytes"
        )

    @property
    def phase(self) -> str:
        """Whose time counts."""
        return "decode" if self.decode else "backward" if self.train else "forward"

    @property
    def peak_phase(self) -> str:
        """Whose peak memory counts: a text must be read before it is continued."""
        return "backward" if self.train else "forward"


@dataclass(frozen=True)
class Candidate:
    """A system and what is known of it: declared, or measured (None where it is not)."""

    system: str
    causal: bool = True
    noncausal: bool = True
    decodes: bool = True
    time: Outlook | None = None
    """Seconds."""
    measured_to: int = 0
    """The longest length of which its time is on file."""
    peak: Outlook | None = None
    """Bytes."""
    state: Outlook | None = None
    """Bytes, in decoding."""
    quality: Mapping[str, Quality] = field(default_factory=dict)
    unmeasured: str = ""
    """Why it could not be measured, where that was tried."""

    @property
    def memory(self) -> Outlook | None:
        """The peak, and the state that stays."""
        if self.peak is None or self.state is None:
            return self.peak
        whole = (getattr(self.peak, name) + getattr(self.state, name) for name in ("value", "low", "high"))
        farther = self.state if self.peak.measured else self.peak
        return Outlook(*whole, origin=farther.origin, exponent=farther.exponent)


@dataclass(frozen=True)
class Choice:
    """A candidate's place: its rank (None where it is ruled out), with whom it shares that, and why."""

    candidate: Candidate
    rank: int | None
    ties: tuple[str, ...]
    reason: str


def rank(need: Need, candidates: Sequence[Candidate]) -> list[Choice]:
    """The candidates, best first, those that are ruled out at the end.

    1. What cannot do it is ruled out: not causal, not decoding, more memory than there is (at that length,
       measured or extrapolated), or no time on file.
    2. Those that nothing beats come first. One beats another that is no better on any task, and not faster,
       if it is itself faster or better on one; differences inside the spread, of less than 5 %, or inside the
       doubt of an extrapolation are none (`front.py`).
    3. Among those that nothing beats, and among the others, the faster comes first. Whoever is not slower
       than the first of a group by more than that shares its rank.
    """
    excluded = [(each, why) for each in candidates if (why := _excluded(need, each))]
    ruled_out = {each.system for each, _ in excluded}
    able = sorted(
        (each for each in candidates if each.system not in ruled_out), key=lambda each: each.time.value
    )
    contenders = {each.system: _contender(each) for each in able}
    beaten = beaten_by(list(contenders.values()))
    order = sorted(able, key=lambda each: bool(beaten[each.system]))
    ranks: dict[str, int] = {}
    for place, each in enumerate(order, start=1):
        ahead = order[ranks[order[place - 2].system] - 1] if place > 1 else each
        level = bool(beaten[ahead.system]) == bool(beaten[each.system])
        level = level and not cheaper(contenders[ahead.system], contenders[each.system])
        ranks[each.system] = ranks[ahead.system] if level and place > 1 else place
    by_name = {each.system: each for each in able}
    choices = []
    for each in order:
        ties = [name for name, its in ranks.items() if its == ranks[each.system] and name != each.system]
        superiors = [by_name[name] for name in beaten[each.system]]
        reason = _beaten(need, each, superiors) if superiors else _ahead(need, each, able)
        choices.append(Choice(each, ranks[each.system], tuple(ties), reason))
    return choices + [Choice(each, None, (), why) for each, why in excluded]


def _contender(each: Candidate) -> Contender:
    return Contender(each.system, each.time.low, each.time.high, each.quality)


def impossible(need: Need, each: Candidate) -> str:
    """Why a system cannot serve a need, whatever it costs; empty where it can."""
    if (need.causal or need.decode) and not each.causal:
        return "cannot be causal"
    if need.causal is False and not each.noncausal:
        return "can only be causal"
    if need.decode and not each.decodes:
        return "does not decode token by token"
    return ""


def _excluded(need: Need, each: Candidate) -> str:
    """The first hard constraint that a candidate does not keep."""
    if why := impossible(need, each) or each.unmeasured:
        return why
    if need.memory is not None:
        if each.memory is None:
            return f"its memory at {need.length:,} is not on file"
        if each.memory.value > need.memory:
            return (
                f"takes {size(each.memory.value)} at {need.length:,} ({each.memory}), more than "
                f"{size(need.memory)}"
            )
    if each.time is None and each.measured_to:
        return f"its time at {need.length:,} cannot be told from those up to {each.measured_to:,}"
    if each.time is None:
        return f"its time at {need.length:,} is not on file"
    return ""


def _ahead(need: Need, each: Candidate, able: Sequence[Candidate]) -> str:
    """What speaks for a system that nothing beats."""
    one = _contender(each)
    others = [other for other in able if other is not each]
    best = [
        task for task, own in each.quality.items()
        if all(other.quality[task].mean <= own.mean for other in others if task in other.quality)
    ]  # fmt: skip
    said = []
    if others and not any(cheaper(_contender(other), one) for other in others):
        said.append("nothing that fits is faster")
    if best:
        said.append(f"the best {' and '.join(best)} of those that fit")
    if each.quality and not said:
        said.append("nothing faster is as good")
    if not each.quality and any(other.quality for other in able):
        said.append("no quality on file")
    said.append(f"time {each.time}")
    return "; ".join(said)


def _beaten(need: Need, each: Candidate, superiors: Sequence[Candidate]) -> str:
    """By whom, and in what."""
    by = superiors[0]
    one, other = _contender(by), _contender(each)
    said = []
    if cheaper(one, other):
        times = each.time.value / by.time.value
        said.append(
            f"takes {times:.1f} times as long" if times < 100 else f"takes {times:,.0f} times as long"
        )
    said += [
        f"{task} {abs(each.quality[task].mean):.3g} against {abs(by.quality[task].mean):.3g}"
        for task in better(one, other)
    ]
    if not better(one, other):
        # From one seed all tie.
        one_seed = any(own.spread is None for own in (*each.quality.values(), *by.quality.values()))
        said.append("and one seed does not show it to be better" if one_seed else "and is no better")
    return f"beaten by {by.system}: {', '.join(said)}; time {each.time}"


UNITS = {
    "B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KIB": 2.0**10, "MIB": 2.0**20, "GIB": 2.0**30,
}  # fmt: skip


def parse_size(text: str) -> float:
    """Bytes of "2GB", "512 MiB" or "1.5e9"."""
    letters = text.strip().upper()
    unit = next((unit for unit in sorted(UNITS, key=len, reverse=True) if letters.endswith(unit)), "")
    try:
        return float(letters.removesuffix(unit)) * UNITS.get(unit, 1.0)
    except ValueError:
        raise ValueError(f"memory is {text!r}, but it is a size as in 2GB, 512MiB or 1.5e9") from None


def size(count: float) -> str:
    """Bytes, in the unit that suits them."""
    for unit in ("TB", "GB", "MB", "kB"):
        if count >= UNITS[unit.upper()]:
            return f"{count / UNITS[unit.upper()]:.3g} {unit}"
    return f"{count:.0f} B"
