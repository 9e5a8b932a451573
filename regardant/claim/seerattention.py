"""Do gates that a model's own attention taught choose blocks better than pooled products, and these better
than the first block and the last?

SmolLM2-135M on the standard library's code: gates learn from some modules, and prompts of others are read
with half and with a quarter of the blocks. The queries of the block before choose (`choosers="past"`), so
that no loss peeks.
"""

from functools import cache

import torch
from torch import Tensor

from regardant.claim.context import Context, Run
from regardant.claim.outcome import Figure, Outcome, cost, exact, quality
from regardant.edit.apply import apply
from regardant.edit.language.block_choice import (
    BlockChoice,
    MeanPooledBlocks,
    OracleBlocks,
    SinkAndWindowBlocks,
    captured,
)
from regardant.edit.language.seerattention import SeerAttention, SeerGates
from regardant.host.seam import Seam
from regardant.task.bytes import is_for_validation, library_folder, source_files
from regardant.train.fit import fit
from regardant.train.seer_gates import Learning, Lessons
from regardant.train.texts import Texts
from regardant.world.pretrained import smollm2

BLOCK, LENGTH, TEXTS = 16, 512, 8
WINDOWS, STEPS, BATCH, RATE = 48, 120, 4, 1e-2
DENSITIES = (0.5, 0.25)
ENOUGH = 6000
"""Characters of a module that is long enough for a text."""


@cache
def model():
    return smollm2()


@cache
def tokens(*, validation: bool) -> tuple[Tensor, ...]:
    """The beginnings of long modules."""
    _, tokenizer = model()
    found = []
    for path in source_files(library_folder()):
        text = (library_folder() / path).read_text(encoding="utf-8", errors="ignore")
        if len(text) > ENOUGH and is_for_validation(path) == validation:
            found.append(tokenizer(text[:20_000], return_tensors="pt")["input_ids"][0])
        if len(found) == (TEXTS if validation else 60):
            break
    return tuple(found)


def held_out() -> Tensor:
    return torch.stack([text[:LENGTH] for text in tokens(validation=True)])


def drawn_gates(seed: int) -> SeerGates:
    return SeerGates.of(model()[0], block=BLOCK, choosers="past", seed=seed)


@cache
def lessons() -> Lessons:
    """The same windows for every seed, which draws gates and the order of the steps."""
    texts = Texts(tokens(validation=False), length=LENGTH)
    return Lessons.read(drawn_gates(0), model()[0], texts, windows=WINDOWS, seed=0)


class Mass:
    """Reads, in one pass of the unedited model, how much attention each choice captures."""

    def __init__(self, edits: dict[str, BlockChoice]):
        self.edits = edits
        self.found: dict[str, list[Tensor]] = {name: [] for name in edits}

    def stages(self, site):
        return frozenset({"read"})

    def read(self, call, heads, weights, site, run):
        for name, edit in self.edits.items():
            for text, chosen in edit.chosen(call, site, run):
                self.found[name].append(captured(call, text, chosen, BLOCK).mean())


@torch.no_grad()
def measured(edits: dict[str, BlockChoice]) -> dict[str, float]:
    """Captured mass and loss of each edit over the held-out texts."""
    language_model, texts = model()[0], held_out()
    for edit in edits.values():
        edit.prepare(Seam.of(language_model).host.sites)
    mass = Mass(edits)
    seam = Seam.of(language_model)
    seam.enter([mass])
    for text in texts:
        language_model(text[None], logits_to_keep=1)
    seam.leave([mass])
    found = {f"mass, {name}": float(torch.stack(values).mean()) for name, values in mass.found.items()}
    for name, edit in edits.items():
        with apply(language_model, edit):
            found[f"loss, {name}"] = loss(texts)
    return found


@torch.no_grad()
def loss(texts: Tensor) -> float:
    return sum(float(model()[0](text[None], labels=text[None]).loss) for text in texts) / len(texts)


def taught(run: Run) -> dict[str, float]:
    gates = drawn_gates(run.seed)
    fit(
        Learning(gates, lessons()), lessons(), steps=run.steps(STEPS), batch=BATCH, learning_rate=RATE,
        seed=run.seed, progress=lambda done, of, _: run.context.report_within(0.5 * done / of),
    )  # fmt: skip
    found = measured({f"{density}": SeerAttention(gates=gates, density=density) for density in DENSITIES})
    return found | {"peeking": peeking(gates)}


@torch.no_grad()
def peeking(gates: SeerGates) -> float:
    """How far the first half of a text moves when the second half changes."""
    language_model, text = model()[0], held_out()[:1, :128]
    other = torch.cat([text[:, :64], text[:, 64:].flip(1)], dim=1)
    with apply(language_model, SeerAttention(gates=gates, density=0.25)):
        first, second = (language_model(each).logits[:, :64] for each in (text, other))
    return float((first - second).abs().max() / first.abs().max())


def untaught(kind: type[BlockChoice], **settings):
    def unit(run: Run) -> dict[str, float]:
        return measured({f"{each}": kind(density=each, block=BLOCK, **settings) for each in DENSITIES})

    return unit


def claim(context: Context) -> Outcome:
    plain = context.check("all blocks", lambda: {"loss": loss(held_out())})
    found = context.measure(
        {
            "mean-pooled": untaught(MeanPooledBlocks, choosers="past"),
            "sink and window": untaught(SinkAndWindowBlocks),
            "oracle": untaught(OracleBlocks),
        },
        seeds=(0,),
    )
    found |= context.measure({"seerattention": taught})
    figures, criteria = [], []
    for density in DENSITIES:
        for what in ("mass", "loss"):
            key = f"{what}, {density}"
            named = {"mass": "share of attention captured", "loss": "loss in nats a token"}[what]
            figures.append(
                Figure.of(f"{named}, {density:.0%} of the blocks", found, key, ours="seerattention")
            )
            of = {name: each[key].mean for name, each in found.items()}
            if what == "loss":
                of = {name: -value for name, value in of.items()}
            word = {"mass": "capture more", "loss": "lose less"}[what]
            share = f"at {density:.0%}"
            criteria += [
                quality(
                    f"{share}, taught gates {word} than pooled products",
                    of["seerattention"] - of["mean-pooled"], at_least=0.0,
                ),
                quality(
                    f"{share}, pooled products {word} than sink and window",
                    of["mean-pooled"] - of["sink and window"], at_least=0.0,
                ),
                quality(
                    f"{share}, taught gates {word} than sink and window",
                    of["seerattention"] - of["sink and window"], at_least=0.0,
                ),
            ]  # fmt: skip
        criteria.append(
            exact(
                f"at {density:.0%}, nothing captures more than the oracle",
                found["oracle"][f"mass, {density}"].mean - found["seerattention"][f"mass, {density}"].mean,
                at_least=0.0,
            )
        )
    gates = drawn_gates(0)
    share = gates.overhead(LENGTH) / (LENGTH * (LENGTH + 1) / 2 * gates.head_dim * 2)
    return Outcome(
        setting=f"SmolLM2-135M-Instruct, all 30 layers, blocks of {BLOCK}; {TEXTS} modules of the standard "
        f"library, {LENGTH} tokens each; gates taught on {WINDOWS} windows of other modules, {STEPS} steps "
        f"of {BATCH}, choosing by the queries of the block before; the paper: 8B models, blocks of 64, half "
        "a billion tokens",
        figures=figures,
        criteria=[
            *criteria,
            exact(
                "with choosers=past the first half does not move with the second",
                found["seerattention"]["peeking"].mean, at_most=1e-4,
            ),
            cost("the gate's products are a small share of attention's own", share, at_most=0.1),
        ],
        notes=[
            f"All blocks: {plain['loss']:.3f} nats a token.",
            f"A head's gate takes {gates.overhead(LENGTH):,} multiply-adds at {LENGTH} tokens, {share:.1%} "
            "of causal attention's.",
        ],
    )  # fmt: skip
