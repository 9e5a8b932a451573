"""Gates put into a network that is there already, and taken out again.

    from regardant.gate import insert

    with insert(model, "eca", where="layer*.*.bn2") as inserted:
        fit(model, …)               # the gates' weights are among the model's parameters
    # out here the model is what it was, trained weights aside

A gate is applied to what the module at its place puts out. It becomes a child of that module,
`inserted_gate`, so that it moves, trains and is saved with the model; all other names in the state dict stay.
Inside our backbones maps have channels last, and there the gate is told so (`ChannelsLast`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from regardant.core.by_name import by_name
from regardant.core.errors import require
from regardant.core.gate import Gate
from regardant.gate.channels_last import ChannelsLast, has_channels_last

Make = Callable[..., nn.Module]
"""channels=… → a module on maps [b, c, h, w]."""
Where = str | type[nn.Module]
CHILD = "inserted_gate"
KEEPING_WIDTH = (
    *(nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.Hardswish, nn.Sigmoid, nn.Tanh),
    *(nn.Dropout, nn.Dropout2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
)
"""What puts out as many channels as it is given."""


class Inserted:
    """The gates that one call of `insert` put in, by the names of their places. `remove` takes them out."""

    def __init__(self, model: nn.Module, gates: Mapping[str, nn.Module]):
        self.gates = MappingProxyType(dict(gates))
        self._places = [_Place(model.get_submodule(name), gate) for name, gate in self.gates.items()]

    def parameters(self) -> Iterator[nn.Parameter]:
        """The gates' own, to train them alone."""
        for gate in self.gates.values():
            yield from gate.parameters()

    def remove(self) -> None:
        """Afterwards the model's modules, hooks and state dict are what they were. Twice is once."""
        while self._places:
            self._places.pop().remove()

    def __enter__(self) -> Inserted:
        return self

    def __exit__(self, *raised: object) -> None:
        self.remove()


class _Place:
    """A gate as the child of a module; behind a Sequential its last part, else called by a hook."""

    def __init__(self, module: nn.Module, gate: nn.Module):
        taken = {*dir(module), *module._modules}
        self.module = module
        self.name = next(name for name in _numbered(CHILD) if name not in taken)
        self.hook = None
        module.add_module(self.name, gate.train(module.training))
        if not isinstance(module, nn.Sequential):
            # By name, so that a copy of the model calls the copy of the gate.
            self.hook = module.register_forward_hook(_Call(self.name))

    def remove(self) -> None:
        if self.hook is not None:
            self.hook.remove()
        delattr(self.module, self.name)


class _Call:
    def __init__(self, name: str):
        self.name = name

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> Tensor:
        require(
            isinstance(output, Tensor) and output.ndim == 4,
            f"{type(module).__name__} gives {_spell(output)}, but a gate takes a map "
            "[batch, channels, height, width]",
        )
        return getattr(module, self.name)(output)


def insert(
    model: nn.Module, gate: str | Make, *, where: Where, probe: Tensor | None = None, **options: Any
) -> Inserted:
    """Put a gate behind every module of `model` that `where` names; each gets a gate of its own.

    `gate` is a gate's name ("eca", "ela"), its class, or anything that makes a module from `channels=…`;
    `options` go to it as well. `where` is a class (`nn.BatchNorm2d`) or a pattern over the names of modules,
    in which `*` stands for anything within a part and `**` for any parts ("layer*.*.bn2", "**.bn3").

    How many channels a place has is read off its convolutions and normalisations; where that does not
    settle it, a `probe` does: an input that the model is called with once.
    """
    make = named(gate) if isinstance(gate, str) else gate
    places = located(model, where)
    last = {name for name in places if has_channels_last(model, name)}
    channels = {name: width_of(module) for name, module in places.items()}
    if unsettled := [name for name, count in channels.items() if count is None]:
        first = unsettled[0]
        require(
            probe is not None,
            f"the channels of {first!r} ({type(places[first]).__name__}) cannot be read off its parts: "
            "pass probe=, an input of the model",
        )
        seen = probed(model, {name: places[name] for name in unsettled}, probe)
        channels |= {name: shape[-1 if name in last else 1] for name, shape in seen.items()}
    like = next((each for each in model.parameters() if each.is_floating_point()), torch.empty(0))
    gates = {}
    for name, count in channels.items():
        gate = make(channels=count, **options)
        gates[name] = (ChannelsLast(gate) if name in last else gate).to(like.device, like.dtype)
    return Inserted(model, gates)


def named(name: str) -> type[Gate]:
    """A gate by its class's name or its file's, in any case, with - or _ ("eca", "eca-net", "ELA")."""
    return by_name(name, __package__, Gate, noun="gate")


def located(model: nn.Module, where: Where) -> dict[str, nn.Module]:
    """The modules that `where` names, by their names."""
    modules = {name: module for name, module in model.named_modules() if name}
    if isinstance(where, str):
        found = {name: module for name, module in modules.items() if _fits(name.split("."), where.split("."))}
        near = get_close_matches(where, modules, n=3, cutoff=0.0)
        said = f"where={where!r} matches no module; the nearest are {', '.join(near)}"
    else:
        found = {name: module for name, module in modules.items() if isinstance(module, where)}
        kinds = {type(module).__name__ for module in modules.values()}
        near = get_close_matches(where.__name__, kinds, n=3, cutoff=0.0)
        said = f"where={where.__name__} matches no module; the nearest classes are {', '.join(near)}"
    require(bool(modules), f"{type(model).__name__} has no parts, so where={where!r} matches nothing")
    require(bool(found), said)
    for name, module in found.items():
        require(
            not isinstance(module, nn.ModuleList | nn.ModuleDict),
            f"{name!r} is a {type(module).__name__}, which is never called: name the modules in it",
        )
    return found


def width_of(module: nn.Module) -> int | None:
    """How many channels a module puts out, as far as its make tells."""
    if isinstance(module, nn.Sequential):
        parts = [part for part in module if not isinstance(part, KEEPING_WIDTH)]
        return width_of(parts[-1]) if parts else None
    for attribute, kinds in (
        ("out_channels", (nn.Conv2d, nn.ConvTranspose2d)),
        ("num_features", (nn.BatchNorm2d, nn.InstanceNorm2d)),
        ("num_channels", (nn.GroupNorm,)),
    ):
        if isinstance(module, kinds):
            return getattr(module, attribute)
    return None


@torch.no_grad()
def probed(model: nn.Module, places: Mapping[str, nn.Module], probe: Tensor) -> dict[str, torch.Size]:
    """The shapes that these modules put out while the model runs on `probe`, in evaluation mode."""
    seen: dict[str, Any] = {}
    modes = {module: module.training for module in model.modules()}
    hooks = [
        module.register_forward_hook(lambda _, inputs, output, name=name: seen.update({name: output}))
        for name, module in places.items()
    ]
    try:
        model.eval()(probe)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    for name in places:
        require(name in seen, f"{name!r} is not called when the model runs on probe")
        output = seen[name]
        require(
            isinstance(output, Tensor) and output.ndim == 4,
            f"{name!r} gives {_spell(output)}, but a gate takes a map [batch, channels, height, width]",
        )
    return {name: seen[name].shape for name in places}


def _fits(name: list[str], pattern: list[str]) -> bool:
    if not pattern:
        return not name
    if pattern[0] == "**":
        return any(_fits(name[at:], pattern[1:]) for at in range(len(name) + 1))
    return bool(name) and fnmatchcase(name[0], pattern[0]) and _fits(name[1:], pattern[1:])


def _numbered(word: str) -> Iterator[str]:
    yield word
    number = 2
    while True:
        yield f"{word}_{number}"
        number += 1


def _spell(output: object) -> str:
    return (
        f"a tensor of shape {tuple(output.shape)}"
        if isinstance(output, Tensor)
        else f"a {type(output).__name__}"
    )
