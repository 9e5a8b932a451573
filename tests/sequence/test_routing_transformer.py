"""Routing attention."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from regardant.core.record import Record
from regardant.sequence.routing_transformer import RoutingAttention

LENGTHS = [1, 2, 17, 64, 257]
SMALL = {"clusters": 4, "window": 8}


def layer(seed=0, **config):
    torch.manual_seed(seed)
    return RoutingAttention(32, 4, **(SMALL | config)).double()


def inputs(n, batch=2, seed=1, dim=32):
    return torch.randn(batch, n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize(
    "config",
    [
        {"causal": True},
        {"causal": True, "local_heads": 0, "window": 1},
        {"causal": True, "local_heads": 0, "membership": "balanced"},
        {"position": "rotary", "bias": True},
        {"causal": True, "position": "rotary", "local_heads": 3, "clusters": 1},
    ],
)
def test_forward_and_its_gradients_equal_the_reference(n, config):
    mixer, x = layer(**config), inputs(n).requires_grad_()
    parameters = [x, *mixer.parameters()]
    fast, plain = mixer(x), mixer.reference(x)
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-9)
    weight = torch.randn_like(fast)
    ours = torch.autograd.grad((fast * weight).sum(), parameters, materialize_grads=True)
    theirs = torch.autograd.grad((plain * weight).sum(), parameters, materialize_grads=True)
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize(
    "config", [{}, {"local_heads": 0, "window": 3}, {"position": "learned", "max_length": 257}]
)
def test_stepping_equals_forward(n, config):
    mixer, x = layer(causal=True, **config), inputs(n)
    with torch.no_grad():
        state, outputs = mixer.start(2), []
        for t in range(n):
            y, state = mixer.step(x[:, t], state)
            outputs.append(y)
        torch.testing.assert_close(torch.stack(outputs, 1), mixer(x), rtol=0, atol=1e-9)
        if n > 1:
            _, state = mixer.prefill(x[:, :-1])
            torch.testing.assert_close(mixer.step(x[:, -1], state)[0], outputs[-1], rtol=0, atol=1e-9)


def test_pitfall_choosing_members_does_not_look_at_the_future_by_default():
    mixer, x, changed = layer(causal=True), inputs(100), inputs(100)
    changed[:, 61:] *= -3
    torch.testing.assert_close(mixer(x)[:, :61], mixer(changed)[:, :61], rtol=0, atol=1e-12)
    balanced = layer(causal=True, membership="balanced", local_heads=0)
    assert (balanced(x)[:, :61] - balanced(changed)[:, :61]).abs().max() > 1e-3
    with pytest.raises(ValueError, match="membership is 'balanced'"):
        balanced.start(1)


def test_balanced_membership_moves_with_the_future_but_values_do_not_leak():
    """Gradients, blind to the choice of members, find no way from later tokens to earlier outputs."""
    mixer, x = layer(causal=True, membership="balanced", local_heads=0), inputs(50).requires_grad_()
    gradient = torch.autograd.grad(mixer(x)[:, :30].sum(), x)[0]
    assert gradient[:, 30:].abs().max() == 0 and gradient[:, :30].abs().max() > 0


def test_pitfall_members_are_in_the_order_of_the_sequence():
    mixer = layer(causal=True, local_heads=0, clusters=1, window=4)
    x = inputs(12)
    q, _, v = mixer.project(x)
    t, logits = 9, q[:, :, 9:10] @ q[:, :, 6:9].mT * 8**-0.5
    expected = (logits.softmax(-1) @ v[:, :, 6:9]).transpose(1, 2).flatten(2)[:, 0]
    torch.testing.assert_close(mixer(x)[:, t], mixer.to_out(expected), rtol=0, atol=1e-12)
    members = layer(local_heads=0)._members(q, None)
    assert (members.diff(dim=-1) > 0).all()


def test_a_token_attends_to_itself_only_when_it_is_alone():
    mixer = layer(causal=True, local_heads=0, clusters=1)
    x = inputs(2)
    v = mixer.to_v(x)
    torch.testing.assert_close(mixer(x), mixer.to_out(v[:, :1].expand(-1, 2, -1)), rtol=0, atol=1e-12)


def test_a_token_in_several_clusters_gets_the_mean_and_one_in_none_nothing():
    mixer = layer(local_heads=0, clusters=2, window=5)
    with torch.no_grad():
        mixer.centroids.directions[:, 1] = mixer.centroids.directions[:, 0]
    x = inputs(20)
    q, k, v = mixer.project(x)
    queries, keys = mixer._members(q, None), mixer._members(k, None)
    assert torch.equal(queries[:, :, 0], queries[:, :, 1])
    out = mixer.attend(q, k, v, x=x, pattern=None)
    for sample, head in ((0, 0), (1, 3)):
        chosen, seen = queries[sample, head, 0], keys[sample, head, 0]
        weights = (q[sample, head, chosen] @ k[sample, head, seen].mT * 8**-0.5).softmax(-1)
        expected = torch.zeros(20, 8, dtype=torch.float64)
        expected[chosen] = weights @ v[sample, head, seen]
        torch.testing.assert_close(out[sample, head], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("config", [{"causal": True}, {}, {"causal": True, "membership": "balanced"}])
def test_pitfall_a_window_wider_than_the_sequence_and_ties_are_sound(config):
    mixer = layer(window=50, **config)
    x = inputs(7)
    torch.testing.assert_close(mixer(x), mixer.reference(x), rtol=0, atol=1e-9)
    tied = x[:, :1].expand(-1, 7, -1)
    assert mixer(tied).isfinite().all()
    torch.testing.assert_close(
        layer(causal=True)(tied), layer(causal=True).reference(tied), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("queries, keys", [(1, 1), (5, 40), (64, 3)])
def test_cross_attention_routes_both_sides(queries, keys):
    mixer = layer(context_dim=24)
    assert mixer.local_heads == 0
    x, context = inputs(queries), inputs(keys, dim=24)
    padding = torch.rand(2, keys, generator=torch.Generator().manual_seed(0)) > 0.5
    for real in (None, padding):
        torch.testing.assert_close(
            mixer(x, context, real), mixer.reference(x, context, real), rtol=0, atol=1e-9
        )


@pytest.mark.parametrize("config", [{"causal": True}, {}, {"causal": True, "membership": "balanced"}])
def test_padding_takes_no_seat_and_never_leaks(config):
    mixer, x, changed = layer(**config), inputs(60), inputs(60)
    padding = torch.rand(2, 60, generator=torch.Generator().manual_seed(3)) > 0.4
    padding[0, :4], padding[1] = False, False
    changed[~padding] = 20.0
    x.requires_grad_()
    a, b = mixer(x, padding=padding), mixer(changed, padding=padding)
    torch.testing.assert_close(a[padding], b[padding], rtol=0, atol=1e-12)
    torch.testing.assert_close(a, mixer.reference(x, padding=padding), rtol=0, atol=1e-9)
    assert a[1].abs().max() == 0
    assert torch.autograd.grad(a.sum(), x)[0].isfinite().all()
    one, other = Record(), Record()
    mixer(x, padding=padding, record=one), mixer(changed, padding=padding, record=other)
    torch.testing.assert_close(one.loss(), other.loss(), rtol=0, atol=1e-12)
    one.settle()
    moved = mixer.centroids.directions.clone()
    mixer.centroids.directions.copy_(layer(**config).centroids.directions)
    other.settle()
    torch.testing.assert_close(mixer.centroids.directions, moved, rtol=0, atol=1e-12)


def test_samples_of_a_batch_do_not_meet():
    for config in ({"causal": True}, {}):
        mixer, x = layer(**config), inputs(70)
        torch.testing.assert_close(mixer(x)[1:], mixer(x[1:]), rtol=0, atol=1e-12)


def test_pitfall_centroids_move_only_in_training_and_only_when_settled():
    mixer, x = layer(causal=True, decay=0.9), inputs(50)
    before = mixer.centroids.directions.clone()
    mixer.eval()
    record = Record()
    mixer(x, record=record)
    record.settle()
    assert torch.equal(mixer.centroids.directions, before)
    mixer.train()
    mixer(x)
    mixer(x, record=record)
    assert torch.equal(mixer.centroids.directions, before)
    record.settle()
    q = mixer.project(x)[0][:, 2:]
    nearest = (q @ before.mT).argmax(-1)
    for head in range(2):
        for cluster in range(4):
            mine = F.normalize(q[:, head][nearest[:, head] == cluster], dim=-1).sum(0)
            expected = F.normalize(0.9 * before[head, cluster] + 0.1 * F.normalize(mine, dim=0), dim=0)
            torch.testing.assert_close(mixer.centroids.directions[head, cluster], expected, rtol=0, atol=1e-9)
    settled = mixer.centroids.directions.clone()
    record.settle()
    assert torch.equal(mixer.centroids.directions, settled)


def test_a_cluster_without_tokens_stays():
    mixer, record = layer(causal=True, clusters=40, decay=0.5), Record()
    before = mixer.centroids.directions.clone()
    mixer(inputs(3), record=record)
    record.settle()
    moved = (mixer.centroids.directions - before).abs().amax(-1) > 1e-9
    assert moved.sum(-1).tolist() <= [6, 6] and moved.any()


@pytest.mark.parametrize("reentrant", [False, True])
def test_pitfall_gradient_checkpointing_moves_them_once_and_gives_the_same_gradients(reentrant):
    mixer, x = layer(causal=True, decay=0.5), inputs(40).requires_grad_()
    plain, record = Record(), Record()
    expected = torch.autograd.grad(mixer(x, record=plain).square().sum(), x)[0]
    y = checkpoint(lambda x: mixer(x, record=record), x, use_reentrant=reentrant)
    x.grad = None
    y.square().sum().backward()
    torch.testing.assert_close(x.grad, expected, rtol=0, atol=1e-12)
    start = mixer.centroids.directions.clone()
    record.settle()
    once = mixer.centroids.directions.clone()
    mixer.centroids.directions.copy_(start)
    plain.settle()
    torch.testing.assert_close(mixer.centroids.directions, once, rtol=0, atol=1e-12)


def test_training_with_the_commitment_loss_brings_tokens_to_their_centroids():
    mixer, x = layer(causal=True, commitment=1.0, decay=0.9), inputs(64)
    optimizer, losses = torch.optim.Adam(mixer.to_q.parameters(), lr=1e-2), []
    for _ in range(30):
        record = Record()
        mixer(x, record=record)
        optimizer.zero_grad()
        record.loss().backward()
        optimizer.step()
        record.settle()
        losses.append(record.loss().item())
    assert losses[-1] < 0.7 * losses[0]


def test_about_root_n_clusters_of_root_n_members_by_default():
    mixer = RoutingAttention(16, 2, length=4096)
    assert mixer.centroids.directions.shape == (1, 64, 8) and mixer.window == 64
    assert "centroids.directions" in mixer.state_dict()


@pytest.mark.parametrize(
    "config, word",
    [
        ({"membership": "nearest"}, "membership is 'nearest'"),
        ({"membership": "best"}, "no membership is called 'best'"),
        ({"local_heads": 4}, "local_heads is 4"),
        ({"context_dim": 8, "local_heads": 1}, "local_heads is 1"),
        ({"position": "alibi"}, "position is Alibi"),
        ({"window": 0}, "window is 0"),
        ({"kv_heads": 2}, "kv_heads=2"),
    ],
)
def test_what_it_cannot_do_it_says(config, word):
    with pytest.raises(ValueError, match=word):
        layer(**config)
