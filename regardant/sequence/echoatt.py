"""Attention that later layers share (Hajimolahoseini et al., "EchoAtt: Attend, Copy, then Adjust for More
Efficient Large Language Models", 2024, arXiv:2409.14595).

The attention matrices of neighbouring inner layers are much alike. So a run of layers computes them once,
in its first layer, and the others apply them to values of their own:

    A = softmax(Q Kᵀ / √d + mask),   y_l = (A V_l) W_O,l     for every layer l of the run

Followers have neither W_Q nor W_K, compute no scores, and keep values alone when decoding. The weights
travel in the record of the pass: the leader hands them on, a follower takes those of the nearest leader
before it. `share_attention` turns runs of a model's softmax layers into this, all other weights as they
are; `attention_similarity` says which layers are alike. Getting back what that costs is training.

A leader whose record is handed on writes its weights out, n² of them a head; without a record it runs as
softmax attention does.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regardant.core.checks import check_heads, check_input
from regardant.core.errors import require
from regardant.core.mixer import Mixer, MultiHead, MultiHeadState
from regardant.core.position import Position
from regardant.core.record import Record
from regardant.core.rule import KeyValueState, SoftmaxRule
from regardant.core.state import Cache, State
from regardant.core.supports import Supports
from regardant.core.written import row_weights, weighted_values

ATTENTION = "attention"
"""Under this name the weights [b, h, m, n] are handed on."""


class EchoAttention(MultiHead):
    """Softmax attention that hands its weights to the layers behind it."""

    supports = Supports(cross=False, causal_cross=False, time=2.0, memory=1.0, state=1.0)

    def attend(self, q, k, v, *, x, pattern, padding=None, record=None):
        if record is None:
            return self.rule(q, k, v, pattern=pattern, scale=self.scale)
        at = torch.arange(q.shape[2], device=q.device)
        mask = None if pattern is None else pattern.block(at, at, batch=q.shape[0], heads=q.shape[1])
        record.handed[ATTENTION] = self._weights(q, k, mask, at)
        return weighted_values(record.handed[ATTENTION], v)

    def _weights(self, q: Tensor, k: Tensor, mask: Tensor | None, rows: Tensor) -> Tensor:
        keys = torch.arange(k.shape[2], device=k.device)
        bias = None if self.rule.bias is None else self.rule.bias.block(rows, keys)
        return row_weights(
            q, k, mask, scale=self.scale, bias=bias, normaliser=self.rule.normaliser
        )  # fmt: skip

    def step(self, x_t, state, *, record: Record | None = None):
        if record is None:
            return super().step(x_t, state)
        check_input("x_t", x_t, "batch, width", self.dim, self.to_q.weight)
        require(
            self.pattern is None,
            f"pattern is {self.pattern}, but rows are handed on only while every past key is kept",
        )
        x, inner, length = x_t[:, None], state.inner, state.length + 1
        q, k, v = self.project(x, offset=state.length)
        inner = KeyValueState(length, inner.keys.append(k), inner.values.append(v))
        row = self._weights(q, inner.keys.rows, None, torch.tensor([state.length], device=q.device))
        record.handed[ATTENTION] = row
        y = self.merge(weighted_values(row, inner.values.rows), x=x)
        return y[:, 0], MultiHeadState(length, inner)


@dataclass
class ValuesState(State):
    """The values of all tokens: a follower has no keys."""

    values: Cache


class EchoFollower(Mixer):
    """Attention with the weights of the nearest `EchoAttention` before it in the pass of a record."""

    supports = EchoAttention.supports
    needs_record = True
    """A model makes one for the pass where the caller brings none."""

    def __init__(
        self, dim: int, heads: int, *, causal: bool = False, kv_heads: int | None = None,
        head_dim: int | None = None, bias: bool = False,
    ):  # fmt: skip
        super().__init__()
        check_heads(dim, heads, kv_heads, head_dim)
        self.dim, self.heads, self.causal = dim, heads, causal
        self.kv_heads, self.head_dim = kv_heads or heads, head_dim or dim // heads
        self.to_v = nn.Linear(dim, self.kv_heads * self.head_dim, bias=bias)
        self.to_out = nn.Linear(heads * self.head_dim, dim, bias=bias)

    @classmethod
    def from_dense(cls, layer: MultiHead) -> EchoFollower:
        """Values and output of a softmax layer; its queries and keys are left behind."""
        require(
            type(layer.position).embed is Position.embed,
            f"position is {type(layer.position).__name__}, added to the input, which followers do not do",
        )
        new = cls(
            layer.dim, layer.heads, causal=layer.causal, kv_heads=layer.kv_heads, head_dim=layer.head_dim,
            bias=layer.to_v.bias is not None,
        ).to(layer.to_v.weight)  # fmt: skip
        for name in ("to_v", "to_out"):
            getattr(new, name).load_state_dict(getattr(layer, name).state_dict())
        return new

    def forward(self, x, context=None, padding=None, *, record=None):
        require(
            context is None, "context is given, but EchoFollower shares the attention of a sequence to itself"
        )
        check_input("x", x, "batch, length, width", self.dim, self.to_v.weight)
        v = self._values(x)
        weights = self._handed(record, v.shape[2])
        return self.to_out(weighted_values(weights, v).transpose(1, 2).flatten(2))

    def reference(self, x, context=None, padding=None, *, record=None):
        weights = self._handed(record, x.shape[1])
        v = self._values(x).repeat_interleave(self.heads // self.kv_heads, dim=1)
        return self.to_out((weights.to(v.dtype) @ v).transpose(1, 2).flatten(2))

    def start(self, batch, *, context=None, padding=None):
        require(self.causal, "causal=False: a layer that sees the future cannot decode step by step")
        require(
            context is None and padding is None, "context or padding is given, but a follower has neither"
        )
        return ValuesState(0, Cache(self.to_v.weight.new_empty(batch, self.kv_heads, 0, self.head_dim)))

    def step(self, x_t, state, *, record: Record | None = None):
        check_input("x_t", x_t, "batch, width", self.dim, self.to_v.weight)
        values = state.values.append(self._values(x_t[:, None]))
        row = self._handed(record, values.rows.shape[2])
        y = self.to_out(weighted_values(row, values.rows).transpose(1, 2).flatten(2))
        return y[:, 0], ValuesState(state.length + 1, values)

    def _values(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b g n d"]:
        return self.to_v(x).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)

    def _handed(self, record: Record | None, keys: int) -> Float[Tensor, "b h m n"]:
        require(
            record is not None and ATTENTION in record.handed,
            "record has no attention in it: an EchoFollower stands behind an EchoAttention, and one record "
            "passes through both",
        )
        weights = record.handed[ATTENTION]
        require(
            weights.shape[1] == self.heads and weights.shape[3] == keys,
            f"record holds attention of {weights.shape[1]} heads over {weights.shape[3]} keys, but this "
            f"layer has {self.heads} heads and {keys} keys",
        )
        return weights


def share_attention(model: nn.Module, runs: Sequence[Sequence[int]]) -> nn.Module:
    """A copy of a model in which every run of layers, such as [3, 4], shares the attention of its first.

    Layers are counted over the model's softmax attention, in order.
    """
    model = deepcopy(model)
    layers = _attention_layers(model)
    named = [index for run in runs for index in run]
    for run in runs:
        require(
            len(run) >= 2 and list(run) == list(range(run[0], run[0] + len(run))),
            f"runs has {list(run)}, but layers that share follow each other, two or more",
        )
    require(
        len(set(named)) == len(named) and all(0 <= index < len(layers) for index in named),
        f"runs is {[list(run) for run in runs]}, but each names other layers of the {len(layers)} from 0 on",
    )
    for run in runs:
        (_, first), *rest = (layers[index] for index in run)
        odd = [name for name, layer in rest if layer.heads != first.heads or layer.causal != first.causal]
        require(not odd, f"runs has {list(run)}, but {', '.join(odd)} differs in heads or in causality")
        model.set_submodule(layers[run[0]][0], EchoAttention.from_dense(first))
        for name, layer in rest:
            model.set_submodule(name, EchoFollower.from_dense(layer))
    return model


@torch.no_grad()
def attention_similarity(
    model: nn.Module, inputs: Tensor, *, without_first: bool = False
) -> Float[Tensor, "layers layers"]:
    """The mean cosine, over samples and heads, of the attention matrices of every two layers.

    `without_first` leaves the first token's column out: a sink makes all matrices alike.
    """
    layers, inside = _attention_layers(model), {}
    hooks = [
        layer.register_forward_pre_hook(lambda _, given, name=name: inside.__setitem__(name, given[0]))
        for name, layer in layers
    ]
    try:
        model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    flat = []
    for name, layer in layers:
        matrix = layer.mixing_matrix(inside[name])
        flat.append((matrix[..., 1:, 1:] if without_first else matrix).flatten(2))
    rows = nn.functional.normalize(torch.stack(flat, dim=2), dim=-1)  # [b, h, layers, n²]
    return (rows @ rows.mT).mean((0, 1))


def _attention_layers(model: nn.Module) -> list[tuple[str, MultiHead]]:
    """The softmax layers by name. Others have no attention that a follower could take."""
    found = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, MultiHead)]
    require(len(found) > 0, f"model is a {type(model).__name__} without an attention layer")
    for name, layer in found:
        own = any(
            getattr(type(layer), step) is not getattr(MultiHead, step)
            for step in ("project", "attend", "merge")
        )
        require(
            type(layer.rule) is SoftmaxRule and (not own or isinstance(layer, EchoAttention)),
            f"{name} is {type(layer).__name__}, but only softmax attention can be shared",
        )
    return found
