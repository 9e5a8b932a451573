"""Plans from surveys that are made up: what fits the time, what is left out for it, and that it is said."""

import pytest

from regardant.compare.planned import read_plan
from regardant.compare.planning import Asked, outline, plan
from regardant.compare.selection import select
from regardant.compare.spec import Spec
from regardant.compare.trials import TRIALS
from regardant.compare.unit import units


def planned(*names, step=0.01, slow=None, slots=2, **ask):
    """A plan where a training step takes so many seconds, and those of `slow` so many times as many."""
    asked = Asked(names=names, **ask)
    out = outline(asked, select(asked.names, asked.kind), device="cpu", slots=slots)
    each = {"least": 40_000, "usual": 80_000, "tokens": 64, "evaluation": 0.1}
    survey = {
        system.name: {task: each | {"step": step * (slow or {}).get(system.name, 1)} for task in out.tasks}
        for system in out.systems
    }
    return plan(out, survey)


def takes(found):
    """Seconds of all trainings on two cores."""
    seeds = len(found["seeds"])
    return sum(found["estimates"].values()) * seeds / 2


def test_four_minutes_are_enough_for_nine_systems_and_two_tasks():
    found = planned(step=0.025)
    assert len(found["systems"]) == 9
    assert [task["name"] for task in found["tasks"]][:2] == ["recall", "bytes"]
    assert len(found["seeds"]) == 2
    assert takes(found) < 240 * 0.9 - 9 * len(found["lengths"])
    for task in found["tasks"]:
        assert task["steps"] >= TRIALS[task["name"]].sizes["small"].least
    assert any(sentence.startswith("the tasks ") and "4 minutes are too short" in sentence
               for sentence in found["left_out"])  # fmt: skip


def test_more_time_means_more_tasks_seeds_and_larger_ones():
    brief, longer = planned("moh", step=0.02, budget=60.0), planned("moh", step=0.02)
    assert len(longer["tasks"]) > len(brief["tasks"]) or len(longer["seeds"]) > len(brief["seeds"])
    assert planned("moh", budget=7200.0)["level"] == "medium"
    assert planned("moh", budget=200_000.0)["level"] == "large"
    assert planned("moh", budget=200_000.0)["lengths"][-1] == 65536


def test_systems_that_would_slow_down_all_others_train_no_models_and_that_is_said():
    found = planned("moh", "aaren", "base-conv", step=0.05, slow={"aaren": 60}, tasks=("recall",))
    assert found["without"] == ["aaren"]
    assert any(sentence.startswith("models of aaren: a step takes 3000 ms") for sentence in found["left_out"])
    made = {(unit.what, unit.system) for unit in units(read_plan(found))}
    assert ("cost", "aaren") in made and ("quality", "aaren") not in made
    assert found["tasks"][0]["steps"] >= TRIALS["recall"].sizes["small"].least


def test_the_baseline_is_never_left_out():
    found = planned("moh", "aaren", "base-conv", step=0.05, slow={"softmax": 60}, tasks=("recall",))
    assert "softmax" not in found["without"]


def test_steps_that_are_too_few_are_said_to_be():
    found = planned("moh", step=1.0, tasks=("recall",), budget=60.0)
    assert any("steps of the 120 that it takes to see something" in each for each in found["left_out"])


def test_what_is_asked_for_is_done():
    ask = dict(tasks=("copying", "bytes"), lengths=(2048, 256, 256), dim=32, heads=4, layers=3, seeds=5)
    found = planned("moh", **ask)
    assert [task["name"] for task in found["tasks"]] == ["copying", "bytes"]
    assert (found["lengths"], found["dim"], found["heads"], found["layers"]) == ([256, 2048], 32, 4, 3)
    assert found["seeds"] == [0, 1, 2, 3, 4]
    alone = planned("moh", tasks=())
    assert (alone["tasks"], alone["left_out"]) == ([], [])


def test_models_grow_where_a_system_needs_room():
    asked = Asked(names=("moh",), tasks=("recall",))
    out = outline(asked, select(asked.names, None), device="cpu", slots=2)
    each = {"usual": 80_000, "step": 0.01, "tokens": 64, "evaluation": 0.1}
    survey = {"softmax": {"recall": each | {"least": 40_000}}, "moh": {"recall": each | {"least": 90_000}}}
    assert plan(out, survey)["tasks"][0]["parameters"] == 90_000
    survey["moh"]["recall"]["least"] = 200_000
    assert plan(out, survey)["tasks"][0]["parameters"] == 80_000


def test_a_system_that_failed_in_the_survey_stays_in_the_plan():
    asked = Asked(names=("moh",), tasks=("recall",))
    out = outline(asked, select(asked.names, None), device="cpu", slots=2)
    each = {"usual": 80_000, "least": 40_000, "step": 0.01, "tokens": 64, "evaluation": 0.1}
    found = plan(out, {"softmax": {"recall": each}, "moh": {"recall": {"failed": "no"}}})
    assert ("quality", "moh") in {(unit.what, unit.system) for unit in units(read_plan(found))}


def test_layouts_options_and_the_baseline():
    softmax, based, mixed = select(["based-like", "moh+sliding-window@window=8"], None)
    assert softmax.name == "softmax"
    assert based.parts == ("linear-attention", "sliding-window")
    assert based.specs == ("linear-attention@features=taylor,states=8", "sliding-window@window=16")
    assert mixed.parts == ("moh", "sliding-window")
    assert {each.kind for each in select([], "grid")[1:]} == {"grid"}


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("moh", {}),
        ("x@a=1,b=0.5,c=true,d=none,e=taylor", {"a": 1, "b": 0.5, "c": True, "d": None, "e": "taylor"}),
        ("my.module:Layer@size=(2,)", None),
    ],
)
def test_options_in_a_name(text, options):
    if options is None:
        with pytest.raises(ValueError, match="has the option"):
            Spec.of(text)
    else:
        assert Spec.of(text).options == options
