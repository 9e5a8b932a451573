"""How a model recalls a fact (Lv et al., "Interpreting Key Mechanisms of Factual Recall in Transformer-Based
Language Models", 2024, arXiv:2403.19521): three steps, and what the last layer does to the answer.

    1. movers     heads that attend from the last token to the topic and write it: how much they look at it,
                  and which rank the topic's token has in what they write, read by the unembedding
    2. the MLP    m(x) ≈ Σ_h c_h a_h(x) + b: one number a head, over prompts and channels, and a constant
                  vector. c_h > 0 amplifies what head h brought, c_h < 0 erases it, b is there for any topic
    3. argument   the movers' outputs of another prompt put in their place: does the other's answer come?

Behind it, log p(answer) by the logit lens over the layers, and `ScaleLayer`, which takes back a part of the
last. Our reading: the regression is a ridge on prompts centred channel by channel, with the stream that
enters the layer as one more regressor; heads are correlated, so that the condition number is reported
beside the coefficients.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regardant.core.errors import require
from regardant.core.known_answer import KnownAnswer
from regardant.lens.attention_statistics import share_on
from regardant.lens.head_map import HeadMap
from regardant.lens.logit_lens import logit_lens
from regardant.lens.patching import Patching, PromptPair, logit_difference
from regardant.lens.residual_stream import Anatomy, Parts, read_parts
from regardant.lens.tape import Reading, Tape


@dataclass(frozen=True)
class Facts:
    """Prompts of one length with the place of the topic's last token, and the answer's first token."""

    ids: Int[Tensor, "b n"]
    topic: Int[Tensor, "b"]
    answer: Int[Tensor, "b"]

    def __post_init__(self) -> None:
        count = self.ids.shape[0]
        require(
            self.topic.shape == (count,) and self.answer.shape == (count,),
            f"topic is {list(self.topic.shape)} and answer {list(self.answer.shape)}, but there are {count} "
            "prompts",
        )

    @property
    def topic_token(self) -> Int[Tensor, "b"]:
        return self.ids.gather(1, self.topic[:, None])[:, 0]

    def chosen(self, which: Bool[Tensor, "b"]) -> Facts:
        return Facts(self.ids[which], self.topic[which], self.answer[which])


@dataclass(frozen=True)
class Regression:
    """An MLP in terms of the heads before it."""

    coefficients: Float[Tensor, "h"]
    stream: float
    """Of the stream that entered the layer."""
    offset: Float[Tensor, "c"]
    fit: float
    """R² on the prompts that were held out: 0 is what the mean of the others says."""
    condition: float
    """Of the regressors: large where heads say the same."""


@dataclass(frozen=True)
class FactualRecall:
    """The recipe, on a model and facts of one kind."""

    penalty: float = 1e-3
    """Of the regression, in parts of the regressors' mean square."""

    def attention(self, model: nn.Module, facts: Sequence[Facts]) -> HeadMap:
        """How much each head's last row looks at the topic."""
        total, count = 0.0, 0
        for own in facts:
            topic = torch.zeros_like(own.ids, dtype=torch.bool).scatter(1, own.topic[:, None], True)
            looking = Reading(reduce=share_on(topic), rows=[-1], keep="mean")
            with torch.no_grad(), Tape(model, looking=looking) as tape:
                model(own.ids)
            total, count = total + tape.head_map("looking").values * len(own.ids), count + len(own.ids)
        return HeadMap(total / count, "attention on the topic")

    def topic_rank(
        self, anatomy: Anatomy, parts: Parts, tokens: Int[Tensor, "b"], head: tuple[int, int]
    ) -> Float[Tensor, "b"]:
        """The rank, from 0, of the topic's token in what a head writes at the last row."""
        with torch.no_grad():
            # The norm's weight as it will be applied; its scale does not change ranks.
            written = parts.heads[head[0], :, head[1], -1] * anatomy.norm(torch.ones_like(parts.last[:1, -1]))
            read = anatomy.unembedding(written)
            own = read.gather(1, tokens.to(read.device)[:, None])
            return (read > own).sum(1).double()

    def regress_mlp(
        self, parts: Parts, layer: int, train: Bool[Tensor, "b"], *, pairing: Int[Tensor, "b"] | None = None
    ) -> Regression:
        """The MLP of a layer on that layer's heads, fitted on the prompts of `train`, scored on the others.
        `pairing` gives prompt i the MLP output of prompt pairing[i]: a shuffled one is the control."""
        mlp = parts.mlps[layer, :, -1].double()
        mlp = mlp if pairing is None else mlp[pairing]
        stream = parts.after(layer - 1)[:, -1].double()
        x = torch.cat([parts.heads[layer, :, :, -1].double(), stream[:, None]], dim=1)
        return regression(x, mlp, train, penalty=self.penalty)

    def exchange(
        self, model: nn.Module, facts: Facts, others: Facts, heads: Sequence[tuple[int, int]]
    ) -> float:
        """Step 3: how far the answer goes over to the other prompts' when these heads bring their topic: 0
        not at all, 1 all the way that the whole prompt would take it."""
        metric = logit_difference(others.answer, facts.answer)
        patching = Patching(model, PromptPair(others.ids, facts.ids), metric)
        return patching.together(heads, rows=[-1])

    def answer_by_layer(self, model: nn.Module, facts: Sequence[Facts]) -> Float[Tensor, "s"]:
        """Mean log p(answer) by the logit lens, behind the embedding and every layer."""
        said = [logit_lens(model, own.ids, targets=own.answer) for own in facts]
        return torch.cat(said, dim=1).double().mean(1)

    @classmethod
    def known_answers(cls, generator: torch.Generator) -> Iterator[KnownAnswer]:
        """An MLP that is a known combination of heads; a model in which one head moves the topic."""
        from regardant.world.planted import planted_induction

        x = torch.randn(40, 5, 12, generator=generator, dtype=torch.float64)
        weight = torch.tensor([1.5, -0.7, 0.0, 2.0, -0.2], dtype=torch.float64)
        offset = torch.randn(12, generator=generator, dtype=torch.float64)
        mlp = torch.einsum("h,bhc->bc", weight, x) + offset
        train = torch.arange(40) < 25
        found = regression(x, mlp, train, penalty=1e-9)
        yield KnownAnswer("what each head counts for", found.coefficients, weight[:4], tolerance=1e-6)
        yield KnownAnswer("and the stream", found.stream, float(weight[4]), tolerance=1e-6)
        yield KnownAnswer("what is there for every topic", found.offset, offset, tolerance=1e-6)
        yield KnownAnswer("all of it is explained", found.fit, 1.0, tolerance=1e-6)
        shuffled = torch.randperm(40, generator=generator)
        control = regression(x, mlp[shuffled], train, penalty=1e-9)
        yield KnownAnswer(
            "nothing in a shuffled pairing", min(max(control.fit, 0.0), 1.0), 0.0, tolerance=0.1
        )

        copying = (2, int(torch.randint(1, 4, (1,), generator=generator)))
        model = planted_induction(previous=(0, 1), copying=copying, generator=generator)
        ids = torch.tensor([[0, 9, 3, 4, 12, 5, 3], [0, 9, 7, 8, 13, 5, 7]])
        facts = Facts(ids, torch.tensor([3, 3]), torch.tensor([4, 8]))
        other = ids.clone()
        other[:, 3] = torch.tensor([6, 2])
        others = Facts(other, facts.topic, torch.tensor([6, 2]))
        lens, expected = cls(), torch.zeros(3, 4, dtype=torch.float64)
        expected[copying] = 1.0
        looking = lens.attention(model, [facts]).values
        yield KnownAnswer("the mover looks at the topic", looking, expected, tolerance=1e-3)
        anatomy, parts = Anatomy.of(model), read_parts(model, ids)
        rank = lens.topic_rank(anatomy, parts, facts.topic_token, copying)
        yield KnownAnswer("and writes it", rank, torch.zeros(2))
        idle = [(layer, head) for layer in range(3) for head in range(4) if (layer, head) != copying]
        moved = lens.exchange(model, facts, others, [copying])
        yield KnownAnswer("its argument is all that matters", moved, 1.0, tolerance=1e-3)
        moved = lens.exchange(model, facts, others, idle)
        yield KnownAnswer("the others' do not", moved, 0.0, tolerance=1e-3)


def regression(
    x: Float[Tensor, "b h c"], mlp: Float[Tensor, "b c"], train: Bool[Tensor, "b"], *, penalty: float
) -> Regression:
    """One number a regressor and a constant vector, by ridge; the last regressor is the stream."""
    require(
        2 <= int(train.sum()) < len(train), f"train marks {int(train.sum())} of {len(train)} prompts to fit"
    )
    centre, middle = x[train].mean(0), mlp[train].mean(0)
    inside, target = x[train] - centre, mlp[train] - middle
    gram = torch.einsum("bhc,bgc->hg", inside, inside)
    ridge = penalty * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    weight = torch.linalg.solve(gram + ridge, torch.einsum("bhc,bc->h", inside, target))
    offset = middle - torch.einsum("h,hc->c", weight, centre)
    left = mlp[~train] - torch.einsum("h,bhc->bc", weight, x[~train]) - offset
    fit = 1 - float(left.square().sum() / (mlp[~train] - middle).square().sum())
    return Regression(weight[:-1], float(weight[-1]), offset, fit, float(torch.linalg.cond(gram)))
