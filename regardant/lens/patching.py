"""Activation patching: what of one run makes another run say what it said.

Two prompts that differ in what matters and stand token by token side by side; the one is run with a part of
the other put in its place, and a metric tells how far the answer goes over:

    effect = (metric(patched) - metric(corrupt)) / (metric(clean) - metric(corrupt))

is 0 where the part carries nothing and 1 where it carries all. Patched are the outputs of heads (before the
output projection; keys and values are shared) or the residual stream behind a layer, at chosen rows.

    path patching (sender → receivers)       Wang et al. 2022; Goldowsky-Dill et al. 2023
      1. run clean with the sender's output from the corrupt run and all other heads held at clean
      2. take what arrives at the receivers: the logits, or the q, k or v of later heads
      3. run clean with that alone put in; effect = metric - metric(clean)

In step 1 the MLPs answer to the change unless they are held as well (`freeze_mlps`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from regardant.core.errors import require, unknown
from regardant.edit.mask_heads import by_layer
from regardant.host.run import Run
from regardant.host.seam import Seam
from regardant.host.site import Site
from regardant.lens.head_map import HeadMap
from regardant.lens.residual_stream import Anatomy

Metric = Callable[[Float[Tensor, "b v"]], Float[Tensor, "b"]]
"""Of the last row's logits: one number a sample, such as the difference of two answers' logits."""
Rows = Sequence[int] | slice
Input = Literal["q", "k", "v"]
ALL = slice(None)


def logit_difference(right: Int[Tensor, "b"], wrong: Int[Tensor, "b"]) -> Metric:
    """How far the right answer's logit is above the wrong one's."""

    def metric(logits: Float[Tensor, "b v"]) -> Float[Tensor, "b"]:
        chosen = [logits.gather(1, each.to(logits.device)[:, None])[:, 0] for each in (right, wrong)]
        return chosen[0] - chosen[1]

    return metric


@dataclass
class _Taken:
    """What a run computed at every site: head outputs, queries, keys, values; MLP outputs by layer."""

    heads: dict[str, Tensor] = field(default_factory=dict)
    inputs: dict[tuple[str, Input], Tensor] = field(default_factory=dict)
    mlps: dict[int, Tensor] = field(default_factory=dict)
    stream: dict[int, Tensor] = field(default_factory=dict)
    logits: Tensor | None = None


class _Taking:
    """Writes down a run."""

    def __init__(self, *, inputs: bool) -> None:
        self.taken, self.inputs = _Taken(), inputs

    def stages(self, site: Site) -> frozenset[str]:
        return frozenset() if site.cross else frozenset({"heads"} | ({"qkv"} if self.inputs else set()))

    def qkv(self, q: Tensor, k: Tensor, v: Tensor, site: Site, run: Run) -> tuple[Tensor, Tensor, Tensor]:
        for name, value in (("q", q), ("k", k), ("v", v)):
            self.taken.inputs[site.name, name] = value.detach()
        return q, k, v

    def heads(self, heads: Tensor, site: Site, run: Run) -> Tensor:
        self.taken.heads[site.name] = heads.detach()
        return heads


@dataclass
class _Putting:
    """Puts head outputs, or inputs of heads, in place of what a run computes."""

    heads_at: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    inputs_at: Mapping[str, Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]] = field(
        default_factory=dict
    )

    def stages(self, site: Site) -> frozenset[str]:
        put = {"heads"} if site.name in self.heads_at else set()
        return frozenset(put | ({"qkv"} if site.name in self.inputs_at else set()))

    def heads(self, heads: Tensor, site: Site, run: Run) -> Tensor:
        return self.heads_at[site.name](heads)

    def qkv(self, q: Tensor, k: Tensor, v: Tensor, site: Site, run: Run) -> tuple[Tensor, Tensor, Tensor]:
        return self.inputs_at[site.name](q, k, v)


@dataclass(frozen=True)
class PromptPair:
    """Prompts [b, n] that differ in what matters; their tokens stand side by side."""

    clean: Int[Tensor, "b n"]
    corrupt: Int[Tensor, "b n"]

    def __post_init__(self) -> None:
        require(
            self.clean.shape == self.corrupt.shape and self.clean.ndim == 2,
            f"clean is {list(self.clean.shape)} and corrupt {list(self.corrupt.shape)}, but prompts are "
            "aligned token by token, [b, n]",
        )
        require(
            bool((self.clean != self.corrupt).any()),
            "clean and corrupt are the same: nothing is there to patch",
        )


class Patching:
    """A pair of prompts under a metric, both run once; what is patched is run again."""

    def __init__(self, model: nn.Module, pair: PromptPair, metric: Metric) -> None:
        self.model, self.pair, self.metric = model, pair, metric
        self.anatomy = Anatomy.of(model)
        self._clean, self._corrupt = self._take(pair.clean), self._take(pair.corrupt)
        self.clean, self.corrupt = (metric(each.logits) for each in (self._clean, self._corrupt))

    def heads(
        self, *, heads: Iterable[tuple[int, int]] | None = None, rows: Rows = ALL, onto: str = "corrupt"
    ) -> HeadMap:
        """Head by head: how much of the answer its clean output brings back into the corrupt run;
        onto="clean" puts corrupt outputs into the clean run and tells how much is lost."""
        if onto not in ("corrupt", "clean"):
            raise unknown("onto", onto, ["corrupt", "clean"])
        ids, source = (
            (self.pair.corrupt, self._clean) if onto == "corrupt" else (self.pair.clean, self._corrupt)
        )
        values = self._empty()
        for layer, head in self._all() if heads is None else heads:
            site = self._site(layer, head)
            put = _put_heads(source.heads[site.name], [head], rows)
            values[layer, head] = self._share(self._run(ids, _Putting({site.name: put})), onto)
        return HeadMap(values, "share of the answer brought back" if onto == "corrupt" else "share lost")

    def together(self, heads: Iterable[tuple[int, int]], *, rows: Rows = ALL) -> float:
        """How much of the answer these heads' clean outputs bring back at once."""
        put = {
            (site := self.anatomy.sites[layer]).name: _put_heads(self._clean.heads[site.name], own, rows)
            for layer, own in by_layer(heads).items()
        }
        return self._share(self._run(self.pair.corrupt, _Putting(put)), "corrupt")

    def stream(self, *, rows: Sequence[int] | None = None) -> Float[Tensor, "l n"]:
        """Layer by layer and row by row: what the clean stream behind a layer brings back."""
        length = self.pair.clean.shape[1]
        wanted = list(range(length)) if rows is None else list(rows)
        found = torch.zeros(self.anatomy.layers, len(wanted), dtype=torch.float64)
        for layer in range(self.anatomy.layers):
            for place, row in enumerate(wanted):
                with self._stream_put(layer, self._clean.stream[layer], [row]):
                    found[layer, place] = self._share(self._run(self.pair.corrupt, None), "corrupt")
        return found

    def path(
        self, senders: Iterable[tuple[int, int]] | None = None, *,
        receivers: Literal["logits"] | Collection[tuple[int, int, Input]] = "logits", rows: Rows = (-1,),
        freeze_mlps: bool = False,
    ) -> HeadMap:  # fmt: skip
        """What goes from each sender to the receivers and nowhere else: the change of the metric, in shares
        of what separates clean from corrupt (-1: the answer is lost by that path). `rows` are where senders
        are patched; receivers are heads with the input that is meant, (layer, head, "q" | "k" | "v"); "k" and
        "v" are those that the query head reads, which its group reads as well."""
        values = self._empty()
        targets = (
            [] if receivers == "logits" else [(self._site(la, h), h, which) for la, h, which in receivers]
        )
        require(receivers == "logits" or bool(targets), "receivers is empty, but a path ends somewhere")
        for layer, head in self._all() if senders is None else senders:
            sender = self._site(layer, head)
            if targets and layer >= max(site.layer for site, _, _ in targets):
                values[layer, head] = 0.0  # nothing later is listening
                continue
            frozen = {
                site.name: _put_heads(self._clean.heads[site.name], range(site.q_heads), ALL)
                for site in self.anatomy.sites
            }
            changed = _put_heads(self._corrupt.heads[sender.name], [head], rows)
            whole = frozen[sender.name]
            frozen[sender.name] = lambda heads, whole=whole, changed=changed: changed(whole(heads))
            with self._mlps_held(freeze_mlps):
                first = self._take(self.pair.clean, _Putting(frozen))
            if receivers == "logits":
                values[layer, head] = self._share(first.logits, "clean-signed")
                continue
            put: dict[str, list[tuple[int, Input, Tensor]]] = {}
            for site, own, which in targets:
                put.setdefault(site.name, []).append((own, which, first.inputs[site.name, which]))
            inputs = {
                name: _put_inputs(each, next(s for s in self.anatomy.sites if s.name == name).group)
                for name, each in put.items()
            }
            logits = self._run(self.pair.clean, _Putting(inputs_at=inputs))
            values[layer, head] = self._share(logits, "clean-signed")
        return HeadMap(values, "effect of the path")

    def _share(self, logits: Tensor, onto: str) -> float:
        apart = (self.clean - self.corrupt).mean()
        require(float(apart.abs()) > 1e-9, "clean and corrupt have the same metric: nothing is there to move")
        now = self.metric(logits)
        if onto == "corrupt":
            return float((now - self.corrupt).mean() / apart)
        lost = float((self.clean - now).mean() / apart)
        return lost if onto == "clean" else -lost

    def _empty(self) -> Tensor:
        shape = (self.anatomy.layers, max(site.q_heads for site in self.anatomy.sites))
        return torch.full(shape, torch.nan, dtype=torch.float64)

    def _all(self) -> list[tuple[int, int]]:
        return [(site.layer, head) for site in self.anatomy.sites for head in range(site.q_heads)]

    def _site(self, layer: int, head: int) -> Site:
        require(
            0 <= layer < self.anatomy.layers, f"layer is {layer}, but they go to {self.anatomy.layers - 1}"
        )
        site = self.anatomy.sites[layer]
        require(0 <= head < site.q_heads, f"head is {head}, but {site} has query heads to {site.q_heads - 1}")
        return site

    def _run(self, ids: Tensor, actor: _Putting | None) -> Tensor:
        actors = [] if actor is None else [actor]
        with _at_work(self.model, actors), torch.no_grad():
            return self.model(ids).logits[:, -1]

    def _take(self, ids: Tensor, actor: _Putting | None = None) -> _Taken:
        # Inputs are taken as they arrive; heads behind what was put in their place.
        taking, handles = _Taking(inputs=True), []
        for layer, (site, mlp) in enumerate(zip(self.anatomy.sites, self.anatomy.mlps)):
            for module, where in ((mlp, taking.taken.mlps), (site.block, taking.taken.stream)):
                handles.append(module.register_forward_hook(_keeping(where, layer)))
        try:
            with _at_work(self.model, [*([] if actor is None else [actor]), taking]), torch.no_grad():
                taking.taken.logits = self.model(ids).logits[:, -1]
        finally:
            for handle in handles:
                handle.remove()
        return taking.taken

    @contextmanager
    def _mlps_held(self, held: bool) -> Iterator[None]:
        handles = []
        if held:
            for layer, mlp in enumerate(self.anatomy.mlps):
                clean = self._clean.mlps[layer]
                handles.append(mlp.register_forward_hook(lambda m, a, out, clean=clean: _like(out, clean)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def _stream_put(self, layer: int, source: Tensor, rows: Rows) -> Iterator[None]:
        def put(module: nn.Module, args: Any, output: Any) -> Any:
            stream = (output if isinstance(output, Tensor) else output[0]).clone()
            stream[:, rows] = source[:, rows]
            return _like(output, stream)

        handle = self.anatomy.sites[layer].block.register_forward_hook(put)
        try:
            yield
        finally:
            handle.remove()


@contextmanager
def _at_work(model: nn.Module, actors: list[Any]) -> Iterator[None]:
    if not actors:
        yield
        return
    seam = Seam.of(model)
    seam.enter(actors)
    try:
        yield
    finally:
        seam.leave(actors)


def _put_heads(source: Tensor, which: Iterable[int], rows: Rows) -> Callable[[Tensor], Tensor]:
    chosen = list(which)
    place = rows if isinstance(rows, slice) else list(rows)

    def put(heads: Tensor) -> Tensor:
        heads = heads.clone()
        for head in chosen:
            heads[:, head, place] = source[:, head, place]
        return heads

    return put


def _put_inputs(
    wanted: list[tuple[int, Input, Tensor]], group: int
) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    def put(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        held = {"q": q.clone(), "k": k.clone(), "v": v.clone()}
        for head, which, source in wanted:
            own = head if which == "q" else head // group
            held[which][:, own] = source[:, own]
        return held["q"], held["k"], held["v"]

    return put


def _keeping(where: dict[int, Tensor], layer: int) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        where[layer] = (output if isinstance(output, Tensor) else output[0]).detach()

    return hook


def _like(output: Any, value: Tensor) -> Any:
    return value if isinstance(output, Tensor) else type(output)((value, *output[1:]))
