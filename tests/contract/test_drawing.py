"""What hypothesis draws: enough, always the same, and shrunk before it is quoted."""

import pytest

from regardant.contract.drawing import Case, Trials
from regardant.contract.equality import reference
from regardant.contract.recognise import recognise
from regardant.contract.report import Broken
from tests.contract.sound import PlainSoftmax, RunningMean


def cases(seed: int) -> list[Case]:
    subject = recognise(PlainSoftmax)
    trials = Trials(subject, examples=40, seed=seed)
    found: list[Case] = []
    trials.over(found.append, subject.uses)
    return found


def test_draws_are_varied_and_the_same_for_one_seed():
    drawn = cases(0)
    assert drawn == cases(0)
    assert drawn != cases(1)
    assert len(drawn) == 40
    assert {case.causal for case in drawn} == {True, False}
    assert {case.across for case in drawn} == {True, False}
    assert {case.heads for case in drawn} == {1, 2, 3, 4}
    assert any(case.kv_heads for case in drawn)
    assert {"none", "rotary", "alibi", "relative", "learned"} >= {case.position for case in drawn}
    assert len({case.position for case in drawn}) > 2
    assert len({case.pattern for case in drawn}) > 5
    assert len({case.length for case in drawn}) > 8


def test_explicit_cases_cover_every_length_use_and_grouping():
    subject = recognise(PlainSoftmax)
    trials = Trials(subject, examples=1, seed=0)
    explicit = trials.cases(trials.uses(causal=True, across=False))
    assert [case.length for case in explicit] == [1, 1, 2, 2, 17, 17, 64, 64, 257, 257]
    assert {case.kv_heads for case in explicit} == {None, 2}


class OddBatches(RunningMean):
    """Wrong for three samples of at least 31 tokens, and only then."""

    def forward(self, x, context=None, padding=None, *, record=None):
        y = super().forward(x)
        return y * 2 if x.shape[0] == 3 and x.shape[1] >= 31 else y

    def reference(self, x, context=None, padding=None):
        return super().forward(x)


def test_a_failing_example_is_shrunk_and_quoted():
    said = []
    for _ in range(2):
        with pytest.raises(Broken) as broken:
            reference(Trials(recognise(OddBatches), examples=30, seed=0))
        said.append(str(broken.value))
    assert said[0].startswith("forward is off its reference by")
    assert said[0].endswith("(length 31, batch 3, causal)")
    assert said[1] == said[0]


class Options(RunningMean):
    """Has options of its own."""

    def __init__(self, dim: int, *, window: int = 64, gated: bool = False, causal: bool = True):
        super().__init__(dim, causal=causal)
        if window == 2:
            raise ValueError("window is 2, but it is odd")
        self.window, self.gated = window, gated


def test_a_systems_own_options_are_varied_unless_it_refuses():
    assert recognise(Options).options == {"window": (None, 1, 5), "gated": (None, True)}
    assert recognise(Options, config={"window": 3}).options == {"gated": (None, True)}


def test_a_case_reads_as_a_sentence():
    case = Case((17,), heads=4, kv_heads=2, causal=True, pattern="Sink(2)", options=(("window", 5),), seed=2)
    assert str(case) == "length 17, batch 2, heads 4, kv_heads 2, causal, pattern Sink(2), window=5, seed 2"
    assert str(Case((7, 13), batch=1, across=True, keys=4)) == "map 7×13, batch 1, context of 4"
