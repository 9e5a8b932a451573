"""What the tests run on every rank: found by name, so it stands at the top of a module."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from regardant import create
from regardant.claim.count import peak_bytes
from regardant.core.decayed_rule import DecayedState
from regardant.core.pattern import Causal
from regardant.core.rule import SoftmaxRule
from regardant.parallel.lasp_2 import Lasp2
from regardant.parallel.linear import AllGather, Ring, linear_over_ranks
from regardant.parallel.ring_attention import RingAttention
from regardant.parallel.traffic import Traffic
from regardant.parallel.unified_long_sequence import DistributedAttention
from regardant.train.fit import fit
from regardant.train.model import Classifier, TokenModel

SYSTEMS = {
    "lasp-2": Lasp2,
    "ring": RingAttention,
    "rows": DistributedAttention,
    "heads": partial(DistributedAttention, way="heads"),
}
EXCHANGES = {"gathered": AllGather, "ring": Ring}


def linear(mesh, cases, q, k, v, grad, decay, state):
    """Outputs, gradients and last state of linear attention, case by case."""
    lasp, found = Lasp2(mesh), {}
    for case in cases:
        exchange, decays, causal, carried = case
        *inputs, direction = (lasp.cut(x, axis=2).clone() for x in (q, k, v, grad))
        inputs = [x.requires_grad_() for x in inputs]
        out, last = linear_over_ranks(
            *inputs, decay if decays else None, group=lasp.group, causal=causal,
            exchange=EXCHANGES[exchange](), state=DecayedState(7, state) if carried else None,
        )  # fmt: skip
        grads = torch.autograd.grad((out * direction).sum(), inputs)
        found[case] = [out.detach(), *grads], last
    return found


def autocast(mesh, q, k, v):
    """Outputs and state in half precision, as they are and under autocast."""
    lasp, found = Lasp2(mesh), []
    parts = [lasp.cut(x, axis=2) for x in (q, k, v)]
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            causal, last = linear_over_ranks(*parts, group=lasp.group)
            whole, _ = linear_over_ranks(*parts, group=lasp.group, causal=False)
        found.append([causal, whole, last.matrix])
    return found


def softmax(mesh, cases, q, k, v, grad):
    found = {}
    for system, causal in cases:
        split = SYSTEMS[system](mesh)
        *inputs, direction = (split.cut(x, axis=2).clone() for x in (q, k, v, grad))
        inputs = [x.requires_grad_() for x in inputs]
        out = split.attend(SoftmaxRule(), *inputs, pattern=Causal() if causal else None, scale=None)
        found[system, causal] = [out.detach(), *torch.autograd.grad((out * direction).sum(), inputs)]
    return found


def layers(mesh, system, names, x, grad, config):
    """A layer's outputs and the gradients of its input and parameters, summed over ranks."""
    split, found = SYSTEMS[system](mesh), {}
    for name in names:
        torch.manual_seed(0)
        layer = create(name, dim=x.shape[-1], **config).double()
        part = split.cut(x).clone().requires_grad_()
        y = split.mix(layer, part)
        (y * split.cut(grad)).sum().backward()
        split.sum_gradients(layer.parameters())
        found[name] = y.detach(), part.grad, [each.grad for each in layer.parameters()]
    return found


def traffic(mesh, system, lengths):
    """What a layer's forward and backward pass send, length by length."""
    split, found = SYSTEMS[system](mesh), []
    name = "lightning-attention-2" if system == "lasp-2" else "softmax"
    layer = create(name, dim=16, heads=2, causal=True)
    for length in lengths:
        x = torch.randn(1, length // split.ranks, 16, requires_grad=True)
        with Traffic() as seen:
            split.mix(layer, x).sum().backward()
        found.append((seen.steps, seen.payload, seen.sent, sorted({each.name for each in seen.exchanges})))
    return found


def peaks(mesh, system, lengths):
    """The most bytes that attention of one head holds at once, forward and backward, length by length."""
    split, found = SYSTEMS[system](mesh), []
    for length in lengths:
        x = torch.randn(1, 1, length // split.ranks, 8, requires_grad=True)
        attend = partial(split.attend, SoftmaxRule(), pattern=Causal(), scale=None)
        found.append(peak_bytes(lambda attend=attend, x=x: attend(x, x, x).sum().backward()))
    return found


def lasp_steps(mesh, length):
    """Steps of communication by the way in which states are exchanged."""
    lasp, found = Lasp2(mesh), {}
    for name, exchange in EXCHANGES.items():
        q = torch.randn(1, 2, length // lasp.ranks, 4, requires_grad=True)
        with Traffic() as seen:
            linear_over_ranks(q, q, q, group=lasp.group, exchange=exchange())[0].sum().backward()
        found[name] = seen.steps
    return found


def trained(mesh, system, names, task, steps):
    """The losses of a training, and the weights behind it."""
    model = network(names, task)
    made = SYSTEMS[system](mesh)
    fitted = fit(model, task, steps=steps, batch=4, learning_rate=1e-2, seed=0, parallel=made)
    return fitted.losses, {name: value.detach() for name, value in model.state_dict().items()}


def network(names, task):
    torch.manual_seed(0)
    mixers = [partial(create, name, dim=16, heads=2, causal=True) for name in names]
    return TokenModel(task.vocabulary, mixers, dim=16, length=task.length)


def refused(mesh, deed, *arguments):
    """What a system says to what it cannot do."""
    return REFUSALS[deed](mesh, *arguments)


def _cut(mesh, length):
    Lasp2(mesh).cut(torch.zeros(1, length, 8))


def _mix(mesh, system, name, config):
    SYSTEMS[system](mesh).mix(create(name, dim=16, **config), torch.zeros(1, 4, 16))


def _state(mesh, state: Tensor):
    x = torch.zeros(1, 2, 4, 8)
    linear_over_ranks(x, x, x, group=Lasp2(mesh).group, state=DecayedState(4, state))


def _decay(mesh, decay: Tensor):
    x = torch.zeros(1, 2, 4, 8)
    linear_over_ranks(x, x, x, decay.requires_grad_(), group=Lasp2(mesh).group)


def _way(mesh, way):
    DistributedAttention(mesh, way=way)


def _classifier(mesh, task):
    mixers = [partial(create, "lightning-attention-2", dim=16, heads=2)]
    fit(Classifier(8, 3, mixers, dim=16), task, steps=1, batch=2, learning_rate=1e-2, seed=0,
        parallel=Lasp2(mesh))  # fmt: skip


REFUSALS = {
    "cut": _cut,
    "mix": _mix,
    "state": _state,
    "decay": _decay,
    "way": _way,
    "classifier": _classifier,
}


def gradients(mesh, system, names, task, tokens, labels):
    """The gradients of a model's weights, of one batch."""
    split, model = SYSTEMS[system](mesh), network(names, task)
    outputs = model(split.cut(tokens), parallel=split)
    (task.loss(outputs, split.cut(labels)) / split.ranks).backward()
    split.sum_gradients(model.parameters())
    return [each.grad for each in model.parameters()]


def refuses_alone(mesh):
    if mesh.get_local_rank() == 1:
        raise ValueError("only rank 1 minds")
    return mesh.get_local_rank()


def cut_and_join(mesh, x):
    split = Lasp2(mesh)
    return split.cut(x), split.join(split.cut(x))
