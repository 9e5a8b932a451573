"""Grid mixers and gates that break one promise each."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from tests.contract.sound import Near, Squeeze


class WiderThanDeclared(Near):
    """Declares the 3×3 nearest and sees the 5×5 nearest."""

    kernel = 5

    def attend(self, q, k, v, *, pattern, **given):
        return super().attend(q, k, v, pattern=replace(pattern, kernel=self.kernel), **given)

    def attend_reference(self, q, k, v, *, pattern, **given):
        return super().attend_reference(q, k, v, pattern=replace(pattern, kernel=self.kernel), **given)


class NarrowerThanDeclared(WiderThanDeclared):
    """Declares the 3×3 nearest and sees only itself."""

    kernel = 1


class ChoosesFromAfar(Near):
    """Doubles where the whole map's largest first channel is small: a look without a gradient."""

    def merge(self, heads, *, x, record=None):
        far = (x[..., 0].amax(1) < 8).to(x.dtype) + 1
        return super().merge(heads, x=x) * far[:, None, None]


class BatchSqueeze(Squeeze):
    """The mean goes over the batch, too."""

    def weights(self, x):
        return self.mix(x.mean((0, 2, 3))[None]).sigmoid()[:, :, None, None]


class ChannelsTwice(Squeeze):
    """Accepts a map of any number of channels and gates the first ones."""

    def check_map(self, x):
        super().check_map(x[:, : self.channels])

    def weights(self, x):
        first = super().weights(x[:, : self.channels])
        return nn.functional.pad(first, (0, 0, 0, 0, 0, x.shape[1] - self.channels), value=1.0)


class StripedGate(Squeeze):
    """Reads a map's memory as if it were contiguous."""

    def weights(self, x):
        return super().weights(x.as_strided(x.shape, torch.empty(x.shape).stride()))
