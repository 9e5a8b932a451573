"""The suite of edits can fail: each edit here breaks one property, and is caught for it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import regardant
from regardant.contract import check
from regardant.edit.edit import Edit
from regardant.edit.language.temp_scale import TempScale

pytestmark = pytest.mark.filterwarnings("ignore")


@dataclass
class Scaled(Edit):
    """Sound: heads times a factor."""

    families = ("llama",)
    strength: float = 0.5

    def neutral(self):
        return self.strength == 0

    def heads(self, heads, site, run):
        return heads * (1 + self.strength)

    @classmethod
    def neutral_settings(cls):
        return dict(strength=0.0)


class NeverZero(Scaled):
    """Its zero strength is taken for something else."""

    def neutral(self):
        return False

    def heads(self, heads, site, run):
        return heads * (1.001 + self.strength)


class Idle(Scaled):
    """Fires and changes nothing."""

    def heads(self, heads, site, run):
        return heads


class Clinging(Scaled):
    """Leaves the config other than it was."""

    def heads(self, heads, site, run):
        site.module.config.rope_theta = 5.0
        site.module.o_proj.weight.mul_(1.01)
        return heads * 2


class Mean(Scaled):
    """Mixes every row with the rows behind it."""

    def heads(self, heads, site, run):
        return heads + self.strength * heads.mean(dim=2, keepdim=True)


class Counting(Scaled):
    """Takes a token's place from the batch instead of from the text."""

    def heads(self, heads, site, run):
        places = torch.arange(run.length - heads.shape[2], run.length) / 10
        return heads * (1 + self.strength * places[:, None])


class Forgetful(Scaled):
    """Begins anew with every pass: behind a cache each token is the first."""

    def heads(self, heads, site, run):
        places = torch.arange(heads.shape[2]) / 10
        return heads * (1 + places[:, None])


class Random(Scaled):
    """Draws from the global generator."""

    def heads(self, heads, site, run):
        return heads * (1 + torch.rand(1))


class Alone(Scaled):
    """Does something else where it is not the only edit."""

    def heads(self, heads, site, run):
        seams = [held for held in vars(site.module).values() if isinstance(held, tuple)]
        actors = seams[0][1].__self__.actors
        return heads * 2 * len(actors)


class Crowded(Scaled):
    """Cannot take more samples than there were prompts."""

    def heads(self, heads, site, run):
        if len(heads) > 2:
            raise ValueError("at most two samples fit")
        return super().heads(heads, site, run)


class Anywhere(Scaled):
    """Takes any layers."""

    def prepare(self, sites):
        self._chosen = None


BROKEN = {
    NeverZero: "zero strength",
    Idle: "effect",
    Clinging: "restoration",
    Random: "settings",
    Alone: "composition",
    Mean: "causality",
    Counting: "padding",
    Forgetful: "cache",
    Crowded: "generation",
    Anywhere: "errors",
}


@pytest.mark.parametrize("sound", [Scaled, TempScale], ids=lambda edit: edit.__name__)
def test_sound_edits_keep_their_contract(sound):
    assert check(sound).passed, str(check(sound))


def test_the_edit_that_the_documentation_writes_keeps_the_contract():
    page = (Path(regardant.__file__).parents[1] / "docs" / "edits.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(from dataclasses.*?)```", page, flags=re.DOTALL)
    written: dict[str, object] = {"__name__": __name__}
    exec(code, written)
    assert check(written["TempScale"]).passed, str(check(written["TempScale"]))


@pytest.mark.parametrize(
    ("broken", "title"), BROKEN.items(), ids=lambda each: getattr(each, "__name__", each)
)
def test_a_broken_edit_is_caught_for_what_it_breaks(broken, title):
    assert check(broken).verdict(title).status == "failed", str(check(broken))
