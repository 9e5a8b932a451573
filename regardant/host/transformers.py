"""Models of transformers ≥ 5: every attention of theirs passes through one registered function.

The function and its mask function are registered together, under one name for each implementation that a
model may have been using ("sdpa", "eager"): a name without its own mask would let the model look into the
future. While attached, the model's configs name that implementation, and every attention module holds, in its
instance dictionary, whom to ask. Sites that nobody touches go on with the implementation that they had.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from regardant.core.errors import require
from regardant.host.call import Call
from regardant.host.host import Attend
from regardant.host.passes import Passes
from regardant.host.rotary import Rotary
from regardant.host.run import Run
from regardant.host.site import Site

PREFIX = "regardant_"
IMPLEMENTATIONS = ("sdpa", "eager")
SEAM = "_regardant_seam"
"""The attribute by which an attention module finds whom to ask, while its model is attached."""

STACKS = (("vision", r"vision|visual|image_encoder"), ("audio", r"audio|speech"))
PROJECTIONS = ("o_proj", "out_proj", "c_proj", "dense", "o", "proj", "wo", "out_lin")


class TransformersHost:
    """A model of transformers."""

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.sites = tuple(_sites(model))
        require(
            len(self.sites) > 0,
            f"no attention of {type(model).__name__} passes through transformers' attention interface"
            f"{_named(model)}; choose a model whose attention does, or give it an attention module that "
            "calls ALL_ATTENTION_FUNCTIONS",
        )
        self._configs: list[tuple[Any, str | None]] = []
        self._passes: Passes | None = None
        self._rotary = Rotary()

    def attach(self, attend: Attend, run: Run) -> None:
        configs = list(_configs(self.model))
        for config, implementation in configs:
            base = implementation or "eager"
            require(
                base in IMPLEMENTATIONS,
                f"the attention implementation is {base!r}, which hands no mask that can be read; call "
                'model.set_attn_implementation("sdpa") (or "eager") first',
            )
            require(
                not (base == "eager" and getattr(config, "reorder_and_upcast_attn", False)),
                "the config asks for reorder_and_upcast_attn, an attention of its own beside the interface; "
                "set it to False",
            )
        register()
        self._configs = configs
        for config, implementation in configs:
            config._attn_implementation_internal = PREFIX + (implementation or "eager")
        for site in self.sites:
            site.module.__dict__[SEAM] = (site, attend, run, self._rotary)
            self._rotary.watch(site.module)
        self._passes = Passes(self.model, run)

    def detach(self) -> None:
        for config, implementation in self._configs:
            config._attn_implementation_internal = implementation
        for site in self.sites:
            site.module.__dict__.pop(SEAM, None)
        if self._passes is not None:
            self._passes.remove()
        self._rotary.remove()
        self._configs, self._passes = [], None

    def output_projection(self, site: Site) -> nn.Module:
        """The layer that a site's heads go through next: beside it, or (BERT) in the module around it."""
        wanted = site.q_heads * site.head_dim
        around = self.model.get_submodule(site.name.rpartition(".")[0])
        for holder in (site.module, around, getattr(around, "output", None)):
            for name in PROJECTIONS:
                layer = getattr(holder, name, None)
                if isinstance(layer, nn.Module) and _inputs(layer) == wanted:
                    return layer
        raise ValueError(
            f"{type(site.module).__name__} at {site.name} has no output projection of {wanted} inputs under "
            f"a known name ({', '.join(PROJECTIONS)})"
        )


def register() -> None:
    """Make our names known to transformers, the function and its mask together."""
    for base in IMPLEMENTATIONS:
        if PREFIX + base not in ALL_ATTENTION_FUNCTIONS:
            AttentionInterface.register(PREFIX + base, _routed(base))
            AttentionMaskInterface.register(PREFIX + base, ALL_MASK_ATTENTION_FUNCTIONS[base])


def _routed(base: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The registered function: the host's arguments into a call, and the call to whom it may concern."""

    def attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **others):
        original = _implementation(module, base)
        seam = module.__dict__.get(SEAM)
        require(
            seam is not None,
            f"{type(module).__name__} was reached through a config that is under edit, but it was not part "
            "of the model when the edit began",
        )
        site, attend, run, rotary = seam
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling

        def fused(call: Call) -> tuple[Tensor, Tensor | None]:
            own = (
                others if call.bias is others.get("position_bias") else {**others, "position_bias": call.bias}
            )
            out, weights = original(
                module, call.q, call.k, call.v, call.mask, scaling=call.scaling, dropout=call.dropout, **own
            )
            return out.transpose(1, 2), weights

        causal = others.get("is_causal")
        cross = site.cross
        call = Call(
            site, query, key, value, attention_mask, scaling,
            causal=bool(getattr(module, "is_causal", True) if causal is None else causal),
            fused=fused, bias=others.get("position_bias"), cap=others.get("softcap"),
            sinks=others.get("s_aux"), dropout=dropout, past=0 if cross else _past(key, query, run),
            turned_back=rotary.unturned,
        )  # fmt: skip
        out, weights = attend(call)
        return out.transpose(1, 2).contiguous(), weights

    return attention


def _past(key: Tensor, query: Tensor, run: Run) -> int:
    """Tokens before these queries: what the pass says, as long as the call is one of that pass's length."""
    return run.past if query.shape[2] == run.length - run.past else 0


def _implementation(module: nn.Module, base: str) -> Callable:
    """The attention that this module would have had: the library's, or the eager one of its own file."""
    for owner in type(module).__mro__:
        known = vars(sys.modules[owner.__module__])
        if base == "eager" and "eager_attention_forward" in known:
            return known["eager_attention_forward"]
        if base != "eager" and "ALL_ATTENTION_FUNCTIONS" in known:
            return known["ALL_ATTENTION_FUNCTIONS"][base]
    raise ValueError(f"{type(module).__name__} has no {base} attention of its own that could be found")


def _configs(model: nn.Module) -> Iterator[tuple[Any, str | None]]:
    """Every config that a module of the model reads its implementation from, once."""
    seen = set()
    for module in model.modules():
        config = getattr(module, "config", None)
        if hasattr(config, "_attn_implementation_internal") and id(config) not in seen:
            seen.add(id(config))
            yield config, config._attn_implementation_internal


def _sites(model: PreTrainedModel) -> Iterator[Site]:
    """The modules whose forward asks the attention interface."""
    several = len({_named_stack(name) for name, module in model.named_modules() if _asks(module)}) > 1
    both = bool(getattr(model.config, "is_encoder_decoder", False))
    layers: dict[str, dict[int, int]] = {}
    for name, module in model.named_modules():
        if not _asks(module):
            continue
        stack = _named_stack(name) or ("text" if several else "main")
        if both and stack in ("main", "text"):
            stack = "decoder" if re.search(r"(^|\.)decoder(\.|$)", name) else "encoder"
        block, number = _block(model, name)
        own = layers.setdefault(stack, {})
        layer = own.setdefault(
            id(block if block is not None else module), len(own) if number is None else number
        )
        heads = _number(module, ("num_attention_heads", "num_heads", "n_heads"))
        group = getattr(module, "num_key_value_groups", 1)
        yield Site(
            name, stack, layer, _crosses(name, module), heads, heads // group, _head_dim(module, heads),
            bool(getattr(module, "is_causal", False)), module, block,
        )  # fmt: skip


def _asks(module: nn.Module) -> bool:
    """Whether the forward of this class names the interface."""
    forward = inspect.unwrap(type(module).forward)
    code = getattr(forward, "__code__", None)
    return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names


def _named_stack(name: str) -> str | None:
    return next((stack for stack, pattern in STACKS if re.search(pattern, name)), None)


def _crosses(name: str, module: nn.Module) -> bool:
    if getattr(module, "is_cross_attention", False):
        return True
    return bool(
        re.search(r"cross|encoder_attn|EncDecAttention|encoder_decoder", name.rpartition("layers")[2])
        or "Cross" in type(module).__name__
    )


def _block(model: nn.Module, name: str) -> tuple[nn.Module | None, int | None]:
    """The block around a site, and its number where the list of blocks is the only list above it.

    A block is the innermost element of a ModuleList whose elements are of one kind: a list of unlike parts
    (T5's) is the inside of a block.
    """
    path, found = name.split("."), []
    for end in range(1, len(path)):
        around = model.get_submodule(".".join(path[:end]))
        if isinstance(around, nn.ModuleList) and path[end].isdigit():
            alike = len({type(each) for each in around}) == 1
            found.append((model.get_submodule(".".join(path[: end + 1])), int(path[end]), alike))
    same = [each for each in found if each[2]] or found
    if not same:
        return None, None
    return same[-1][0], same[-1][1] if len(same) == 1 else None


def _number(module: nn.Module, names: tuple[str, ...]) -> int:
    for holder in (module, getattr(module, "config", None)):
        for name in names:
            value = getattr(holder, name, None)
            if isinstance(value, int):
                return value
    raise ValueError(f"{type(module).__name__} does not say how many heads it has (tried {', '.join(names)})")


def _head_dim(module: nn.Module, heads: int) -> int:
    for name in ("head_dim", "attention_head_size", "head_size", "key_value_proj_dim"):
        value = getattr(module, name, None)
        if isinstance(value, int):
            return value
    config = getattr(module, "config", None)
    return getattr(config, "head_dim", None) or config.hidden_size // heads


def _inputs(layer: nn.Module) -> int | None:
    """How many inputs a linear layer has (transformers' Conv1D keeps its weight the other way round)."""
    if type(layer).__name__ == "Conv1D":
        return layer.weight.shape[0]
    return getattr(layer, "in_features", None)


def _named(model: nn.Module) -> str:
    """The first module that looks like an attention, for the sentence."""
    for name, module in model.named_modules():
        if "Attention" in type(module).__name__:
            return f" ({type(module).__name__} at {name} computes its own)"
    return ""
