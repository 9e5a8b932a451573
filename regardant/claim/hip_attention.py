"""Does a search for keys, from coarse to fine, lose less than sinks and a window of as many keys?

SmolLM2-135M-Instruct on source files of the standard library, 1,024 and 2,048 tokens, 128 keys a query, the
first three layers dense. In a prompt a block of queries chooses together and so knows up to 31 tokens more
than it should; therefore the loss is also taken at the last query of each block alone, which no later token
has touched.
"""

import math
from collections import defaultdict
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn import functional

from regardant.claim.context import Context, Run
from regardant.claim.outcome import Figure, Outcome, cost, quality
from regardant.edit.apply import apply
from regardant.edit.language.causal_text import CausalText
from regardant.edit.language.hip_attention import HiPAttention
from regardant.edit.language.oracle_keys import OracleKeys
from regardant.edit.language.sink_and_window import SinkAndWindow
from regardant.lens.captured_mass import CapturedMass
from regardant.task.passages import passages
from regardant.world.pretrained import smollm2

LENGTHS, TEXTS, BUDGET, DENSE, LAYERS = (1024, 2048), 3, 128, 3, 30
LAST, BLOCK = 256, 32
WAYS = {
    "HiP": HiPAttention(budget=BUDGET, dense_layers=DENSE),
    "sinks and window": SinkAndWindow(budget=BUDGET, layers=range(DENSE, LAYERS)),
    "oracle": OracleKeys(budget=BUDGET, layers=range(DENSE, LAYERS)),
}


@torch.no_grad()
def losses(model: nn.Module, ids: Tensor, inside: AbstractContextManager) -> Tensor:
    """Of the last tokens, and of those that follow the last query of a block, from the second block on."""
    last = torch.arange(len(ids) - 1 - LAST, len(ids) - 1)
    ends = torch.arange(2 * BLOCK - 1, len(ids) - 1, BLOCK)
    rows = torch.cat([last, ends])
    with inside:
        scores = model(input_ids=ids[None], logits_to_keep=rows).logits[0]
    each = functional.cross_entropy(scores.float(), ids[rows + 1], reduction="none")
    return torch.stack([each[:LAST].mean(), each[LAST:].mean()])


def at_length(length: int):
    def measured(run: Run) -> dict[str, float]:
        model, tokenizer = smollm2()
        ids = passages(tokenizer, length=length, count=TEXTS, draw=run.seed)
        found: dict[str, float] = defaultdict(float)
        for number, text in enumerate(ids):
            lens = CapturedMass(WAYS)
            each = {"dense": losses(model, text, lens.reading(model))}
            for name, mass in lens.masses().items():
                found[f"{name}, mass"] += float(mass.mean()) / TEXTS
            # The oracle sorts all scores: at the greater length its captured mass must do.
            for name in WAYS if length == LENGTHS[0] else ("HiP", "sinks and window"):
                each[name] = losses(model, text, apply(model, WAYS[name]))
            for name, (last, ends) in each.items():
                found[f"{name}, last"] += float(last) / TEXTS
                found[f"{name}, ends"] += float(ends) / TEXTS
            run.context.report_within((number + 1) / TEXTS)
        return found

    return measured


def counted() -> dict[str, float]:
    """Products of queries and keys, one head's: exponents of the length."""
    edit, found = WAYS["HiP"], {}
    for length in (1024, 2048, 4096, 8192, 16384):
        q = torch.zeros(1, 1, length, 2)
        text = CausalText(q, q, q, 0, 1.0, slice(0, 1), slice(0, length))
        found[length] = edit.search(text).products
    search = math.log(found[16384] / found[1024]) / math.log(16) - 1
    # Behind the search, a query meets its sinks, the keys of its block's windows and those that were found.
    gathered = edit.sinks + edit.window + edit.query_block - 1 + edit.blocks * edit.key_block
    whole = {length: products + length * gathered for length, products in found.items()}
    return {
        "search": search,
        "whole": math.log(whole[16384] / whole[2048]) / math.log(8),
        "share at 16384": whole[16384] / (16384 * 16385 / 2),
    }


def claim(context: Context) -> Outcome:
    costs = context.check("counted", counted)
    found = context.measure({f"{length} tokens": at_length(length) for length in LENGTHS})
    ours, others = ["HiP"], ["dense", "sinks and window", "oracle"]
    figures, criteria = [], []
    for length in LENGTHS:
        each = found[f"{length} tokens"]
        for label, key in (
            ("loss of the last 256 tokens", "last"), ("loss where nothing was peeked at", "ends"),
            ("captured attention mass", "mass"),
        ):  # fmt: skip
            figures.append(
                Figure(
                    f"{label}, {length} tokens",
                    {name: each[f"{name}, {key}"] for name in ours},
                    {name: each[f"{name}, {key}"] for name in others if f"{name}, {key}" in each},
                )
            )

        def gap(key: str, each=each) -> float:
            return each[f"HiP, {key}"].mean - each[f"sinks and window, {key}"].mean

        criteria += [
            quality(f"{length} tokens: lower loss than sinks and window", gap("last"), at_most=0.0),
            quality(f"{length} tokens: the same where nothing was peeked at", gap("ends"), at_most=0.0),
            quality(f"{length} tokens: captures more attention", gap("mass"), at_least=0.0),
        ]
    return Outcome(
        setting="SmolLM2-135M-Instruct in float32; 9 source files of the standard library, 3 a seed; 128 "
        "keys a query, of them 4 sinks and a window of 32; blocks of 32 queries and 2 keys, middle "
        "representatives; the oracle's loss at 1,024 tokens alone; the paper has models of 7B and "
        "more, 512 keys, and lengths to 128k",
        figures=figures,
        criteria=[
            *criteria,
            cost("the search's products a query grow with an exponent", costs["search"], at_most=0.35),
            cost("all products grow with an exponent, 2k to 16k", costs["whole"], at_most=1.3),
        ],
        notes=[f"at 16,384 tokens {costs['share at 16384']:.1%} of the products of dense causal attention"],
    )
