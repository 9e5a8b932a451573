"""Vision systems and their authors' code, read from checkouts: two modules with the same weights.

The folder that REGARDANT_OFFICIAL names (see `peers_official`) holds checkouts under the names of their
repositories. What their files import and their forward passes do not need (data loaders, registries,
torchvision) may be missing: `Nothing` stands for it. MaxViT's own code is for TensorFlow, so that timm's port
is its peer. HaloNet and ELA have no official code; HaloNet is set against the two public layers.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import nn

import regardant
from bench.peers_official import VARIABLE, missing
from regardant.core.errors import require

TIMM = "pytorch-image-models"
TORCHVISION = (
    "datasets", "models", "models.feature_extraction", "ops", "ops.misc", "transforms",
    "transforms.functional",
)  # fmt: skip
Modules = Mapping[str, ModuleType | Mapping[str, Any]]
Two = tuple[nn.Module, nn.Module]


class Nothing:
    """Whatever is asked of it; a function or a class that it is to decorate, it leaves as it is."""

    def __call__(self, given: Any = None, *_, **__) -> Any:
        return given if callable(given) else self

    def __getattr__(self, name: str) -> Nothing:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __iter__(self) -> Iterator[Nothing]:
        return iter(())


@contextmanager
def standing_in(modules: Modules) -> Iterator[None]:
    """Modules for imports to find, as they are or with these contents and `Nothing` for all else.

    They are gone afterwards, and so is what was imported of the same packages.
    """
    before = dict(sys.modules)
    for name, contents in modules.items():
        if not isinstance(contents, ModuleType):
            made = ModuleType(name)
            made.__path__, made.__getattr__ = [], Nothing().__getattr__
            vars(made).update(contents)
            contents = made
        sys.modules[name] = contents
    packages = {name.partition(".")[0] for name in modules} - {"numpy"}
    try:
        yield
    finally:
        for name in set(sys.modules) - set(before):
            if name in modules or name.partition(".")[0] in packages:
                del sys.modules[name]
        sys.modules.update(before)


def folder(repository: str) -> Path:
    reason = missing(repository)
    require(reason is None, f"{reason}, so that it cannot be measured")
    return Path(os.environ[VARIABLE]) / repository


def timm(*names: str) -> list[ModuleType]:
    """Modules of timm's checkout by themselves: without all the models, and without torchvision."""
    root = folder(TIMM) / "timm"
    own = {
        "timm": {"__path__": [str(root)], "__version__": ""},
        "timm.models": {"__path__": [str(root / "models")]},
    }
    others = {f"torchvision.{part}": {} for part in TORCHVISION}
    with standing_in({"torchvision": {}, "timm.data": {}, **own, **others}):
        return [importlib.import_module(f"timm.{name}") for name in names]


def official(repository: str, path: str, modules: Modules | None = None, *, name: str = "its") -> ModuleType:
    """A file of a checkout; `modules` are those that it imports beside timm's layers."""
    (layers,) = timm("layers")
    found: dict[str, Any] = {f"timm{rest}": {} for rest in ("", ".data", ".models", ".models.registry")}
    found |= {"timm.layers": layers, "timm.models.layers": layers, **(modules or {})}
    with standing_in(found):
        spec = spec_from_file_location(name, folder(repository) / path)
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


@torch.no_grad()
def unsettled(network: nn.Module) -> nn.Module:
    """With other biases, norms and statistics than they begin with, so that none goes unnoticed."""
    for parameter in network.parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return network


def same_weights(ours: nn.Module, theirs: nn.Module) -> Two:
    return ours.load_official(unsettled(theirs).state_dict()), theirs


def ours_as(variant: str, theirs: nn.Module) -> Two:
    """A variant of ours with the weights of an official network."""
    return same_weights(regardant.create(variant, drop_path=0.0), theirs)


def maxvit() -> Two:
    (its,) = timm("models.maxxvit")
    return ours_as("maxvit_tiny", its.MaxxVit(its.model_cfgs["maxvit_tiny_tf"], img_size=224))


def davit() -> Two:
    modules = {f"timm.models.{part}": {} for part in ("helpers", "registry", "vision_transformer")}
    its = official("davit", "timm/models/davit.py", modules, name="timm.models.davit")
    size = dict(embed_dims=(96, 192, 384, 768), num_heads=(3, 6, 12, 24), depths=(1, 1, 3, 1))
    return ours_as("davit_tiny", its.DaViT(**size, drop_path_rate=0.0))


def cswin() -> Two:
    its = official("CSWin-Transformer", "models/cswin.py", {"timm.models.helpers": {}})
    return ours_as("cswin_tiny", its.CSWin_64_12211_tiny_224())


def hat() -> Two:
    """Two of the base model's groups, of two blocks each."""
    (layers,) = timm("layers")
    parts = {"to_2tuple": layers.to_2tuple, "trunc_normal_": layers.trunc_normal_}
    names = ("basicsr", "basicsr.utils", "basicsr.utils.registry", "basicsr.archs")
    modules = {**{name: {} for name in names}, "basicsr.archs.arch_util": parts}
    its = official("HAT", "hat/archs/hat_arch.py", modules)
    theirs = its.HAT(
        img_size=64, embed_dim=180, depths=(2, 2), num_heads=(6, 6), window_size=16, overlap_ratio=0.5,
        mlp_ratio=2, upscale=4, upsampler="pixelshuffle", resi_connection="1conv", drop_path_rate=0.0,
    )  # fmt: skip
    ours = regardant.create("hat", dim=180, groups=2, blocks=2, scale=4, drop_path=0.0)
    return same_weights(ours, theirs)


def crossvit() -> Two:
    """Its plain blocks are timm's: those of the checkout, whose attention is fused."""
    (blocks,) = timm("models.vision_transformer")

    def block(*, drop: float, **about: Any) -> nn.Module:
        return blocks.Block(proj_drop=drop, **about)

    parts = {"Block": block, "Mlp": blocks.Mlp}
    its = official("CrossViT", "models/crossvit.py", {"timm.models.vision_transformer": parts})
    return ours_as("crossvit_9", its.crossvit_9_224())


def spectformer() -> Two:
    modules = {"numpy.lib.arraypad": {}}
    its = official("SpectFormers", "vanilla_architecture/spectformer.py", modules)
    norm = partial(nn.LayerNorm, eps=1e-6)
    return ours_as("spectformer_xs", its.SpectFormer(embed_dim=384, depth=12, norm_layer=norm))


def hierarchical_spectformer() -> Two:
    modules = {"timm.models.vision_transformer": {}, "pytorch_wavelets": {}}
    its = official("SpectFormers", "hierarchical_architecture/spectformer.py", modules)
    return ours_as("spectformer_h_small", its.spectformer_s())


def ffnet() -> Two:
    (layers,) = timm("layers")
    parts = {"trunc_normal_": layers.trunc_normal_}
    its = official(
        "FFNet", "models/ffnet.py", {"timm.models.vision_transformer": parts, "timm.models._builder": {}}
    )
    return ours_as("ffnet_1", its.ffnet_1(drop_path_rate=0.0))


def biformer() -> Two:
    attention = official("BiFormer", "ops/bra_legacy.py")
    others = official("BiFormer", "models/_common.py")
    modules = {
        **{name: {} for name in ("fairscale", "fairscale.nn", "fairscale.nn.checkpoint", "ops", "models")},
        "timm.models.vision_transformer": {}, "ops.bra_legacy": attention, "models._common": others,
    }  # fmt: skip
    its = official("BiFormer", "models/biformer.py", modules, name="models.biformer")
    return ours_as("biformer_tiny", its.biformer_tiny())


def transnext() -> Two:
    """Its code without kernels for GPUs."""
    attention = official("TransNeXt", "classification/attention_native.py")
    modules = {"timm.models.vision_transformer": {}, "attention_native": attention}
    modules["pkg_resources"] = {"get_distribution": _absent, "DistributionNotFound": LookupError}
    its = official("TransNeXt", "classification/transnext.py", modules)
    return ours_as("transnext_micro", its.transnext_micro())


def _absent(name: str) -> None:
    raise LookupError(name)


def focalnet() -> Two:
    modules = {"torchvision": {}, "timm.data.constants": {}}
    its = official("FocalNet", "classification/focalnet.py", modules)
    return ours_as("focalnet_tiny_srf", its.FocalNet(depths=[2, 2, 6, 2], embed_dim=96, drop_path_rate=0.0))


def convit() -> Two:
    its = official("convit", "convit.py", {"timm.models.helpers": {}, "matplotlib.pyplot": {}})
    norm = partial(nn.LayerNorm, eps=1e-6)
    return ours_as("convit_tiny", its.VisionTransformer(embed_dim=192, num_heads=4, norm_layer=norm))


def evit() -> Two:
    helpers = official("evit", "helpers.py", {"torchprofile": {}})
    its = official("evit", "evit.py", {"timm.models.helpers": {}, "helpers": helpers})
    kept = [0.7 if layer in (3, 6, 9) else 1 for layer in range(12)]
    return ours_as("evit_tiny", its.EViT(embed_dim=192, num_heads=3, keep_rate=kept, fuse_token=True))


def inline_pvt() -> Two:
    its = official("InLine", "models/inline_pvt.py", {"timm.models.vision_transformer": {}})
    return ours_as("inline_pvt_tiny", its.inline_pvt_tiny(la_sr_ratios="1111"))


def ulsam(channels: int = 64, groups: int = 4) -> Two:
    with mock.patch.object(torch, "set_default_tensor_type", Nothing()):
        its = official("ULSAM", "ulsam.py")
    theirs = unsettled(its.ULSAM(channels, channels, 1, 1, groups))
    ours = regardant.create("ulsam", channels=channels, groups=groups)
    names = {"scale": "conv_dws", "scale_norm": "bn_dws", "score": "conv_point", "score_norm": "bn_point"}
    state = {}
    for name in ours.state_dict():
        part, _, which = name.rpartition(".")
        values = [group.get_submodule(names[part]).state_dict()[which] for group in theirs.subspaces]
        state[name] = torch.cat(values) if values[0].ndim else values[0]
    ours.load_state_dict(state)
    return ours, theirs


class ChannelsLast(nn.Module):
    """A layer of ours on maps as theirs takes them, [b, c, h, w]."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def halonet_package(dim: int = 256, heads: int = 4) -> Two:
    """Other mathematics: the package's mask hides what is on the map, and it scales the relative logits."""
    its = official("halonet-pytorch", "halonet_pytorch/halonet_pytorch.py")
    theirs = its.HaloAttention(dim=dim, block_size=8, halo_size=3, dim_head=dim // heads, heads=heads)
    ours = regardant.create("halonet-attention", dim=dim, heads=heads, block=8, halo=3)
    return nn.Sequential(ChannelsLast(ours), nn.Conv2d(dim, dim, 1)), theirs


@torch.no_grad()
def halonet_timm(dim: int = 256, heads: int = 4, block: int = 8, halo: int = 3) -> Two:
    """timm's layer does not mask what lies off the map, so that the outermost blocks differ."""
    (its,) = timm("layers.halo_attn")
    theirs = its.HaloAttn(dim, num_heads=heads, block_size=block, halo_size=halo)
    ours = regardant.create("halonet-attention", dim=dim, heads=heads, block=block, halo=halo)
    ours.to_q.weight.copy_(theirs.q.weight.flatten(1))
    # The keys and the values of a head stand side by side there.
    by_head = theirs.kv.weight.flatten(1).unflatten(0, (heads, 2, -1))
    ours.to_kv.weight.copy_(by_head.transpose(0, 1).flatten(0, 2))
    # A table of theirs begins at offsets that no pair has.
    ours.position.rows.copy_(theirs.pos_embed.height_rel[2 * halo :])
    ours.position.columns.copy_(theirs.pos_embed.width_rel[2 * halo :])
    return ChannelsLast(ours), theirs
