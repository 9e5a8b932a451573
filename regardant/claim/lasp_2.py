"""Does splitting a sequence over ranks change nothing but where the work is done, and does what travels not
grow with the length?

LASP-2 is an exact way to compute linear attention on many devices: equality is checked over gloo
processes, what it sends is counted beside ring attention, its steps beside LASP's ring. The paper's times
are of 64 GPUs; here a slow network is put in by hand.
"""

from functools import partial

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from regardant import create
from regardant.claim.context import Context
from regardant.claim.outcome import Figure, Outcome, cost, exact
from regardant.compare import over_ranks
from regardant.compare.growth import fit as fit_growth
from regardant.core.decayed_linear import decayed_linear_reference
from regardant.parallel.linear import AllGather, Ring, linear_over_ranks
from regardant.parallel.processes import on_ranks
from regardant.parallel.traffic import Traffic
from regardant.task.bytes import Bytes
from regardant.train.fit import evaluate, fit
from regardant.train.model import TokenModel

TASK = Bytes(length=128)
LAYERS = ("lightning-attention-2", "softmax")
LENGTHS = (1024, 4096, 16384, 65536)
RANKS = 2, 4
STEPS = 80
STEP = 0.01
"""Seconds that a step over the slow network takes."""
Grads = list[Tensor]


def drawn(length: int) -> Grads:
    """q, k, v and the gradient of the output, of 3 heads."""
    generator = torch.Generator().manual_seed(length)
    return [torch.randn(2, 3, length, 5, generator=generator, dtype=torch.float64) for _ in range(4)]


def gradients(run, q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> Grads:
    inputs = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    out = run(*inputs)
    return [out.detach(), *torch.autograd.grad((out * grad).sum(), inputs)]


def parts(mesh: DeviceMesh, each: int, decay: Tensor) -> list[Grads]:
    """This rank's outputs and gradients: with a decay, without, and without a mask."""
    group, rank = mesh.get_group(), mesh.get_local_rank()
    own = [x[:, :, rank * each : (rank + 1) * each] for x in drawn(each * mesh.size())]
    kinds = {"log_decay": decay}, {}, {"causal": False}
    return [gradients(lambda *x, kind=kind: linear_over_ranks(*x, group=group, **kind)[0], *own)
            for kind in kinds]  # fmt: skip


def equality() -> dict[str, float]:
    """The largest difference from one process, over ranks and lengths."""
    worst, decay = 0.0, torch.tensor([0.0, -0.05, -2.0], dtype=torch.float64)
    for ranks in RANKS:
        for each in (1, 16, 65):
            whole = drawn(ranks * each)
            right = [
                gradients(partial(decayed_linear_reference, log_decay=decay), *whole),
                gradients(decayed_linear_reference, *whole),
                gradients(lambda q, k, v: (q @ k.mT) @ v, *whole),
            ]
            found = on_ranks(ranks, parts, each, decay)
            for kind, expected in enumerate(right):
                joined = [torch.cat(its, dim=2) for its in zip(*(rank[kind] for rank in found))]
                worst = max(worst, *(float((a - b).abs().max()) for a, b in zip(joined, expected)))
    return {"difference": worst}


def steps(mesh: DeviceMesh) -> list[int]:
    """Exchanges of this rank, forward and backward: by LASP-2 and by LASP's ring."""
    found, q = [], torch.randn(1, 2, 16, 4, requires_grad=True)
    for exchange in (AllGather(), Ring()):
        with Traffic() as seen:
            linear_over_ranks(q, q, q, group=mesh.get_group(), exchange=exchange)[0].sum().backward()
        found.append(seen.steps)
    return found


def traffic() -> dict[str, float]:
    """Bytes that a rank sends, at the shortest and the longest sequence, and steps by ranks."""
    found = {}
    for system, layer in (("lasp-2", LAYERS[0]), ("ring-attention", LAYERS[1])):
        seen = on_ranks(2, partial(over_ranks.sent, dim=32, heads=2), system, layer, LENGTHS)[0]
        found |= {f"{system} {length}": each.sent for length, each in zip(LENGTHS, seen)}
    for ranks in RANKS:
        counted = on_ranks(ranks, steps)
        # The ring's steps follow one another, whoever makes them; a collective is made by all at once.
        found[f"lasp-2 steps of {ranks}"] = counted[0][0]
        found[f"lasp steps of {ranks}"] = sum(ring for _, ring in counted)
    return found


def times() -> dict[str, float]:
    """Seconds, forward and backward, of the slowest rank."""
    contest = [("lasp-2", LAYERS[0]), ("ring-attention", LAYERS[1])]
    seconds = partial(over_ranks.seconds, dim=128, heads=2, repetitions=3)
    here = [max(its) for its in zip(*on_ranks(2, seconds, contest, 8192))]
    slow = partial(over_ranks.over_a_slow_network, step=STEP)
    late = [max(its) for its in zip(*on_ranks(4, slow, 512))]
    return {"lasp-2": here[0], "ring attention": here[1], "lasp-2 late": late[0], "lasp late": late[1]}


def model() -> TokenModel:
    mixers = [partial(create, name, dim=48, heads=2, causal=True) for name in LAYERS]
    return TokenModel(TASK.vocabulary, mixers, dim=48, length=TASK.length)


def trained_over(mesh: DeviceMesh, seed: int, count: int) -> float:
    torch.manual_seed(seed)
    its = model()
    fit(its, TASK, steps=count, batch=8, learning_rate=2e-3, seed=seed, parallel=create("lasp-2", mesh=mesh))
    return evaluate(its, TASK)


def over_two(run) -> dict[str, float]:
    return {"loss": on_ranks(2, trained_over, run.seed, run.steps(STEPS))[0]}


def alone(run) -> dict[str, float]:
    return {"loss": evaluate(run.fit(model, TASK, steps=STEPS, batch=8, learning_rate=2e-3), TASK)}


def claim(context: Context) -> Outcome:
    same, sends, spent = (context.check(each.__name__, each) for each in (equality, traffic, times))
    found = context.measure({"over two ranks": over_two, "one process": alone})
    apart = max(
        abs(one - other)
        for one, other in zip(found["over two ranks"]["loss"].values, found["one process"]["loss"].values)
    )
    ours, ring = ([sends[f"{name} {n}"] for n in LENGTHS] for name in ("lasp-2", "ring-attention"))
    grows, faster = fit_growth(LENGTHS, ring).exponent, spent["ring attention"] / spent["lasp-2"]
    late = spent["lasp late"] / spent["lasp-2 late"]
    return Outcome(
        setting=f"gloo processes on one CPU: a layer of width 32 at {LENGTHS[0]} to {LENGTHS[-1]} tokens, "
        f"one of width 128 at 8192; a hybrid of 2 layers, {STEPS} steps on bytes of the standard library; "
        f"a network of {1e3 * STEP:.0f} ms a step put in by hand; the paper has 64 GPUs and 2048K tokens",
        figures=[
            Figure.once("KB sent by one of two ranks at 65536 tokens", {"lasp-2": ours[-1] / 1e3},
                        {"ring attention": ring[-1] / 1e3}),
            *(Figure.once(f"steps one after another, {n} ranks", {"lasp-2": sends[f"lasp-2 steps of {n}"]},
                          {"lasp": sends[f"lasp steps of {n}"]}) for n in RANKS),
            Figure.once("milliseconds, two ranks, 8192 tokens", {"lasp-2": 1e3 * spent["lasp-2"]},
                        {"ring attention": 1e3 * spent["ring attention"]}),
            Figure.once("milliseconds, four ranks, slow network", {"lasp-2": 1e3 * spent["lasp-2 late"]},
                        {"lasp": 1e3 * spent["lasp late"]}),
            Figure.of(TASK.metric_name, found, "loss", ours="over two ranks"),
        ],
        criteria=[
            exact("outputs and gradients equal one process's", same["difference"], at_most=1e-9),
            exact("two collectives forward and backward, however many ranks",
                  max(sends[f"lasp-2 steps of {n}"] for n in RANKS), at_most=2),
            exact("LASP's ring takes 2(W-1) steps",
                  max(abs(sends[f"lasp steps of {n}"] - 2 * (n - 1)) for n in RANKS), at_most=0),
            cost("a rank sends as much at 65536 tokens as at 1024", ours[-1] / ours[0], at_most=1.0),
            cost("ring attention sends more in proportion", grows, at_least=0.99),
            cost("36.6 % faster than ring attention", faster, at_least=1.366),
            cost("15.2 % faster than LASP where a step is slow", late, at_least=1.152),
            exact("a hybrid trained over two ranks has the loss of one process", apart, at_most=1e-3),
        ],
        notes=["LASP without a slow network is not timed: on one machine its steps cost next to nothing."],
    )  # fmt: skip
