"""Prompts and the answers wanted: what a pretrained model is adapted to, without touching its weights.

    loss = - mean over the answers' tokens in a batch of log p(token | prompt, what came before)

`Adapted` puts something at work on a frozen model (an edit, low-rank matrices) for each pass, so that `fit`
trains that and nothing else. Preferred answers over rejected ones (DPO) are `Preferences`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from regardant.core.errors import require
from regardant.core.record import Record

Tokens = Sequence[int] | Int[Tensor, "n"]


class Responses:
    """Examples of (prompt, answer) as token ids; a sample of this task is the number of an example."""

    metric_name: ClassVar[str] = "loss, nats a token of the answer"
    higher_is_better: ClassVar[bool] = False

    def __init__(self, examples: Sequence[tuple[Tokens, Tokens]], *, held_out: int = 0):
        require(len(examples) > 0, "examples is empty, but a prompt with its answer is wanted")
        pairs = [tuple(torch.as_tensor(part).long().flatten() for part in example) for example in examples]
        for place, (prompt, answer) in enumerate(pairs):
            require(
                len(prompt) > 0 and len(answer) > 0,
                f"example {place} has {len(prompt)} tokens of prompt and {len(answer)} of answer, but it "
                "takes at least 1 of each",
            )
        require(
            0 <= held_out < len(pairs),
            f"held_out is {held_out}, but of {len(pairs)} examples at least 1 is trained on",
        )
        self.pairs, self.held_out = pairs, held_out

    @property
    def name(self) -> str:
        digest = hashlib.sha256()
        for prompt, answer in self.pairs:
            digest.update(prompt.numpy().tobytes() + b"|" + answer.numpy().tobytes())
        return f"{len(self.pairs)} answers {digest.hexdigest()[:12]}"

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(self.pairs) - self.held_out, (size,), generator=generator)
        return rows, rows

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in torch.arange(len(self.pairs) - self.held_out, len(self.pairs)).split(16):
            yield rows, rows

    def weights(self, rows: Int[Tensor, "b"]) -> Float[Tensor, "b"]:
        """How much each example's loss counts: by the tokens of its answer."""
        return torch.tensor([float(len(self.pairs[row][1])) for row in rows.tolist()])

    def losses(self, model: nn.Module, rows: Int[Tensor, "b"]) -> Float[Tensor, "b"]:
        """One loss an example, the mean over its answer's tokens."""
        pairs = [self.pairs[row] for row in rows.tolist()]
        total, count = answer_scores(model, pairs)
        return -total / count

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        weights = self.weights(targets).to(outputs)
        return (outputs * weights).sum() / weights.sum()

    def metric(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        weights = self.weights(targets).to(outputs)
        return (outputs * weights).sum(), weights.sum()


class Preferences(Responses):
    """Examples of (prompt, preferred answer, rejected answer), and what the unedited model thinks of them:

    loss = - log σ(β (log p(preferred)/p₀(preferred) - log p(rejected)/p₀(rejected)))
    """

    metric_name: ClassVar[str] = "preference loss"

    def __init__(
        self, examples: Sequence[tuple[Tokens, Tokens, Tokens]], *, reference: nn.Module, beta: float = 0.5,
        held_out: int = 0,
    ):  # fmt: skip
        require(beta > 0, f"beta is {beta}, but a preference is weighed by it: above 0")
        self._preferred = Responses([(prompt, good) for prompt, good, _ in examples], held_out=held_out)
        self._rejected = Responses([(prompt, bad) for prompt, _, bad in examples], held_out=held_out)
        super().__init__([(prompt, good) for prompt, good, _ in examples], held_out=held_out)
        self.beta = beta
        with torch.no_grad(), frozen(reference):
            self._before = self._margins(reference, torch.arange(len(self.pairs)))

    @property
    def name(self) -> str:
        return f"preferences, beta {self.beta}: {super().name} over {self._rejected.name}"

    def weights(self, rows):
        return torch.ones(len(rows))

    def _margins(self, model: nn.Module, rows: Tensor) -> Float[Tensor, "b"]:
        found = []
        for some in rows.split(16):
            both = [
                answer_scores(model, [side.pairs[row] for row in some.tolist()])[0]
                for side in (self._preferred, self._rejected)
            ]
            found.append(both[0] - both[1])
        return torch.cat(found)

    def losses(self, model: nn.Module, rows: Int[Tensor, "b"]) -> Float[Tensor, "b"]:
        gained = self._margins(model, rows) - self._before[rows].to(next(model.parameters()).device)
        return -functional.logsigmoid(self.beta * gained)


def answer_scores(
    model: nn.Module, pairs: Sequence[tuple[Tensor, Tensor]]
) -> tuple[Float[Tensor, "b"], Int[Tensor, "b"]]:
    """log p of each answer behind its prompt, and how many tokens it has. Texts are padded on the right."""
    device = next(model.parameters()).device
    texts = [torch.cat(pair) for pair in pairs]
    ids = nn.utils.rnn.pad_sequence(texts, batch_first=True).to(device)
    ends = torch.tensor([len(text) for text in texts], device=device)
    begins = torch.tensor([len(prompt) for prompt, _ in pairs], device=device)
    at = torch.arange(ids.shape[1], device=device)
    logits = model(input_ids=ids, attention_mask=(at < ends[:, None]).long()).logits[:, :-1]
    chances = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    own = (at[1:] >= begins[:, None]) & (at[1:] < ends[:, None])
    return chances.masked_fill(~own, 0).sum(1), own.sum(1)


class Adapted(nn.Module):
    """A frozen model with something at work on it: `trained` has the parameters, `at_work` is the context in
    which they act. `penalty`, where given, is added to the loss."""

    def __init__(
        self, model: nn.Module, trained: nn.Module, task: Responses,
        at_work: Callable[[], AbstractContextManager], *, penalty: Callable[[], Tensor] | None = None,
    ):  # fmt: skip
        super().__init__()
        self.trained = trained
        self._model, self._task, self._at_work, self._penalty = (model,), task, at_work, penalty

    def forward(self, rows: Int[Tensor, "b"], *, record: Record | None = None) -> Float[Tensor, "b"]:
        (model,) = self._model
        with frozen(model), self._at_work():
            losses = self._task.losses(model, rows)
        if record is not None and self._penalty is not None:
            record.add_loss("penalty", self._penalty())
        return losses


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """The model's own parameters without gradients, in evaluation mode; as before at the end."""
    wanted = [(each, each.requires_grad) for each in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    for each, _ in wanted:
        each.requires_grad_(False)
    model.eval()
    try:
        yield
    finally:
        for each, before in wanted:
            each.requires_grad_(before)
        for module, mode in modes:
            module.training = mode
