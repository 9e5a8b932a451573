"""Edits under which a query of a decoder reads some of the keys before it and no others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from regardant.core.landmarks import softmax_where
from regardant.edit.edit import Edit
from regardant.edit.language.causal_text import CausalText, put_rows, texts_of
from regardant.host.call import Call
from regardant.host.run import Run
from regardant.host.site import Site


@dataclass(kw_only=True)
class KeyChoice(Edit):
    """Softmax over chosen keys in place of all. A subclass says which (`seen`) and computes it fast (`mix`).

    The host's cache keeps every key: what is saved is reading, not memory. Layers that slide by themselves
    (every other one of Gemma 3, say) are left as they are.
    """

    def touches(self, site: Site) -> bool:
        return site.causal and not slides(site) and super().touches(site)

    def seen(self, text: CausalText, site: Site) -> Bool[Tensor, "#b #h m n"]:
        """Which keys these queries read, in a pass without a past of its own: for measuring and testing."""
        raise TypeError(f"{type(self).__name__} does not say which keys it reads")

    def mix(self, text: CausalText, site: Site, run: Run) -> Float[Tensor, "b h m e"]:
        """The heads of a text."""
        weights = softmax_where(text.logits(), self.seen(text, site))
        return weights @ text.v.repeat_interleave(site.group, dim=1)

    def attend(self, call: Call, site: Site, run: Run) -> Float[Tensor, "b h m e"]:
        out = torch.zeros(*call.q.shape[:3], call.v.shape[-1], dtype=call.v.dtype, device=call.v.device)
        for text in texts_of(call, run, self):
            put_rows(out, text, self.mix(text, site, run))
        return out


def slides(site: Site) -> bool:
    """Whether a site's own attention reaches no farther than a window."""
    return getattr(site.module, "sliding_window", None) is not None
