"""The text of a new system and of its experiment, one template a kind.

What a skeleton says is true as it stands: the system is a working one, whose contract runs, and the
experiment says in one sentence that it is not written.
"""

import textwrap
from string import Template

from regardant.atlas.source import fingerprint_of
from regardant.core.errors import require

SEQUENCE = Template('''\
"""$title

    y_i = Σ_j softmax_j(q_i·k_j / √d) v_j

So far this is softmax attention, and its contract runs. Put the paper's equation here and, as plainly,
in `attend_reference`; make `attend` fast; declare in `supports` what is true; say what differs from
the official code.
"""

from regardant.core.mixer import MultiHead
from regardant.core.supports import Supports


class $name(MultiHead):
    """Multi-head softmax attention."""

    supports = Supports(time=2.0, memory=1.0, state=1.0)

    def attend(self, q, k, v, *, x, pattern, padding=None, record=None):
        return self.rule(q, k, v, pattern=pattern, scale=self.scale)

    def attend_reference(self, q, k, v, *, x, pattern, padding=None):
        return self.rule.reference(q, k, v, pattern=pattern, scale=self.scale)
''')

GRID = Template('''\
"""$title

    y_i = Σ_j softmax_j(q_i·k_j / √d) v_j,  j in the neighbourhood of i

So far this is softmax attention over a neighbourhood, and its contract runs. Put the paper's equation
here; give `grid_pattern` the paper's pattern, or override `attend` and `attend_reference`; declare in
`supports` what is true; say what differs from the official code.
"""

from dataclasses import replace

from regardant.core.grid_mixer import GridMixer, GridMultiHead
from regardant.core.grid_pattern import Neighborhood


class $name(GridMultiHead):
    """Multi-head softmax attention over the `size` × `size` nearest positions."""

    supports = replace(GridMixer.supports, time=1.0, memory=1.0)

    def __init__(self, dim: int, heads: int, *, size: int = 7, **shared):
        super().__init__(dim, heads, grid_pattern=Neighborhood(size), **shared)
''')

GATE = Template('''\
"""$title

    y = x · σ(W mean(x)),  the mean over all positions

So far this is one linear layer on the pooled channels, and its contract runs. Put the paper's equation
here and, as plainly, in `reference`; say what differs from the official code.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.core.gate import Gate


class $name(Gate):
    """A weight a channel from the channels' means."""

    def __init__(self, channels: int):
        super().__init__()
        require(channels >= 1, f"channels is {channels}, but a map has at least 1")
        self.channels = channels
        self.score = nn.Linear(channels, channels)

    def weights(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c 1 1"]:
        return torch.sigmoid(self.score(x.mean(dim=(2, 3))))[..., None, None]

    def reference(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        self.check_map(x)
        pooled = x.flatten(2).sum(dim=2) / (x.shape[2] * x.shape[3])
        scores = pooled @ self.score.weight.T + self.score.bias
        return torch.einsum("bchw,bc->bchw", x, 1 / (1 + torch.exp(-scores)))
''')

SYSTEMS = {"sequence": SEQUENCE, "grid": GRID, "gate": GATE}

CLAIM = Template('''\
"""$about"""

from regardant.claim.context import Context
from regardant.claim.outcome import Outcome


def claim(context: Context) -> Outcome:
    raise ValueError("the experiment of '$slug' is not written yet; it belongs here, into `claim`")
''')


def system_text(kind: str, *, name: str, title: str, arxiv: str) -> str:
    """A working system of this kind, under the paper's title."""
    require(kind in SYSTEMS, f"kind is {kind!r}, but there is a skeleton only for {', '.join(SYSTEMS)}")
    reference = f" (arXiv {arxiv})" if arxiv else ""
    return SYSTEMS[kind].substitute(name=name, title=_docstring(f"{title}{reference}."))


def is_skeleton(kind: str, *, name: str, fingerprint: str) -> bool:
    """Whether code of this fingerprint is what `new` wrote, comments and docstrings aside."""
    return kind in SYSTEMS and fingerprint == fingerprint_of(system_text(kind, name=name, title="", arxiv=""))


def claim_text(slug: str, *, title: str, claim: str) -> str:
    """An experiment that says that it is not written."""
    paragraphs = [f"Does the claim of the paper hold here? {title}."]
    paragraphs += [f"The paper: {claim}"] if claim else []
    about = "\n\n".join(map(_docstring, paragraphs))
    return CLAIM.substitute(slug=slug, about=f"{about}\n" if "\n" in about else about)


def _docstring(text: str) -> str:
    """A paragraph that may stand in a docstring."""
    quotable = text.replace("\\", "\\\\").replace('"', "'")
    return textwrap.fill(quotable, 100, break_long_words=False, break_on_hyphens=False)
