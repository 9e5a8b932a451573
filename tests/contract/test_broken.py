"""The suites can fail: each broken system fails what it breaks, for its own reason, and nothing else."""

import pytest

from regardant.contract import check
from regardant.contract.suites import SUITES
from tests.contract import broken, broken_maps
from tests.contract.breaking import assert_breaks_only
from tests.contract.sound import DenseRule, Near, PlainRule, PlainSoftmax, RunningMean, Squeeze

FUTURE = "future leak: "
BROKEN: dict[type, dict[str, str]] = {
    broken.WrongReference: {
        "reference": "forward is off its reference by",
        "gradients": "off the reference's by",
        "mixing matrix": "the matrix times the values is off the output by",
        "values": "with scale=None and wide values forward is off its reference by",
    },
    broken.NonFiniteGradients: {"gradients": "is not finite"},
    broken.DetachedKeys: {"gradients": "the gradient of to_k.weight is off the reference's by"},
    broken.OverflowingExponential: {"half precision": "float16 overflows on inputs of standard deviation 4"},
    broken.BatchCentred: {"batch": "batch cross-talk: changing the other samples moved sample 0 by"},
    broken.BlindToStrides: {"layout": "an input that is not contiguous gives something else"},
    broken.ForgetsABuffer: {"state dict": "something that matters is not in the state_dict"},
    broken.QuadraticTime: {"time": "but n^1 is declared"},
    broken.QuadraticMemory: {"memory": "but n^1 is declared"},
    broken.TakesAnyWidth: {"errors": "x of a wrong width is accepted in silence"},
    broken.SeesTheFuture: {
        "causality": "changing token 1 moved the output at position 0 by",
        "training": FUTURE,
    },
    broken.BalancedSelection: {"causality": FUTURE + "changing token", "training": FUTURE},
    broken.ScalesByLength: {
        "causality": FUTURE + "leaving out the tokens from 1 on moved",
        "training": FUTURE,
    },
    broken.CentresInTraining: {"training": FUTURE},
    broken.AlwaysCausal: {"noncausal": "never move when later tokens change"},
    broken.DriftingStep: {"step": "step 49 is off forward by"},
    broken.StepInPlace: {"step": "stepping the old state 0 again is off by"},
    broken.GrowingState: {"state": "so it grows as n^1.00"},
    broken.GrowingStep: {"decoding": "but the declared state allows n^0"},
    broken.SoftPadding: {
        "padding": "padding leak: changing the padded key",
        "right padding": "than alone",
        "mixing matrix": "the matrix takes something of a padded token",
    },
    broken.EmptyRows: {"padded rows": "nothing but padding gives values that are not finite"},
    broken.CountsPadding: {"right padding": "real tokens give something else with"},
    broken.WidensPatterns: {"pattern": "pattern leak: changing key"},
    broken.DeafPosition: {"position": "position='rotary' is taken and makes no difference"},
    broken.NarrowValues: {"values": "values (2, 2, 17, 11) gave an output (2, 2, 17, 8)"},
    broken.WrongGroups: {"grouped": "heads that share keys differ"},
    broken.IgnoresContext: {"cross": "the output does not move when the context changes"},
    broken.QueriesMix: {"causal cross": FUTURE},
    broken.BentHeads: {"mixing matrix": "the matrix times the values is off the output by"},
    broken_maps.WiderThanDeclared: {"receptive field": "which its receptive field does not hold"},
    broken_maps.NarrowerThanDeclared: {"reach": "does not see"},
    broken_maps.ChoosesFromAfar: {"receptive field": "changing what lies outside the field of"},
    broken_maps.BatchSqueeze: {"batch": "batch cross-talk"},
    broken_maps.ChannelsTwice: {"errors": "x of a wrong width is accepted in silence"},
    broken_maps.StripedGate: {"layout": "gives something else"},
    broken.RemembersTheLast: {"stateless": "gives something else the second time"},
}
"""The properties that each one breaks, and a part of what the verdict says."""

ALSO: dict[type, set[str]] = {
    broken.RemembersTheLast: {"reference", "causality", "step", "batch", "layout", "state dict"},
    broken.EmptyRows: {"reference", "gradients", "mixing matrix"},
}
"""What else falls with it: a layer that remembers gives no two equal answers to compare."""


@pytest.mark.parametrize("system", BROKEN, ids=lambda system: system.__name__)
def test_breaks_only_this(system):
    assert_breaks_only(system, BROKEN[system], ALSO.get(system, set()))


@pytest.mark.parametrize("system", [PlainSoftmax, DenseRule, PlainRule, RunningMean, Near, Squeeze])
def test_sound_systems_pass(system):
    report = check(system, examples=4)
    assert report.passed, str(report)


def test_every_property_of_what_is_drawn_can_fail():
    """Of what brings its own examples, `test_brought` shows the same."""
    shown = {title for properties in BROKEN.values() for title in properties}
    everything = {title for kind in ("sequence", "rule", "grid", "gate") for title in SUITES[kind]}
    # `shape` is shown in test_foreign: what has no output to speak of fails everywhere else, too.
    assert everything - shown == {"shape"}
