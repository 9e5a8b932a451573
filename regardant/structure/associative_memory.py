"""A memory of pairs, its capacity, and the experiments of conditioning ("Understanding Transformers through
the Lens of Pavlovian Conditioning", 2025, arXiv:2508.08289).

`AssociativeMemory` is one matrix that learns by a rule of `regardant.core.plasticity`. With Hebb's rule and m
pairs of unit keys, asking for pair j gives v_j + Σ_{i≠j} (k_i·k_j) v_i, and overlaps are about 1/√d, so that

    the worst error, all values alike,       is about (m - 1)/√d:     √d pairs are safe
    the error of independent values (RMS)    is √((m - 1)/d):         d pairs are, on average

Two laws for two questions: `worst_interference` and `mean_interference` measure one each, and `capacity` says
how many pairs keep it low. Independent keys for the same pairs (heads) lower the second by one over the root
of their number.

The conditioning experiments take vectors for stimuli and give the responses of a test stimulus, as the length
along what was expected: `acquisition`, `extinction` and `blocking`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from regardant.core.errors import require
from regardant.core.network import Example, Network
from regardant.core.plasticity import Plasticity, associate, associate_plainly, check_plasticity, written


class AssociativeMemory(Network):
    """Keys [b, n, d] and values [b, n, e] are written one by one; queries [b, n, d] read behind each."""

    def __init__(
        self, keys: int, values: int, *, rule: Plasticity = "hebb", rate: float = 1.0, forget: float = 0.0
    ):
        super().__init__()
        require(
            keys >= 1 and values >= 1, f"keys is {keys} and values {values}, but both are at least 1 wide"
        )
        check_plasticity(rule, rate, forget)
        self.keys, self.values = keys, values
        self.how = dict(rule=rule, rate=rate, forget=forget)

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Example]:
        for rule, rate, forget, n in (
            ("hebb", 1.0, 0.0, 1), ("decay", 0.5, 0.1, 17), ("oja", 0.3, 0.0, 40), ("delta", 0.9, 0.0, 37)
        ):  # fmt: skip
            config = dict(keys=5, values=3, rule=rule, rate=rate, forget=forget)
            key, query = torch.randn(2, 3, n, 5, generator=generator, dtype=torch.float64)
            value = torch.randn(3, n, 3, generator=generator, dtype=torch.float64)
            yield Example(config, (key / key.norm(dim=-1, keepdim=True), value, query))

    def start(self, batch: int, *, dtype: torch.dtype = torch.float32) -> Float[Tensor, "b d e"]:
        """Nothing learned."""
        return torch.zeros(batch, self.keys, self.values, dtype=dtype)

    def write(
        self, state: Float[Tensor, "b d e"], key: Float[Tensor, "b d"], value: Float[Tensor, "b e"]
    ) -> Float[Tensor, "b d e"]:
        """One pair more."""
        require(
            state.shape[1:] == (self.keys, self.values),
            f"state is {list(state.shape)}, but this memory holds [batch, {self.keys}, {self.values}]: "
            "it is from another configuration",
        )
        return written(state, key, value, **self.how)

    def read(self, state: Float[Tensor, "b d e"], query: Float[Tensor, "b d"]) -> Float[Tensor, "b e"]:
        return (query[:, None] @ state)[:, 0]

    def forward(
        self, key: Float[Tensor, "b n d"], value: Float[Tensor, "b n e"], query: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b n e"]:
        self._check(key, value, query)
        return associate(query[:, None], key[:, None], value[:, None], **self.how)[0][:, 0]

    def reference(
        self, key: Float[Tensor, "b n d"], value: Float[Tensor, "b n e"], query: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b n e"]:
        self._check(key, value, query)
        return associate_plainly(query[:, None], key[:, None], value[:, None], **self.how)[0][:, 0]

    def _check(self, key: Tensor, value: Tensor, query: Tensor) -> None:
        for name, x, width in (
            ("key", key, self.keys),
            ("value", value, self.values),
            ("query", query, self.keys),
        ):
            require(
                x.ndim == 3 and x.shape[:2] == key.shape[:2] and x.shape[1] > 0 and x.shape[2] == width,
                f"{name} has shape {tuple(x.shape)}, but it is [batch, pairs, {width}], one a key",
            )


def worst_interference(keys: Float[Tensor, "m d"]) -> float:
    """max_j Σ_{i≠j} |k_i·k_j|: the error of a pair when all other values push the same way."""
    return float(_overlaps(keys).abs().sum(1).max())


def mean_interference(keys: Float[Tensor, "m d"]) -> float:
    """√ mean_j Σ_{i≠j} (k_i·k_j)²: the root mean square error, relative to values that are independent."""
    return float(_overlaps(keys).square().sum(1).mean().sqrt())


def capacity(
    width: int, interference: Callable[[Tensor], float], *, generator: torch.Generator, below: float = 0.5,
    draws: int = 5,
) -> float:  # fmt: skip
    """How many random keys of this width keep an interference below a bound, on average over draws.

    The number of the worst law grows with the root of the width, that of the mean law with the width.
    """
    require(width >= 1 and draws >= 1, f"width is {width} and draws {draws}, but both are at least 1")
    found = 0
    for _ in range(draws):
        few, many, keys = 1, 2, torch.randn(2, width, generator=generator, dtype=torch.float64)
        while interference(keys[:many]) < below:
            few, many = many, 2 * many
            more = torch.randn(many - len(keys), width, generator=generator, dtype=torch.float64)
            keys = torch.cat([keys, more])
        while many - few > 1:
            middle = (few + many) // 2
            few, many = (middle, many) if interference(keys[:middle]) < below else (few, middle)
        found += few
    return found / draws


def _overlaps(keys: Float[Tensor, "m d"]) -> Float[Tensor, "m m"]:
    keys = keys / keys.norm(dim=-1, keepdim=True)
    return (keys @ keys.mT).fill_diagonal_(0)


def acquisition(memory: AssociativeMemory, stimulus: Tensor, outcome: Tensor, trials: int) -> list[float]:
    """The response to `stimulus` [d] after each trial with `outcome` [e], 1 being the whole outcome."""
    state, responses = memory.start(1, dtype=stimulus.dtype), []
    for _ in range(trials):
        state = memory.write(state, stimulus[None], outcome[None])
        responses.append(response(memory, state, stimulus, outcome))
    return responses


def extinction(
    memory: AssociativeMemory, stimulus: Tensor, outcome: Tensor, *, trials: int, without: int
) -> list[float]:
    """The response before and after each of the trials `without` outcome that follow on `trials` with it."""
    state = memory.start(1, dtype=stimulus.dtype)
    for _ in range(trials):
        state = memory.write(state, stimulus[None], outcome[None])
    responses = [response(memory, state, stimulus, outcome)]
    for _ in range(without):
        state = memory.write(state, stimulus[None], torch.zeros_like(outcome)[None])
        responses.append(response(memory, state, stimulus, outcome))
    return responses


def blocking(
    memory: AssociativeMemory, known: Tensor, added: Tensor, outcome: Tensor, trials: int
) -> tuple[float, float]:
    """The response to `added` when `known` had foretold the outcome before both came together, and the
    response when nothing had (the control)."""
    found = []
    for first in (trials, 0):
        state = memory.start(1, dtype=known.dtype)
        for trial in range(first + trials):
            stimulus = known if trial < first else known + added
            state = memory.write(state, stimulus[None], outcome[None])
        found.append(response(memory, state, added, outcome))
    return found[0], found[1]


def response(memory: AssociativeMemory, state: Tensor, stimulus: Tensor, outcome: Tensor) -> float:
    """What a stimulus calls up, along the outcome."""
    return float(memory.read(state, stimulus[None])[0] @ outcome / outcome.square().sum())
