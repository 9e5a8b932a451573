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

NETWORK = Template('''\
"""$title

    y = Σ_j softmax_j(q·x_j / √d) x_j,  one learned q

So far this is pooling by one query, and its contract runs. Put the paper's equation here and, as plainly,
in `reference`; bring examples of every option in `examples`; say what differs from the official code.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.core.network import Example, Network


class $name(Network):
    """The mean of the tokens, weighted by their likeness to a learned query."""

    def __init__(self, dim: int):
        super().__init__()
        require(dim >= 1, f"dim is {dim}, but tokens are at least 1 wide")
        self.dim = dim
        self.query = nn.Parameter(torch.randn(dim))

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Example]:
        for batch, length in ((2, 1), (3, 7), (1, 16)):
            x = torch.randn(batch, length, 8, generator=generator, dtype=torch.float64)
            yield Example({"dim": 8}, (x,))

    def check(self, x: Tensor) -> None:
        require(
            x.ndim == 3 and x.shape[2] == self.dim,
            f"x is {tuple(x.shape)}, but it is [batch, length, {self.dim}]",
        )

    def forward(self, x: Float[Tensor, "b n dim"]) -> Float[Tensor, "b dim"]:
        self.check(x)
        weights = (x @ self.query / self.dim**0.5).softmax(dim=1)
        return (weights[:, None] @ x)[:, 0]

    def reference(self, x: Float[Tensor, "b n dim"]) -> Float[Tensor, "b dim"]:
        self.check(x)
        raised = torch.exp(torch.einsum("bnd,d->bn", x, self.query) / self.dim**0.5)
        return torch.einsum("bn,bnd->bd", raised, x) / raised.sum(dim=1, keepdim=True)
''')

TASK = Template('''\
"""$title

So far this asks which of a row's numbers is the largest, and its contract runs. Say here how the paper's
data are drawn and by which measure they are scored.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from regardant.core.errors import require
from regardant.task.held_out import Drawn
from regardant.task.score import certain, hits, label_loss


@dataclass(frozen=True)
class $name(Drawn):
    """Find the largest of `length` numbers; the metric is the accuracy."""

    length: int = 8
    held_out: int = 256

    name: ClassVar[str] = "the largest number"
    metric_name: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        require(self.length >= 2, f"length is {self.length}, but there is a choice among at least 2")
        require(size >= 1, f"size is {size}, but at least 1 sample is drawn")
        numbers = torch.randn(size, self.length, generator=generator)
        return numbers, numbers.argmax(dim=1)

    def perfect(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return certain(targets, self.length)

    loss = staticmethod(label_loss)
    metric = staticmethod(hits)
''')

KNOWN = Template('''\
"""$title

    H = −Σ_j p_j ln p_j

So far this measures entropies, and its contract runs. Put the paper's equation here; give in
`known_answers` cases whose answer is known by construction, in closed form or from autograd; say what
differs from the official code.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from regardant.core.errors import require
from regardant.core.known_answer import KnownAnswer


class $name:
    """The entropy of rows of weights, in nats."""

    def __call__(self, weights: Float[Tensor, "*b n"]) -> Float[Tensor, "*b"]:
        require(bool((weights >= 0).all()), "weights holds negative numbers, but its rows are distributions")
        return torch.special.entr(weights).sum(dim=-1)

    @classmethod
    def known_answers(cls, generator: torch.Generator) -> Iterator[KnownAnswer]:
        for count in (1, 2, 8):
            even = torch.full((3, count), 1 / count, dtype=torch.float64)
            known = torch.full((3,), count, dtype=torch.float64).log()
            yield KnownAnswer(f"even over {count}", cls()(even), known)
        chosen = torch.randint(8, (3,), generator=generator)
        one = torch.nn.functional.one_hot(chosen, 8).double()
        yield KnownAnswer("all on one", cls()(one), torch.zeros(3))
''')

SYSTEMS = {
    "sequence": SEQUENCE,
    "grid": GRID,
    "gate": GATE,
    "structure": NETWORK,
    "backbone": NETWORK,
    "task": TASK,
    "lens": KNOWN,
    "train": KNOWN,
    "parallel": KNOWN,
}

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
