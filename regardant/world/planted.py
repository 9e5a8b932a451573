"""Models built by hand: small Llamas whose weights are set so that it is known which head does what.

    model = planted_induction(previous=(0, 1), copying=(2, 3))
    model(ids)        # after A B … A it says B, and only those two heads had a part in it

The residual stream is divided: which token this is, which one was before it, what is to be said, a constant,
and a corner that nothing reads. All other heads look at the first token and write into the corner, so that a
lens has something to leave out. Token 0 begins every text. MLPs give zero unless a model says otherwise.

Rotary embedding turns the first channel pairs of a head quickly, which serves to look one token back, and its
last pairs next to not at all, which serves to compare tokens; `THETA` is chosen for that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from regardant.core.errors import require

HEAD_DIM, THETA = 64, 1e12
PAIRS = HEAD_DIM // 2
QUICK, SLOW = 6, PAIRS // 2
"""Pairs that turn, and the first pair of those that do not."""
CORNER = 16
"""Channels at least that nothing reads."""
SURE = 40.0
"""The logit of a key that is meant; a token that is not meant has 0, the first token half of this."""


@dataclass(frozen=True)
class Stream:
    """Which channels of the residual stream hold what."""

    vocabulary: int

    def token(self, which: int) -> int:
        return which

    def before(self, which: int) -> int:
        return self.vocabulary + which

    def said(self, which: int) -> int:
        return 2 * self.vocabulary + which

    @property
    def constant(self) -> int:
        return 3 * self.vocabulary

    @property
    def width(self) -> int:
        return -(-(3 * self.vocabulary + 1 + CORNER) // 16) * 16

    @property
    def corner(self) -> slice:
        return slice(self.constant + 1, self.width)


def slow(which: int) -> int:
    """A channel of a head that rotary leaves alone: `which` from 0 to 31."""
    return SLOW + which if which < PAIRS - SLOW else PAIRS + SLOW + which - (PAIRS - SLOW)


FIRST = slow(31)
"""The channel of a key that says: this is the first token."""


def planted_induction(
    *, vocabulary: int = 24, layers: int = 3, heads: int = 4, kv_heads: int = 2,
    previous: tuple[int, int] = (0, 1), copying: tuple[int, int] = (2, 3),
    generator: torch.Generator | None = None,
) -> LlamaForCausalLM:  # fmt: skip
    """After `A B … A` it says B. Head `previous` writes which token was before; head `copying` looks for the
    token behind an earlier A, and says it."""
    require(
        previous[0] < copying[0] < layers,
        f"previous is {previous} and copying {copying}, but the pair is in two of {layers} layers, in order",
    )
    require(vocabulary <= 31, f"vocabulary is {vocabulary}, but a head can tell up to 31 tokens apart")
    stream = Stream(vocabulary)
    model = _idle(stream, layers, heads, kv_heads, generator)
    group = heads // kv_heads
    norms = _norm(stream, 2), _norm(stream, 3)
    with torch.no_grad():
        # One token back: q·k = Σ cos((m - n - 1) θ), which is greatest where n = m - 1.
        q, k, v, o = _of(model, *previous, group)
        q.zero_()
        k[[*range(QUICK), *range(PAIRS, PAIRS + QUICK)]] = 0
        strength = 3 * SURE * math.sqrt(HEAD_DIM) / norms[0] ** 2
        for pair in range(QUICK):
            angle = THETA ** (-pair / PAIRS)
            q[pair, stream.constant] = strength
            k[pair, stream.constant] = math.cos(angle)
            k[PAIRS + pair, stream.constant] = math.sin(angle)
        _carry(v, o, [(stream.token(t), stream.before(t)) for t in range(vocabulary)], norms[0])

        # The token behind an earlier occurrence of this one: its "before" is my token.
        q, k, v, o = _of(model, *copying, group)
        q.zero_()
        k.zero_()
        scale = SURE * math.sqrt(HEAD_DIM) / norms[1] ** 2
        for token in range(vocabulary):
            q[slow(token), stream.token(token)] = scale
            k[slow(token), stream.before(token)] = 1.0
        q[FIRST, stream.constant] = scale / 2
        k[FIRST, stream.token(0)] = 1.0
        # The first token stands behind nothing, but looks behind itself at position 0.
        q[slow(0), stream.token(0)] = 0.0
        _carry(v, o, [(stream.token(t), stream.said(t)) for t in range(1, vocabulary)], norms[1])
    return model


def planted_feature(
    *, vocabulary: int = 24, layers: int = 4, heads: int = 4, kv_heads: int = 2,
    moving: tuple[int, int] = (2, 1), generator: torch.Generator | None = None,
) -> LlamaForCausalLM:  # fmt: skip
    """Tokens 1 and 2 are a feature of the text: head `moving` finds the one that is there, from anywhere, and
    writes it along one direction, +1 or -1 at `said(1)`. Before that layer no later token knows of it."""
    stream = Stream(vocabulary)
    model = _idle(stream, layers, heads, kv_heads, generator)
    norm = _norm(stream, 2)
    with torch.no_grad():
        q, k, v, o = _of(model, *moving, heads // kv_heads)
        q.zero_()
        k.zero_()
        q[slow(0), stream.constant] = SURE * math.sqrt(HEAD_DIM) / norm**2
        k[slow(0), [stream.token(1), stream.token(2)]] = 1.0
        _carry(v, o, [(stream.token(1), stream.said(1))], norm)
        v[slow(1), stream.token(2)] = -v[slow(1), stream.token(1)]
    return model


def feature_direction(model: LlamaForCausalLM) -> Tensor:
    """Where `planted_feature` writes its feature."""
    stream = Stream(model.config.vocab_size)
    return torch.nn.functional.one_hot(torch.tensor(stream.said(1)), stream.width).double()


def _idle(
    stream: Stream, layers: int, heads: int, kv_heads: int, generator: torch.Generator | None
) -> LlamaForCausalLM:
    """A model whose heads all look at the first token and write a little noise into the corner."""
    require(heads % kv_heads == 0, f"heads is {heads}, but it must be a multiple of kv_heads={kv_heads}")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    config = LlamaConfig(
        vocab_size=stream.vocabulary, hidden_size=stream.width, intermediate_size=8, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=HEAD_DIM, rms_norm_eps=1e-12,
        max_position_embeddings=4096, tie_word_embeddings=False, bos_token_id=0, eos_token_id=None,
        pad_token_id=0, rope_parameters={"rope_type": "default", "rope_theta": THETA},
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):  # all that is drawn here is written over
        model = LlamaForCausalLM(config).double().eval()

    def draw(*shape: int) -> Tensor:
        return 0.05 * torch.randn(*shape, generator=generator, dtype=torch.float64)

    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_() if weight.ndim > 1 else weight.fill_(1.0)
        for token in range(stream.vocabulary):
            model.model.embed_tokens.weight[token, [stream.token(token), stream.constant]] = 1.0
            model.lm_head.weight[token, stream.said(token)] = 10.0
        scale = SURE / 2 * math.sqrt(HEAD_DIM) / _norm(stream, 2) ** 2
        for layer in model.model.layers:
            attention = layer.self_attn
            for weight in (attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight):
                weight.copy_(draw(*weight.shape) / 4)
            queries = attention.q_proj.weight.view(heads, HEAD_DIM, stream.width)
            keys = attention.k_proj.weight.view(kv_heads, HEAD_DIM, stream.width)
            keys[:, FIRST] = 0
            keys[:, FIRST, stream.token(0)] = 1.0
            queries[:, FIRST, stream.constant] = 2 * scale
            attention.o_proj.weight[stream.corner] = draw(
                stream.width - stream.constant - 1, heads * HEAD_DIM
            )
    return model


def _norm(stream: Stream, ones: int) -> float:
    """What the norm multiplies a stream of so many ones by."""
    return math.sqrt(stream.width / ones)


def _of(model: LlamaForCausalLM, layer: int, head: int, group: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A head's own rows of the projections: queries, keys, values (shared by its group), output."""
    attention = model.model.layers[layer].self_attn
    own = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
    shared = slice(head // group * HEAD_DIM, (head // group + 1) * HEAD_DIM)
    return (
        attention.q_proj.weight[own],
        attention.k_proj.weight[shared],
        attention.v_proj.weight[shared],
        attention.o_proj.weight[:, own],
    )


def _carry(v: Tensor, o: Tensor, pairs: list[tuple[int, int]], norm: float) -> None:
    """A head that moves these channels of the stream to those, at the strength that they had."""
    v.zero_()
    o.zero_()
    for place, (source, target) in enumerate(pairs):
        place = slow(place + 1) if place < 30 else place
        v[place, source] = 1.0 / norm
        o[target, place] = 1.0
