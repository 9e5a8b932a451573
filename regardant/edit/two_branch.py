"""Decoding by two branches: what a main and an auxiliary pass say of the next token, one against the other.

    s = (1 + strength) · log p_main - strength · log p_auxiliary
    over the tokens with   p_main ≥ plausible · max p_main;   all others are out

The auxiliary branch reads another prompt (without the context, say) or is another model, has a cache of its
own, and continues with the tokens that were chosen. Four papers are this with different branches: contrastive
decoding, context -aware decoding, and their visual kin.

    with regardant.apply(model, TwoBranch(auxiliary=Without(slice(0, 40)))):
        model.generate(…)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf, log
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.edit.edit import Edit
from regardant.edit.without import Without, read
from regardant.host.run import Branch, Run

Prompts = tuple[Int[Tensor, "b n"], Bool[Tensor, "b n"]]
Change = Callable[[Int[Tensor, "b n"], Bool[Tensor, "b n"] | None], Prompts]
"""The main branch's prompts, and which tokens are real → the auxiliary's."""


@dataclass(kw_only=True)
class TwoBranch(Edit):
    """The scores of the next token, from two branches.

    `auxiliary` makes the auxiliary prompts of the main ones; None: the same. `model` reads them, None is the
    model itself: edits at work on it act in both branches, with a memory for each (`run.branch` says which).
    """

    exempt: ClassVar[Mapping[str, str]] = {
        "cache": "changes the scores of a pass's last token alone, so that one pass over a text shows it once"
    }

    auxiliary: Change | None = None
    model: nn.Module | None = None
    strength: float = 1.0
    plausible: float = 0.1

    def __post_init__(self) -> None:
        require(
            self.auxiliary is not None or self.model is not None,
            "auxiliary and model are both None: the branches would be one and the same",
        )
        require(self.strength >= 0, f"strength is {self.strength}, but it is 0 or more")
        require(0 <= self.plausible <= 1, f"plausible is {self.plausible}, but it is a share: from 0 to 1")

    def neutral(self) -> bool:
        return self.strength == 0

    def scores(self, scores: Float[Tensor, "b v"], run: Run) -> Float[Tensor, "b v"]:
        if run.branch != "main":
            return scores
        require(
            run.ids is not None, "two branches are decoded by token ids, but the model was given embeddings"
        )
        other = self._other(run)
        require(
            other.shape == scores.shape,
            f"the auxiliary branch scores {other.shape[-1]} tokens, but the main one {scores.shape[-1]}",
        )
        return combine(scores, other.to(scores), strength=self.strength, plausible=self.plausible)

    def _other(self, run: Run) -> Float[Tensor, "b v"]:
        """The auxiliary branch's scores, one pass on."""
        kept = run.memory(self)
        model = run.model if self.model is None else self.model
        if run.past == 0:
            real = run.real
            ids = run.ids
            ids, real = (ids, real) if self.auxiliary is None else self.auxiliary(ids, real)
            real = torch.ones_like(ids, dtype=torch.bool) if real is None else real
            kept["branch"] = Branch("auxiliary")
        else:
            require(
                "branch" in kept, "the main branch has a cache of a prompt that was read without TwoBranch"
            )
            ids = run.ids
            real = torch.cat([kept["real"], torch.ones_like(ids, dtype=torch.bool)], dim=1)
        branch = kept["branch"]
        with run.aside(branch):
            output = read(model, ids, real, past_key_values=branch.cache, use_cache=True)
        branch.cache, kept["real"] = output.past_key_values, real
        return output.logits[:, -1]

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        return [
            dict(auxiliary=Without(slice(0, 4)), plausible=0.0),
            dict(auxiliary=Without(slice(2, 6)), strength=0.5, plausible=0.0),
        ]

    @classmethod
    def neutral_settings(cls) -> dict[str, Any]:
        return dict(auxiliary=Without(slice(0, 4)), strength=0.0)


def combine(
    main: Float[Tensor, "b v"], auxiliary: Float[Tensor, "b v"], *, strength: float, plausible: float
) -> Float[Tensor, "b v"]:
    """The two branches' scores under one: see above."""
    main, auxiliary = main.log_softmax(-1), auxiliary.log_softmax(-1)
    both = (1 + strength) * main - strength * auxiliary
    floor = main.amax(-1, keepdim=True) + (log(plausible) if plausible > 0 else -inf)
    return both.masked_fill(main < floor, -inf)
