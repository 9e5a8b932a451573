"""Teaching SeerAttention's gates from the attention of the frozen model itself.

    gates = SeerGates.of(model, block=16)
    learn_gates(gates, model, texts, tokenizer=tokenizer, length=512, windows=48, steps=300)

The model reads each window once. Of each layer only what the gates learn from is kept: queries (pooled, where
a block's choose together), pooled keys, and the block maxima of its map, which are computed some rows at a
time. The gates then learn from these, many times over. Where each query chooses for itself there is much to
keep: `every` keeps every so manyth row.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.edit.language.seerattention import SeerGates, divergence
from regardant.host.host import host_of
from regardant.host.site import Site
from regardant.train.at_sites import AtSites
from regardant.train.fit import Fitted, Progress, fit
from regardant.train.texts import Texts, Tokenizer

Lesson = tuple[Float[Tensor, "w h m d"], Float[Tensor, "w g t e"], Float[Tensor, "w h m t"]]
"""Of one layer: queries, pooled keys, the target; a row a window."""


class Lessons:
    """What the model's attention has to teach, as a task: a sample is the number of a window."""

    metric_name: ClassVar[str] = "divergence, nats a row"
    higher_is_better: ClassVar[bool] = False

    def __init__(self, name: str, by_layer: dict[str, Lesson], *, held_out: int, every: int):
        self.name, self.by_layer, self.every = name, by_layer, every
        self.windows = len(next(iter(by_layer.values()))[0])
        self.held_out = held_out

    @classmethod
    def read(
        cls, gates: SeerGates, model: nn.Module, texts: Texts, *, windows: int, seed: int,
        held_out: int = 0, every: int = 1, progress: Progress | None = None,
    ) -> Lessons:  # fmt: skip
        """Let the model read as many windows, drawn from the texts; the last ones are held out."""
        require(every >= 1, f"every is {every}, but 1 keeps all rows")
        sites = [site for site in host_of(model).sites if site.causal and str(site.layer) in gates.by_layer]
        for site in sites:
            gates.check(site)
        found: dict[str, list[tuple[Tensor, ...]]] = {str(site.layer): [] for site in sites}

        def note(site: Site):
            gate = gates.at(site)

            def keep(call, heads):
                pooled = gate.pool(*call.unturned(), every=every)
                target = gate.taught(call.q, call.k, scale=call.scaling, every=every)
                found[str(site.layer)].append((*pooled, target))
                return heads.new_zeros(())

            return keep

        reading = AtSites(model, {}, {site.name: note(site) for site in sites})
        drawn, _ = texts.batch(windows, torch.Generator().manual_seed(seed))
        for number, window in enumerate(drawn):
            with torch.no_grad():
                reading(window[None])
            if progress is not None:
                progress(number + 1, windows, 0.0)
        lessons = {layer: tuple(map(torch.cat, zip(*parts))) for layer, parts in found.items()}
        return cls(
            f"every {every}. row of block maxima over {texts.name}", lessons, held_out=held_out, every=every
        )

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = torch.randint(self.windows - self.held_out, (size,), generator=generator)
        return rows, rows

    def validation(self):
        for row in range(self.windows - self.held_out, self.windows):
            yield torch.tensor([row]), torch.tensor([row])

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.mean()

    def metric(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return outputs.mean(), torch.ones(())


class Learning(nn.Module):
    """Numbers of windows → how far each layer's gate is from what it is taught there [layers]."""

    def __init__(self, gates: SeerGates, lessons: Lessons):
        super().__init__()
        self.gates, self._lessons = gates, lessons

    def forward(self, rows: Int[Tensor, "b"]) -> Float[Tensor, "layers"]:
        losses = []
        for layer, (q, k, target) in self._lessons.by_layer.items():
            logits = self.gates.by_layer[layer](q[rows], k[rows], every=self._lessons.every)
            losses.append(divergence(target[rows], logits))
        return torch.stack(losses)


def learn_gates(
    gates: SeerGates, model: nn.Module, texts: Sequence[str | Tensor], *, tokenizer: Tokenizer | None = None,
    length: int = 512, windows: int = 48, every: int = 1, steps: int = 300, batch: int = 4,
    learning_rate: float = 1e-2, seed: int = 0, progress: Progress | None = None,
    checkpoint: Path | None = None, checkpoint_every: int = 50,
) -> Fitted:  # fmt: skip
    """Train the gates in place, on `windows` windows of `length` tokens of these texts, and nothing else."""
    require(windows >= 1, f"windows is {windows}, but gates learn from at least 1")
    require(
        length > gates.block,
        f"length is {length}, but with blocks of {gates.block} tokens there is nothing to choose among",
    )
    vocabulary = getattr(model.config, "vocab_size", None)
    given = Texts(texts, length=length, tokenizer=tokenizer, vocabulary=vocabulary)
    lessons = Lessons.read(gates, model, given, windows=windows, every=every, seed=seed)
    return fit(
        Learning(gates, lessons), lessons, steps=steps, batch=batch, learning_rate=learning_rate, seed=seed,
        device=next(model.parameters()).device, progress=progress, checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
    )  # fmt: skip
