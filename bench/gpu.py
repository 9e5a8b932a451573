"""The project's own targets on a GPU: shares of its limits, and ratios to the best peers that are installed.

    python -m bench.gpu [--only G1,G7] [--seconds 60] [--fresh] [--device cuda]

Half precision throughout. Peers are flash-linear-attention (package `flash-linear-attention`), compiled
FlexAttention and torch's own backends of softmax; a target whose peer is missing is left out with a word.
Ratios are a peer's median time over ours, by turns in one process. Goes on where it was stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from math import exp, fsum, log
from time import perf_counter

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from bench.limits import Limits
from bench.results_file import Results
from bench.target import Found, Target, arguments, run
from regardant.compare.clock import Timing, clock
from regardant.compare.machine import choose_device
from regardant.core import plan
from regardant.core.decayed_linear import decayed_linear, decayed_linear_step
from regardant.core.errors import require
from regardant.core.pattern import Causal, Window
from regardant.core.rule import HeadShape, SoftmaxRule

WIDTH = 128
SHAPES = ((8, 16, 2048), (4, 16, 4096), (2, 16, 8192), (1, 16, 16384))
"""Batch, heads, length: as many tokens in each."""
FEW = (1, 8, 32768)
WINDOW = 1024

Call = Callable[[], object]


class Bench:
    """The measurements on one device. `shrink` divides every length: for trying the script out."""

    def __init__(self, device: torch.device, *, shrink: int = 1):
        self.device, self.shrink = device, shrink
        self.dtype = torch.bfloat16

    def targets(self) -> list[Target]:
        fla = "" if find_spec("fla") else "flash-linear-attention is not installed"
        cuda = "" if self.device.type == "cuda" else f"graphs are captured on CUDA, not on {self.device.type}"
        few = partial(self.linear_against_fla, (FEW,))
        return [
            Target("G1 linear, forward, against fla", 1.3, 1.8,
                   partial(self.linear_against_fla, SHAPES), fla),
            Target("G1 linear, forward, share of the memory's rate", 0.45, 0.60,
                   partial(self.linear_share, bytes_each=8)),
            Target("G2 linear, with backward, against fla", 1.6, 2.0,
                   partial(self.linear_against_fla, SHAPES, backward=True), fla),
            Target("G2 linear, with backward, share of the memory's rate", 0.40, 0.50,
                   partial(self.linear_share, bytes_each=28, backward=True)),
            Target("G3 linear, 8 heads at 32768, against fla", 3, 6, few, fla),
            Target("G4 linear at 1024, host's microseconds, forward", 60, 30, self.host),
            Target("G4 linear at 1024, host's microseconds, with backward", 200, 100,
                   partial(self.host, backward=True)),
            Target("G5 linear, tokens a second at 131072 over at 2048", 0.97, 0.99, self.linear_rate),
            Target("G6 causal softmax at 16384 against torch's best backend", 0.98, 1.0, self.softmax),
            Target("G7 window 1024 at 16384, forward, against FlexAttention", 1.3, 1.5, self.window),
            Target("G7 window 1024 at 16384, with backward, against FlexAttention", 1.2, 1.4,
                   partial(self.window, backward=True)),
            Target("G11 softmax step at 16384, share of the reading rate", 0.70, 0.85, self.cache_share),
            Target("G11 linear step, 2048 states, share of the memory's rate", 0.50, 0.75, self.state_share),
            Target("G11 linear step, 16 heads, in a graph, microseconds", 6, 3, self.graph, cuda),
        ]  # fmt: skip

    def draw(self, batch: int, heads: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(length)
        shape = (batch, heads, max(length // self.shrink, 16), WIDTH)
        q, k, v = (0.3 * torch.randn(shape, generator=generator) for _ in range(3))
        return tuple(x.to(self.device, self.dtype) for x in (q, k, v))

    def decay(self, heads: int) -> Tensor:
        return -torch.linspace(0.001, 0.1, heads, device=self.device)

    def ours(self, heads: int) -> Callable[..., Tensor]:
        return partial(decayed_linear, log_decay=self.decay(heads))

    def timed(self, calls: dict[str, Call]) -> dict[str, Timing]:
        return dict(clock(calls, budget=0.5, least=20, device=self.device))

    def call(self, function: Callable[..., Tensor], inputs: tuple[Tensor, ...], backward: bool) -> Call:
        if not backward:
            return torch.no_grad()(partial(function, *inputs))
        inputs = tuple(x.detach().requires_grad_() for x in inputs)
        grad = torch.randn_like(inputs[2])
        return lambda: torch.autograd.grad(function(*inputs), inputs, grad)

    def linear_against_fla(self, shapes, _: Limits, *, backward: bool = False) -> Found:
        """The geometric mean over shapes."""
        from fla.ops.simple_gla import chunk_simple_gla

        def of(heads: int) -> Callable[..., Tensor]:
            gates = self.decay(heads)
            return lambda q, k, v: chunk_simple_gla(q, k, v, g=gates.expand(q.shape[:3]), scale=1.0)[0]

        ratios, timings = [], {}
        for shape in shapes:
            inputs, ours, theirs = self.draw(*shape), self.ours(shape[1]), of(shape[1])
            across = tuple(x.transpose(1, 2).contiguous() for x in inputs)
            found, right = ours(*inputs), theirs(*across).transpose(1, 2)
            error = float((found - right).float().norm() / right.float().norm())
            require(
                error < 0.02, f"fla's output at {shape} is {error:.2%} off ours, so they are not the same"
            )
            calls = {
                "ours": self.call(ours, inputs, backward), "fla": self.call(theirs, across, backward),
            }  # fmt: skip
            now = self.timed(calls)
            ratios.append(now["fla"].median / now["ours"].median)
            timings |= {f"{name} {shape}": timing for name, timing in now.items()}
        return exp(fsum(map(log, ratios)) / len(ratios)), timings

    def linear_share(self, peaks: Limits, *, bytes_each: int, backward: bool = False) -> Found:
        inputs = self.draw(*SHAPES[1])
        found = self.timed({"ours": self.call(self.ours(SHAPES[1][1]), inputs, backward)})
        moved = bytes_each * inputs[0].numel()
        return moved / peaks.copy / found["ours"].median, found

    def host(self, _: Limits, *, backward: bool = False) -> Found:
        """Seconds until a call comes back, with the device left to catch up between the bursts."""
        call = self.call(self.ours(8), self.draw(1, 8, 1024), backward)
        seconds = []
        for repetition in range(25):
            begin = perf_counter()
            for _ in range(10):
                call()
            if repetition >= 5:
                seconds.append((perf_counter() - begin) / 10)
            self.wait()
        timing = Timing.of(seconds)
        return timing.median * 1e6, {"ours": timing}

    def wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def linear_rate(self, _: Limits) -> Found:
        """The same tokens in few long and in many short sequences."""
        calls = {
            str(n): self.call(self.ours(16), self.draw(131072 // n, 16, n), False) for n in (2048, 131072)
        }
        found = self.timed(calls)
        return found["2048"].median / found["131072"].median, found

    def backends(self) -> Iterator[tuple[str, Callable[..., Tensor]]]:
        """Each backend of softmax attention that runs here."""
        for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION,
                        SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH):  # fmt: skip

            def forced(q, k, v, backend=backend):
                with sdpa_kernel(backend):
                    return scaled_dot_product_attention(q, k, v, is_causal=True)

            with suppress(RuntimeError):
                forced(*self.draw(1, 2, 64))
                yield backend.name.lower(), forced

    def softmax(self, _: Limits) -> Found:
        inputs = self.draw(*SHAPES[-1])
        calls = {name: self.call(each, inputs, False) for name, each in self.backends() if name != "math"}
        require(bool(calls), f"no fused softmax attention runs on {self.device}")
        calls["ours"] = self.call(lambda q, k, v: plan.attend(q, k, v, Causal()), inputs, False)
        found = self.timed(calls)
        best = min(timing.median for name, timing in found.items() if name != "ours")
        return best / found["ours"].median, found

    def window(self, _: Limits, *, backward: bool = False) -> Found:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        q, k, v = self.draw(*SHAPES[-1])
        n, width = q.shape[2], max(WINDOW // self.shrink, 1)
        mask = create_block_mask(
            lambda b, h, i, j: (j <= i) & (i - j < width), None, None, n, n, device=self.device.type
        )
        compiled = torch.compile(flex_attention, dynamic=False)
        calls = {
            "ours": self.call(lambda q, k, v: plan.attend(q, k, v, Causal() & Window(width)),
                              (q, k, v), backward),
            "flex": self.call(lambda q, k, v: compiled(q, k, v, block_mask=mask), (q, k, v), backward),
        }  # fmt: skip
        found = self.timed(calls)
        return found["flex"].median / found["ours"].median, found

    @torch.inference_mode()
    def cache_share(self, peaks: Limits) -> Found:
        rule, (q, k, v) = SoftmaxRule(), self.draw(8, 16, 16384)
        state = rule.start(HeadShape(8, 16, 16, WIDTH, WIDTH, self.device, self.dtype), keys=k, values=v)
        step = torch.inference_mode()(lambda: rule.step(q[:, :, 0], None, None, state))
        found = self.timed({"ours": step})
        return (k.nbytes + v.nbytes) / peaks.read / found["ours"].median, found

    def step(self, batch: int, heads: int) -> tuple[Call, int]:
        """A step of decayed linear attention, and the bytes of its state."""
        q, k, v = (x[:, :, 0].float() for x in self.draw(batch, heads, 16))
        state, rates = torch.randn(batch, heads, WIDTH, WIDTH, device=self.device), self.decay(heads)
        return torch.inference_mode()(lambda: decayed_linear_step(q, k, v, state, rates)), state.nbytes

    def state_share(self, peaks: Limits) -> Found:
        call, size = self.step(max(128 // self.shrink, 1), 16)
        found = self.timed({"ours": call})
        return 2 * size / peaks.copy / found["ours"].median, found

    def graph(self, _: Limits) -> Found:
        call, _ = self.step(1, 16)
        call()
        self.wait()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        many = 100
        found = self.timed({"ours": lambda: [graph.replay() for _ in range(many)]})
        return found["ours"].median / many * 1e6, found


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--device", default="cuda")
    asked = parser.parse_args()
    device = choose_device(asked.device)
    results = Results("gpu", "flash-linear-attention", "triton", device=asked.device)
    run("Targets on a GPU", Bench(device).targets(), results, asked, device=device)


if __name__ == "__main__":
    main()
