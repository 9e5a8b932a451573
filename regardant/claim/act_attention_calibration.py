"""Do later tokens soak up attention, and does calibrating chosen heads answer more questions right?

SmolLM2-135M-Instruct, unchanged; questions of three kinds from templates. Heads are chosen on some questions,
and what they bring is measured on others.
"""

import string

import torch

from regardant.claim.context import Context, Run
from regardant.claim.outcome import Figure, Outcome, quality
from regardant.edit.apply import apply
from regardant.edit.language.act import ACT, kept_heads, later_sinks
from regardant.host.seam import Seam
from regardant.task.choices import Question, questions
from regardant.world.pretrained import smollm2

SELECT, TEST, LAYERS, DRAWS = 10, 50, 3, 5
"""Questions of each kind to select with and to test with, layers to search, random draws."""
FUNCTION_WORDS = frozenset(
    [
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "but",
        "by",
        "for",
        "from",
        "in",
        "is",
        "it",
        "of",
        "on",
        "or",
        "that",
        "the",
        "they",
        "this",
        "to",
        "was",
        "were",
        "with",
        "you",
    ]
)


class Sinks:
    """Which heads of layers 2 and up have a later sink in a prompt, and which tokens these are."""

    def __init__(self) -> None:
        self.heads: dict[tuple[int, int], int] = {}
        self.tokens: list[int] = []
        self.prompts, self.pairs = 0, 0

    def stages(self, site):
        return frozenset({"read"} if site.layer >= 2 else set())

    def read(self, call, heads, weights, site, run):
        maps, seen = call.maps(), call.visible()
        found = later_sinks(maps.sum(2), seen.sum(2), alpha=5.0)[0]
        for head in found.any(-1).nonzero().flatten().tolist():
            self.heads[site.layer, head] = self.heads.get((site.layer, head), 0) + 1
        self.pairs += found.shape[0]
        self.tokens += [int(run.ids[0, at]) for at in found.any(0).nonzero().flatten()]


def accuracy(model, tokenizer, asked: list[Question]) -> float:
    """The share of questions whose right option the model finds the likeliest."""
    right = 0
    for start in range(0, len(asked), 24):
        part = asked[start : start + 24]
        prompts = [each.prompt for each in part]
        given = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
        with torch.no_grad():
            scores = model(**given, logits_to_keep=1).logits[:, -1]
        for question, row in zip(part, scores):
            options = [tokenizer(option)["input_ids"][0] for option in question.options]
            right += int(row[options].argmax()) == question.answer
    return right / len(asked)


def calibration(run: Run) -> dict[str, float]:
    model, tokenizer = smollm2()
    generator = torch.Generator().manual_seed(run.seed)
    selection = questions(generator, each=SELECT)
    test = questions(torch.Generator().manual_seed(run.seed), each=TEST, apart=SELECT)
    layers = sorted((2 + torch.randperm(27, generator=generator)[:LAYERS]).tolist())
    kept = kept_heads(
        model, lambda: accuracy(model, tokenizer, selection), layers=layers,
        progress=lambda done, of: run.context.report_within(0.8 * done / of),
    )  # fmt: skip
    count = sum(map(len, kept.values()))
    found = {"kept": count}
    found |= {"selection": accuracy(model, tokenizer, selection), "test": accuracy(model, tokenizer, test)}

    def under(heads: dict[int, list[int]], asked: list[Question]) -> float:
        if not heads:
            return accuracy(model, tokenizer, asked)
        with apply(model, ACT(heads_at=heads)):
            return accuracy(model, tokenizer, asked)

    found |= {"selection calibrated": under(kept, selection), "test calibrated": under(kept, test)}
    drawn = []
    for _ in range(DRAWS):
        heads: dict[int, list[int]] = {}
        for at in torch.randperm(9 * LAYERS, generator=generator)[:count].tolist():
            heads.setdefault(layers[at // 9], []).append(at % 9)
        drawn.append(under(heads, test))
    return found | {"test random": sum(drawn) / DRAWS}


def presence() -> dict[str, float]:
    """Later sinks over a hundred prompts."""
    model, tokenizer = smollm2()
    lens, seam = Sinks(), Seam.of(model)
    asked = questions(torch.Generator().manual_seed(7), each=34)[:100]
    seam.enter([lens])
    try:
        with torch.no_grad():
            for question in asked:
                model(**tokenizer(question.prompt, return_tensors="pt"), logits_to_keep=1)
    finally:
        seam.leave([lens])
    words = [tokenizer.decode([token]).strip().lower() for token in lens.tokens]
    light = [
        not word or all(c in string.punctuation for c in word) or word in FUNCTION_WORDS for word in words
    ]
    return {
        "heads with a sink in a prompt": sum(lens.heads.values()) / lens.pairs,
        "heads that ever have one": len(lens.heads) / (9 * 28),
        "light tokens": sum(light) / max(len(light), 1),
    }


def claim(context: Context) -> Outcome:
    sinks = context.check("sinks", presence)
    found = context.measure({"calibration": calibration})["calibration"]
    gain = found["test calibrated"].mean - found["test"].mean
    over_random = found["test calibrated"].mean - found["test random"].mean
    shares = ("heads with a sink in a prompt", "heads that ever have one", "light tokens")
    return Outcome(
        setting="SmolLM2-135M-Instruct; sentiment, topic and yes-or-no questions from templates, mixed; 3 of "
        "its 30 layers searched a seed with 30 questions, tested on 150 others; random heads drawn 5 times",
        figures=[
            *(Figure.once(f"later sinks: {name}", {"layers 2 and up": sinks[name]}) for name in shares),
            Figure("heads kept of 27", {"act": found["kept"]}),
            Figure(
                "accuracy on the selection",
                {"act": found["selection calibrated"]},
                {"unedited": found["selection"]},
            ),
            Figure(
                "accuracy on the test",
                {"act": found["test calibrated"]},
                {"unedited": found["test"], "random heads": found["test random"]},
            ),
        ],
        criteria=[
            quality(
                "over a fifth of heads in layers 2 and up have a later sink",
                sinks["heads that ever have one"],
                at_least=0.2,
            ),
            quality("later sinks are mostly light tokens", sinks["light tokens"], at_least=0.5),
            quality("kept heads are no worse than none on the test", gain, at_least=0.0),
            quality("kept heads are better than as many random ones", over_random, at_least=1e-9),
        ],
        notes=["light tokens are punctuation, newlines and function words"],
    )
