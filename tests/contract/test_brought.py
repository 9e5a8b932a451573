"""The suites of networks, tasks and known answers can fail, each property for its own reason."""

from typing import ClassVar

import pytest
import torch

from regardant.contract import check
from regardant.contract.brought import BROUGHT
from regardant.contract.suites import FOLDER_SUITES, SUITES
from regardant.core.known_answer import KnownAnswer
from regardant.core.network import Example
from tests.contract import broken_brought as broken
from tests.contract.breaking import assert_breaks_only
from tests.contract.sound_brought import Entropy, Larger, Pooler
from tests.contract.test_edits import BROKEN as BROKEN_EDITS

BROKEN: dict[type, dict[str, str]] = {
    broken.SumsOverTheBatch: {
        "shape": "the output[2] is (), but outputs are batch first, here 2",
    },
    broken.SecondOutputOff: {"reference": "forward is off its reference by 1e-06: the output[1] has"},
    broken.GradientCut: {"gradients": "off the reference's by"},
    broken.SumsInItsPrecision: {"half precision": "in bfloat16 the output[0] is off float32 by"},
    broken.CentresOverTheBatch: {"batch": "batch cross-talk: sample 0 alone is off the same in a batch by"},
    broken.OneSampleOnly: {"batch": "no example has 2 samples or more"},
    broken.ReadsMemoryInOrder: {"layout": "inputs that are not contiguous give something else by"},
    broken.Remembers: {"stateless": "the same input gives something else the second time by"},
    broken.OutsideTheStateDict: {"state dict": "something that matters is not in the state_dict"},
    broken.CutsWhatIsTooWide: {"errors": "input 0 of a wrong width is accepted in silence"},
    broken.Stumbles: {"errors": "input 0 doubled on axis 2 raises RuntimeError, not a ValueError"},
    broken.DrawsFromTheGlobal: {
        "global generator": "drawing data moved a global generator",
        "generator": "the same seed gives another batch the second time",
        "validation": "validation is not the same the second time",
    },
    broken.MovesTheGlobal: {"global generator": "drawing data moved a global generator"},
    broken.OneSeed: {"generator": "another seed gives the same batch"},
    broken.ShiftingValidation: {
        "validation": "validation is not the same the second time",
        "global generator": "the data depend on",
    },
    broken.TrainsOnValidation: {"held out": "1 of 16 training samples are in the validation"},
    broken.OneMore: {"shape": "but a batch of 1 was asked for"},
    broken.LossOfArgmax: {"loss": "the loss carries no gradient to the outputs"},
    broken.CountsMistakes: {"best": "perfect outputs score 0, and random ones 0.1875"},
    broken.MeanAsTotal: {"sums": "the total of a batch is off the sum of its parts' by"},
    broken.TakesAnyLength: {"errors": "length=-1 is accepted in silence"},
    broken.InBits: {"answers": "uniform over 8: off what is known by 0.921, allowed 1e-06 (seed 0)"},
    broken.KnowsNothing: {"answers": "known_answers gives none"},
    broken.NotANumber: {"answers": "all on one: off what is known by inf"},
    broken.FollowsTheGlobal: {
        "generator": "noise: what is found differs the second time",
        "untouched": "left the global generator changed",
    },
    broken.LeavesDouble: {"untouched": "seed 0 left the default dtype changed"},
}
ALSO: dict[type, set[str]] = {broken.SumsOverTheBatch: {"batch"}}
"""What falls with it: what is no sample's own cannot be told apart by samples."""


@pytest.mark.parametrize("system", BROKEN, ids=lambda system: system.__name__)
def test_breaks_only_this(system):
    assert_breaks_only(system, BROKEN[system], ALSO.get(system, set()))


@pytest.mark.parametrize(
    ("system", "kind"), [(Pooler, "network"), (Larger, "task"), (Entropy, "known answers")]
)
def test_sound_systems_pass(system, kind):
    report = check(system, examples=10)
    assert report.passed, str(report)
    assert report.kind == kind


def test_every_property_can_fail():
    for kind in BROUGHT:
        shown = {title for properties in BROKEN.values() for title in properties} | {*BROKEN_EDITS.values()}
        assert set(SUITES[kind]) <= shown
    assert set(FOLDER_SUITES.values()) == {"sequence", "grid", "gate", *BROUGHT}


def test_what_is_exempt_needs_a_name_that_exists():
    class Excused(Pooler):
        exempt: ClassVar = {"batch": "it is one sample"}

    assert check(Excused, examples=3).verdict("batch").status == "exempt"
    Excused.exempt = {"batches": "it is one sample"}
    with pytest.raises(ValueError, match="exempt of Excused names 'batches'; the properties are shape,"):
        check(Excused)


@pytest.mark.parametrize(
    ("system", "kind", "sentence"),
    [
        (broken.NoNetwork, "structure", "is no regardant.core.network.Network, so the suite 'network'"),
        (Entropy, "task", "lacks batch, validation, loss, metric, perfect, so the suite 'task'"),
        (Larger, "lens", "has no classmethod known_answers"),
        (Pooler(4), "network", "is a Pooler, but the suite 'network' checks a class"),
    ],
)
def test_a_system_of_another_kind_is_refused(system, kind, sentence):
    with pytest.raises(ValueError, match=sentence):
        check(system, kind=kind)


def test_a_task_takes_a_configuration_and_a_network_has_its_own():
    assert check(Larger, config={"length": 5}, examples=2).passed
    with pytest.raises(ValueError, match="config has dim, but Pooler brings its own configurations"):
        check(Pooler, config={"dim": 3})


def test_an_example_is_tensors_batch_first_in_float64():
    x = torch.zeros(2, 3, dtype=torch.float64)
    assert Example({}, (x,), {"flags": x > 0}).batch == 2
    for inputs, keywords, sentence in (
        ((), {}, "an example has no inputs"),
        ((x.float(),), {}, "input 0 of an example is torch.float32"),
        ((x,), {"flags": torch.zeros(3)[:0]}, "flags of an example is torch.float32"),
        ((x,), {"flags": torch.zeros(3) > 0}, "the batch sizes of an example differ"),
        ((x[0, 0],), {}, "input 0 of an example is a number"),
    ):
        with pytest.raises(ValueError, match=sentence):
            Example({}, inputs, keywords)


@pytest.mark.parametrize(
    ("found", "expected", "error"),
    [
        (1.5, 1.0, 0.5),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]), 2.0),
        (torch.tensor([1.0]), 1.0, float("inf")),
        (float("nan"), 1.0, float("inf")),
        (float("inf"), float("inf"), 0.0),
        (torch.zeros(0), torch.zeros(0), 0.0),
    ],
)
def test_the_error_of_an_answer(found, expected, error):
    assert KnownAnswer("it", found, expected).error() == error


def test_an_answer_says_what_it_is_and_how_near():
    with pytest.raises(ValueError, match="what is empty"):
        KnownAnswer(" ", 1.0, 1.0)
    with pytest.raises(ValueError, match="tolerance of 'it' is inf"):
        KnownAnswer("it", 1.0, 1.0, float("inf"))
