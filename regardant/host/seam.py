"""Where edits and lenses meet a model: each site's call goes through the stages that somebody asked for.

    qkv → factor → [attend | logits → weights] → (read) → heads        at a site
    between                                                            behind it, before the feed-forward
    residual                                                           where it leaves the site's block
    scores                                                             the logits of the next token

Only sites whose logits or weights somebody touches leave the fused path, and `calls` counts what ran how.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.host.between import Between
from regardant.host.call import Call
from regardant.host.host import Host, host_of
from regardant.host.restoration import Restoration
from regardant.host.roles import Roles
from regardant.host.run import Run
from regardant.host.site import Site
from regardant.host.token_flow import TokenFlow

HELD = "_regardant"
"""The attribute of a model that holds its seam, while there is one."""


FLOW = ("keep", "inject")


class Actor(Protocol):
    """What an edit or a lens looks like from here: the stages that it takes part in at a site."""

    def stages(self, site: Site) -> frozenset[str]: ...


class Seam:
    """The edits and lenses that are at work on a model, in order."""

    def __init__(self, host: Host) -> None:
        self.host, self.run = host, Run()
        self.run.model = host.model
        self.actors: list[Actor] = []
        self.calls: Counter[tuple[str, str]] = Counter()
        """How often (site's name, "fused" | "written" | "replaced") ran."""
        self.fired: dict[int, Counter[str]] = defaultdict(Counter)
        """By an actor's id: how often each of its stages was called."""
        self._plan: dict[str, dict[str, list[Actor]]] = {}
        self._handles: list[Any] = []
        self._known: set[type] = set()
        self._found: Restoration | None = None

    @classmethod
    def of(cls, model: nn.Module) -> Seam:
        """The seam that the model has now, or a new one."""
        return getattr(model, HELD, None) or cls(host_of(model))

    @property
    def model(self) -> nn.Module:
        return self.host.model

    def enter(self, actors: Sequence[Actor], *, roles: Roles | None = None) -> None:
        """Put these at work, after those that are there."""
        first = HELD not in self.model.__dict__
        if first:
            self._found = Restoration(self.model)
            self.host.attach(self._attend, self.run)
            self.model.__dict__[HELD] = self
        if roles is not None:
            require(self.run.roles is None, "roles are given, but an edit around this one has given some")
            self.run.roles = roles
        self.actors += actors
        try:
            self._arrange()
        except ValueError:
            self.leave(actors, roles=roles)
            raise

    def leave(self, actors: Sequence[Actor], *, roles: Roles | None = None) -> None:
        """Take these off; with the last, the model is what it was."""
        for actor in actors:
            self.actors = [each for each in self.actors if each is not actor]
        if roles is not None:
            self.run.roles = None
        self._arrange()
        if not self.actors and HELD in self.model.__dict__:
            del self.model.__dict__[HELD]
            self.host.detach()
            found, self._found = self._found, None
            found.check()

    def _arrange(self) -> None:
        """Who acts where; hooks for the stages that are no attention's."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._plan = [], {}
        for site in self.host.sites:
            plan: dict[str, list[Actor]] = defaultdict(list)
            for actor in self.actors:
                for stage in actor.stages(site):
                    plan[stage].append(actor)
            self._plan[site.name] = plan
            if plan["between"]:
                self._handles.append(Between(site, plan["between"], self.run, self._count))
            if plan["residual"]:
                require(
                    site.block is not None,
                    f"{site} has no block whose output could be told apart, so its residual stream cannot be "
                    "edited",
                )
                self._handles.append(site.block.register_forward_hook(self._residual(site, plan["residual"])))
        self._handles += self._token_flows()
        scoring = [
            actor for actor in self.actors if any("scores" in actor.stages(s) for s in self.host.sites)
        ]
        if scoring:
            self._handles.append(self.model.register_forward_hook(self._scores(scoring)))

    def _token_flows(self) -> list[TokenFlow]:
        """For every stack in which somebody drops or adds tokens, what makes its blocks agree on it."""
        acting: dict[str, dict[int, list[tuple[Actor, Site, str]]]] = {}
        for site in self.host.sites:
            found = [(actor, site, stage) for stage in FLOW for actor in self._plan[site.name][stage]]
            if found:
                acting.setdefault(site.stack, {}).setdefault(site.layer, []).extend(found)
        return [
            TokenFlow(_blocks(self.model, self.host.sites, stack), by_layer, self.run, self._count)
            for stack, by_layer in acting.items()
        ]

    def _attend(self, call: Call) -> tuple[Tensor, Tensor | None]:
        site, run, plan = call.site, self.run, self._plan[call.site.name]
        for actor in plan["qkv"]:
            call.q, call.k, call.v = actor.qkv(call.q, call.k, call.v, site, run)
            self._count(actor, "qkv")
        factor = 1.0
        for actor in plan["factor"]:
            factor = factor * actor.factor(call, site, run)
            self._count(actor, "factor")
        capped = bool(plan["factor"]) and call.cap is not None
        if plan["factor"] and not capped:
            call.sharpen(factor)
        replacing = [actor for actor in plan["attend"] if actor.replaces(call, run)]
        weights = None
        if replacing:
            require(
                len(replacing) == 1,
                f"{' and '.join(type(each).__name__ for each in replacing)} both replace {site}",
            )
            heads = replacing[0].attend(call, site, run)
            self._count(replacing[0], "attend")
            self.calls[site.name, "replaced"] += 1
        elif capped or any(actor.acts(run) for actor in (*plan["logits"], *plan["weights"])):
            heads, weights = self._written(call, plan, factor if capped else None)
            self.calls[site.name, "written"] += 1
        else:
            heads, weights = call.fused(call)
            self.calls[site.name, "fused"] += 1
        for actor in plan["read"]:
            actor.read(call, heads, weights, site, run)
            self._count(actor, "read")
        for actor in plan["heads"]:
            heads = actor.heads(heads, site, run)
            self._count(actor, "heads")
        return heads, weights

    def _written(
        self, call: Call, plan: dict[str, list[Actor]], factor: Tensor | float | None
    ) -> tuple[Tensor, Tensor]:
        """The call with its logits and weights in the open."""
        self._compare_once(call)
        site, run = call.site, self.run
        run.call = call
        logits = call.logits() if factor is None else call.logits() * factor
        for actor in filter(lambda each: each.acts(run), plan["logits"]):
            logits = actor.logits(logits, site, run)
            self._count(actor, "logits")
        weights = call.weights(logits)
        for actor in filter(lambda each: each.acts(run), plan["weights"]):
            weights = actor.weights(weights, site, run)
            self._count(actor, "weights")
        run.call = None
        return call.mix(weights), weights.to(call.q.dtype)

    def _compare_once(self, call: Call) -> None:
        """Before the first change of a class's attention: is what we write out what it computes?"""
        kind = type(call.site.module)
        if kind in self._known or call.dropout:
            return
        gap, other = call.unlike()
        require(
            not other,
            f"{kind.__name__} at {call.site.name} computes more than softmax(q·k) v under a mask: written "
            f"out, its heads differ by {gap:.2g}; edit its heads or its residual stream, or replace it whole",
        )
        self._known.add(kind)

    def _residual(self, site: Site, actors: list[Actor]):
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            stream = output if isinstance(output, Tensor) else output[0]
            for actor in actors:
                stream = actor.residual(stream, site, self.run)
                self._count(actor, "residual")
            return stream if isinstance(output, Tensor) else type(output)((stream, *output[1:]))

        return hook

    def _scores(self, actors: list[Actor]):
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            logits = getattr(output, "logits", None)
            require(
                isinstance(logits, Tensor) and logits.ndim == 3,
                f"the scores of the next token are to be edited, but {type(module).__name__} gives none",
            )
            last = logits[:, -1]
            for actor in actors:
                last = actor.scores(last, self.run)
                self._count(actor, "scores")
            output.logits = torch.cat([logits[:, :-1], last[:, None]], dim=1)
            return output

        return hook

    def _count(self, actor: Actor, stage: str) -> None:
        self.fired[id(actor)][stage] += 1


def _blocks(model: nn.Module, sites: Sequence[Site], stack: str) -> list[nn.Module]:
    """All blocks of a stack in order, those without attention as well."""
    site = next(site for site in sites if site.stack == stack and not site.cross)
    for around in model.modules():
        if isinstance(around, nn.ModuleList) and any(block is site.block for block in around):
            own = {id(each.block) for each in sites if each.stack == stack}
            require(
                own <= {id(block) for block in around},
                f"the blocks of {stack} are not in one list, so tokens cannot be dropped between them",
            )
            return list(around)
    raise ValueError(f"{site} has no block in a list of blocks, so tokens cannot be dropped behind it")
