"""Small networks that answer a program about a scene (Ito et al., "On the generalization capacity of neural
networks during generic multimodal reasoning", 2024, arXiv:2401.15030).

They differ in where the two streams meet, and in nothing else:

    RecurrentStream   one after the other through a GRU
    SingleStream      all rows in the same self-attention
    DualStream        a self-attention each; the states of their end rows are added
    CrossStream       the same, and then the program looks into the scene by cross-attention

Rows are those of `regardant.task.gcog`: [operator, colour, letter, end], `rules` of the program and then the
scene's; every field has a table of vectors, and every row a learned position. A block is attention and an MLP
as wide as the stream, with ReLU, normed after each as in the paper. What differs: the paper feeds ids as
numbers through a linear layer, and has more variants of these (a plain RNN, Perceiver-like latents).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.core.mixer import MultiHead
from regardant.core.network import Example, Network
from regardant.core.record import Record

FIELDS = 4
END = 3


class StreamBlock(nn.Module):
    """norm(x + attention(x or, across, from x into a context)), then norm(x + mlp(x))."""

    def __init__(self, dim: int, heads: int, *, across: bool = False):
        super().__init__()
        self.attention = MultiHead(dim, heads, context_dim=dim if across else None, bias=True)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.first_norm, self.second_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(
        self, x: Float[Tensor, "b n c"], context: Float[Tensor, "b m c"] | None,
        real: Bool[Tensor, "b m"] | None, *, plainly: bool,
    ) -> Float[Tensor, "b n c"]:  # fmt: skip
        attend = self.attention.reference if plainly else self.attention
        x = self.first_norm(x + attend(x, context, real))
        return self.second_norm(x + self.mlp(x))


class TwoStream(Network):
    """The base: rows into vectors, and the answer's scores out of one vector."""

    def __init__(
        self,
        symbols: int,
        classes: int,
        *,
        rules: int,
        cells: int,
        dim: int = 64,
        heads: int = 1,
        layers: int = 1,
    ):
        super().__init__()
        for name, size in (("symbols", symbols), ("classes", classes), ("rules", rules), ("cells", cells),
                           ("layers", layers)):  # fmt: skip
            require(size >= 1, f"{name} is {size}, but there is at least 1")
        self.rules, self.rows = rules, rules + cells + 1
        self.tables = nn.ModuleList(nn.Embedding(symbols, dim) for _ in range(FIELDS))
        self.positions = nn.Parameter(0.1 * torch.randn(self.rows, dim))
        self.make(dim, heads, layers)
        self.head = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, classes))

    @classmethod
    def examples(cls, generator: torch.Generator) -> Iterator[Example]:
        for layers, heads in ((1, 1), (2, 2)):
            rows = torch.randint(1, 7, (3, 11, FIELDS), generator=generator)
            rows[:, :, END] = 0
            rows[:, -1] = torch.tensor([0, 0, 0, 1])
            for sample, end in enumerate((1, 3, 4)):
                rows[sample, end:5] = 0
                rows[sample, end, END] = 1
            config = dict(symbols=7, classes=9, rules=5, cells=5, dim=8, heads=heads, layers=layers)
            yield Example(config, (rows,))

    def make(self, dim: int, heads: int, layers: int) -> None:
        """The layers between."""
        raise NotImplementedError

    def forward(
        self, rows: Int[Tensor, "b n 4"], *, record: Record | None = None
    ) -> Float[Tensor, "b classes"]:
        return self.head(self.meet(*self._streams(rows), plainly=False))

    def reference(self, rows: Int[Tensor, "b n 4"]) -> Float[Tensor, "b classes"]:
        return self.head(self.meet(*self._streams(rows), plainly=True))

    def meet(
        self, program: Float[Tensor, "b r c"], scene: Float[Tensor, "b s c"], real: Bool[Tensor, "b r"],
        *, plainly: bool,
    ) -> Float[Tensor, "b c"]:  # fmt: skip
        """Both streams into one vector; `real` is True up to the program's end row."""
        raise NotImplementedError

    def _streams(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        require(
            rows.ndim == 3 and rows.shape[1:] == (self.rows, FIELDS) and not rows.is_floating_point(),
            f"rows are {rows.dtype} {list(rows.shape)}, not whole numbers [batch, {self.rows}, {FIELDS}]",
        )
        require(
            bool((rows[:, : self.rules, END] == 1).any(dim=1).all()),
            f"a program has no end row among its first {self.rules} rows",
        )
        vectors = sum(table(rows[..., field]) for field, table in enumerate(self.tables)) + self.positions
        ends = rows[:, : self.rules, END].cumsum(dim=1)
        real = (ends - rows[:, : self.rules, END]) == 0
        return vectors[:, : self.rules], vectors[:, self.rules :], real


def _at_end(program: Float[Tensor, "b r c"], real: Bool[Tensor, "b r"]) -> Float[Tensor, "b c"]:
    """The state of the program's end row."""
    last = real.sum(dim=1) - 1
    return program[torch.arange(len(program), device=program.device), last]


class RecurrentStream(TwoStream):
    """The program's rows and then the scene's through a GRU; what it remembers last is read."""

    def make(self, dim, heads, layers):
        self.gru = nn.GRU(dim, dim, num_layers=layers, batch_first=True)

    def meet(self, program, scene, real, *, plainly):
        rows = torch.cat([program * real[..., None], scene], dim=1)
        return self._plainly(rows) if plainly else self.gru(rows)[0][:, -1]

    def _plainly(self, rows: Tensor) -> Tensor:
        """Gate by gate: z keeps, r resets."""
        for layer in range(self.gru.num_layers):
            weights = [getattr(self.gru, f"{name}_l{layer}") for name in
                       ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]  # fmt: skip
            state, states = torch.zeros_like(rows[:, 0]), []
            for row in rows.unbind(1):
                given = (row @ weights[0].mT + weights[2]).chunk(3, dim=-1)
                kept = (state @ weights[1].mT + weights[3]).chunk(3, dim=-1)
                reset, keep = (torch.sigmoid(a + b) for a, b in zip(given[:2], kept[:2]))
                state = (1 - keep) * torch.tanh(given[2] + reset * kept[2]) + keep * state
                states.append(state)
            rows = torch.stack(states, dim=1)
        return rows[:, -1]


class SingleStream(TwoStream):
    """All rows in the same `layers` of self-attention; the program's end row is read."""

    def make(self, dim, heads, layers):
        self.blocks = nn.ModuleList(StreamBlock(dim, heads) for _ in range(layers))

    def meet(self, program, scene, real, *, plainly):
        rows = torch.cat([program, scene], dim=1)
        shown = torch.cat([real, real.new_ones(scene.shape[:2])], dim=1)
        for block in self.blocks:
            rows = block(rows, None, shown, plainly=plainly)
        return _at_end(rows[:, : program.shape[1]], real)


class DualStream(TwoStream):
    """`layers` of self-attention each; the states of both end rows are added."""

    def make(self, dim, heads, layers):
        self.program_blocks = nn.ModuleList(StreamBlock(dim, heads) for _ in range(layers))
        self.scene_blocks = nn.ModuleList(StreamBlock(dim, heads) for _ in range(layers))

    def apart(self, program, scene, real, *, plainly):
        for block in self.program_blocks:
            program = block(program, None, real, plainly=plainly)
        for block in self.scene_blocks:
            scene = block(scene, None, None, plainly=plainly)
        return program, scene

    def meet(self, program, scene, real, *, plainly):
        program, scene = self.apart(program, scene, real, plainly=plainly)
        return _at_end(program, real) + scene[:, -1]


class CrossStream(DualStream):
    """The same, and then the program's rows look into the scene; the program's end row is read."""

    def make(self, dim, heads, layers):
        super().make(dim, heads, layers)
        self.cross = StreamBlock(dim, heads, across=True)

    def meet(self, program, scene, real, *, plainly):
        program, scene = self.apart(program, scene, real, plainly=plainly)
        return _at_end(self.cross(program, scene, None, plainly=plainly), real)
