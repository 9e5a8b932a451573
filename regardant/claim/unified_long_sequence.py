"""Is every mixer one matrix times its values, is attention over workers the same in less memory, and does a
longer context help less and less?
"""

from functools import partial
from itertools import pairwise
from math import inf

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from regardant import create
from regardant.claim.context import Context
from regardant.claim.count import peak_bytes
from regardant.claim.outcome import Figure, Outcome, cost, exact, quality
from regardant.core.pattern import Causal
from regardant.core.plan import attend_dense
from regardant.core.rule import SoftmaxRule
from regardant.parallel.processes import on_ranks
from regardant.parallel.unified_long_sequence import DistributedAttention
from regardant.task.bytes import Bytes
from regardant.train.fit import evaluate
from regardant.train.model import TokenModel

TASK = Bytes(length=256)
WINDOWS = (2, 8, 32, 128)
WORKERS = (1, 2, 4)
CAP = 64 * 2**20
MIXERS = (
    "softmax", "sliding-window", "clipped-softmax", "gated-attention", "moh", "neighborhood-1d",
    "softplus-attention-lssa", "routing-transformer", "flowformer", "aaren", "lightning-attention-2",
)  # fmt: skip
BOTH = ("rows", None), ("rows", Causal()), ("heads", None), ("heads", Causal())


def matrices() -> dict[str, float]:
    """The largest difference of M(x) V(x) from the mixer, what M has above its diagonal, and how many
    matrices change when x does."""
    generator = torch.Generator().manual_seed(0)
    x, other = (torch.randn(2, 48, 32, generator=generator) for _ in range(2))
    apart = ahead = 0.0
    for name in MIXERS:
        torch.manual_seed(0)
        mixer = create(name, dim=32, heads=4, causal=True).eval()
        with torch.no_grad():
            matrix = mixer.mixing_matrix(x)
            apart = max(apart, float((mixer.mix(matrix, x) - mixer(x)).abs().max()))
            ahead = max(ahead, float(matrix.triu(1).abs().max()))
            if float((mixer.mixing_matrix(other) - matrix).abs().max()) < 1e-6:
                raise ValueError(f"the matrix of {name} does not depend on its input")
    return {"difference": apart, "ahead": ahead}


def drawn(length: int, **kind) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    return [torch.randn(1, 4, length, 16, generator=generator, **kind) for _ in range(4)]


def gradients(run, q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> list[Tensor]:
    inputs = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    out = run(*inputs)
    return [out.detach(), *torch.autograd.grad((out * grad).sum(), inputs)]


def parts(mesh: DeviceMesh) -> list[list[Tensor]]:
    found = []
    for way, pattern in BOTH:
        workers = DistributedAttention(mesh, way=way)
        own = (workers.cut(x, axis=2) for x in drawn(96))
        found.append(gradients(partial(workers.attend, SoftmaxRule(), pattern=pattern, scale=None), *own))
    return found


def equality() -> dict[str, float]:
    """The largest difference of outputs and of gradients from one process, in float32."""
    outputs = grads = 0.0
    right = [gradients(partial(attend_dense, pattern=pattern), *drawn(96)) for _, pattern in BOTH]
    for workers in WORKERS:
        found = on_ranks(workers, parts)
        for case, expected in enumerate(right):
            joined = [torch.cat(its, dim=2) for its in zip(*(each[case] for each in found))]
            off = [float((one - other).abs().max()) for one, other in zip(joined, expected)]
            outputs, grads = max(outputs, off[0]), max(grads, *off[1:])
    return {"outputs": outputs, "gradients": grads}


def worker_peak(mesh: DeviceMesh, length: int) -> int:
    """Bytes that this worker holds at once beyond its own rows, forward and backward."""
    workers = DistributedAttention(mesh)
    own = [workers.cut(x, axis=2).clone() for x in drawn(length)]
    attend = partial(workers.attend, SoftmaxRule(), pattern=Causal(), scale=None)
    return peak_bytes(lambda: gradients(attend, *own))


def fitting() -> dict[str, float]:
    """The longest sequence, of powers of two, whose attention stays under the cap."""

    def vanilla(length: int) -> int:
        return peak_bytes(lambda: gradients(partial(attend_dense, pattern=Causal()), *drawn(length)))

    def distributed(length: int) -> int:
        return max(on_ranks(4, worker_peak, length))

    found = {}
    for name, peak in (("vanilla", vanilla), ("distributed", distributed)):
        length = 256
        while length < 32768 and peak(2 * length) <= CAP:
            length *= 2
        found[name] = length
    return found


def trained(window: int):
    def unit(run):
        mixers = [partial(create, "sliding-window", dim=48, heads=2, causal=True, window=window)] * 2
        make = partial(TokenModel, TASK.vocabulary, mixers, dim=48, length=TASK.length)
        return {"loss": evaluate(run.fit(make, TASK, steps=350, batch=8, learning_rate=3e-3), TASK)}

    return unit


def claim(context: Context) -> Outcome:
    written = context.check("matrices", matrices)
    same, longest = context.check("equality", equality), context.check("fitting", fitting)
    found = context.measure({f"window {window}": trained(window) for window in WINDOWS})
    losses = [found[f"window {window}"]["loss"].mean for window in WINDOWS]
    gains = [before - after for before, after in pairwise(losses)]
    knee = next((w for w, gain in zip(WINDOWS, [*gains, -inf]) if gain < 0.1 * gains[0]), WINDOWS[-1])
    return Outcome(
        setting=f"{len(MIXERS)} mixers of width 32 at 48 tokens; softmax attention of 4 heads of 16 over "
        f"1, 2 and 4 gloo processes, under {CAP // 2**20} MB; 2 layers of width 48, windows of {WINDOWS}, on "
        f"bytes of the standard library, 350 steps; the paper has four GPUs and millions of tokens",
        figures=[
            Figure.once("tokens under the cap", {"four workers": longest["distributed"]},
                        {"one process, matrix written out": longest["vanilla"]}),
            Figure.of(TASK.metric_name, found, "loss", ours=[f"window {window}" for window in WINDOWS]),
            Figure.once("window after which a fourfold one gains less than a tenth of the first gain",
                        {"knee": knee}),
        ],
        criteria=[
            exact("the matrix times the values is the mixer", written["difference"], at_most=1e-5),
            exact("causal matrices take nothing of later tokens", written["ahead"], at_most=0),
            exact("1, 2 and 4 workers give the outputs of one process", same["outputs"], at_most=1e-5),
            exact("and its gradients", same["gradients"], at_most=1e-4),
            cost("a worker's cap holds 4 times the length of the written matrix's",
                 longest["distributed"] / longest["vanilla"], at_least=4),
            quality("a longer context costs at most 0.02 nats", min(gains), at_least=-0.02),
            quality("and helps less: the last gain over the first", gains[-1] / gains[0], at_most=0.5),
        ],
        notes=["The paper's speed-up of 40 mixes parallel work with another algorithm: no time here."],
    )  # fmt: skip
