"""Is the time for a token the same at every length, and does the backward sweep save memory?

Lightning Attention-2 is an exact way to compute linear attention with decay: there is nothing to train.
"""

import torch

from regardant.claim.context import Context
from regardant.claim.count import peak_bytes
from regardant.claim.outcome import Figure, Outcome, cost, exact
from regardant.compare.clock import clock
from regardant.compare.growth import fit as fit_growth
from regardant.core.decayed_linear import decayed_linear, decayed_linear_reference

HEADS, WIDTH = 8, 64
TOKENS = 16384
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)


def draw(batch: int, length: int, width: int = WIDTH, heads: int = HEADS, **kind) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    shape = (batch, heads, length, width)
    return [torch.randn(shape, generator=generator, **kind).requires_grad_() for _ in range(3)]


def decay(heads: int = HEADS, **kind) -> torch.Tensor:
    return -(2.0 ** -torch.arange(1, heads + 1, **kind))


def backward(attend, inputs: list[torch.Tensor], log_decay: torch.Tensor) -> None:
    attend(*inputs, log_decay).sum().backward()
    for tensor in inputs:
        tensor.grad = None


def gradients() -> dict[str, float]:
    """The largest difference of a gradient, over ragged lengths and blocks, from the equation's."""
    worst = 0.0
    for length in (1, 7, 64, 100):
        for block in (8, 16, 64):
            inputs, rates = draw(2, length, 5, 3, dtype=torch.float64), decay(3, dtype=torch.float64)
            ours = torch.autograd.grad(decayed_linear(*inputs, rates, block=block).cos().sum(), inputs)
            plain = torch.autograd.grad(decayed_linear_reference(*inputs, rates).cos().sum(), inputs)
            worst = max(worst, *((one - other).abs().max().item() for one, other in zip(ours, plain)))
    return {"difference": worst}


def memory() -> dict[str, float]:
    ours = [peak_bytes(lambda n=n: backward(decayed_linear, draw(1, n), decay())) for n in LENGTHS[1:5]]
    short = LENGTHS[1:3]
    masked = [peak_bytes(lambda n=n: backward(decayed_linear_reference, draw(1, n), decay())) for n in short]
    # With a decay that is learned, the same chunks are left to autograd.
    learned = decay().requires_grad_()
    by_autograd = peak_bytes(lambda: backward(decayed_linear, draw(1, 8192), learned))
    return {
        "exponent": fit_growth(LENGTHS[1:5], ours).exponent,
        "masked exponent": fit_growth(short, masked).exponent,
        "saved": 1 - ours[-1] / by_autograd,
    }


def times() -> dict[str, float]:
    """Seconds for forward and backward over the same number of tokens, cut into ever longer sequences."""
    inputs = {n: draw(TOKENS // n, n) for n in LENGTHS}
    calls = {n: lambda n=n: backward(decayed_linear, inputs[n], decay()) for n in LENGTHS}
    found = dict(clock(calls, budget=3.0))
    return {str(n): found[n].median for n in LENGTHS}


def claim(context: Context) -> Outcome:
    checked = context.check("gradients", gradients)
    held, spent = context.check("memory", memory), context.check("times", times)
    slowest = max(spent.values()) / min(spent.values())
    growth = {"lightning": held["exponent"]}, {"masked": held["masked exponent"]}
    return Outcome(
        setting=f"{HEADS} heads of {WIDTH}, {TOKENS} tokens in sequences of 512 to 16384, forward and "
        "backward on the CPU; the paper measures a GPU kernel inside models of up to 3B",
        figures=[
            *(
                Figure.once(f"microseconds a token at {length}", {"lightning": 1e6 * seconds / TOKENS})
                for length, seconds in spent.items()
            ),
            Figure.once("growth of backward's peak memory, exponent", *growth),
        ],
        criteria=[
            cost("a token takes at most 1.25 times as long at any other length", slowest, at_most=1.25),
            cost("peak memory of backward grows at most as n^1.1", held["exponent"], at_most=1.1),
            cost("the masked form's grows at least as n^1.7", held["masked exponent"], at_least=1.7),
            cost("the backward sweep holds at least 30 % less than autograd", held["saved"], at_least=0.3),
            exact("gradients equal those of the equation", checked["difference"], at_most=1e-9),
        ],
    )
