"""Scan and snap: roles, the model, its descent, and what attention looks at."""

from itertools import pairwise

import pytest
import torch

from regardant.contract import check
from regardant.lens.scan_and_snap import (
    ABSENT,
    COMMON,
    DISTINCT,
    ScanAndSnap,
    follow,
    law_of,
    of_task,
    paper_steps,
    token_roles,
)
from regardant.structure.one_layer import OneLayer
from regardant.task.distinct_tokens import DistinctTokens

TASK = DistinctTokens()


def trained(steps: int = 300, *, rate: float = 10.0, attention: float = 1.0, task: DistinctTokens = TASK):
    model = OneLayer(task.vocabulary).double()
    looks = follow(
        model, task, steps=steps, decoder_rate=rate, attention_rate=attention, looks=range(steps + 1)
    )
    return [look.seen for look in looks]


def test_roles_by_hand():
    # Tokens 0 to 3; next tokens a and b of one query, c of another.
    law = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 0.5, 0.5, 0.0], [0.0, 0.5, 0.0, 0.5]])
    roles = token_roles(law, torch.tensor([7, 7, 8]))
    assert roles.tolist() == [
        [DISTINCT, COMMON, ABSENT, ABSENT],
        [ABSENT, COMMON, DISTINCT, ABSENT],
        [ABSENT, DISTINCT, ABSENT, DISTINCT],
    ]


def test_the_law_of_a_corpus_by_hand():
    tokens = torch.tensor([[0, 1, 1, 5], [0, 0, 1, 5], [2, 2, 2, 5], [2, 0, 2, 6]])
    law, query, nexts = law_of(tokens, torch.tensor([8, 8, 9, 8]), 10)
    assert query.tolist() == [5, 5, 6]
    assert nexts.tolist() == [8, 9, 8]
    expected = torch.zeros(3, 10, dtype=torch.float64)
    expected[0, :2] = 0.5
    expected[1, 2] = 1
    expected[2, [0, 2]] = torch.tensor([1 / 3, 2 / 3], dtype=torch.float64)
    torch.testing.assert_close(law, expected, rtol=0, atol=1e-12)
    rare = law_of(tokens, torch.tensor([8, 8, 9, 8]), 10, rarest=0.4)[0]
    assert rare[2].tolist() == [0, 0, 1] + [0] * 7


def test_what_is_seen_by_hand():
    law = torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.5, 0.5]], dtype=torch.float64)
    scores = torch.zeros(2, 3, dtype=torch.float64)
    scores[1] = torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64).log()
    seen = ScanAndSnap(law, torch.tensor([1, 1]))(scores)
    shares = torch.tensor([[0.5, 0.5, 0.0], [0.0, 1 / 3, 2 / 3]], dtype=torch.float64)
    torch.testing.assert_close(seen.shares, shares, rtol=0, atol=1e-12)
    assert seen.common == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert seen.largest == pytest.approx(2 / 3)
    log = torch.tensor([0.5, 1 / 3, 2 / 3]).log()
    assert seen.entropy == pytest.approx(float(-(log[0] + log[1] / 3 + log[2] * 2 / 3) / 2), abs=1e-6)
    assert seen.raised[0].tolist() == pytest.approx([2.0, 2 / 3, 0.0])
    assert seen.gap == pytest.approx(float(torch.tensor([3.0, 2.0]).log().mean()), abs=1e-6)


def test_attention_leaves_common_tokens_and_stops_before_it_is_one_hot():
    looks = trained()
    common = [seen.common for seen in looks]
    assert all(after <= before + 1e-12 for before, after in pairwise(common))
    assert common[0] == pytest.approx(0.5)
    assert common[-1] < 0.45
    ratios = looks[-1].raised[looks[-1].roles == DISTINCT].view(8, 4)
    assert (ratios.diff(dim=1) < 0).all()
    assert looks[-1].largest < 0.5
    pace = [after.gap - before.gap for before, after in pairwise(looks)]
    assert max(pace[-10:]) < 0.1 * max(pace)


def test_pitfall_equal_rates_lose_the_phase():
    fast, equal = trained(rate=10.0), trained(rate=1.0)
    # The growth is fastest after 2 K ln M / η: at once with a fast decoder, late with a slow one.
    peaks = [
        max(range(300), key=[b.gap - a.gap for a, b in pairwise(run)].__getitem__) for run in (fast, equal)
    ]
    assert peaks[0] <= 6
    assert peaks[1] >= 20
    assert equal[-1].largest > fast[-1].largest
    assert equal[-1].entropy < fast[-1].entropy


def test_pitfall_what_is_attended_to_has_unit_norm():
    model = OneLayer(6).double()
    with torch.no_grad():
        model.decoder.copy_(torch.eye(6))
        model.scores.normal_(generator=torch.Generator().manual_seed(0))
    f = model(torch.tensor([[1, 1, 2, 5], [0, 3, 4, 5]]))
    torch.testing.assert_close(f.norm(dim=1), torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-12)
    # So a step of the scores never makes the mixture longer, it turns it.
    model.decoder.data.normal_(generator=torch.Generator().manual_seed(1))
    counts = torch.tensor([[2.0, 1.0, 3.0, 0.0, 1.0, 0.0]], dtype=torch.float64)
    _, step = paper_steps(model, counts / 7, torch.tensor([5]), torch.tensor([0]))
    b = model.attention(counts, torch.tensor([5]))[0].detach()
    f, seen = b / b.norm(), b > 0
    assert float((step[5, seen] / b[seen] * f[seen]).sum()) == pytest.approx(0, abs=1e-12)


def test_pitfall_without_the_unit_norm_one_token_takes_nearly_all():
    class Bare(OneLayer):
        def from_counts(self, counts, query):
            return self.attention(counts, query) @ self.decoder

    largest = {}
    for kind in (OneLayer, Bare):
        model = kind(TASK.vocabulary).double()
        (look,) = follow(model, TASK, steps=200, decoder_rate=10.0, attention_rate=1.0, looks=[200])
        largest[kind] = look.seen.largest
    assert largest[OneLayer] < 0.3
    assert largest[Bare] > 0.7


def test_pitfall_absent_tokens_get_nothing():
    model = OneLayer(6).double()
    with torch.no_grad():
        model.scores[5, 3] = 50.0  # a token that would take all, were it there
    counts = torch.tensor([[2.0, 1.0, 0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    attention = model.attention(counts, torch.tensor([5]))
    torch.testing.assert_close(attention[0, :2], torch.tensor([2 / 3, 1 / 3], dtype=torch.float64))
    assert attention[0, 2:].tolist() == [0, 0, 0, 0]


def test_pitfall_attention_counts_every_occurrence():
    torch.manual_seed(0)
    model = OneLayer(5).double()
    with torch.no_grad():
        model.scores.normal_()
        model.decoder.normal_()
    tokens = torch.tensor([[1, 1, 1, 2, 4]])
    weights = model.scores[4, tokens[0, :4]].softmax(0)
    mixed = torch.zeros(5, dtype=torch.float64)
    mixed[1], mixed[2] = weights[:3].sum(), weights[3]
    torch.testing.assert_close(model(tokens)[0], model.decoder.T @ (mixed / mixed.norm()), rtol=0, atol=1e-12)


def test_pitfall_weights_begin_at_zero():
    model = OneLayer(9)
    assert not model.decoder.any()
    assert not model.scores.any()
    assert not model(torch.tensor([[1, 2, 3]])).any()


def test_the_paper_s_steps_are_the_descent():
    lens, model = of_task(TASK), OneLayer(TASK.vocabulary).double()
    nexts = TASK.contexts + TASK.queries + torch.arange(TASK.classes)
    for _ in range(3):
        decoder, scores = paper_steps(model, lens.law, lens.query, nexts)
        with torch.no_grad():
            model.decoder += 10 * decoder
            model.scores += scores
    (last,) = follow(
        other := OneLayer(TASK.vocabulary).double(), TASK, steps=3, decoder_rate=10.0, attention_rate=1.0,
        looks=[3],
    )  # fmt: skip
    torch.testing.assert_close(model.scores, other.scores, rtol=0, atol=1e-12)
    torch.testing.assert_close(model.decoder, other.decoder, rtol=0, atol=1e-12)
    assert last.step == 3


def test_sampled_descent_follows_its_generator():
    def run(seed):
        model = OneLayer(TASK.vocabulary)
        follow(
            model, TASK, steps=5, decoder_rate=10.0, attention_rate=1.0, looks=[5], batch=4,
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        return model.scores.detach()

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))


@pytest.mark.parametrize("system", [DistinctTokens, OneLayer])
def test_its_task_and_its_model_keep_their_contracts(system):
    report = check(system, examples=5)
    assert report.passed, str(report)


def test_the_task_draws_by_its_law():
    task = DistinctTokens(
        queries=1, following=2, shares=(0.75, 0.25), common=1, common_share=0.2, length=2001
    )
    tokens, targets = task.batch(50, torch.Generator().manual_seed(0))
    found, query, nexts = law_of(tokens, targets, task.vocabulary)
    assert query.tolist() == [5, 5]
    assert nexts.tolist() == [6, 7]
    expected = torch.tensor([[0.6, 0.2, 0.0, 0.0, 0.2], [0.0, 0.0, 0.6, 0.2, 0.2]], dtype=torch.float64)
    torch.testing.assert_close(found[:, :5], expected, rtol=0, atol=0.01)
    torch.testing.assert_close(task.law(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (
            lambda: ScanAndSnap(torch.ones(2, 3), torch.tensor([0, 1])),
            "law has a row that is no distribution",
        ),
        (lambda: ScanAndSnap(torch.ones(2, 1), torch.tensor([0])), r"law is \(2, 1\) and query \(1,\)"),
        (lambda: of_task(TASK)(torch.zeros(3, 50)), r"scores is \(3, 50\), but it is \[queries, 50\]"),
        (lambda: law_of(torch.zeros(2, 3).long(), torch.zeros(3).long(), 4), "tokens is"),
        (lambda: trained(3, rate=0.0), "rates 0.0 and 1.0 are positive"),
        (
            lambda: follow(OneLayer(58), TASK, steps=2, decoder_rate=1.0, attention_rate=1.0, looks=[3]),
            "looks",
        ),
        (lambda: DistinctTokens(shares=(0.5, 0.4)).law(), "shares is"),
        (lambda: DistinctTokens(common_share=1.0).law(), "common_share is 1.0"),
        (lambda: OneLayer(0), "vocabulary is 0"),
    ],
)
def test_bad_input_gets_one_sentence(act, sentence):
    with pytest.raises(ValueError, match=sentence) as raised:
        act()
    assert "\n" not in str(raised.value)
