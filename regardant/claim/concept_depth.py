"""Do simple concepts come up in shallow layers and hard ones deeper? Jin et al., "Exploring Concept Depth",
2024.

The paper: over nine datasets and models of 0.5B to 14B, easy tasks are read in shallow layers, hard ones
deeper or hardly at all; noise in the input and 8-bit weights put it off. Here on SmolLM2-135M-Instruct with
five concepts made from templates, probes with a penalty chosen on held-out samples, fillers disjoint
between training and test. A seed is a split of the fillers; the states are taken once.
"""

import statistics
from functools import cache

import torch

from regardant.claim.context import Context
from regardant.claim.outcome import Figure, Outcome, quality
from regardant.lens.concept_depth import ConceptDepth, quantized_weights
from regardant.task.concepts import CONCEPTS, concept_texts
from regardant.world.pretrained import smollm2

TEXTS, NOISED, ROUNDED = 180, ("sentiment", "fact"), ("sentiment", "fact")
LENS = ConceptDepth()
THIRD = 1 / 3


@cache
def model():
    return smollm2()


@cache
def states(concept: str, noise: bool, bits: int):
    texts = concept_texts(concept, TEXTS, generator=torch.Generator().manual_seed(0))
    if noise:
        texts = texts.noisy(generator=torch.Generator().manual_seed(1))
    if bits == 32:
        return LENS.states(*model(), texts), texts
    with quantized_weights(model()[0], bits=bits):
        return LENS.states(*model(), texts), texts


def measured(concept: str, *, noise: bool = False, bits: int = 32):
    def unit(run) -> dict[str, float]:
        # The same split whatever is done to the model or to the texts.
        depth = LENS(*states(concept, noise, bits), generator=torch.Generator().manual_seed(run.seed))
        return {
            "peak": depth.peak,
            "reached": depth.reached,
            "jump": depth.jump,
            "converging": depth.converging,
            "first third": depth.mean(first=THIRD),
            "embedding": float(depth.scores[0]),
        }

    return unit


def claim(context: Context) -> Outcome:
    variants = {concept: measured(concept) for concept in CONCEPTS}
    variants |= {f"{concept} noise": measured(concept, noise=True) for concept in NOISED}
    variants |= {
        f"{concept} {bits} bit": measured(concept, bits=bits) for concept in ROUNDED for bits in (8, 4)
    }
    found = context.measure(variants)
    reached = {name: statistics.median(each["reached"].values) for name, each in found.items()}
    peaks = {name: each["peak"].mean for name, each in found.items()}
    early = {name: each["first third"].mean for name, each in found.items()}
    lost = {
        bits: max(abs(peaks[concept] - peaks[f"{concept} {bits} bit"]) for concept in ROUNDED)
        for bits in (8, 4)
    }
    return Outcome(
        setting=f"{TEXTS} texts a concept, states of the last token behind 30 layers; three splits of the "
        "fillers; the paper has nine datasets and models of 0.5B to 14B",
        figures=[
            Figure.of("depth at which 95% of the peak is reached", found, "reached", ours=tuple(CONCEPTS)),
            Figure.of("peak accuracy", found, "peak", ours=tuple(CONCEPTS)),
            Figure.of("converging point", found, "converging", ours=tuple(CONCEPTS)),
            Figure.of("mean accuracy over the first third", found, "first third", ours=tuple(CONCEPTS)),
            Figure.of("accuracy behind the embedding", found, "embedding", ours=tuple(CONCEPTS)),
        ],
        criteria=[
            quality(
                "surface is reached before sentiment (medians of the depth)",
                reached["sentiment"] - reached["surface"], at_least=1e-6,
            ),
            quality(
                "sentiment is reached before the later of fact and comparison",
                max(reached["fact"], reached["comparison"]) - reached["sentiment"], at_least=1e-6,
            ),
            quality("parity is never read well", peaks["parity"], at_most=0.75),
            quality(
                "noise brings no concept up earlier",
                min(reached[f"{each} noise"] - reached[each] for each in NOISED), at_least=0.0,
            ),
            quality(
                "and lowers the accuracy in the first third of the layers",
                min(early[each] - early[f"{each} noise"] for each in NOISED), at_least=0.0,
            ),
            quality("8-bit weights move the peak by less than 3 points", lost[8], at_most=0.03),
            quality("4-bit weights by more", lost[4] - lost[8], at_least=1e-6),
        ],
        notes=["jump and converging points are ratios of neighbouring layers, which chance moves early on"],
    )  # fmt: skip
