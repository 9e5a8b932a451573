"""Does attention learn functions of a set of keys from fewer samples? Fu et al., "What can a Single Attention
Layer Learn?", 2023.

The paper: on targets that do not change with the order of the keys, the excess risk of random-feature
attention does not depend on their number, and that of random features of all coordinates does; where keys
count by their correlation with the query, biased weights need fewer samples. Here with as many ridge weights
on both sides; errors are relative to the variance of the target.
"""

import torch

from regardant.claim.context import Context
from regardant.claim.outcome import Figure, Outcome, exact, quality
from regardant.structure.random_feature_attention_theory import RandomFeatureAttention, RandomFeatureMLP
from regardant.task.key_averages import KeyAverages
from regardant.train.fit import seeded

HEADS, SAMPLES, HELD_OUT, TESTED = 500, 1024, 256, 1000
KEYS = (8, 16, 32)


def error(run, model, task: KeyAverages, samples: int) -> float:
    """The mean squared error over the variance of the target, on fresh samples."""
    draw = torch.Generator().manual_seed(run.seed)
    tokens = task.batch(samples + HELD_OUT + TESTED, draw)[0].double()  # for ridges of 1e-9
    targets = task.target(tokens)
    targets = (targets - targets[:samples].mean()) / targets[:samples].std()
    sizes = [samples, HELD_OUT, TESTED]
    (seen, kept, fresh), (right, kept_right, fresh_right) = tokens.split(sizes), targets.split(sizes)
    model.fit(seen, right, (kept, kept_right))
    return float((model.predict(fresh) - fresh_right).square().mean() / fresh_right.var())


def on_sets(kind: str):
    def unit(run):
        tasks = {f"powers, {keys} keys": KeyAverages("powers", 2, keys=keys, seed=run.seed) for keys in KEYS}
        tasks["bilinear, 16 keys"] = KeyAverages("bilinear", 1, keys=16, seed=run.seed)
        found = {}
        for name, task in tasks.items():
            with seeded(run.seed):
                if kind == "attention":
                    model = RandomFeatureAttention(task.dim, HEADS)
                else:
                    model = RandomFeatureMLP(task.dim, task.keys, HEADS * (task.dim + 1))
            found[name] = error(run, model.double(), task, SAMPLES)
        return found

    return unit


def on_correlations(biased: bool):
    def unit(run):
        found = {}
        for power in (3, 4):
            task = KeyAverages("correlated", power, dim=10, keys=16, norm=10**0.25, seed=run.seed)
            with seeded(run.seed):
                model = RandomFeatureAttention(10, 400, biased=biased, deviation=0.15)
            found[f"power {power}"] = error(run, model.double(), task, 256)
        return found

    return unit


@torch.no_grad()
def exactness() -> dict[str, float]:
    """Keys in another order."""
    draw = torch.Generator().manual_seed(0)
    with seeded(0):
        model = RandomFeatureAttention(4, 50).double()
    model.values.copy_(torch.randn(model.values.shape, generator=draw, dtype=torch.float64))
    tokens = torch.randn(8, 17, 4, generator=draw, dtype=torch.float64)
    turned = torch.cat([tokens[:, :1], tokens[:, 1:].flip(1)], dim=1)
    return {"difference": float((model(turned) - model(tokens)).abs().max())}


def claim(context: Context) -> Outcome:
    checked = context.check("exactness", exactness)
    found = context.measure({name: on_sets(name) for name in ("attention", "all coordinates")})
    both = context.measure({"biased": on_correlations(True), "not biased": on_correlations(False)})
    ours, rival = found["attention"], found["all coordinates"]
    few, middle, many = (f"powers, {keys} keys" for keys in KEYS)
    return Outcome(
        setting=f"dim 4, {HEADS} heads, {SAMPLES} samples; correlated targets at dim 10, 400 heads, tokens "
        "of length 10^(1/4), deviation 0.15, 256 samples, where the bias is expected to show",
        figures=[
            *(
                Figure.of(f"test error over variance: {name}", found, name, ours="attention")
                for name in ours
            ),
            *(
                Figure.of(f"test error over variance: correlated, {name}", both, name, ours="biased")
                for name in both["biased"]
            ),
        ],
        criteria=[
            exact("the order of the keys makes no difference", checked["difference"], at_most=1e-12),
            quality(
                "powers: error at most a tenth of the rival's", ours[middle].mean / rival[middle].mean,
                at_most=0.1,
            ),
            quality(
                "bilinear: error at most a tenth of the rival's",
                ours["bilinear, 16 keys"].mean / rival["bilinear, 16 keys"].mean,
                at_most=0.1,
            ),
            quality(
                "powers: error with 32 keys at most 1.5 times that with 8", ours[many].mean / ours[few].mean,
                at_most=1.5,
            ),
            quality("powers: the rival fails with 32 keys", rival[many].mean, at_least=0.8),
            quality(
                "powers: the rival's error with 32 keys at least twice that with 8",
                rival[many].mean / rival[few].mean,
                at_least=2.0,
            ),
            *(
                quality(
                    f"correlated, {name}: error below that without the bias",
                    both["biased"][name].mean / both["not biased"][name].mean,
                    at_most=1.0,
                )
                for name in both["biased"]
            ),
        ],
    )  # fmt: skip
