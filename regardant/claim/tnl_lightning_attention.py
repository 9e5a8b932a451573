"""Does the time for a token stay the same at every length, and is the model as good as with softmax?

The same number of tokens is cut into ever longer sequences and run forward and backward: TNL's operator in
blocks, all pairs at once, as a running sum of d×d states, and softmax. Then TNL's layer and softmax with
rotary positions learn text, and read windows of up to sixteen times the length that they were trained at.
"""

from functools import partial

import torch
import torch.nn.functional as F

from regardant import create
from regardant.claim.context import Context
from regardant.claim.count import peak_bytes
from regardant.claim.outcome import Figure, Outcome, cost, exact, quality
from regardant.compare.clock import clock
from regardant.compare.growth import fit as fit_growth
from regardant.core.decayed_linear import decayed_linear, decayed_linear_reference, decayed_linear_step
from regardant.task.bytes import Bytes
from regardant.train.fit import evaluate
from regardant.train.model import TokenModel

HEADS, WIDTH, TOKENS = 4, 64, 8192
LENGTHS = (256, 512, 1024, 2048, 4096)
PARALLEL = LENGTHS[:4]
"""Where all pairs at once still fit; what the length does is plain by then."""
NAIVE = 2048
TASK = Bytes(length=64)
LONGER = Bytes(length=16 * TASK.length, held_out=16)


def draw(batch: int, length: int, **kind) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    shape = (batch, HEADS, length, WIDTH)
    return [torch.randn(shape, generator=generator, **kind).requires_grad_() for _ in range(3)]


def rates(**kind) -> torch.Tensor:
    return -(2.0 ** (-2.0 * torch.arange(1, HEADS + 1, **kind)))


def chunked(q, k, v):
    return decayed_linear(q, k, v, rates())


def parallel(q, k, v):
    return decayed_linear_reference(q, k, v, rates())


def softmax(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def naive(q, k, v):
    """Every state of the recurrence at once, as a running sum (no decay, which a plain sum cannot have)."""
    states = (k[..., :, None] * v[..., None, :]).cumsum(dim=2)
    return (q[..., None, :] @ states)[..., 0, :]


def back(attend, inputs: list[torch.Tensor]) -> None:
    attend(*inputs).sum().backward()
    for tensor in inputs:
        tensor.grad = None


def times() -> dict[str, float]:
    """Exponents of the time for the same number of tokens in the length that it is cut into."""
    found = {}
    for name, attend, lengths in (
        ("chunked", chunked, LENGTHS), ("softmax", softmax, LENGTHS), ("parallel", parallel, PARALLEL),
    ):  # fmt: skip
        calls = {n: partial(back, attend, draw(TOKENS // n, n)) for n in lengths}
        seconds = dict(clock(calls, budget=0.8))
        found[name] = fit_growth(lengths, [seconds[n].best for n in lengths]).exponent
        found |= {f"{name} {n}": 1e6 * seconds[n].best / TOKENS for n in lengths}
    return found


def memory() -> dict[str, float]:
    blocks, states = (peak_bytes(partial(back, way, draw(1, NAIVE))) for way in (chunked, naive))
    return {"naive over chunked": states / blocks}


@torch.no_grad()
def modes() -> dict[str, float]:
    """How far the three ways to take the sum are apart in float32, relative to the largest output."""
    worst = 0.0
    for length in (1, 63, 256, 300):
        q, k, v = draw(2, length)
        state, outs = torch.zeros(2, HEADS, WIDTH, WIDTH), []
        for t in range(length):
            out, state = decayed_linear_step(q[:, :, t], k[:, :, t], v[:, :, t], state, rates())
            outs.append(out)
        plain = parallel(q, k, v)
        for other in (chunked(q, k, v), torch.stack(outs, dim=2)):
            worst = max(worst, ((other - plain).abs().max() / plain.abs().max()).item())
    return {"difference": worst}


def trained(system: str, **own):
    def unit(run):
        mixers = [
            partial(create, system, dim=64, heads=4, causal=True, **own, **place)
            for place in (
                [{"layer": at, "layers": 2} for at in range(2)] if system != "softmax" else [{}] * 2
            )
        ]
        model = run.fit(
            partial(TokenModel, TASK.vocabulary, mixers, dim=64),
            TASK,
            steps=500,
            batch=16,
            learning_rate=2e-3,
        )
        return {"loss": evaluate(model, TASK), "long": evaluate(model, LONGER)}

    return unit


def claim(context: Context) -> Outcome:
    spent, held = context.check("times", times), context.check("memory", memory)
    apart = context.check("modes", modes)["difference"]
    found = context.measure(
        {"tnl": trained("tnl-lightning-attention"), "softmax": trained("softmax", position="rotary")}
    )
    tnl, rotary = found["tnl"], found["softmax"]
    behind = tnl["loss"].mean / rotary["loss"].mean
    ahead = tnl["long"].mean / rotary["long"].mean
    return Outcome(
        setting=f"operator: {HEADS} heads of {WIDTH}, {TOKENS} tokens in sequences of 256 to 4096, forward "
        "and backward on one CPU core, best of several runs; text: bytes of the standard library, 2 layers, "
        "width 64, 4 heads, 500 steps of 16 windows of 64; the paper trains up to 3B parameters on GPUs",
        figures=[
            Figure.once(
                f"microseconds a token at {n}",
                {"chunked": spent[f"chunked {n}"]},
                {name: spent[f"{name} {n}"] for name in ("softmax", "parallel") if f"{name} {n}" in spent},
            )
            for n in LENGTHS
        ]
        + [
            Figure.of("validation loss, nats a byte, windows of 64", found, "loss", ours="tnl"),
            Figure.of("the same, windows of 1024", found, "long", ours="tnl"),
        ],
        criteria=[
            cost("time grows at most as length^0.15 in blocks", spent["chunked"], at_most=0.15),
            cost("at least as length^0.6 with softmax", spent["softmax"], at_least=0.6),
            cost("at least as length^0.6 with all pairs", spent["parallel"], at_least=0.6),
            cost("the running sum of states holds 3 times as much", held["naive over chunked"], at_least=3.0),
            exact("the three ways to take the sum agree", apart, at_most=1e-4),
            quality("the loss is at most 8 % above softmax's", behind, at_most=1.08),
            quality("at 16 times the training length it is below softmax's", ahead, at_most=1.0),
        ],
    )
