"""Models of diffusers, of timm's make, and of our own: the same stages, the same identity on exit."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from regardant import create
from regardant.edit.apply import apply
from regardant.edit.language.temp_scale import TempScale
from regardant.host.host import host_of
from regardant.train.model import TokenModel
from tests.host.edits import HeadsOff, Pushed, Raises, Sharper, Written

pytestmark = pytest.mark.filterwarnings("ignore")


class Attention(nn.Module):
    """Made as timm's: one projection for queries, keys and values."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.num_heads, self.fused_attn = heads, True
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if self.fused_attn:
            heads = nn.functional.scaled_dot_product_attention(q, k, v)
        else:
            heads = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v
        return self.proj(heads.transpose(1, 2).flatten(2))


class VisionModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleDict(dict(attn=Attention(32, 4))) for _ in range(3))

    def forward(self, x):
        for block in self.blocks:
            x = x + block["attn"](x)
        return x


VisionModel.__module__ = "timm.models.vision_transformer"


def timm_like():
    return VisionModel().eval(), (torch.randn(2, 9, 32),), {}


def unet():
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(
        sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), norm_num_groups=4, cross_attention_dim=24,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=4,
    )  # fmt: skip
    given = dict(timestep=torch.tensor(7), encoder_hidden_states=torch.randn(2, 5, 24), return_dict=False)
    return model.eval(), (torch.randn(2, 3, 8, 8),), given


def diffusion_transformer():
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=8, in_channels=3, num_layers=2, sample_size=8, patch_size=2,
        num_embeds_ada_norm=10,
    )  # fmt: skip
    given = dict(timestep=torch.tensor([3, 3]), class_labels=torch.tensor([1, 2]), return_dict=False)
    return model.eval(), (torch.randn(2, 3, 8, 8),), given


def our_own(position="none"):
    make = partial(create, "softmax", dim=32, heads=4, causal=True, kv_heads=2, position=position)
    return TokenModel(40, [make] * 3, dim=32).eval(), (torch.randint(0, 40, (2, 17)),), {}


MODELS = [timm_like, unet, diffusion_transformer, our_own, partial(our_own, "alibi")]


def made(maker):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, args, kwargs = maker()
        for weight in model.parameters():
            if weight.ndim > 1:
                nn.init.normal_(weight, std=1.5 * weight[0].numel() ** -0.5)

    def run():
        with torch.no_grad():
            output = model(*args, **kwargs)
            return output[0] if isinstance(output, tuple) else output

    return model, run


@pytest.fixture(params=MODELS, ids=["timm", "unet", "dit", "ours", "ours with alibi"])
def hosted(request):
    return made(request.param)


def across(model):
    return any(site.cross for site in host_of(model).sites)


def test_written_out_it_is_the_same(hosted):
    model, run = hosted
    expected = run()
    edits = [Written()] + [Written(cross=True)] * across(model)
    with apply(model, *edits) as applied:
        torch.testing.assert_close(run(), expected, atol=1e-5, rtol=1e-4)
    assert {how for _, how in applied.calls} == {"written"}


def test_reading_changes_no_bit_and_exit_restores(hosted):
    model, run = hosted
    expected, before = run(), {name: set(vars(module)) for name, module in model.named_modules()}
    with apply(model, Raises(after=10**9)):
        assert torch.equal(run(), expected)
    with pytest.raises(RuntimeError, match="in the middle"), apply(model, Raises(after=1)):
        run()
    for edit in (Sharper(), HeadsOff(), TempScale(0.5)):
        with apply(model, edit):
            assert not torch.equal(run(), expected)
    assert torch.equal(run(), expected)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before


def test_a_factor_equals_the_same_written_out(hosted):
    model, run = hosted
    with apply(model, Sharper()):
        expected = run()
    with apply(model, TempScale(0.5)):
        torch.testing.assert_close(run(), expected, atol=1e-4, rtol=1e-3)


def test_cross_attention_of_a_unet_is_told_apart():
    model, run = made(unet)
    sites = host_of(model).sites
    assert {site.stack for site in sites} == {"down", "mid", "up"}
    assert sum(site.cross for site in sites) == sum(not site.cross for site in sites) > 0
    keys = {}

    class Keys:
        def stages(self, site):
            return frozenset({"read"})

        def read(self, call, heads, weights, site, run):
            keys.setdefault(site.cross, set()).add(call.keys)

    from regardant.host.seam import Seam

    seam, lens = Seam.of(model), Keys()
    seam.enter([lens])
    run()
    run()
    assert seam.run.step == 1 and int(seam.run.timestep) == 7
    seam.leave([lens])
    assert keys[True] == {5} and keys[False] == {16}


def test_the_residual_stream_of_our_own_blocks():
    model, run = made(our_own)
    expected = run()
    with apply(model, Pushed(layers=[-1])):
        assert not torch.equal(run(), expected)


def test_a_layer_of_ours_under_edit_refuses_to_step():
    model, _ = made(our_own)
    layer = model.trunk.blocks[0].mixer
    state = layer.start(1)
    with pytest.raises(ValueError, match="does not decode step by step"), apply(model, HeadsOff()):
        layer.step(torch.zeros(1, 32), state)
    layer.step(torch.zeros(1, 32), state)


def test_an_attention_that_is_not_fused_is_named():
    model, run = made(timm_like)
    model.blocks[1]["attn"].fused_attn = False
    sentence = r"Attention at blocks\.1\.attn does not call .*fused_attn"
    with pytest.raises(ValueError, match=sentence), apply(model, HeadsOff()):
        run()


def test_a_model_without_attention_is_refused():
    with pytest.raises(ValueError, match="has no attention that edits could act on"):
        apply(nn.Linear(2, 2), HeadsOff())
    with pytest.raises(ValueError, match="model is str"):
        apply("llama", HeadsOff())
