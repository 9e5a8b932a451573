"""Another attention in the place of a pretrained model's own: any rule of ours, in chosen layers, and back.

    swapped = swap(model, SoftplusAttentionLssa, layers=range(8, 16), power=None)
    …                                   # train, save, generate: the rule is a part of the model
    swapped.back()                      # or as a context manager

The host goes on to project, to turn positions in, to keep its cache and to merge the heads; what happens
between queries, keys and values is the rule's. So what can be swapped in is a `MultiHead` whose own part is
the rule: a system that projects or merges in its own way, or whose rule looks at the layer's input x, is
refused. Query heads that share keys go on sharing them; to a rule that cannot share, the keys are repeated.

Causal order and padding are read off the host's mask, and a mask that hides anything else (a sliding window)
is refused. The rule never sees padding: it gets each text by itself, from its first token to its last.

Decoding with the host's cache: keys and values are the cache's. Where the rule can make its state from keys
and values, it does, and the new query reads it; else the queries of the past are kept beside the cache, and
the rule runs over the whole text each time. Which of the two is found out by trying, and `swapped.decoding`
says it.

Dropout, a soft cap on logits and sinks belong to the attention that was replaced, and go with it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.core.mixer import MultiHead
from regardant.core.rule import HeadShape
from regardant.edit.edit import Edit
from regardant.edit.host_mask import real_keys, texts
from regardant.host.call import Call
from regardant.host.run import Run
from regardant.host.seam import Seam
from regardant.host.site import Site

NAME = "swapped"
"""The name under which a site's module holds what took its attention's place."""
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out")
TRIED = 600
"""Tokens on which it is tried whether the rule can go on from a cache."""
FROM_STATE, WHOLE, NEVER = "from a state of the cache", "over the whole text", "not at all"

Make = Callable[..., nn.Module]


def swap(
    model: nn.Module, make: Make, *, layers: Collection[int] | None = None, stack: str | None = None,
    **config: Any,
) -> Swapped:  # fmt: skip
    """Put `make(dim=…, heads=…, **config)` in the place of the attention of these layers (all of them).

    It is at work at once. Parameters are at `<attention module>.swapped` of the model: to load weights that
    were saved from a swapped model, swap in the same way first.
    """
    return Swapped(model, make, layers=layers, stack=stack, config=config)


class Swapped:
    """A model with another attention in some layers; `back()` gives it its own back."""

    def __init__(
        self, model: nn.Module, make: Make, *, layers: Collection[int] | None, stack: str | None,
        config: dict[str, Any],
    ):  # fmt: skip
        self.model = model
        self.edit = _Swap(layers=layers, stack=stack)
        with _at_rest(model) as seam:
            self.edit.prepare(seam.host.sites)
            sites = [site for site in seam.host.sites if self.edit.touches(site)]
            made = {site.name: _fitted(site, make, config) for site in sites}
            for site in sites:
                require(
                    not hasattr(site.module, NAME),
                    f"{site} is swapped already: give it back first",
                )
            like = next(model.parameters())
            known: dict[tuple[int, int, int, bool], str] = {}
            for site in sites:
                layer = made[site.name].to(like.device, like.dtype).train(model.training)
                site.module.add_module(NAME, layer)
                self.edit.layers_by_site[site.name] = layer
                shape = (layer.heads, layer.kv_heads, layer.head_dim, layer.causal)
                if shape not in known:
                    known[shape] = how_it_decodes(layer) if layer.causal else NEVER
                self.edit.decoding[site.name] = known[shape]
            self._sites = sites
            seam.actors.append(self.edit)

    @property
    def layers(self) -> dict[str, nn.Module]:
        """By the names of the sites: what is in the attention's place."""
        return dict(self.edit.layers_by_site)

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(self._sites)

    @property
    def decoding(self) -> dict[str, str]:
        """By the names of the sites: how a rule goes on behind the host's cache."""
        return dict(self.edit.decoding)

    def parameters(self) -> list[nn.Parameter]:
        """What came into the model with this."""
        return [each for layer in self.layers.values() for each in layer.parameters()]

    def heads(self, call: Call) -> Float[Tensor, "b h m e"]:
        """What the rule gives for a call of its site, without a cache."""
        return self.edit.attend(call, call.site, Run())

    def back(self) -> None:
        """Give the model its own attention back. The layers, as trained, are still in `layers`."""
        require(self._sites != [], "the model has its own attention already")
        with _at_rest(self.model) as seam:
            seam.actors = [actor for actor in seam.actors if actor is not self.edit]
            for site in self._sites:
                delattr(site.module, NAME)
        self._sites = []

    @contextmanager
    def aside(self):
        """The model with its own attention for a while, the layers still its parts."""
        seam = Seam.of(self.model)
        seam.leave([self.edit])
        try:
            yield
        finally:
            Seam.of(self.model).enter([self.edit])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._sites:
            self.back()


@contextmanager
def _at_rest(model: nn.Module):
    """The model with nothing at work on it, so that its modules may change; then all swaps again."""
    seam = Seam.of(model)
    actors = list(seam.actors)
    others = [type(actor).__name__ for actor in actors if not isinstance(actor, _Swap)]
    require(not others, f"{', '.join(others)} is at work on the model: leave it first")
    seam.leave(actors)
    seam = Seam.of(model)
    seam.actors = actors
    try:
        yield seam
    finally:
        wanted, seam.actors = seam.actors, []
        if wanted:
            seam.enter(wanted)


@dataclass
class _Swap(Edit):
    """The edit that calls the layers."""

    layers_by_site: dict[str, MultiHead] = field(default_factory=dict)
    decoding: dict[str, str] = field(default_factory=dict)

    def attend(self, call: Call, site: Site, run: Run) -> Float[Tensor, "b h m e"]:
        layer = self.layers_by_site[site.name]
        real = self._real(call, run, causal=layer.causal)
        q, end = call.q, call.past + call.queries if layer.causal else call.keys
        if call.scaling != site.head_dim**-0.5:
            q = q * (call.scaling * site.head_dim**0.5)
        step = call.queries == 1 and call.past > 0 and self.decoding.get(site.name) == FROM_STATE
        if layer.causal and self.decoding.get(site.name) == WHOLE:
            q = self._with_past(q, call, site, run)
        first = call.past if q.shape[2] == call.queries else 0
        if real is None:
            out = _attend(layer, q, call.k[:, :, :end], call.v[:, :, :end], first=first, step=step)
            return out[:, :, -call.queries :]
        out = call.v.new_zeros(*q.shape[:3], call.v.shape[-1])
        for samples, keys in texts(real):
            rows = slice(max(keys.start - first, 0), max(keys.stop - first, 0))
            if keys.start < keys.stop and rows.start < rows.stop:
                k, v = call.k[samples, :, keys], call.v[samples, :, keys]
                out[samples, :, rows] = _attend(
                    layer, q[samples, :, rows], k, v, first=max(first - keys.start, 0), step=step
                )
        return out[:, :, -call.queries :]

    def _real(self, call: Call, run: Run, *, causal: bool) -> Tensor | None:
        """The same mask object comes to every layer: it is read once."""
        if call.mask is None:
            return real_keys(call, causal=causal)
        seen = run.memory(self).setdefault("read", {})
        key = (id(call.mask), call.keys, causal)
        if key not in seen or seen[key][0] is not call.mask:
            seen.clear()
            seen[key] = (call.mask, real_keys(call, causal=causal))
        return seen[key][1]

    def _with_past(self, q: Tensor, call: Call, site: Site, run: Run) -> Tensor:
        """The queries from the beginning of the text on."""
        memory = run.memory(self, site)
        past = memory.get("queries", q[:, :, :0]) if call.past else q[:, :, :0]
        require(
            past.shape[2] == call.past,
            f"the cache of {site} holds {call.past} tokens, of which {past.shape[2]} were read with this "
            "rule in place: read the prompt again",
        )
        memory["queries"] = torch.cat([past, q], dim=2)
        return memory["queries"]


def _attend(layer: MultiHead, q: Tensor, k: Tensor, v: Tensor, *, first: int, step: bool) -> Tensor:
    """The rule on texts without padding; `first` is the place of the first query among the keys."""
    if k.shape[1] != layer.kv_heads:
        k, v = (each.repeat_interleave(layer.kv_heads // each.shape[1], dim=1) for each in (k, v))
    if step:
        return _from_state(layer, q, k, v)
    if first:  # a chunk behind a cache: rules that need no queries of the past do not mind what they were
        q = torch.cat([q.new_zeros(*q.shape[:2], first, q.shape[3]), q], dim=2)
    pattern = layer.visible(k.shape[2], across=False, padding=None)
    return layer.attend(q, k, v, x=_Absent(), pattern=pattern)[:, :, first:]


def _from_state(layer: MultiHead, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One query, behind all keys."""
    pattern = layer.visible(k.shape[2], across=False, padding=None)
    shape = HeadShape(len(q), q.shape[1], k.shape[1], k.shape[-1], v.shape[-1], k.device, k.dtype)
    state = layer.rule.start(shape, pattern=pattern, keys=k, values=v)
    return layer.rule.step(q[:, :, 0], None, None, state, pattern=pattern, scale=layer.scale)[0][:, :, None]


class _Absent:
    """Stands for the layer's input: whoever looks at it is told that there is none."""

    def __getattr__(self, name: str) -> Any:
        raise ValueError("the system looks at the layer's input x, which the host keeps to itself")

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        raise ValueError("the system looks at the layer's input x, which the host keeps to itself")


def refusal(made: Any) -> str | None:
    """Why a system (its class, or a layer) cannot stand between a host's projections; None if it can."""
    kind = made if isinstance(made, type) else type(made)
    if not issubclass(kind, MultiHead):
        return f"{kind.__name__} is no rule between queries, keys and values (MultiHead)"
    for step, what in (
        ("project", "makes queries, keys and values in its own way"),
        ("merge", "puts heads together in its own way"),
        ("forward", "goes about the whole layer in its own way"),
    ):
        if getattr(kind, step) is not getattr(MultiHead, step):
            return f"{kind.__name__} {what}, but a host does that itself"
    return None


def fit(make: Make, *, heads: int, kv_heads: int, head_dim: int, causal: bool, **config: Any) -> MultiHead:
    """The layer with these heads, tried, and without the projections. Raises a sentence where none fits."""
    why = refusal(make) if isinstance(make, type) else None
    require(why is None, str(why))
    shared = isinstance(make, type) and make.supports.grouped
    config = dict(causal=causal) | config
    layer = make(
        dim=heads * head_dim, heads=heads, kv_heads=kv_heads if shared else None, head_dim=head_dim, **config
    )
    why = refusal(layer)
    require(why is None, str(why))
    require(
        (layer.heads, layer.head_dim) == (heads, head_dim) and layer.kv_heads in (heads, kv_heads),
        f"{type(layer).__name__} has {layer.heads} heads of {layer.head_dim} channels, but the attention "
        f"that it is to replace has {heads} of {head_dim}",
    )
    require(
        not layer.position.relates and not layer.position.biases,
        f"position is {type(layer.position).__name__}, but positions are the host's",
    )
    for name in PROJECTIONS:
        setattr(layer, name, nn.Identity())
    _try(layer)
    return layer


def _fitted(site: Site, make: Make, config: dict[str, Any]) -> MultiHead:
    try:
        return fit(
            make, heads=site.q_heads, kv_heads=site.kv_heads, head_dim=site.head_dim,
            **dict(causal=site.causal) | config,
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(f"nothing to swap in at {site}: {error}") from error


def _drawn(layer: MultiHead, tokens: int) -> list[Tensor]:
    like = next(layer.parameters(), torch.zeros(()))
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(1, heads, tokens, layer.head_dim, generator=generator).to(like)
        for heads in (layer.heads, layer.kv_heads, layer.kv_heads)
    ]


@torch.no_grad()
def _try(layer: MultiHead) -> None:
    """Refuse, before any pass of the model, what cannot run between projections."""
    was = layer.training
    q, k, v = _drawn(layer.eval(), 5)
    out = _attend(layer, q, k, v, first=0, step=False)
    layer.train(was)
    require(
        out.shape == q.shape,
        f"{type(layer).__name__} makes {list(out.shape)} of queries {list(q.shape)}: its heads do not fit",
    )


@torch.no_grad()
def how_it_decodes(layer: MultiHead) -> str:
    """Whether a state that the rule makes of keys and values is all that the next query needs."""
    if type(layer).start is not MultiHead.start or type(layer).step is not MultiHead.step:
        return WHOLE
    was = layer.training
    q, k, v = _drawn(layer.eval(), TRIED)
    expected = _attend(layer, q, k, v, first=0, step=False)[:, :, -1:]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = _from_state(layer, q[:, :, -1:], k, v)
    except (ValueError, TypeError, AttributeError, RuntimeError):
        found = None
    layer.train(was)
    same = found is not None and torch.allclose(found, expected, atol=1e-4, rtol=1e-3)
    return FROM_STATE if same else WHOLE
