"""A broken system must fail what it breaks, for its own reason, and nothing else."""

from collections.abc import Mapping, Set

from regardant.contract import check


def assert_breaks_only(system: type, wanted: Mapping[str, str], also: Set[str] = frozenset()) -> None:
    """`wanted`: property → a part of what its verdict says; `also`: what falls with it."""
    report = check(system, examples=4)
    said = {verdict.property: verdict.detail for verdict in report.failures}
    assert set(wanted) <= set(said), str(report)
    assert set(said) <= set(wanted) | also, str(report)
    for title, part in wanted.items():
        assert part in said[title], said[title]
