import pytest

from regardant.compare.front import Quality
from regardant.compare.outlook import Outlook
from regardant.compare.pick import Candidate, Need, parse_size, rank, size


def measured(value):
    return None if value is None else Outlook(value, value, value, 4096)


def candidate(system, seconds=1.0, peak=1e6, quality=None, state=None, **more):
    found = {task: Quality(mean, 0.01) for task, mean in (quality or {}).items()}
    return Candidate(
        system, time=measured(seconds), peak=measured(peak), state=measured(state), quality=found, **more
    )


def order(need, *candidates):
    return [(choice.candidate.system, choice.rank) for choice in rank(need, candidates)]


def reasons(need, *candidates):
    return {choice.candidate.system: choice.reason for choice in rank(need, candidates)}


NEED = Need(4096)


def test_without_quality_the_faster_comes_first():
    assert order(NEED, candidate("b", 2.0), candidate("a", 1.0), candidate("c", 3.0)) == [
        ("a", 1), ("b", 2), ("c", 3),
    ]  # fmt: skip


def test_times_within_five_percent_share_a_rank_and_are_named():
    choices = rank(NEED, [candidate("a", 1.0), candidate("b", 1.04), candidate("c", 1.08)])
    assert [(each.candidate.system, each.rank, each.ties) for each in choices] == [
        ("a", 1, ("b",)), ("b", 1, ("a",)), ("c", 3, ()),
    ]  # fmt: skip


def test_the_doubt_of_an_extrapolation_makes_ties():
    doubtful = Candidate("doubtful", time=Outlook(1.3, 0.9, 1.9, 1024, 1.5))
    choices = rank(NEED, [candidate("sure", 1.0), doubtful])
    assert [each.rank for each in choices] == [1, 1]
    assert "extrapolated from 1,024 by n^1.50" in choices[1].reason


def test_what_nothing_beats_comes_before_what_is_faster_but_beaten():
    fast = candidate("fast", 1.0, quality={"recall": 0.5})
    worse = candidate("worse", 1.5, quality={"recall": 0.2})
    good = candidate("good", 3.0, quality={"recall": 0.95})
    assert order(NEED, worse, good, fast) == [("fast", 1), ("good", 2), ("worse", 3)]
    said = reasons(NEED, worse, good, fast)
    assert said["worse"].startswith("beaten by fast: takes 1.5 times as long, recall 0.2 against 0.5")
    assert said["fast"].startswith("nothing that fits is faster")
    assert said["good"].startswith("the best recall of those that fit")


def test_as_good_but_slower_is_beaten():
    one, other = (
        candidate("one", 1.0, quality={"recall": 0.9}),
        candidate("other", 2.0, quality={"recall": 0.905}),
    )
    assert order(NEED, one, other) == [("one", 1), ("other", 2)]
    assert reasons(NEED, one, other)["other"] == (
        "beaten by one: takes 2.0 times as long, and is no better; time measured"
    )


def test_from_one_seed_only_time_tells_and_the_reason_says_so():
    one, other = (
        Candidate(name, time=measured(seconds), quality={"recall": Quality(mean, None)})
        for name, seconds, mean in (("one", 1.0, 0.1), ("other", 250.0, 0.9))
    )
    assert reasons(NEED, one, other)["other"] == (
        "beaten by one: takes 250 times as long, and one seed does not show it to be better; time measured"
    )


def test_a_loss_is_told_as_it_was_measured():
    one, other = candidate("one", quality={"bytes": -1.7}), candidate("other", quality={"bytes": -2.1})
    assert "bytes 2.1 against 1.7" in reasons(NEED, one, other)["other"]


@pytest.mark.parametrize(
    ("need", "given", "says"),
    [
        (Need(4096, causal=True), dict(causal=False), "cannot be causal"),
        (Need(4096, causal=False), dict(noncausal=False), "can only be causal"),
        (Need(4096, decode=True), dict(causal=False), "cannot be causal"),
        (Need(4096, decode=True), dict(decodes=False), "does not decode token by token"),
        (Need(4096, memory=1e6), dict(peak=2e6), "takes 2 MB at 4,096 (measured), more than 1 MB"),
        (Need(4096, memory=1e6), dict(peak=None), "its memory at 4,096 is not on file"),
        (Need(4096), dict(seconds=None), "its time at 4,096 is not on file"),
        (Need(4096), dict(seconds=None, unmeasured="failed: nan"), "failed: nan"),
    ],
)
def test_what_cannot_do_it_is_ruled_out_with_its_reason(need, given, says):
    choices = rank(need, [candidate("a", **given), candidate("b", 5.0)])
    assert [(each.candidate.system, each.rank) for each in choices] == [("b", 1), ("a", None)]
    assert choices[1].reason == says


def test_in_decoding_the_state_counts_beside_the_peak():
    need = Need(4096, decode=True, memory=1.5e6)
    assert order(need, candidate("a", peak=1e6, state=1e6)) == [("a", None)]
    assert order(need, candidate("a", peak=1e6, state=4e5)) == [("a", 1)]
    assert (need.phase, need.peak_phase) == ("decode", "forward")
    assert Need(4096, train=True).phase == Need(4096, train=True).peak_phase == "backward"


def test_memory_that_is_extrapolated_is_said_to_be():
    grown = Candidate("a", time=measured(1.0), peak=Outlook(3e9, 2.9e9, 3.1e9, 8192, 1.02))
    assert reasons(Need(32768, memory=2e9), grown)["a"] == (
        "takes 3 GB at 32,768 (extrapolated from 8,192 by n^1.02), more than 2 GB"
    )


@pytest.mark.parametrize(
    ("text", "count"), [("2GB", 2e9), ("512 MiB", 512 * 2**20), ("1.5e9", 1.5e9), ("64kb", 64e3), ("7B", 7)]
)
def test_sizes_are_read(text, count):
    assert parse_size(text) == count


def test_sizes_are_spelled():
    assert [size(count) for count in (12, 2048, 3.5e6, 2e9, 1e12)] == [
        "12 B",
        "2.05 kB",
        "3.5 MB",
        "2 GB",
        "1 TB",
    ]


@pytest.mark.parametrize("text", ["much", "GB", "2 elephants"])
def test_what_is_no_size_is_told(text):
    with pytest.raises(ValueError, match="it is a size as in 2GB"):
        parse_size(text)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (dict(length=0), "length is 0"),
        (dict(length=8, decode=True, train=True), "ask twice"),
        (dict(length=8, decode=True, causal=False), "only a causal layer"),
        (dict(length=8, memory=0.0), "memory is 0.0"),
    ],
)
def test_needs_that_make_no_sense_are_refused(given, says):
    with pytest.raises(ValueError, match=says):
        Need(**given)
