"""A unit that trains: its checkpoint survives a kill, and goes when the unit is finished."""

import pytest
import torch

from regardant.claim.context import Context
from regardant.claim.work import Work
from tests.train.small import Successor, small_model, weights

TASK = Successor()


class Killed(BaseException):
    pass


def measured(folder, *, die_at=None, made_with="this code"):
    """The weights after training in one unit two models one after the other; steps that were told of."""
    told, trained = [], []

    def report(tick):
        told.append(tick)
        if len(told) == die_at:
            raise Killed

    def unit(run):
        for _ in range(2):
            trained.append(run.fit(small_model, TASK, steps=150, batch=2, learning_rate=1e-2))
        return {"one": weights(trained[0]).sum().item(), "other": weights(trained[1]).sum().item()}

    work = Work(folder, {"code": made_with})
    Context(seeds=(0,), work=work, report=report).measure({"model": unit})
    return torch.stack([weights(model) for model in trained]), told


def test_a_killed_training_goes_on_and_ends_the_same(tmp_path):
    whole, told = measured(tmp_path / "whole")
    assert len(told) == 301
    with pytest.raises(Killed):
        measured(tmp_path / "killed", die_at=270)
    assert len(list((tmp_path / "killed").glob("*.safetensors"))) == 2
    resumed, rest = measured(tmp_path / "killed")
    assert torch.equal(whole, resumed)
    assert len(rest) == 1 + 50, "the first model is whole, the second goes on from step 100"
    assert [path.name for path in (tmp_path / "killed").iterdir()] == ["model.seed-0.json"]


def test_a_checkpoint_of_other_code_is_not_gone_on_from(tmp_path):
    with pytest.raises(Killed):
        measured(tmp_path, die_at=270)
    _, told = measured(tmp_path, made_with="other code")
    assert len(told) == 301


def test_units_need_names_that_name_files(tmp_path):
    context = Context(seeds=(0,), work=Work(tmp_path, {}))
    with pytest.raises(ValueError, match=r"variant is '../x'"):
        context.measure({"../x": lambda run: {"a": 1.0}})
    with pytest.raises(ValueError, match="returned no figure"):
        context.measure({"x": lambda run: {}})
    with pytest.raises(ValueError, match="variants is empty"):
        context.measure({})
