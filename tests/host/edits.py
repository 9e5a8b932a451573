"""Edits that the seam is proved with."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from regardant.edit.edit import Edit


@dataclass
class Written(Edit):
    """Takes every site off the fused path and changes nothing."""

    def logits(self, logits, site, run):
        return logits


@dataclass
class Sharper(Edit):
    """Logits times two, written out."""

    def logits(self, logits, site, run):
        return logits * 2


@dataclass
class HeadsOff(Edit):
    """The first query head gives nothing."""

    def heads(self, heads, site, run):
        keep = torch.ones(site.q_heads, device=heads.device)
        keep[0] = 0
        return heads * keep[:, None, None].to(heads.dtype)


@dataclass
class Pushed(Edit):
    """A constant on the residual stream."""

    def residual(self, stream, site, run):
        return stream + 0.5


@dataclass
class Peeking(Edit):
    """Looks into the future: each row's heads become the mean over all rows."""

    def heads(self, heads, site, run):
        return heads.mean(dim=2, keepdim=True).expand_as(heads)


@dataclass
class Raises(Edit):
    """Fails in the middle of a pass."""

    after: int = 3
    count: int = field(default=0, init=False)

    def heads(self, heads, site, run):
        self.count += 1
        if self.count > self.after:
            raise RuntimeError("in the middle")
        return heads


@dataclass
class Watching(Edit):
    """Keeps what the run says of every pass."""

    seen: list[tuple[int, int, int]] = field(default_factory=list)

    def heads(self, heads: Tensor, site, run):
        if site.layer == 0:
            self.seen.append((run.step, run.past, run.length))
        return heads
