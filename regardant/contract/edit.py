"""The suite of edits: what a change to a running model must keep, on small models of many architectures.

An edit class brings `examples()`, settings to make it with, the first one typical, and `neutral_settings()`,
the settings that change nothing.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from regardant.contract.brought import Brought
from regardant.contract.report import Broken, Skip
from regardant.contract.subject import blame
from regardant.core.errors import require
from regardant.edit.apply import apply
from regardant.edit.edit import Edit
from regardant.host.host import host_of
from regardant.world.families import FAMILIES, PAD, Family

LENGTH = 24
CLOSE = 5e-5


class Edits:
    """An edit in all its settings, and the models to try it on; made once for all properties."""

    def __init__(self, subject: Brought, *, examples: int, seed: int):
        self.subject, self.seed = subject, seed
        with blame("examples()"):
            self.settings = [dict(each) for each in subject.maker.examples()]
        require(len(self.settings) > 0, f"{subject.name} brings no examples, but at least one is wanted")
        self._models: dict[str, nn.Module] = {}

    def make(self, settings: dict[str, Any] | None = None) -> Edit:
        with blame(f"{self.subject.name}({settings or self.settings[0]})"):
            return self.subject.maker(**(settings or self.settings[0]))

    @property
    def families(self) -> list[Family]:
        """The architectures that the edit says it is for."""
        return [FAMILIES[name] for name in self.subject.maker.families]

    def model(self, family: Family) -> nn.Module:
        if family.name not in self._models:
            self._models[family.name] = family.make(seed=self.seed)
        return self._models[family.name]

    @property
    def home(self) -> Family:
        """The architecture that the properties of one model are tried on."""
        return self.families[0]

    def run(self, edits: list[Edit], inputs: dict[str, Tensor], family: Family | None = None) -> Tensor:
        family = family or self.home
        with (
            torch.no_grad(),
            blame(f"a pass of {family.name} under {type(edits[0]).__name__}"),
            _applied(self.model(family), edits),
        ):
            return family.logits(self.model(family)(**inputs))

    def plain(self, inputs: dict[str, Tensor], family: Family | None = None) -> Tensor:
        family = family or self.home
        with torch.no_grad():
            return family.logits(self.model(family)(**inputs))

    def inputs(self, *, batch: int = 2, length: int = LENGTH, seed: int = 0) -> dict[str, Tensor]:
        return self.home.inputs(batch=batch, length=length, seed=seed)


def _applied(model: nn.Module, edits: list[Edit]) -> apply:
    return apply(model, *edits)


def zero_strength(asked: Edits) -> str:
    """Settings that change nothing change no bit."""
    neutral = asked.subject.maker.neutral_settings()
    if neutral is None:
        raise Broken("neutral_settings() gives None; say in `exempt` why there is no zero strength")
    tried = 0
    for family in asked.families:
        inputs = family.inputs(length=LENGTH)
        if not torch.equal(asked.run([asked.make(neutral)], inputs, family), asked.plain(inputs, family)):
            raise Broken(f"with {neutral} the outputs of {family.name} differ from the unedited model's")
        tried += 1
    return f"bit for bit the unedited model's on {tried} architectures"


def effect(asked: Edits) -> str:
    """The first example fires and changes something, on every architecture that the edit is for."""
    for family in asked.families:
        inputs = family.inputs(length=LENGTH)
        edit = asked.make()
        found, before = asked.run([edit], inputs, family), asked.plain(inputs, family)
        if not torch.isfinite(found).all():
            raise Broken(f"the outputs of {family.name} are not finite")
        if "prompt" in edit.passes and torch.equal(found, before):
            raise Broken(f"the outputs of {family.name} are the unedited model's: the edit changes nothing")
    return f"fires on {', '.join(family.name for family in asked.families)}"


def restoration(asked: Edits) -> str:
    """On exit, also by an exception in the middle of a pass, the model gives what it gave."""
    for family in asked.families:
        inputs, model = family.inputs(length=LENGTH), asked.model(family)
        before, config = asked.plain(inputs, family), model.config.to_dict()
        asked.run([asked.make()], inputs, family)
        last = host_of(model).sites[-1].module
        handle = last.register_forward_pre_hook(_fail)
        try:
            asked.run([asked.make()], inputs, family)
        except (Broken, _InTheMiddleError):
            pass
        finally:
            handle.remove()
        if model.config.to_dict() != config or not torch.equal(asked.plain(inputs, family), before):
            raise Broken(f"{family.name} is not what it was before the edit")
    return "the model is what it was, also after an exception"


class _InTheMiddleError(RuntimeError):
    pass


def _fail(module: nn.Module, args: Any) -> None:
    raise _InTheMiddleError("in the middle of a pass")


def settings(asked: Edits) -> str:
    """Every example runs on the home architecture, the same way twice."""
    inputs = asked.inputs()
    for each in asked.settings:
        first, second = (asked.run([asked.make(each)], inputs) for _ in range(2))
        if not torch.equal(first, second):
            raise Broken(f"with {each} two runs differ")
    return f"{len(asked.settings)} settings, each the same twice"


def composition(asked: Edits) -> str:
    """Beside an edit that does nothing, before, after or around it, it does what it does alone."""
    inputs, model = asked.inputs(), asked.model(asked.home)
    alone = asked.run([asked.make()], inputs)
    for edits in ([asked.make(), _Nothing()], [_Nothing(), asked.make()]):
        if not torch.equal(asked.run(edits, inputs), alone):
            raise Broken("beside an edit that does nothing it does something else")
    with torch.no_grad(), _applied(model, [_Nothing()]), _applied(model, [asked.make()]):
        nested = asked.home.logits(model(**inputs))
    if not torch.equal(nested, alone):
        raise Broken("inside another edit's context it does something else")
    return "beside and inside an edit that does nothing, the same"


class _Nothing(Edit):
    """Gives the heads back as they are."""

    def heads(self, heads, site, run):
        return heads


def padding(asked: Edits) -> str:
    """A prompt alone, and the same one padded on the left in a batch: the same outputs."""
    family = asked.home
    if family.reads not in ("text", "masked"):
        raise Skip(f"{family.name} reads no padded text")
    long = family.inputs(batch=1, length=LENGTH)["input_ids"]
    short = family.inputs(batch=1, length=LENGTH - 7, seed=1)["input_ids"]
    empty = torch.full((1, 7), PAD)
    # Prompts that are continued are padded on the left, so that all end together.
    ids = torch.cat([long, torch.cat([empty, short] if family.causal else [short, empty], dim=1)])
    real = (ids != PAD).long()
    given = dict(input_ids=ids, attention_mask=real)
    if family.causal:
        given["position_ids"] = (real.cumsum(1) - 1).clamp(min=0)
    for each in asked.settings:
        both = asked.run([asked.make(each)], given)
        for row, text in enumerate((long, short)):
            alone = asked.run([asked.make(each)], dict(input_ids=text))
            gap = float((both[row][real[row].bool()] - alone[0]).abs().max())
            if gap > CLOSE * max(1.0, float(alone.abs().max())):
                raise Broken(
                    f"with {each} a prompt in a padded batch differs from the same alone by {gap:.2g}"
                )
    return "a prompt in a padded batch gives what it gives alone"


def causality(asked: Edits) -> str:
    """No past moves when the future changes."""
    family = asked.home
    if not family.causal:
        raise Skip(f"{family.name} sees the whole text")
    inputs = asked.inputs()
    changed = dict(inputs, input_ids=inputs["input_ids"].clone())
    cut = LENGTH - 5
    changed["input_ids"][:, cut:] = 5 + (changed["input_ids"][:, cut:] + 7) % 70
    for each in asked.settings:
        first, second = (asked.run([asked.make(each)], given)[:, :cut] for given in (inputs, changed))
        gap = float((first - second).abs().max())
        if gap > CLOSE:
            raise Broken(f"with {each} the past moves by {gap:.2g} when the last 5 tokens change")
    return "the past stays when the future changes"


def cache(asked: Edits) -> str:
    """Token by token behind a cache, the same scores as in one pass."""
    family, model = asked.home, asked.model(asked.home)
    if not family.causal:
        raise Skip(f"{family.name} has no cache")
    inputs = asked.inputs()
    ids, begin = inputs["input_ids"], LENGTH - 6
    for each in asked.settings:
        whole = asked.run([asked.make(each)], inputs)
        parts = decoded(model, [asked.make(each)], ids, prompt=begin)
        gap = float((parts - whole).abs().max())
        if gap > CLOSE * max(1.0, float(whole.abs().max())):
            raise Broken(f"with {each} decoding by a cache differs from one pass by {gap:.2g}")
    return "with a cache as without"


def decoded(model: nn.Module, edits: list[Edit], ids: Tensor, *, prompt: int) -> Tensor:
    """The scores of every token, the prompt's in one pass and each later one's behind a cache."""
    scores, held = [], None
    with torch.no_grad(), _applied(model, edits):
        for start, stop in [(0, prompt), *((at, at + 1) for at in range(prompt, ids.shape[1]))]:
            output = model(input_ids=ids[:, start:stop], past_key_values=held, use_cache=True)
            held = output.past_key_values
            scores.append(output.logits)
    return torch.cat(scores, dim=1)


def generation(asked: Edits) -> str:
    """`generate` runs: greedily in a batch, and with beams."""
    family, model = asked.home, asked.model(asked.home)
    if not family.causal:
        raise Skip(f"{family.name} writes no text")
    inputs = asked.inputs()
    for search in (dict(num_beams=1), dict(num_beams=3)):
        with torch.no_grad(), blame(f"generate with {search}"), _applied(model, [asked.make()]):
            text = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False, **search)
        if text.shape[1] != LENGTH + 4:
            raise Broken(f"generate with {search} wrote {text.shape[1] - LENGTH} tokens instead of 4")
    return "generates, with beams as well"


def errors(asked: Edits) -> str:
    """Layers and stacks that are not there are refused in a sentence, before any pass."""
    model = asked.model(asked.home)
    own = {field.name for field in fields(asked.subject.maker)}
    for wrong in (dict(layers=[99]), dict(stack="nowhere")):
        if not set(wrong) <= own:
            continue
        try:
            apply(model, asked.subject.maker(**{**asked.settings[0], **wrong}))
        except ValueError as error:
            if "\n" in str(error):
                raise Broken(f"{wrong} is refused in more than a line") from error
        else:
            raise Broken(f"{wrong} is not refused")
    return "what is not there is refused in a sentence"
