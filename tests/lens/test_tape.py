import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

import regardant
from regardant.edit.edit import Edit
from regardant.host.seam import HELD
from regardant.lens.attention_statistics import attended, entropy, sink_share
from regardant.lens.tape import Reading, Tape


@pytest.fixture
def model():
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        made = LlamaForCausalLM(config).double().eval()
    with torch.no_grad():
        for weight in made.parameters():
            weight.mul_(4 if weight.ndim > 1 else 1)
    return made


def ids(batch=2, length=13):
    return torch.randint(1, 50, (batch, length), generator=torch.Generator().manual_seed(1))


def eager(model, tokens, **keywords):
    """What the library itself says; its eager attention takes the softmax in float32, whatever the model."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        found = model(tokens, output_attentions=True, **keywords).attentions
    model.set_attn_implementation("sdpa")
    return found


def test_chosen_rows_and_heads_are_the_eager_maps_while_the_forward_stays_fused(model):
    tokens, whole = ids(), eager(model, ids())
    with (
        torch.no_grad(),
        Tape(model, last=Reading(layers=[0, -1], heads=[3, 0], rows=slice(-4, None))) as tape,
    ):
        seam = model.__dict__[HELD]
        model(tokens)
    assert set(tape["last"]) == {0, 2}
    for layer in (0, 2):
        (found,) = tape["last"][layer]
        assert (found - whole[layer][:, [3, 0], -4:]).abs().max() < 1e-6
    assert {how for _, how in seam.calls} == {"fused"}
    assert HELD not in model.__dict__


def test_heads_may_differ_by_layer_and_rows_be_a_list(model):
    tokens, whole = ids(), eager(model, ids())
    with torch.no_grad(), Tape(model, some=Reading(heads={1: [2], 2: [0, 1]}, rows=[0, -2])) as tape:
        model(tokens)
    assert (tape["some"][1][0] - whole[1][:, [2]][:, :, [0, -2]]).abs().max() < 1e-6
    assert (tape["some"][2][0] - whole[2][:, [0, 1]][:, :, [0, -2]]).abs().max() < 1e-6


def test_tiles_of_rows_change_nothing(model):
    tokens = ids()
    with torch.no_grad(), Tape(model, a=Reading(reduce=entropy)) as whole:
        model(tokens)
    with (
        torch.no_grad(),
        Tape(model, room=1, a=Reading(reduce=entropy), b=Reading(reduce=entropy, keep="mean")) as tiles,
    ):
        model(tokens)
    for layer in range(3):
        assert (whole["a"][layer][0] - tiles["a"][layer][0]).abs().max() < 1e-12
    assert (whole.head_map("a").values - tiles.head_map("b").values).abs().max() < 1e-12
    assert (whole.mean("a")[1] - whole["a"][1][0].mean(dim=(0, 2))).abs().max() < 1e-12


def test_padding_on_the_left_changes_no_mean(model):
    tokens = ids(1)
    padded = torch.cat([torch.zeros(1, 5, dtype=torch.int64), tokens], dim=1)
    mask = (torch.arange(18) >= 5).long()[None]
    readings = {"wide": Reading(reduce=entropy), "sink": Reading(reduce=sink_share(2), keep="mean")}
    with torch.no_grad(), Tape(model, **readings) as alone:
        model(tokens)
    with torch.no_grad(), Tape(model, **readings) as beside:
        model(padded, attention_mask=mask)
    for name in readings:
        assert (alone.head_map(name).values - beside.head_map(name).values).abs().max() < 1e-9


def test_decoding_gives_a_row_for_every_pass(model):
    tokens = ids(1, 6)
    with (
        torch.no_grad(),
        Tape(model, row=Reading(rows=[-1]), best=Reading(reduce=attended, rows=[-1])) as tape,
    ):
        said = model.generate(tokens, max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0)
    whole = eager(model, said)
    assert [each.shape[-1] for each in tape["row"][1]] == [6, 7, 8, 9]
    for step, found in enumerate(tape["row"][2]):
        assert (found[0, :, 0] - whole[2][0, :, 5 + step, : 6 + step]).abs().max() < 1e-6
        assert torch.equal(tape["best"][2][step][0, :, 0], found[0, :, 0].argmax(-1))


def test_edited_weights_are_what_is_read(model):
    class Even(Edit):
        def weights(self, weights, site, run):
            return torch.full_like(weights, 1 / weights.shape[-1])

    with (
        torch.no_grad(),
        Tape(model, maps=Reading(layers=[1])) as tape,
        regardant.apply(model, Even(layers=[1])),
    ):
        model(ids())
    assert torch.equal(tape["maps"][1][0], torch.full((2, 4, 13, 13), 1 / 13, dtype=torch.float64))


def test_attention_that_was_replaced_has_no_maps_and_says_so(model):
    class Mean(Edit):
        def attend(self, call, site, run):
            return call.v.mean(2, keepdim=True).repeat_interleave(2, 1).expand(call.q.shape)

    with (
        pytest.raises(ValueError, match=r"Mean replaces the attention of layer 1 of main: there are no maps"),
        regardant.apply(model, Mean(layers=[1])),
        Tape(model, maps=Reading()),
    ):
        model(ids())
    assert HELD not in model.__dict__


def test_a_tape_that_read_nothing_raises(model):
    with pytest.raises(ValueError, match="wide read nothing"), Tape(model, wide=Reading(reduce=entropy)):
        pass


def test_what_is_kept_has_gradients_where_asked(model):
    weight = model.model.layers[0].self_attn.q_proj.weight
    with Tape(model, kept=Reading(reduce=entropy, gradients=True), left=Reading(reduce=entropy)) as tape:
        model(ids())
    assert not tape["left"][0][0].requires_grad
    (slope,) = torch.autograd.grad(tape["kept"][0][0].sum(), weight)
    assert float(slope.abs().max()) > 0


def test_a_head_map_has_nan_where_nothing_was_read(model):
    with torch.no_grad(), Tape(model, wide=Reading(reduce=entropy, layers=[1], heads=[2])) as tape:
        model(ids())
    found = tape.head_map("wide")
    assert found.measured == 1 and found.top(1) == [(1, 2)]
    assert found.values.shape == (3, 4)


@pytest.mark.parametrize(
    ("reading", "sentence"),
    [
        (dict(layers=[5]), r"layers of x has \[5\], but the attention layers go to 2"),
        (dict(heads=[4]), "heads of x has 4, but layer 0 of main has query heads 0 to 3"),
        (dict(stack="vision"), "vision"),
        (dict(keep="all"), "all"),
        (dict(keep="mean"), "maps of different lengths have no mean"),
        (dict(cross=True), "is about no attention of this model"),
    ],
)
def test_bad_readings_are_refused_before_any_pass(model, reading, sentence):
    with pytest.raises(ValueError, match=sentence):
        Tape(model, x=Reading(**reading))


class Largest(TorchDispatchMode):
    """The largest tensor that anything made."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for each in made if isinstance(made, tuple | list) else [made]:
            if isinstance(each, torch.Tensor):
                self.numbers = max(self.numbers, each.numel())
        return made


@pytest.mark.parametrize(
    ("reading", "room", "most"),
    [
        # 3 heads × 16 rows × 120 keys, or a copy of 3 heads' keys of 8 channels
        (Reading(layers=[1], heads=[0, 1, 3], rows=slice(-16, None)), 2**25, 3 * 16 * 120),
        # all rows in tiles of 4 × 4 heads × 8 rows × 120 keys numbers of 4 bytes
        (Reading(layers=[1], reduce=entropy), 4 * 4 * 4 * 8 * 120, 4 * 8 * 120),
    ],
)
def test_reading_makes_nothing_of_the_length_squared(model, reading, room, most):
    tape, largest = Tape(model, room=room, some=reading), Largest()
    read = tape.read

    def watched(*arguments):
        tape._sure.add("LlamaAttention")  # the comparison with the heads is made once, on four rows
        with largest:
            read(*arguments)

    tape.read = watched
    with torch.no_grad(), tape:
        model(ids(1, 120))
    assert 0 < largest.numbers <= most < 4 * 120 * 120
