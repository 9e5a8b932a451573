"""Do offsets at the few heads that a task chose teach it better than offsets at other heads?

SmolLM2-135M is to answer with the second of three listed things: 200 examples, 8 of 270 heads, and low-rank
matrices beside all queries and values for comparison.
"""

from functools import cache

import torch
from torch import Tensor

from regardant.claim.context import Context, Run
from regardant.claim.outcome import Figure, Outcome, cost, exact, quality
from regardant.edit.apply import apply
from regardant.edit.head_affine import HeadAffine
from regardant.train.fit import fit
from regardant.train.lofit import LoFiT, count
from regardant.train.low_rank import LowRank
from regardant.train.responses import Adapted, Responses
from regardant.world.pretrained import smollm2

WORDS = [
    "apple",
    "stone",
    "river",
    "chair",
    "cloud",
    "horse",
    "paper",
    "glass",
    "bread",
    "train",
    "shirt",
    "music",
    "tiger",
    "ocean",
    "piano",
    "clock",
    "knife",
    "tower",
    "snake",
    "flower",
    "garden",
    "window",
    "bottle",
    "pencil",
    "camera",
    "dragon",
    "rabbit",
    "candle",
    "bridge",
    "orange",
    "lemon",
    "hammer",
    "mirror",
    "ticket",
    "wallet",
    "button",
    "carpet",
    "basket",
    "guitar",
    "island",
]
TRAINED, TESTED, WANTED = 200, 100, 1
METHOD = LoFiT(
    heads=8, select_steps=30, tune_steps=25, batch=8, select_rate=0.05, tune_rate=0.05, select_penalty=1e-4
)
RANK, RANK_RATE = 4, 2e-3
DRAWS = (0, 1, 2, 3, 4)


@cache
def model():
    return smollm2()


@cache
def examples() -> tuple[Responses, Tensor, Tensor]:
    """What is trained on; prompts that are not; and the tokens of the three things that each lists."""
    _, tokenizer = model()
    generator = torch.Generator().manual_seed(0)
    seen: list[tuple[str, ...]] = []
    while len(seen) < TRAINED + TESTED:
        three = tuple(WORDS[at] for at in torch.randperm(len(WORDS), generator=generator)[:3].tolist())
        if three not in seen:
            seen.append(three)
    prompts = [tokenizer("List: {}, {}, {}\nAnswer:".format(*three))["input_ids"] for three in seen]
    options = [[tokenizer(" " + word)["input_ids"][0] for word in three] for three in seen]
    pairs = [(prompt, option[WANTED : WANTED + 1]) for prompt, option in zip(prompts, options)]
    rest = slice(TRAINED, None)
    return Responses(pairs[:TRAINED]), torch.tensor(prompts[rest]), torch.tensor(options[rest])


@torch.no_grad()
def accuracy() -> float:
    """How often the wanted one of the three is the likeliest."""
    _, prompts, options = examples()
    logits = torch.cat([model()[0](some, logits_to_keep=1).logits[:, -1] for some in prompts.split(50)])
    return float((logits.gather(1, options).argmax(1) == WANTED).double().mean())


def tuned(run: Run, chosen: list[tuple[int, int]]) -> dict[str, float]:
    method = LoFiT(**{**vars(METHOD), "tune_steps": run.steps(METHOD.tune_steps)})
    edit = method.tune(model()[0], examples()[0], chosen, seed=run.seed)
    with apply(model()[0], edit):
        right = accuracy()
    return {"accuracy": right, "numbers": float(count(edit.offsets)), "folded": folded(edit)}


@torch.no_grad()
def folded(edit: HeadAffine) -> float:
    """The largest difference of logits between the model under the edit and with it in its weights."""
    prompts = examples()[1][:8]
    with apply(model()[0], edit):
        under = model()[0](prompts).logits
    with edit.fold(model()[0]):
        return float((model()[0](prompts).logits - under).abs().max())


@cache
def ranking(seed: int, steps: int) -> list[tuple[int, int]]:
    method = LoFiT(**{**vars(METHOD), "select_steps": steps})
    return list(method.select(model()[0], examples()[0], seed=seed))


def chosen_heads(run: Run) -> dict[str, float]:
    return tuned(run, ranking(run.seed, run.steps(METHOD.select_steps))[: METHOD.heads])


def bottom_heads(run: Run) -> dict[str, float]:
    return tuned(run, ranking(run.seed, run.steps(METHOD.select_steps))[-METHOD.heads :])


def random_heads(run: Run) -> dict[str, float]:
    config = model()[0].config
    drawn = torch.randperm(
        config.num_hidden_layers * config.num_attention_heads,
        generator=torch.Generator().manual_seed(1000 + run.seed),
    )
    return tuned(run, [divmod(each, config.num_attention_heads) for each in drawn[: METHOD.heads].tolist()])


def low_rank(run: Run) -> dict[str, float]:
    products = LowRank(model()[0], ("q_proj", "v_proj"), rank=RANK, seed=run.seed)
    task = examples()[0]
    fit(
        Adapted(model()[0], products, task, products.at_work), task, steps=run.steps(METHOD.tune_steps),
        batch=METHOD.batch, learning_rate=RANK_RATE, seed=run.seed,
    )  # fmt: skip
    with products.at_work():
        right = accuracy()
    return {"accuracy": right, "numbers": float(sum(each.numel() for each in products.parameters()))}


def claim(context: Context) -> Outcome:
    base = context.check("base", lambda: {"accuracy": accuracy()})["accuracy"]
    found = context.measure({"lofit": chosen_heads})
    found |= context.measure({"random heads": random_heads}, seeds=DRAWS)
    found |= context.measure({"bottom heads": bottom_heads, "low rank": low_rank}, seeds=(0,))
    ours, others = found["lofit"], found["random heads"]
    return Outcome(
        setting=f"SmolLM2-135M-Instruct, answer with the second of three listed words: {TRAINED} examples, "
        f"{TESTED} tested; {METHOD.heads} of 270 heads found in {METHOD.select_steps} steps and tuned in "
        f"{METHOD.tune_steps}, batches of {METHOD.batch}; random heads drawn {len(DRAWS)} times; low-rank "
        f"matrices of rank {RANK} at all queries and values; the paper: 7B and 13B models, hundreds of "
        "examples",
        figures=[
            Figure.of("share of right answers among three", found, "accuracy", ours="lofit"),
            Figure.of("numbers trained", found, "numbers", ours="lofit"),
        ],
        criteria=[
            quality("LoFiT is above the base model", ours["accuracy"].mean - base, at_least=0.05),
            quality(
                "heads that the task chose are above the mean of random ones",
                ours["accuracy"].mean - others["accuracy"].mean, at_least=0.0,
            ),
            cost(
                "at most a twentieth of the low-rank matrices' numbers",
                ours["numbers"].mean / found["low rank"]["numbers"].mean, at_most=0.05,
            ),
            exact(
                "folded, the logits are those under the edit",
                max(ours["folded"].values), at_most=1e-4,
            ),
        ],
        notes=[f"The base model answers with the second in {base:.0%}."],
    )  # fmt: skip
