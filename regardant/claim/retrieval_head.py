"""Do few heads carry retrieval? Wu et al., "Retrieval Head Mechanistically Explains Long-Context Factuality",
2024.

The paper: fewer than 5% of the heads of 7B models and larger do retrieval, they are the same whatever the
needle, and masking them breaks lookup while masking as many others does not. Here on SmolLM2-135M-Instruct,
with secret codes in docstrings: heads are ranked on one set of needles and masked on another.
"""

import statistics

import torch

from regardant.claim.context import Context
from regardant.claim.outcome import Figure, Outcome, quality
from regardant.edit.apply import apply
from regardant.edit.mask_heads import MaskHeads
from regardant.lens.importance import next_token_loss
from regardant.lens.retrieval_head import THRESHOLD, RetrievalHeads
from regardant.task.secret_codes import draw_codes, filler_sentences, needle_cases
from regardant.world.pretrained import smollm2

LENGTHS, DEPTHS, CODES = (200, 350, 500), (0.0, 0.25, 0.5, 0.75, 1.0), 3
MASKED, DRAWS = 10, 5
TEXTS, TEXT_LENGTH = 3, 128


def measured(run) -> dict[str, float]:
    model, tokenizer = smollm2()
    draw = torch.Generator().manual_seed(run.seed)
    codes = draw_codes(2 * CODES, generator=draw)
    sets = [codes[:CODES], codes[CODES:]]
    lenses = [
        RetrievalHeads(
            [
                case
                for code, length in zip(own, LENGTHS)
                for case in needle_cases(tokenizer, [code], lengths=[length], depths=DEPTHS, generator=draw)
            ],
            batch=len(DEPTHS),
        )
        for own in sets
    ]
    first = lenses[0](model, progress=lambda done, of: run.context.report_within(done / of / 3))
    read = lenses[1].read(model)
    second = lenses[1](model, read=read)
    run.context.report_within(2 / 3)
    # Ranked on the first set, masked on the second.
    masks = {"best": first.top(MASKED)} | {
        f"random {number}": first.draw(MASKED, without=first.retrieving, generator=draw)
        for number in range(DRAWS)
    }
    recalls = lenses[1].masked(model, masks, read=read)
    right = {name: statistics.fmean(each == 1.0 for each in found) for name, found in recalls.items()}
    right["none"] = statistics.fmean(each == 1.0 for each in second.recalls)
    losses = text_losses(model, tokenizer, masks, draw)
    drawn = [name for name in masks if name != "best"]
    return {
        "runs": len(first.recalls) + len(second.recalls),
        "kept": first.kept + second.kept,
        "above": max(first.share_above(THRESHOLD), second.share_above(THRESHOLD)),
        "best head": float(first.values.max()),
        "tenth head": first[first.top(10)[-1]],
        "median head": float(first.values.median()),
        "always": float(((first.activation == 1) & (second.activation == 1)).sum()),
        "alike": first.spearman(second),
        "base": right["none"],
        "best masked": right["best"],
        "random masked": statistics.fmean(right[name] for name in drawn),
        "worst random": min(right[name] for name in drawn),
        "text": losses["none"],
        "text best masked": losses["best"],
        "text random masked": statistics.fmean(losses[name] for name in drawn),
    }


def text_losses(model, tokenizer, masks, draw) -> dict[str, float]:
    """Nats a token on ordinary text, the masks acting everywhere."""
    filler = filler_sentences()
    rows = []
    for _ in range(TEXTS):
        order = torch.randperm(len(filler), generator=draw)[:80].tolist()
        text = " ".join(filler[place] for place in order)
        rows.append(torch.tensor(tokenizer(text).input_ids[:TEXT_LENGTH]))
    loss, found = next_token_loss(torch.stack(rows)), {}
    with torch.no_grad():
        found["none"] = float(loss(model).mean())
        for name, silent in masks.items():
            with apply(model, MaskHeads(chosen=silent)):
                found[name] = float(loss(model).mean())
    return found


def claim(context: Context) -> Outcome:
    found = context.measure({"smollm2": measured})["smollm2"]
    base, best, drawn = (found[name].mean for name in ("base", "best masked", "random masked"))
    rise = {name: found[f"text {name} masked"].mean / found["text"].mean - 1 for name in ("best", "random")}
    return Outcome(
        setting=f"270 heads; a seed is {2 * CODES} secret codes in two sets, at {len(DEPTHS)} depths of "
        f"texts of {LENGTHS[0]} to {LENGTHS[-1]} tokens, {2 * CODES * len(DEPTHS)} runs; heads ranked on the "
        f"first set and masked on the second, as its answers are written; {DRAWS} draws of {MASKED} heads "
        "that are not retrieval heads; the paper has models of 6B and more and texts of up to 50,000 tokens",
        figures=[
            Figure("share of heads with a score above 0.1", {"retrieval heads": found["above"]}),
            Figure(
                "score",
                {"best head": found["best head"], "tenth head": found["tenth head"]},
                {"median head": found["median head"]},
            ),
            Figure("heads that are active in every run", {"heads": found["always"]}),
            Figure("rank correlation of two needle sets", {"scores": found["alike"]}),
            Figure(
                "share of answers that are right",
                {"ten best masked": found["best masked"]},
                {
                    "nothing masked": found["base"],
                    "ten random masked": found["random masked"],
                    "the worst of five draws": found["worst random"],
                },
            ),
            Figure(
                "nats a token on ordinary text",
                {"ten best masked": found["text best masked"]},
                {"nothing masked": found["text"], "ten random masked": found["text random masked"]},
            ),
        ],
        criteria=[
            quality("at least 60% of the runs are right", base, at_least=0.6),
            quality(
                "fewer than 15% of the heads have a score above 0.1", max(found["above"].values), at_most=0.15
            ),
            quality(
                "two disjoint needle sets rank the heads alike", min(found["alike"].values), at_least=0.8
            ),
            quality("ten best masked leave under 20% of the right answers", best / base, at_most=0.2),
            quality("ten random masked leave over 90%", drawn / base, at_least=0.9),
            quality("the loss on ordinary text rises by less than a tenth", rise["best"], at_most=0.1),
        ],
        notes=[
            f"{sum(found['kept'].values):.0f} of {sum(found['runs'].values):.0f} were kept for scores",
            "the measure does not tell retrieval from induction heads, which complete any repetition",
        ],
    )
