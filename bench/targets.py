"""The project's own targets on a CPU: shares of the machine's limits, and ratios to torch's kernels.

    python -m bench.targets [--only C1,C5] [--seconds 60] [--fresh]

Ratios are a peer's median time over ours, taken by turns in one process. A share of a limit sets our
median against peaks of the same run (`bench.limits`). Goes on where it was stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from bench import peers_flex
from bench.limits import Limits
from bench.results_file import Results
from bench.target import Found, Target, arguments
from bench.target import run as run_targets
from regardant.compare.clock import Timing, clock
from regardant.compare.decoding import clock_steps
from regardant.compare.workload import Setting, Workload
from regardant.core import plan
from regardant.core.decayed_linear import decayed_linear, decayed_linear_step
from regardant.core.pattern import Causal, Window
from regardant.core.rule import HeadShape, SoftmaxRule

HEADS, WIDTH = 8, 64
BLOCK = 64
TOKENS = 100
"""Steps in one reading of the clock: one alone is shorter than what surrounds it."""
Call = Callable[[], object]
Qkv = tuple[Tensor, Tensor, Tensor]


def targets() -> list[Target]:
    """C1 to C5 and C7."""
    found = [Target(f"C1 linear, forward, share of products at {n}", 0.40, 0.60, partial(linear_share, n))
             for n in (1024, 2048, 4096, 8192, 16384, 32768, 65536)]  # fmt: skip
    found.append(Target("C1 linear, forward, rate at 65536 over rate at 2048", 0.9, 0.95, linear_rate))
    for n, passes, stretch in ((512, 1.5, 2.5), (2048, 4, 6), (8192, 14, 20)):
        found.append(
            Target(
                f"C1 linear, forward, against SDPA at {n}", passes, stretch, partial(linear_against_sdpa, n)
            )
        )
    for n, passes, stretch in ((512, 2, 3), (2048, 5, 8), (8192, 12, 18)):
        against = partial(linear_against_sdpa, n, backward=True)
        found.append(Target(f"C2 linear, with backward, against SDPA at {n}", passes, stretch, against))
    for width, share, more in ((256, 0.45, 0.65), (1024, 0.65, 0.80)):
        of = f"C3 window {width} at 16384, forward"
        found.append(Target(f"{of}, against FlexAttention", 1.3, 2.0, partial(window_against_flex, width)))
        found.append(
            Target(f"{of}, share of products and exponentials", share, more, partial(window_share, width))
        )
        found.append(Target(f"{of}: with backward over it", 4.5, 3.5, partial(window_backward, width)))
    for n in (128, 512, 1024, 2048, 4096, 8192, 16384):
        passes, stretch = (1.2, 1.4) if n == 512 else (0.98, 1.0)
        found.append(
            Target(f"C4 causal softmax against SDPA at {n}", passes, stretch, partial(causal_against_sdpa, n))
        )
    for name in ("sliding-window", "lightning-attention-2"):
        found.append(
            Target(f"C5 decoding {name}, step at 65536 over at 4096", 1.05, 1.02, partial(steps, name))
        )
    found.append(Target("C5 linear step, 8 heads, µs", 20, 8, linear_step))
    found.append(Target("C5 softmax step at 65536, share of the reading rate", 0.75, 0.90, cache_share))
    for name in ("linear", "window", "causal"):
        for backward in (False, True):
            of = f"C7 {name}, {'with backward' if backward else 'forward'}, bfloat16 over float32 at 4096"
            found.append(Target(of, 1.15, 1.05, partial(half_over_single, name, backward)))
    return found


def draw(n: int, dtype: torch.dtype = torch.float32) -> Qkv:
    generator = torch.Generator().manual_seed(n)
    q, k, v = (0.3 * torch.randn(1, HEADS, n, WIDTH, generator=generator) for _ in range(3))
    return q.to(dtype), k.to(dtype), v.to(dtype)


def decay() -> Tensor:
    return -torch.linspace(0.001, 0.1, HEADS)


def linear(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return decayed_linear(q, k, v, decay().to(torch.float32))


def window(q: Tensor, k: Tensor, v: Tensor, width: int = 256) -> Tensor:
    return plan.attend(q, k, v, Causal() & Window(width))


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return plan.attend(q, k, v, Causal())


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scaled_dot_product_attention(q, k, v, is_causal=True)


def run(function: Callable[..., Tensor], inputs: Qkv, *, backward: bool = False) -> Call:
    """A call of it, or one with the gradients of all inputs."""
    if not backward:
        return torch.no_grad()(partial(function, *inputs))
    inputs = tuple(x.detach().requires_grad_() for x in inputs)
    grad = torch.randn_like(inputs[2])
    return lambda: torch.autograd.grad(function(*inputs), inputs, grad)


def timed(calls: Mapping[str, Call]) -> dict[str, Timing]:
    """At least 20 repetitions, of slow calls what fits in 20 seconds, at least 5."""
    rough = sum(timing.best for _, timing in clock(calls, budget=0, least=1))
    return dict(clock(calls, budget=0.5, least=min(20, max(5, int(20 / rough))), warm=True))


def ratio(found: Mapping[str, Timing], over: str, under: str) -> Found:
    return found[over].median / found[under].median, found


def linear_products(n: int) -> int:
    """Floating-point operations in blocks: inside a block, to the state and from it."""
    return HEADS * n * (4 * BLOCK * WIDTH + 4 * WIDTH * WIDTH)


def linear_share(n: int, peaks: Limits) -> Found:
    found = timed({"ours": run(linear, draw(n))})
    return linear_products(n) / peaks.multiply / found["ours"].median, found


def linear_rate(_: Limits) -> Found:
    found = timed({"2048": run(linear, draw(2048)), "65536": run(linear, draw(65536))})
    return 32 * found["2048"].median / found["65536"].median, found


def linear_against_sdpa(n: int, _: Limits, *, backward: bool = False) -> Found:
    inputs = draw(n)
    calls = {"ours": run(linear, inputs, backward=backward), "sdpa": run(sdpa, inputs, backward=backward)}
    return ratio(timed(calls), "sdpa", "ours")


def window_against_flex(width: int, _: Limits) -> Found:
    contest = peers_flex.window_against_flex(16384, window=width)
    ours, flex = contest.clock("forward")
    return ratio({"ours": ours, "flex": flex}, "flex", "ours")


def window_share(width: int, peaks: Limits) -> Found:
    n = 16384
    pairs = HEADS * (n * width - width * (width - 1) // 2)
    found = timed({"ours": run(partial(window, width=width), draw(n))})
    bound = pairs * (4 * WIDTH / peaks.multiply + 1 / peaks.exponential)
    return bound / found["ours"].median, found


def window_backward(width: int, _: Limits) -> Found:
    its, inputs = partial(window, width=width), draw(16384)
    found = timed({"forward": run(its, inputs), "backward": run(its, inputs, backward=True)})
    return ratio(found, "backward", "forward")


def causal_against_sdpa(n: int, _: Limits) -> Found:
    inputs = draw(n)
    return ratio(timed({"ours": run(causal, inputs), "sdpa": run(sdpa, inputs)}), "sdpa", "ours")


def steps(name: str, _: Limits) -> Found:
    workload = Workload(Setting(name, dim=HEADS * WIDTH, heads=HEADS))
    found = {str(at): its for at, (its, _) in clock_steps(workload, (4096, 65536), least=400).items()}
    return ratio(found, "65536", "4096")


def linear_step(_: Limits) -> Found:
    q, k, v = (x[:, :, 0] for x in draw(1))
    state, rates = torch.randn(1, HEADS, WIDTH, WIDTH), decay()

    @torch.inference_mode()
    def decode() -> None:
        held = state
        for _ in range(TOKENS):
            _, held = decayed_linear_step(q, k, v, held, rates)

    found = dict(clock({"ours": decode}, budget=1.0, least=100, most=2000))
    return found["ours"].median / TOKENS * 1e6, found


def cache_share(peaks: Limits) -> Found:
    n, rule = 65536, SoftmaxRule()
    q, k, v = draw(n)
    shape = HeadShape(1, HEADS, HEADS, WIDTH, WIDTH, q.device, q.dtype)
    with torch.inference_mode():
        state = rule.start(shape, keys=k, values=v)

    @torch.inference_mode()
    def step() -> object:
        return rule.step(q[:, :, 0], None, None, state)

    found = timed({"ours": step})
    return (k.nbytes + v.nbytes) / peaks.read / found["ours"].median, found


def half_over_single(name: str, backward: bool, _: Limits) -> Found:
    function = {"linear": linear, "window": window, "causal": causal}[name]
    calls = {
        str(dtype).removeprefix("torch."): run(function, draw(4096, dtype), backward=backward)
        for dtype in (torch.bfloat16, torch.float32)
    }
    return ratio(timed(calls), "bfloat16", "float32")


def main() -> None:
    asked = arguments(__doc__).parse_args()
    run_targets("Targets on a CPU", targets(), Results("targets"), asked)


if __name__ == "__main__":
    main()
