"""The one trainer: AdamW with warm-up and a cosine, the same on every run with the same seed.

A run with a `checkpoint` may be killed at any moment; the next run with the same arguments goes on
from the last checkpoint and ends where an uninterrupted one would have, bit for bit.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.core.record import Record
from regardant.train import checkpoint as checkpoints
from regardant.train.task import Task

if TYPE_CHECKING:
    from regardant.parallel.sequence_parallel import SequenceParallel

Progress = Callable[[int, int, float], None]
"""Told after every step: steps done, steps in all, the loss."""


@dataclass(frozen=True)
class Fitted:
    """How a training went: the loss of every step, auxiliary losses included."""

    losses: tuple[float, ...]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Weights and dropout draw from torch's global generator: seed it in here, leave it untouched outside."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def fit(
    model: nn.Module, task: Task, *, steps: int, batch: int, learning_rate: float, seed: int,
    device: str | torch.device = "cpu", progress: Progress | None = None, checkpoint: Path | None = None,
    checkpoint_every: int = 100, parallel: SequenceParallel | None = None,
) -> Fitted:  # fmt: skip
    """Train `model` in place on `task`; it is in evaluation mode afterwards.

    With `parallel` every rank makes this call, with the same model and the same arguments, and holds its
    part of each sequence; the weights go the way that they would go in one process.
    """
    require(steps >= 1, f"steps is {steps}, but a training takes at least 1")
    require(batch >= 1, f"batch is {batch}, but a batch holds at least 1 sample")
    require(learning_rate > 0, f"learning_rate is {learning_rate}, but it must be positive")
    require(checkpoint_every >= 1, f"checkpoint_every is {checkpoint_every}, but it is at least 1 step")
    require(
        parallel is None or "parallel" in inspect.signature(model.forward).parameters,
        f"parallel is given, but {type(model).__name__} does not work on a part of a sequence",
    )
    model.to(device)
    optimizer = torch.optim.AdamW(_groups(model), lr=learning_rate, betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(seed)
    run = {
        "task": task.name, "steps": steps, "batch": batch, "learning_rate": learning_rate, "seed": seed,
    }  # fmt: skip
    with seeded(seed):
        losses = _restore(checkpoint, run, model, optimizer, generator)
        model.train()
        for step in range(len(losses), steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * schedule(step, steps)
            loss = _step(model, task, optimizer, task.batch(batch, generator), device, parallel)
            require(
                math.isfinite(loss),
                f"the loss is {loss} at step {step + 1} of {steps}: learning_rate={learning_rate} is high",
            )
            losses.append(loss)
            due = len(losses) % checkpoint_every == 0 or len(losses) == steps
            if checkpoint is not None and due and (parallel is None or parallel.rank == 0):
                _keep(checkpoint, run, losses, model, optimizer, generator)
            if progress is not None:
                progress(len(losses), steps, loss)
    model.eval()
    return Fitted(tuple(losses))


@torch.no_grad()
def evaluate(model: nn.Module, task: Task, *, device: str | torch.device = "cpu") -> float:
    """The task's metric over its validation batches."""
    was_training = model.training
    model.to(device).eval()
    total, weight = torch.zeros(()), torch.zeros(())
    for inputs, targets in task.validation():
        its_total, its_weight = task.metric(model(inputs.to(device)), targets.to(device))
        total = total + its_total.double().cpu()
        weight = weight + its_weight.double().cpu()
    model.train(was_training)
    return (total / weight).mean().item()


def schedule(step: int, steps: int) -> float:
    """The share of the learning rate at a step: warm-up over the first tenth, then a cosine to 0."""
    warm_up = max(1, steps // 10)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def _step(
    model: nn.Module, task: Task, optimizer: torch.optim.Optimizer, sample: tuple[Tensor, Tensor],
    device: str | torch.device, parallel: SequenceParallel | None,
) -> float:  # fmt: skip
    inputs, targets = (part.to(device) for part in sample)
    record = Record()
    optimizer.zero_grad(set_to_none=True)
    if parallel is None:
        outputs = model(inputs, record=record) if _records(model) else model(inputs)
        loss = task.loss(outputs, targets) + record.loss()
        loss.backward()
    else:
        loss = _share(model, task, parallel.cut(inputs), parallel.cut(targets), parallel)
        loss.backward()
        parallel.sum_gradients(model.parameters())
        loss = parallel.total(loss)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    record.settle()
    return loss.item()


def _records(model: nn.Module) -> bool:
    """Other people's networks take no record, and have nothing to say in one."""
    return "record" in inspect.signature(model.forward).parameters


def _share(
    model: nn.Module, task: Task, inputs: Tensor, targets: Tensor, parallel: SequenceParallel
) -> Tensor:
    """This rank's part of the loss: its mean over what counts here, times the share of what counts."""
    record = Record()
    outputs = model(inputs, record=record, parallel=parallel)
    require(
        not record.losses,
        f"the layers add losses of their own ({', '.join(record.losses)}), which no rank knows whole",
    )
    here = task.metric(outputs.detach(), targets)[1].to(outputs.dtype)
    require(here.numel() == 1, f"the loss of {task.name} is no mean over tokens: it cannot be split")
    loss = task.loss(outputs, targets) if here > 0 else 0 * outputs.sum()
    return loss * (here / parallel.total(here))


def _groups(model: nn.Module) -> list[dict[str, Any]]:
    """Matrices decay; biases, norms and other vectors do not."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [each for each in trained if each.ndim >= 2], "weight_decay": 0.1},
        {"params": [each for each in trained if each.ndim < 2], "weight_decay": 0.0},
    ]


def _keep(
    path: Path, run: dict[str, Any], losses: list[float], model: nn.Module,
    optimizer: torch.optim.Optimizer, generator: torch.Generator,
) -> None:  # fmt: skip
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in state.items()}
    tensors |= {
        "losses": torch.tensor(losses, dtype=torch.float64),
        "batches": generator.get_state(),
        "dropout": torch.get_rng_state(),
    }
    checkpoints.save(path, tensors, run)


def _restore(
    path: Path | None, run: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> list[float]:  # fmt: skip
    """Put everything back as the checkpoint has it; the losses of the steps that are done."""
    if path is None or not path.exists():
        return []
    tensors, facts = checkpoints.load(path)
    odd = [name for name in run if facts.get(name) != run[name]]
    require(
        not odd,
        f"the checkpoint {path} is of another run: "
        + ", ".join(f"{name} is {facts.get(name)!r} there and {run[name]!r} here" for name in odd),
    )
    weights, moments = {}, {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "model":
            weights[rest] = tensor
        elif kind == "optimizer":
            index, _, moment = rest.partition(".")
            moments.setdefault(int(index), {})[moment] = tensor
    fits = {key: value.shape for key, value in weights.items()} == {
        key: value.shape for key, value in model.state_dict().items()
    }
    require(fits, f"the checkpoint {path} is of another model; delete it to start again")
    model.load_state_dict(weights)
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    generator.set_state(tensors["batches"])
    torch.set_rng_state(tensors["dropout"])
    return tensors["losses"].tolist()
