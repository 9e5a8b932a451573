"""Do attention and feature attributions rank tokens alike, and does a transformer make them agree less?

A BiLSTM with additive attention and a transformer, on sentiment with negation and on pairs with synonyms.
Seven explainers of the same predictions; Kendall's τ on the words, special tokens and padding aside.
"""

import torch

from regardant.claim.context import Context, Run
from regardant.claim.outcome import Figure, Outcome, Spread, exact, quality
from regardant.lens.agreement import kendall
from regardant.lens.explainers import (
    deep_lift,
    deep_shap,
    gradient_shap,
    integrated_gradients,
    last_attention,
    lime,
    pooled_attention,
    rollout,
)
from regardant.lens.song_of_disagreement import AgreementStudy
from regardant.task.phrases import SPECIAL, Sentiment, Synonyms
from regardant.train.fit import evaluate, seeded
from regardant.train.text_classifiers import AttentiveLSTM, TokenTransformer

TASKS = {"sentiment": Sentiment(held_out=100), "pairs": Synonyms(held_out=100)}
MODELS = {"bilstm": AttentiveLSTM, "transformer": TokenTransformer}
GRADIENTS = ("integrated gradients", "gradient shap", "deeplift", "deep shap")
ATTENTION = {"bilstm": {"attention": pooled_attention()},
             "transformer": {"attention": last_attention(), "rollout": rollout()}}  # fmt: skip


def explained(name: str, task_name: str):
    """τ between families of explainers, on the predictions of one model."""

    def unit(run: Run) -> dict[str, float]:
        task = TASKS[task_name]
        model = run.fit(lambda: MODELS[name](task.vocabulary), task, steps=700, batch=64, learning_rate=3e-3)
        tokens = torch.cat([inputs for inputs, _ in task.validation()])
        generator = torch.Generator().manual_seed(run.seed)
        with torch.no_grad():
            background = model.embed(task.batch(5, generator)[0])
        attributions = {
            "integrated gradients": integrated_gradients(), "deeplift": deep_lift(), "lime": lime(generator),
            "deep shap": deep_shap(background), "gradient shap": gradient_shap(background),
        }  # fmt: skip
        study = AgreementStudy(ATTENTION[name] | attributions, special=SPECIAL)
        with seeded(run.seed):
            found = study(model, tokens)
        words = study.words(tokens)
        drawn = torch.rand(words.shape, generator=generator)
        return {
            "accuracy": evaluate(model, task),
            "gradients": found.between(GRADIENTS, GRADIENTS),
            "attention": found.between(tuple(ATTENTION[name]), tuple(attributions)),
            "all": found.between(tuple(found.scores), tuple(found.scores)),
            "chance": float(kendall(found.scores["deeplift"], drawn, words).nanmean()),
        }

    return unit


def sanity() -> dict[str, float]:
    """The same scores agree wholly; Deep SHAP with DeepLIFT's reference agrees with integrated gradients."""
    task = TASKS["sentiment"]
    with seeded(0):
        model = AttentiveLSTM(task.vocabulary).eval()
    tokens = next(iter(task.validation()))[0][:20]
    reference = model.embed(torch.zeros(2, tokens.shape[1], dtype=torch.long)).detach()
    lines = integrated_gradients()
    study = AgreementStudy({"a": lines, "b": lines, "shap": deep_shap(reference)}, special=SPECIAL)
    table = study(model, tokens).table
    return {"itself": table["a", "b"], "same reference": table["a", "shap"]}


def claim(context: Context) -> Outcome:
    sane = context.check("sanity", sanity)
    units = {f"{model} {task}": explained(model, task) for task in TASKS for model in MODELS}
    found = context.measure(units)
    both = {
        model: {key: _joined(found, model, key) for key in ("gradients", "attention", "all", "chance")}
        for model in MODELS
    }
    apart = max(both[model]["attention"].mean - both[model]["gradients"].mean for model in MODELS)
    less = both["transformer"]["all"].mean - both["bilstm"]["all"].mean
    chance = max(abs(both[model]["chance"].mean) for model in MODELS)
    families = (
        ("among gradient attributions", "gradients"), ("attention with attributions", "attention"),
        ("all pairs", "all"), ("with random scores", "chance"),
    )  # fmt: skip
    return Outcome(
        setting="models of width 64 trained 700 steps on made-up phrases of 10 to 24 words; 100 held-out "
        "phrases of each task; LIME with 300 samples, integrated gradients with 30 steps, 5 references",
        figures=[
            Figure.of("accuracy", found, "accuracy", ours=tuple(found)),
            *(Figure(f"mean τ, {what}", {m: both[m][key] for m in MODELS}) for what, key in families),
            Figure.once("τ of integrated gradients and Deep SHAP", {"one reference": sane["same reference"]}),
        ],
        criteria=[
            quality("attention agrees less than gradients among themselves", apart, at_most=0.0),
            quality("all agree less on the transformer", less, at_most=0.0),
            quality("integrated gradients and Deep SHAP agree", sane["same reference"], at_least=0.2),
            exact("the same scores agree wholly", sane["itself"], at_least=1 - 1e-9),
            exact("random scores do not agree", chance, at_most=0.05),
        ],
        notes=["low agreement does not say that either of two explanations is wrong"],
    )


def _joined(found, model: str, key: str) -> Spread:
    """Seed by seed, the mean over tasks."""
    rows = [found[f"{model} {task}"][key].values for task in TASKS]
    return Spread(tuple(sum(values) / len(values) for values in zip(*rows)))
