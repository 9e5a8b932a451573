"""Does a plan of spans by head lose less than one span for all, at the same mean?

SmolLM2-135M-Instruct, 512 tokens, tiles of 16, at most the earlier keys that 16 sinks and 112 behind the
query take. The model is profiled on texts with a secret code far back, and on source files, both with what it
would have written itself as targets; a plan is searched, chosen at a length that was not profiled, and
measured on other texts. Beside it, for sixty drawn query heads, what is lost where one of them reads the
sinks and its own block alone, and what the profile predicts for it, both on the same eight texts with a code.
"""

import copy
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from regardant import create
from regardant.claim.context import Context, Run
from regardant.claim.count import flops
from regardant.claim.outcome import Figure, Outcome, Spread, cost, exact, quality
from regardant.core.elastic_spans import span_pattern
from regardant.edit.apply import apply
from regardant.edit.edit import Edit
from regardant.edit.language.attention_influence import IGNORED, AttentionInfluence, by_key_head
from regardant.edit.language.elastic_spans import ElasticSpans
from regardant.edit.language.key_choice import KeyChoice
from regardant.edit.language.oracle_keys import OracleKeys
from regardant.edit.language.span_plan import SpanPlan, candidates, left_out, plans
from regardant.lens.agreement import spearman
from regardant.task.passages import passages
from regardant.task.secret_codes import draw_codes, needle_cases
from regardant.world.pretrained import smollm2

LENGTH, SHORT, UNSEEN, LONG, BLOCK = 512, 256, 768, 1024, 16
UNIFORM = SpanPlan((((112, 0.0),),), block=BLOCK)
LAYERS, QUERY_HEADS, KEY_HEADS, PROFILED, MEASURED, FACTS = 30, 9, 3, 2, 3, 4
TOLD, HEADS = 8, 20
"""Texts that single heads are measured on, and how many heads a seed takes."""
CALIBRATION = 10
"""The first draw of passages that are looked at before anything is measured."""


@torch.no_grad()
def scores(model: nn.Module, ids: Tensor, edit: Edit | None, rows: slice) -> Tensor:
    """The logits behind some tokens of texts."""
    at = torch.arange(ids.shape[1])[rows]
    if edit is None:
        return model(input_ids=ids, logits_to_keep=at).logits.float()
    with apply(model, edit):
        return model(input_ids=ids, logits_to_keep=at).logits.float()


def facts(tokenizer, count: int, generator: torch.Generator) -> list[tuple[Tensor, int]]:
    """Texts of equal length that end with the answer, and how many tokens it has."""
    codes = draw_codes(count, generator=generator)
    found = []
    for place, code in enumerate(codes):
        depth = 0.3 + 0.5 * place / count
        case = next(
            needle_cases(tokenizer, [code], lengths=[LENGTH + 32], depths=[depth], generator=generator)
        )
        found.append((torch.cat([case.ids, case.answer])[-LENGTH:][None], len(case.answer)))
    return found


def own_labels(model: nn.Module, ids: Tensor, last: int) -> Tensor:
    """What the model itself would write behind each of the tokens before the last ones."""
    labels = torch.full_like(ids, IGNORED)
    labels[:, -last - 1 : -1] = scores(model, ids, None, slice(-last - 1, -1)).argmax(-1)
    return labels


def loss_of(model: nn.Module, ids: Tensor, labels: Tensor, edit: Edit | None) -> float:
    rows = (labels != IGNORED).any(0).nonzero()[:, 0]
    rows = slice(int(rows[0]), int(rows[-1]) + 1)
    found = scores(model, ids, edit, rows)
    return float(
        functional.cross_entropy(found.flatten(0, 1), labels[:, rows].flatten(), ignore_index=IGNORED)
    )


def text_loss(model: nn.Module, texts: Tensor, edit: Edit | None) -> float:
    """Of the second half of real texts."""
    half = texts.shape[1] // 2
    each = [
        functional.cross_entropy(scores(model, text[None], edit, slice(half, -1))[0], text[half + 1 :])
        for text in texts
    ]
    return float(torch.stack(each).mean())


def answers(model: nn.Module, cases: list[tuple[Tensor, int]], edit: Edit | None) -> float:
    """The share of the answers' tokens that are the likeliest."""
    right = [
        (scores(model, ids, edit, slice(-size - 1, -1)).argmax(-1) == ids[:, -size:]).double().mean()
        for ids, size in cases
    ]
    return float(torch.stack(right).mean())


@dataclass
class OneHead(KeyChoice):
    """Sinks and its own block for one query head, all keys for the others."""

    head: int = 0

    def seen(self, text, site):
        few = span_pattern(1, block=BLOCK).allows(text.places()[:, None], torch.arange(text.length))
        other = torch.arange(site.q_heads)[:, None, None] != self.head
        return (text.earlier() & (few | other))[None]


def behind(model: nn.Module, layer: int) -> nn.Module:
    """The model from a layer on, which reads the states before it: nothing earlier is computed again."""
    rest, stack = copy.copy(model), copy.copy(model.model)
    rest._modules, stack._modules = dict(model._modules), dict(model.model._modules)
    stack.layers, rest.model = nn.ModuleList(list(stack.layers)[layer:]), stack
    return rest


class SingleHeads:
    """The texts with a code, the states before each layer on them, and what the profile predicts."""

    def __init__(self) -> None:
        self.model, tokenizer = smollm2()
        told = facts(tokenizer, TOLD, torch.Generator().manual_seed(CALIBRATION))
        texts = [(ids, own_labels(self.model, ids, size)) for ids, size in told]
        tiles = AttentionInfluence(block=BLOCK).measure(self.model, texts)
        self.predicted = left_out(tiles, 1)
        ids, self.labels = (torch.cat(each) for each in zip(*texts))
        self.rows = (self.labels != IGNORED).any(0).nonzero()[:, 0]
        with torch.no_grad():
            found = self.model(input_ids=ids, output_hidden_states=True, logits_to_keep=1, use_cache=False)
        self.states = found.hidden_states
        self.before = self.loss(LAYERS - 1, None)

    @torch.no_grad()
    def loss(self, layer: int, head: int | None) -> float:
        """The texts' mean loss, with a head of a layer masked."""
        rest = behind(self.model, layer)
        given = dict(inputs_embeds=self.states[layer], logits_to_keep=self.rows, use_cache=False)
        if head is None:
            logits = rest(**given).logits
        else:
            with apply(rest, OneHead(head=head, layers=[0])):
                logits = rest(**given).logits
        each = [
            functional.cross_entropy(*pair, ignore_index=IGNORED)
            for pair in zip(logits, self.labels[:, self.rows])
        ]
        return float(torch.stack(each).mean())


single_heads = cache(SingleHeads)


def singly(run: Run) -> dict[str, float]:
    """Some of the sixty heads, others with each seed; the texts are the same for all."""
    heads, values = single_heads(), {}
    order = torch.randperm(LAYERS * QUERY_HEADS, generator=torch.Generator().manual_seed(CALIBRATION))
    own = order[run.seed * HEADS : (run.seed + 1) * HEADS].tolist()
    for number, place in enumerate(own):
        layer, head = divmod(place, QUERY_HEADS)
        values[f"predicted {number}"] = float(heads.predicted[layer, head])
        values[f"measured {number}"] = heads.loss(layer, head) - heads.before
        run.context.report_within((number + 1) / HEADS)
    return values


def measured(run: Run) -> dict[str, float]:
    model, tokenizer = smollm2()
    generator = torch.Generator().manual_seed(run.seed)
    draw = partial(passages, tokenizer, draw=CALIBRATION + run.seed)
    told = facts(tokenizer, PROFILED, generator)
    texts = {
        LENGTH: [(ids, own_labels(model, ids, size)) for ids, size in told]
        + [(x[None], own_labels(model, x[None], LENGTH // 2)) for x in draw(length=LENGTH, count=PROFILED)],
        SHORT: [
            (x[None], own_labels(model, x[None], SHORT // 2)) for x in draw(length=SHORT, count=PROFILED)
        ],
    }
    influence = {
        length: by_key_head(AttentionInfluence(block=BLOCK).measure(model, some), kv_heads=KEY_HEADS)
        for length, some in texts.items()
    }
    run.context.report_within(0.3)
    rules = candidates(block=BLOCK, lengths=(SHORT, LENGTH), step=64, shares=4)
    found = plans(influence, rules, {n: UNIFORM.density(n) for n in influence}, block=BLOCK)
    unseen = draw(length=UNSEEN, count=1)
    labels = own_labels(model, unseen, UNSEEN // 2)
    plan = min(found, key=lambda each: loss_of(model, unseen, labels, ElasticSpans(plan=each)))
    values = {"density": plan.density(LENGTH) / UNIFORM.density(LENGTH)}
    run.context.report_within(0.4)

    ways = {
        "dense": None,
        "plan": ElasticSpans(plan=plan),
        "uniform": ElasticSpans(plan=UNIFORM),
        "oracle": OracleKeys(budget=128),
    }
    real = passages(tokenizer, length=LENGTH, count=MEASURED, draw=run.seed)
    asked = facts(tokenizer, FACTS, generator)
    for name, edit in ways.items():
        values[f"{name}, loss"] = text_loss(model, real, edit)
        values[f"{name}, accuracy"] = answers(model, asked, edit)
    long = passages(tokenizer, length=LONG, count=1, draw=run.seed)
    for name, each in (("elastic", plan), ("frozen", plan.frozen(LENGTH))):
        values[f"{name}, long loss"] = text_loss(model, long, ElasticSpans(plan=each))
    return values


@torch.no_grad()
def counted() -> dict[str, float]:
    """The mixer: kept keys, and operations as a share of the dense ones, at 4,096 tokens."""
    n, alpha = 4096, [64, 64, 128, 768]
    make = partial(create, "moa-mixture-of-sparse-attention", alpha=alpha, block=64)
    layer = make(dim=64, heads=4, causal=True)
    q = torch.zeros(1, 4, n, 16)
    pattern = layer.visible(n, across=False, padding=None)
    spent = flops(partial(layer.attend, q, q, q, x=q, pattern=pattern))
    _, state = layer.prefill(torch.zeros(1, n, 64))
    kept = state.nbytes / (2 * 4 * 16 * 4)  # keys and values, heads, width, bytes
    return {"operations": spent / (4 * 4 * n * n * 16), "more kept": kept - sum(alpha) / 4 - 64}


def claim(context: Context) -> Outcome:
    costs = context.check("counted", counted)
    found = context.measure({"search": measured})["search"]
    alone = context.measure({"single heads": singly})["single heads"]
    predicted, lost = (
        torch.tensor([value for n in range(HEADS) for value in alone[f"{what} {n}"].values])
        for what in ("predicted", "measured")
    )
    ranked, sized = float(spearman(predicted, lost)), float(spearman(predicted, lost.abs()))
    ways = ("dense", "uniform", "oracle")

    def figure(label: str, key: str) -> Figure:
        return Figure(
            label, {"plan": found[f"plan, {key}"]}, {name: found[f"{name}, {key}"] for name in ways}
        )

    return Outcome(
        setting="SmolLM2-135M-Instruct in float32; 512 tokens, tiles of 16, rules for key heads, two a layer "
        "at most; profiled at 256 and 512 tokens on 6 texts a seed, chosen at 768, measured on 3 source "
        "files and 4 planted codes a seed; 60 query heads by themselves on 8 texts with a code; the paper "
        "has models of 7B and 13B, tiles of 64, and lengths from 2k to 16k",
        figures=[
            figure("loss on text (nats a token)", "loss"),
            figure("planted facts: share of the answers' tokens", "accuracy"),
            Figure(
                "loss at 1,024 tokens",
                {"elastic": found["elastic, long loss"]}, {"frozen": found["frozen, long loss"]},
            ),
            Figure(
                "predicted and measured influence of single heads: Spearman",
                {"the loss's increase": Spread((ranked,)), "the size of its change": Spread((sized,))},
            ),
        ],
        criteria=[
            quality(
                "lower loss on text than the uniform span",
                found["plan, loss"].mean - found["uniform, loss"].mean, at_most=0.0,
            ),
            quality(
                "finds more of the planted facts",
                found["plan, accuracy"].mean - found["uniform, accuracy"].mean, at_least=1e-9,
            ),
            quality("predicted influence ranks the measured one", ranked, at_least=0.5),
            quality(
                "at twice the length, better than with its spans frozen",
                found["elastic, long loss"].mean - found["frozen, long loss"].mean, at_most=0.0,
            ),
            exact("sees no more than the uniform span", round(max(found["density"].values), 6), at_most=1.0),
            cost(
                "the mixer: at most half of the operations at a mean span of 1/16",
                costs["operations"], at_most=0.5,
            ),
            exact("the mixer: decoding keeps the mean span and the sinks", costs["more kept"], at_most=0.0),
        ],
        notes=["the host's cache keeps all keys: reading is saved, not memory"],
    )  # fmt: skip
