"""Attention that later layers share."""

from functools import partial

import pytest
import torch

from regardant.core.pattern import Window
from regardant.core.position import make_position
from regardant.core.record import Record
from regardant.sequence.echoatt import EchoAttention, EchoFollower, attention_similarity, share_attention
from regardant.sequence.moh import MoH
from regardant.sequence.softmax import Softmax
from regardant.train.model import TokenModel


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def inputs(n, batch=2, seed=1):
    return torch.randn(batch, n, 32, dtype=torch.float64, generator=generator(seed))


def pair(causal=True, kv_heads=4, follower_kv_heads=4, **config):
    torch.manual_seed(0)
    leader = EchoAttention(32, 4, causal=causal, kv_heads=kv_heads, **config).double()
    return leader, EchoFollower(32, 4, causal=causal, kv_heads=follower_kv_heads).double()


def model(layers=5, seed=0, **config):
    torch.manual_seed(seed)
    mixers = [partial(Softmax, 16, 2, causal=True, **config)] * layers
    return TokenModel(11, mixers, dim=16, length=20).double()


def tokens(n=20, batch=2, seed=0):
    return torch.randint(11, (batch, n), generator=generator(seed))


@pytest.mark.parametrize("n", [1, 2, 17, 64])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shared", [(4, 4), (2, 2), (4, 1), (1, 4)])
def test_a_follower_applies_the_leaders_attention_to_its_own_values(n, causal, shared):
    leader, follower = pair(causal, *shared)
    x, other, record = inputs(n).requires_grad_(), inputs(n, seed=2), Record()
    led, followed = leader(x, record=record), follower(other, record=record)
    q, k, _ = leader.project(x)
    logits = q @ k.repeat_interleave(4 // shared[0], 1).mT * 8**-0.5
    if causal:
        logits = logits.masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf)
    matrix = logits.softmax(-1)
    values = follower.to_v(other).unflatten(-1, (shared[1], 8)).transpose(1, 2)
    plain = (matrix @ values.repeat_interleave(4 // shared[1], 1)).transpose(1, 2).flatten(2)
    torch.testing.assert_close(led, leader(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(followed, follower.to_out(plain), rtol=0, atol=1e-9)
    torch.testing.assert_close(followed, follower.reference(other, record=record), rtol=0, atol=1e-9)
    weight = torch.randn_like(followed)
    ours, theirs = (
        torch.autograd.grad((out * weight).sum(), leader.to_q.weight, retain_graph=True)[0]
        for out in (followed, follower.to_out(plain))
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("position", ["none", "rotary", "alibi"])
@pytest.mark.parametrize("shared", [(4, 4), (2, 1)])
def test_decoding_hands_one_row_on_and_followers_keep_values_alone(position, shared):
    leader, follower = pair(True, *shared, position=position)
    x, record, led, followed = inputs(23), Record(), [], []
    whole = leader(x, record=record), follower(x, record=record)
    with torch.no_grad():
        states = leader.start(2), follower.start(2)
        for t in range(23):
            record = Record()
            one, first = leader.step(x[:, t], states[0], record=record)
            other, second = follower.step(x[:, t], states[1], record=record)
            states = first, second
            led.append(one)
            followed.append(other)
    torch.testing.assert_close(torch.stack(led, 1), whole[0], rtol=0, atol=1e-9)
    torch.testing.assert_close(torch.stack(followed, 1), whole[1], rtol=0, atol=1e-9)
    assert states[1].nbytes == 2 * shared[1] * 23 * 8 * 8
    assert states[0].nbytes == 2 * 2 * shared[0] * 23 * 8 * 8


def test_padding_and_patterns_of_the_leader_hold_for_its_followers():
    leader, follower = pair(False)
    x, record, padding = inputs(20), Record(), torch.ones(2, 20, dtype=torch.bool)
    padding[0, 12:] = padding[1] = False
    leader(x, padding=padding, record=record)
    y, changed = follower(x, record=record), x.clone()
    changed[~padding] = 100.0
    torch.testing.assert_close(follower(changed, record=record)[0, :12], y[0, :12], rtol=0, atol=1e-12)
    assert y[1].abs().max() == 0


@pytest.mark.parametrize("position", ["none", "rotary", "alibi"])
def test_sharing_changes_the_followers_attention_and_nothing_else(position):
    teacher = model(position=position, bias=True, kv_heads=1)
    student = share_attention(teacher, [[1, 2], [3, 4]])
    kinds = [type(block.mixer).__name__ for block in student.trunk.blocks]
    assert kinds == ["Softmax", "EchoAttention", "EchoFollower", "EchoAttention", "EchoFollower"]
    kept, before = student.state_dict(), teacher.state_dict()
    gone = {name for name in before if name not in kept}
    assert gone == {
        f"trunk.blocks.{layer}.mixer.to_{part}.{kind}"
        for layer in (2, 4)
        for part in "qk"
        for kind in ("weight", "bias")
    }
    assert all(torch.equal(kept[name], before[name]) for name in kept)
    assert all(isinstance(block.mixer, Softmax) for block in teacher.trunk.blocks)


def test_layers_that_attend_alike_can_share_without_a_difference():
    teacher, x = model(layers=3), tokens()
    blocks = teacher.trunk.blocks
    for name in ("to_q", "to_k"):  # no query, no key: every layer attends evenly
        for block in blocks:
            torch.nn.init.zeros_(getattr(block.mixer, name).weight)
    torch.testing.assert_close(share_attention(teacher, [[0, 1, 2]])(x), teacher(x), rtol=0, atol=1e-12)
    similar = attention_similarity(teacher, x)
    torch.testing.assert_close(similar, torch.ones(3, 3, dtype=torch.float64), rtol=0, atol=1e-12)


def test_a_shared_model_learns():
    student, x, record = share_attention(model(layers=3), [[0, 1, 2]]), tokens(), Record()
    student(x, record=record).logsumexp(-1).sum().backward()
    gradients = {name: parameter.grad for name, parameter in student.named_parameters()}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
    assert gradients["trunk.blocks.0.mixer.to_q.weight"].abs().max() > 0


def test_pitfall_probabilities_are_shared_not_logits():
    leader, record = pair(False)[0], Record()
    leader(inputs(9), record=record)
    rows = record.handed["attention"]
    torch.testing.assert_close(rows.sum(-1), torch.ones(2, 4, 9, dtype=torch.float64))
    assert (rows >= 0).all()


def test_pitfall_similarity_is_told_with_and_without_the_first_column():
    net, x = model(layers=3), tokens()
    layers = [block.mixer for block in net.trunk.blocks]
    inside = []
    h = net.embedding(x) + net.trunk.positions[:20]
    for block in net.trunk.blocks:
        inside.append(block.mixer_norm(h))
        h = block(h)
    maps = [layer.mixing_matrix(each) for layer, each in zip(layers, inside)]
    for without in (False, True):
        a, b = ((m[..., 1:, 1:] if without else m).flatten(2) for m in (maps[0], maps[2]))
        cosine = (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))
        found = attention_similarity(net, x, without_first=without)
        torch.testing.assert_close(found[0, 2], cosine.mean(), rtol=0, atol=1e-9)
        torch.testing.assert_close(found, found.mT, rtol=0, atol=1e-12)
    assert not net.trunk.blocks[0].mixer._forward_pre_hooks


def test_pitfall_attention_is_of_the_same_pass():
    leader, follower = pair()
    with pytest.raises(ValueError, match="record has no attention in it"):
        follower(inputs(5), record=Record())
    with pytest.raises(ValueError, match="record has no attention in it"):
        follower(inputs(5))
    record = Record()
    leader(inputs(9), record=record)
    with pytest.raises(ValueError, match="over 9 keys"):
        follower(inputs(5), record=record)


def test_a_window_cannot_hand_rows_on_when_decoding():
    leader = EchoAttention(32, 4, causal=True, pattern=Window(4)).double()
    with pytest.raises(ValueError, match="pattern is Window"):
        leader.step(inputs(1)[:, 0], leader.start(2), record=Record())


@pytest.mark.parametrize("runs", [[[1]], [[1, 3]], [[3, 5]], [[0, 1], [1, 2]]])
def test_runs_that_cannot_be_are_refused(runs):
    with pytest.raises(ValueError, match=r"runs (has|is)"):
        share_attention(model(), runs)


def test_a_position_added_to_the_input_is_refused():
    with pytest.raises(ValueError, match="position is Learned"):
        share_attention(model(position="learned", max_length=20), [[1, 2]])


def test_only_softmax_attention_can_be_shared():
    torch.manual_seed(0)
    routed = TokenModel(11, [partial(MoH, 16, 2, causal=True)] * 2, dim=16)
    with pytest.raises(ValueError, match="is MoH, but only softmax"):
        share_attention(routed, [[0, 1]])


def test_a_positions_bias_reaches_the_followers():
    leader, record, x = pair(True, position="alibi")[0], Record(), inputs(12)
    leader(x, record=record)
    position, at = (
        make_position("alibi", dim=32, heads=4, head_dim=8, causal=True, max_length=None),
        torch.arange(12),
    )
    q, k, _ = leader.project(x)
    logits = q @ k.mT * 8**-0.5 + position.block(at, at)
    matrix = logits.masked_fill(at[:, None] < at, -torch.inf).softmax(-1)
    torch.testing.assert_close(record.handed["attention"], matrix, rtol=0, atol=1e-6)
