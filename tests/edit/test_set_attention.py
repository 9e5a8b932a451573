import pytest
import torch

import regardant
from regardant.edit.set_attention import SetAttention
from regardant.lens.tape import Reading, Tape
from tests.edit.small_llama import IDS, small_llama


@pytest.fixture
def model():
    return small_llama(layers=3)


TO = torch.tensor([[0, 0.25, 0.75], [1.0, 0, 0]], dtype=torch.float64)


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_chosen_heads_look_where_they_are_told_in_the_last_row_alone(model, strength):
    maps = Reading(layers=[1])
    with torch.no_grad(), Tape(model, maps=maps) as before:
        model(IDS)
    edit = SetAttention(chosen=[(1, 2)], weights_to=TO, strength=strength)
    with torch.no_grad(), regardant.apply(model, edit) as applied, Tape(model, maps=maps) as after:
        model(IDS)
    expected = before["maps"][1][0].clone()
    told = torch.nn.functional.pad(TO, (0, 8))
    expected[:, 2, -1] = strength * told + (1 - strength) * expected[:, 2, -1]
    assert (after["maps"][1][0] - expected).abs().max() < 1e-9
    assert sum(count for (_, how), count in applied.calls.items() if how == "written") == 1


def test_what_a_head_brings_is_the_value_where_it_looks(model):
    """All weight on place 0: the head gives the value of place 0, which it gave in row 0 anyway."""
    site = model.model.layers[1].self_attn
    seen = []
    handle = site.o_proj.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    to = torch.tensor([[1.0]], dtype=torch.float64)
    with torch.no_grad(), regardant.apply(model, SetAttention(chosen={1: [2]}, weights_to=to)):
        model(IDS)
    handle.remove()
    heads = seen[0].view(2, 11, 4, 8)
    assert (heads[:, -1, 2] - heads[:, 0, 2]).abs().max() < 1e-9


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (dict(chosen=[], weights_to=TO), "chosen is empty"),
        (dict(chosen=[(1, 4)], weights_to=TO), "chosen has head 4"),
        (dict(chosen=[(1, 0)], weights_to=-TO), "never negative"),
        (dict(chosen=[(1, 0)], weights_to=TO, strength=3), "strength is 3"),
        (dict(chosen=[(-1, 0)], weights_to=TO), "layers count from 0"),
    ],
)
def test_bad_settings_are_refused(model, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        regardant.apply(model, SetAttention(**settings))


def test_weights_of_another_batch_are_refused(model):
    three = torch.ones(3, 2) / 2
    with (
        torch.no_grad(),
        pytest.raises(ValueError, match="this pass has 2 samples"),
        regardant.apply(model, SetAttention(chosen=[(1, 0)], weights_to=three)),
    ):
        model(IDS)
