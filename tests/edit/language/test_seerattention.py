"""Gates that learn from a model's own block maxima, and prompts that read what they choose."""

from __future__ import annotations

import pytest
import torch

from regardant.core.block_map import block_map
from regardant.core.position import Rotary
from regardant.edit.apply import apply
from regardant.edit.language.block_choice import MeanPooledBlocks, OracleBlocks, SinkAndWindowBlocks, captured
from regardant.edit.language.seerattention import SeerAttention, SeerGate, SeerGates, divergence
from regardant.host.seam import Seam
from regardant.train.fit import evaluate, fit
from regardant.train.seer_gates import Learning, Lessons, learn_gates
from regardant.train.texts import Texts
from regardant.world.families import FAMILIES


def tokens(count=300, seed=0):
    return torch.randint(5, 80, (count,), generator=torch.Generator().manual_seed(seed))


def llama():
    return FAMILIES["llama"].make()


def small_gate(width=8, heads=4, kv_heads=2, choosers="block"):
    torch.manual_seed(0)
    return SeerGate(heads, kv_heads, 8, block=4, width=width, base=100.0, choosers=choosers).double()


def seen_calls(model, ids, what):
    found = []

    class Reader:
        def stages(self, site):
            return frozenset(["read"])

        def read(self, call, heads, weights, site, run):
            found.append(what(call, site, run))

    reader = Reader()
    Seam.of(model).enter([reader])
    with torch.no_grad():
        model(ids)
    Seam.of(model).leave([reader])
    return found


@pytest.mark.parametrize("choosers", ["block", "row"])
@pytest.mark.parametrize("width", [8, 6])
def test_the_gate_is_the_equation(width, choosers):
    gate = small_gate(width, choosers=choosers)
    generator = torch.Generator().manual_seed(1)
    q = torch.randn(1, 4, 10, 8, generator=generator, dtype=torch.float64)
    k = torch.randn(1, 2, 10, 8, generator=generator, dtype=torch.float64)
    found = gate(*gate.pool(q, k))
    rotary = Rotary(width, base=100.0)
    step = 4 if choosers == "block" else 1
    for head in range(4):
        for row in range(found.shape[2]):
            for column in range(3):
                rows, columns = slice(step * row, step * (row + 1)), slice(4 * column, 4 * column + 4)
                asked, key = q[0, head, rows].mean(0), k[0, head // 2, columns]
                key = torch.cat([key.amax(0), key.amin(0), key.mean(0)])
                if width == 8:
                    key = key @ gate.key[head]
                else:
                    asked, key = asked @ gate.query[head], key @ gate.key[head // 2]
                turned = rotary.turn(asked[None], step * row)[0] @ rotary.turn(key[None], 4 * column)[0]
                there = column <= row if choosers == "block" else column < row // 4
                expected = turned * width**-0.5 if there else torch.tensor(-torch.inf).double()
                torch.testing.assert_close(found[0, head, row, column], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("choosers", ["block", "row"])
def test_some_rows_are_those_of_all(choosers):
    gate = small_gate(choosers=choosers)
    q, k = torch.randn(1, 4, 22, 8).double(), torch.randn(1, 2, 22, 8).double()
    whole, some = gate(*gate.pool(q, k)), gate(*gate.pool(q, k, every=3), every=3)
    torch.testing.assert_close(some, whole[:, :, ::3])
    whole, some = (gate.taught(q, k, scale=0.3, every=every) for every in (1, 3))
    torch.testing.assert_close(some, whole[:, :, ::3])


def test_pitfall_queries_and_keys_come_without_positions():
    model, ids = llama(), tokens(24)[None]
    gates = SeerGates.of(model, block=4)
    edit = SeerAttention(gates=gates, density=0.5)
    edit.prepare(Seam.of(model).host.sites)

    def compare(call, site, run):
        ((text, _),) = edit.chosen(call, site, run)
        gate = gates.at(site)
        attention = site.module
        plain = seen["states"][site.layer]
        q = attention.q_proj(plain).unflatten(-1, (4, 16)).transpose(1, 2)
        k = attention.k_proj(plain).unflatten(-1, (2, 16)).transpose(1, 2)
        torch.testing.assert_close(
            edit.wanted(call, text, site), gate(*gate.pool(q, k)), atol=1e-4, rtol=1e-4
        )
        return True

    seen = {"states": {}}
    handles = [
        layer.self_attn.register_forward_pre_hook(
            lambda module, args, kwargs, at=number: seen["states"].update({at: kwargs["hidden_states"]}),
            with_kwargs=True,
        )
        for number, layer in enumerate(model.model.layers)
    ]
    assert seen_calls(model, ids, compare) == [True] * 4
    for handle in handles:
        handle.remove()


def test_pitfall_a_last_block_that_is_cut_short_is_pooled_over_its_own_tokens():
    gate = small_gate()
    q, k = torch.randn(1, 4, 9, 8).double() + 3, torch.randn(1, 2, 9, 8).double() + 3
    pooled_q, pooled_k = gate.pool(q, k)
    torch.testing.assert_close(pooled_q[:, :, 2], q[:, :, 8])
    torch.testing.assert_close(pooled_k[:, :, 2], k[:, :, 8].repeat(1, 1, 3))


@pytest.mark.parametrize("choosers", ["block", "row"])
def test_pitfall_the_target_sums_to_one_over_what_a_row_sees(choosers):
    q, k = torch.randn(1, 4, 10, 8).double(), torch.randn(1, 2, 10, 8).double()
    target = small_gate(choosers=choosers).taught(q, k, scale=0.3)
    maxima = block_map(q, k, block=4, scale=0.3, by_query=choosers == "row")
    row, first, last = (2, 0, 3) if choosers == "block" else (9, 4, 2)
    sums = target[:, :, first:].sum(-1)
    torch.testing.assert_close(sums, torch.ones_like(sums))
    expected = maxima[:, :, row, :last] / maxima[:, :, row, :last].sum(-1, keepdim=True)
    torch.testing.assert_close(target[:, :, row, :last], expected)
    assert not target[:, :, row, last:].any() and not target[:, :, 0, 1:].any()


def test_the_loss_is_the_divergence_of_a_row_and_zero_at_the_target():
    target = torch.tensor([[[[1.0, 0, 0], [0.25, 0.75, 0], [0.5, 0.25, 0.25]]]])
    hidden = ~torch.ones(3, 3).tril().bool()
    assert float(divergence(target, target.log().masked_fill(hidden, -torch.inf))) == pytest.approx(
        0, abs=1e-6
    )
    flat = divergence(target, torch.zeros(1, 1, 3, 3).masked_fill(hidden, -torch.inf))
    two = 0.25 * torch.tensor(0.5).log() + 0.75 * torch.tensor(1.5).log()
    three = 0.5 * torch.tensor(1.5).log() + 0.5 * torch.tensor(0.75).log()
    assert float(flat) == pytest.approx(float(two + three) / 3, abs=1e-6)


def test_pitfall_what_attends_is_the_chosen_blocks_with_the_own_one_always_among_them():
    model, ids = llama(), tokens(22)[None]
    gates = SeerGates.of(model, block=4, seed=3)
    edit = SeerAttention(gates=gates, density=0.6, layers=[0])
    edit.prepare(Seam.of(model).host.sites)

    def look(call, site, run):
        if site.layer:
            return None
        ((_, chosen),) = edit.chosen(call, site, run)
        assert chosen.diagonal(dim1=-2, dim2=-1).all()
        assert chosen.sum(-1)[0, 0].tolist() == [1, 2, 2, 2, 2, 2]
        mask = chosen.repeat_interleave(4, 2).repeat_interleave(4, 3)[:, :, :22, :22]
        weights = call.logits().masked_fill(~(mask & call.visible()), -torch.inf).softmax(-1)
        return call.mix(weights)

    expected = seen_calls(model, ids, look)[0]
    kept = {}
    handle = model.model.layers[0].self_attn.o_proj.register_forward_pre_hook(
        lambda module, args: kept.update(heads=args[0])
    )
    with torch.no_grad(), apply(model, edit):
        model(ids)
    handle.remove()
    torch.testing.assert_close(kept["heads"], expected.transpose(1, 2).flatten(2), atol=1e-5, rtol=1e-4)


def test_a_threshold_keeps_what_the_gate_gives_more_than_that():
    model = llama()
    edit = SeerAttention(gates=SeerGates.of(model, block=4), threshold=0.3)
    shares = torch.tensor([[1.0, 0, 0], [0.2, 0.8, 0], [0.5, 0.4, 0.1]])
    scores = shares.log().masked_fill(shares == 0, -torch.inf)
    assert edit.choose(scores).int().tolist() == [[1, 0, 0], [0, 1, 0], [1, 1, 1]]
    everything = SeerAttention(gates=edit.gates, threshold=0.0)
    ids = tokens(20)[None]
    with torch.no_grad():
        expected = model(ids).logits
        with apply(model, everything):
            torch.testing.assert_close(model(ids).logits, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("choosers", ["block", "row"])
def test_the_oracle_captures_most_and_all_blocks_capture_all(choosers):
    model, ids = llama(), tokens(41)[None]
    found = {}
    sites = Seam.of(model).host.sites
    asked, gates = (
        dict(block=4, density=0.6, choosers=choosers),
        SeerGates.of(model, block=4, choosers=choosers),
    )
    for name, edit in {
        "oracle": OracleBlocks(**asked),
        "mean": MeanPooledBlocks(**asked),
        "sink": SinkAndWindowBlocks(block=4, density=0.6),
        "gate": SeerAttention(gates=gates, density=0.6),
    }.items():
        edit.prepare(sites)

        def mass(call, site, run, edit=edit):
            ((text, chosen),) = edit.chosen(call, site, run)
            held = block_map(text.q, text.k, block=4, scale=text.scale, of="mass", by_query=True)
            torch.testing.assert_close(captured(held, torch.ones_like(chosen)), torch.ones(1, 4))
            return captured(held, chosen)

        found[name] = torch.stack(seen_calls(model, ids, mass))
    for name in ("mean", "sink", "gate"):
        assert (found["oracle"] >= found[name] - 1e-6).all()


@torch.no_grad()
@pytest.mark.parametrize("kind", [MeanPooledBlocks, OracleBlocks])
def test_where_queries_choose_for_themselves_no_past_moves_and_where_blocks_do_it_does(kind):
    model, ids = llama(), tokens(40)[None]
    other = torch.cat([ids[:, :22], ids[:, 22:].flip(1)], dim=1)  # from the middle of a block on
    gaps = {}
    for choosers in ("row", "block"):
        with apply(model, kind(block=4, density=0.6, choosers=choosers)):
            first, second = (model(each).logits[:, :22] for each in (ids, other))
        gaps[choosers] = float((first - second).abs().max())
    assert gaps["row"] < 1e-5 and gaps["block"] > 1e-3


def test_sink_and_window_blocks_are_the_first_and_the_last():
    model, ids = llama(), tokens(24)[None]
    edit = SinkAndWindowBlocks(block=4, density=0.8)
    edit.prepare(Seam.of(model).host.sites)
    chosen = seen_calls(model, ids, lambda call, site, run: next(edit.chosen(call, site, run))[1])[0]
    assert chosen[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0],
        [1, 0, 1, 1, 0, 0], [1, 0, 0, 1, 1, 0], [1, 0, 0, 0, 1, 1],
    ]  # fmt: skip


def test_with_sink_the_first_block_is_read_next_to_the_own_whatever_its_score_and_counts():
    scores = torch.tensor([[9.0, 0, 0, 0], [-9, 0, 0, 0], [-9, 1, 0, 0], [-9, 1, 2, 0]])[None, None]
    kept = [
        OracleBlocks(block=4, density=density, sink=True).choose(scores)[0, 0].int().tolist()
        for density in (0.4, 0.75, 0.95)
    ]
    assert kept[0] == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]  # one each: the own
    assert kept[1] == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1]]
    assert kept[2] == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 1, 1]]
    free = OracleBlocks(block=4, density=0.75).choose(scores)[0, 0].int().tolist()
    assert free[2:] == [[0, 1, 1, 0], [0, 0, 1, 1]]
    by_share = SeerAttention(gates=SeerGates.of(llama(), block=4), threshold=0.9, sink=True)
    assert by_share.choose(scores)[0, 0, 2:].int().tolist() == [[1, 0, 1, 0], [1, 0, 0, 1]]


def test_gates_learn_the_models_block_maxima_on_windows_they_have_not_seen_and_not_only_the_first_block():
    model = llama()
    gates = SeerGates.of(model, block=4, layers=[0, 1])
    lessons = Lessons.read(gates, model, Texts([tokens(900)], length=32), windows=60, seed=0, held_out=6)
    learning = Learning(gates, lessons)
    before = evaluate(learning, lessons)
    fit(learning, lessons, steps=100, batch=8, learning_rate=1e-2, seed=0)
    after = evaluate(learning, lessons)
    flat = torch.stack(
        [
            divergence(
                target, torch.zeros_like(target).masked_fill(~torch.ones(8, 8).tril().bool(), -torch.inf)
            )
            for _, _, target in lessons.by_layer.values()
        ]
    ).mean()
    assert after < 0.5 * before and after < float(flat)
    # Pitfall: where a sink holds the first column, the others must be learned too.
    q, k, target = lessons.by_layer["1"]
    logits = gates.by_layer["1"](q, k).detach()
    rest_found, rest_target = logits[..., 7, 1:].softmax(-1), target[..., 7, 1:]
    together = torch.corrcoef(torch.stack([rest_found.flatten(), rest_target.flatten()]))[0, 1]
    assert float(together) > 0.3


def test_gates_of_single_queries_learn_their_rows_from_some_of_them():
    model = llama()
    gates = SeerGates.of(model, block=4, layers=[1], choosers="row")
    texts = Texts([tokens(900)], length=32)
    whole = Lessons.read(gates, model, texts, windows=4, seed=5, held_out=4)
    some = Lessons.read(gates, model, texts, windows=40, seed=0, every=3)
    assert some.by_layer["1"][0].shape[2] == 11
    before = evaluate(Learning(gates, whole), whole)
    fit(Learning(gates, some), some, steps=100, batch=8, learning_rate=1e-2, seed=0)
    assert evaluate(Learning(gates, whole), whole) < 0.6 * before


def test_a_killed_teaching_goes_on_to_the_same_end(tmp_path):
    model, settings = llama(), dict(length=24, windows=6, steps=10, batch=2, checkpoint_every=3)
    whole = SeerGates.of(model, block=4)
    expected = learn_gates(whole, model, [tokens()], **settings)

    class Killed(Exception):
        pass

    def kill(done, steps, loss):
        if done == 5:
            raise Killed

    path = tmp_path / "gates.safetensors"
    with pytest.raises(Killed):
        learn_gates(
            SeerGates.of(model, block=4), model, [tokens()], **settings, checkpoint=path, progress=kill
        )
    gates = SeerGates.of(model, block=4)
    found = learn_gates(gates, model, [tokens()], **settings, checkpoint=path)
    assert found.losses == expected.losses
    for ours, theirs in zip(gates.parameters(), whole.parameters()):
        assert torch.equal(ours, theirs)
    assert all(weight.grad is None for weight in model.parameters())


def test_gates_that_do_not_fit_are_refused_before_any_pass():
    model = llama()
    other = SeerGates(range(4), heads=4, kv_heads=4, head_dim=16, block=4)
    with pytest.raises(ValueError, match="the gates are for 4 query and 4 key heads of 16 channels"):
        apply(model, SeerAttention(gates=other))
    few = SeerGates.of(model, layers=[1], block=4)
    apply(model, SeerAttention(gates=few))
    with pytest.raises(ValueError, match="there is no gate for layer 0 of main"):
        apply(model, SeerAttention(gates=few, layers=[0]))
    with pytest.raises(ValueError, match=r"gates is NoneType, but SeerGates.of\(model\) is wanted"):
        SeerAttention(gates=None)
    with pytest.raises(ValueError, match="threshold is 1"):
        SeerAttention(gates=few, threshold=1)
    with pytest.raises(ValueError, match="there is nothing to choose among"):
        learn_gates(few, model, [tokens()], length=4)
    with pytest.raises(ValueError, match="no causal attention"):
        SeerGates.of(FAMILIES["bert"].make())


def test_the_overhead_is_counted():
    gates = SeerGates([0], heads=4, kv_heads=2, head_dim=16, block=4, width=8)
    assert gates.overhead(40) == 10 * 10 * 8 + 2 * 40 * 16
    rows = SeerGates([0], heads=4, kv_heads=2, head_dim=16, block=4, width=8, choosers="row")
    assert rows.overhead(40) == 40 * 10 * 8 + 40 * 16
