"""Do heads move the topic, does an MLP answer to them, and does the last layer hold answers back? Lv et al.,
"Interpreting Key Mechanisms of Factual Recall in Transformer-Based Language Models", 2024.

The paper: so in the GPT-2 family, OPT-1.3B and Llama-2-7B, and taking back a part of the last layer raises
the confidence in right answers. Here on SmolLM2-135M-Instruct with the capitals of countries in three
wordings; prompts whose answer is among the five likeliest are kept. A seed is a split of the countries.
"""

import statistics
from functools import cache

import torch

from regardant.claim.context import Context
from regardant.claim.outcome import Figure, Outcome, exact, quality
from regardant.edit.apply import apply
from regardant.edit.scale_layer import ScaleLayer
from regardant.lens.factual_recall import Facts, FactualRecall
from regardant.lens.importance import next_token_loss
from regardant.lens.residual_stream import Anatomy, Parts, read_parts
from regardant.task.secret_codes import filler_sentences
from regardant.task.world_facts import COUNTRIES
from regardant.world.pretrained import smollm2

WORDINGS = (
    "The capital of {} is the city of",
    "The capital city of {} is",
    "Question: What is the capital of {}?\nAnswer: The capital is",
)
SCALES = (0.0, 0.25, 0.5, 0.75, 0.9)
LENS, MLPS, MOVERS = FactualRecall(), (22, 24, 26, 28), 10
MIDDLE = 10
"""The first layer that counts as middle or late, of 30."""


@cache
def model():
    return smollm2()


@cache
def facts() -> tuple[list[Facts], list[torch.Tensor]]:
    """Facts by length of the prompt, and which country each is of."""
    language_model, tokenizer = model()
    rows: dict[int, list[tuple[list[int], int, int, int]]] = {}
    for number, country in enumerate(COUNTRIES):
        answer = tokenizer(" " + country.capital).input_ids[0]
        for wording in WORDINGS:
            text = wording.format(country.name)
            encoded = tokenizer(text, return_offsets_mapping=True)
            ends = text.index(country.name) + len(country.name)
            topic = max(at for at, (first, _) in enumerate(encoded.offset_mapping) if first < ends)
            if answer in encoded.input_ids:  # Mexico City is no news of Mexico
                continue
            rows.setdefault(len(encoded.input_ids), []).append((encoded.input_ids, topic, answer, number))
    found, countries = [], []
    for own in rows.values():
        ids, topic, answer, number = (torch.tensor(each) for each in zip(*own))
        with torch.no_grad():
            likeliest = language_model(ids, logits_to_keep=1).logits[:, -1].topk(5).indices
        known = (likeliest == answer[:, None]).any(1)
        if known.any():
            found.append(Facts(ids, topic, answer).chosen(known))
            countries.append(number[known])
    return found, countries


@cache
def parts() -> Parts:
    """The last rows of all prompts."""
    each = [read_parts(model()[0], own.ids) for own in facts()[0]]
    return Parts(
        torch.cat([p.embedding for p in each]), torch.cat([p.heads for p in each], dim=1), each[0].biases,
        torch.cat([p.mlps for p in each], dim=1), torch.cat([p.last for p in each]),
    )  # fmt: skip


def movers() -> dict[str, float]:
    """Which heads look at the country, and which rank it has in what they write."""
    looking = LENS.attention(model()[0], facts()[0])
    tokens = torch.cat([own.topic_token for own in facts()[0]])
    anatomy = Anatomy.of(model()[0])
    late = [head for head in looking.above(0.3) if head[0] >= MIDDLE]
    ranks = {head: float(LENS.topic_rank(anatomy, parts(), tokens, head).median()) for head in late[:40]}
    best = min(ranks, key=ranks.__getitem__) if ranks else None
    return {
        "kept": sum(len(own.ids) for own in facts()[0]),
        "lookers": len(late),
        "writers": sum(rank < 50 for rank in ranks.values()),
        "best rank": ranks.get(best, float("inf")),
        "its attention": looking[best] if best else 0.0,
        "argument": argument(looking.top(MOVERS)),
        "control": argument(
            looking.draw(
                MOVERS, without=looking.above(0.1), generator=torch.Generator().manual_seed(0)
            )
        ),
    }  # fmt: skip


def argument(heads) -> float:
    """Every prompt gets the heads of the next prompt of its length that is of another country."""
    moved, count = 0.0, 0
    for own, number in zip(*facts()):
        turned = torch.arange(len(number)).roll(-1)
        apart = (own.answer != own.answer[turned]) & (own.topic == own.topic[turned])
        if not apart.any():
            continue
        here, there = own.chosen(apart), Facts(own.ids[turned], own.topic[turned], own.answer[turned])
        share = LENS.exchange(model()[0], here, there.chosen(apart), heads)
        moved, count = moved + share * int(apart.sum()), count + int(apart.sum())
    return moved / count


def regressed(run) -> dict[str, float]:
    number = torch.cat(facts()[1])
    draw = torch.Generator().manual_seed(run.seed)
    order = torch.randperm(len(COUNTRIES), generator=draw)
    train = torch.isin(number, order[: 2 * len(COUNTRIES) // 3])
    shuffled = torch.randperm(len(number), generator=draw)
    found = [LENS.regress_mlp(parts(), layer, train) for layer in MLPS]
    control = [LENS.regress_mlp(parts(), layer, train, pairing=shuffled) for layer in MLPS]
    best = max(range(len(MLPS)), key=lambda each: found[each].fit)
    return {
        "fit": statistics.fmean(each.fit for each in found),
        "shuffled": statistics.fmean(each.fit for each in control),
        "amplified": sum(int((each.coefficients > 0).sum()) for each in found),
        "erased": sum(int((each.coefficients < 0).sum()) for each in found),
        "condition": max(each.condition for each in found),
        "best layer": MLPS[best],
    }


def said(scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """log p of each answer, and whether it is the likeliest, with the last layer scaled."""
    chances, right = [], []
    for own in facts()[0]:
        with torch.no_grad(), apply(model()[0], ScaleLayer(by=scale)):
            logits = model()[0](own.ids, logits_to_keep=1).logits[:, -1].log_softmax(-1)
        chances.append(logits.gather(1, own.answer[:, None])[:, 0])
        right.append(logits.argmax(1) == own.answer)
    return torch.cat(chances).double(), torch.cat(right).double()


@cache
def all_said() -> dict[float, tuple[torch.Tensor, torch.Tensor]]:
    return {scale: said(scale) for scale in (*SCALES, 1.0)}


def mitigated(run) -> dict[str, float]:
    """The scale is chosen on half of the countries and tried on the others."""
    number = torch.cat(facts()[1])
    order = torch.randperm(len(COUNTRIES), generator=torch.Generator().manual_seed(run.seed))
    chosen = torch.isin(number, order[: len(COUNTRIES) // 2])
    best = max(SCALES, key=lambda scale: float(all_said()[scale][0][chosen].mean()))
    (before, right_before), (after, right) = all_said()[1.0], all_said()[best]
    return {
        "scale": best,
        "before": float(before[~chosen].mean()),
        "after": float(after[~chosen].mean()),
        "right before": float(right_before[~chosen].mean()),
        "right after": float(right[~chosen].mean()),
        "text before": text_loss(1.0),
        "text after": text_loss(best),
    }


@cache
def text_loss(scale: float) -> float:
    """Nats a token on ordinary text."""
    filler, tokenizer = filler_sentences(), model()[1]
    text = [" ".join(filler[place : place + 60]) for place in (0, 400, 800)]
    ids = torch.stack([torch.tensor(tokenizer(each).input_ids[:160]) for each in text])
    with torch.no_grad(), apply(model()[0], ScaleLayer(by=scale)):
        return float(next_token_loss(ids)(model()[0]).mean())


def layers() -> dict[str, float]:
    found = LENS.answer_by_layer(model()[0], facts()[0])
    return {f"layer {place}": float(found[place]) for place in (10, 20, 25, 27, 28, 29, 30)}


def claim(context: Context) -> Outcome:
    moved = context.check("movers", movers)
    by_layer = context.check("logit lens", layers)
    found = context.measure({"regression": regressed, "mitigation": mitigated})
    regression, mitigation = found["regression"], found["mitigation"]
    lowered = by_layer["layer 29"] - by_layer["layer 30"]
    return Outcome(
        setting=f"{len(COUNTRIES)} countries in {len(WORDINGS)} wordings, {moved['kept']:.0f} prompts kept; "
        "regressions at four late MLPs, on two thirds of the countries; the scale of the last layer chosen "
        "on half of them; the paper has models of up to 7B and several kinds of facts",
        figures=[
            Figure.once(
                "heads from layer 10 on that look at the country by more than 0.3",
                {"heads": moved["lookers"], "and write it": moved["writers"]},
            ),
            Figure.once(
                "median rank of the country in what the best of them writes", {"rank": moved["best rank"]}
            ),
            Figure.once(
                "how far the answer goes over with ten heads of another country's prompt",
                {"most attentive heads": moved["argument"]}, {"random others": moved["control"]},
            ),
            Figure("R² of an MLP on its heads, held out", {"paired": regression["fit"]},
                   {"shuffled": regression["shuffled"]}),
            Figure("heads of four layers",
                   {"amplified": regression["amplified"], "erased": regression["erased"]}),
            Figure.once("mean log p(answer) by the logit lens", by_layer),
            Figure("mean log p(answer), other countries", {"scaled": mitigation["after"]},
                   {"as it is": mitigation["before"]}),
            Figure("share of likeliest answers that are right", {"scaled": mitigation["right after"]},
                   {"as it is": mitigation["right before"]}),
            Figure("scale of the last layer that was chosen", {"scale": mitigation["scale"]}),
            Figure("nats a token on ordinary text", {"scaled": mitigation["text after"]},
                   {"as it is": mitigation["text before"]}),
        ],
        criteria=[
            exact("at least 40 prompts are answered", moved["kept"], at_least=40),
            quality("a head looks at the country and ranks it in its first 50", moved["writers"], at_least=1),
            quality(
                "the attentive heads carry more of the argument than others",
                moved["argument"] - moved["control"], at_least=0.05,
            ),
            quality(
                "an MLP answers to its heads better than to shuffled ones",
                min(a - b for a, b in zip(regression["fit"].values, regression["shuffled"].values)),
                at_least=0.02,
            ),
            quality(
                "it amplifies some and erases others",
                min(*regression["amplified"].values, *regression["erased"].values), at_least=1,
            ),
            quality("the last layer lowers the answer", lowered, at_least=0.0),
            quality(
                "the scaled last layer raises log p(answer) of other countries",
                min(a - b for a, b in zip(mitigation["after"].values, mitigation["before"].values)),
                at_least=1e-3,
            ),
            quality(
                "and no fewer are right",
                mitigation["right after"].mean - mitigation["right before"].mean, at_least=0.0,
            ),
        ],
        notes=[f"condition number of the regressors up to {max(regression['condition'].values):.0f}"],
    )  # fmt: skip
