import pytest
import torch

from regardant.lens.factual_recall import Facts, FactualRecall, regression
from regardant.lens.residual_stream import read_parts
from regardant.world.planted import planted_induction

IDS = torch.tensor([[0, 9, 3, 4, 12, 5, 3], [0, 9, 7, 8, 13, 5, 7]])


def test_known_answers():
    for seed in range(2):
        for answer in FactualRecall.known_answers(torch.Generator().manual_seed(seed)):
            assert answer.error() <= answer.tolerance, answer.what


def test_pitfall_heads_that_say_the_same_make_a_large_condition_number():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(30, 3, 8, generator=draw, dtype=torch.float64)
    same = x.clone()
    same[:, 1] = same[:, 0] + 1e-4 * same[:, 1]
    mlp = 2 * same[:, 0] + same[:, 2]
    train = torch.arange(30) < 20
    apart, alike = (regression(each, mlp, train, penalty=1e-3) for each in (x, same))
    assert alike.condition > 1e6 > apart.condition
    # The ridge shares what cannot be told apart evenly; the sum is right.
    assert float(alike.coefficients.sum()) == pytest.approx(2.0, abs=0.01)
    assert float(alike.coefficients[0] - alike.coefficients[1]) == pytest.approx(0.0, abs=0.01)


def test_a_regression_is_on_one_layers_mlp_and_its_own_heads():
    model = planted_induction()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.normal_(generator=torch.Generator().manual_seed(1))
            layer.mlp.up_proj.weight.normal_(generator=torch.Generator().manual_seed(2))
            layer.mlp.gate_proj.weight.normal_(generator=torch.Generator().manual_seed(3))
    ids = torch.randint(1, 24, (12, 6), generator=torch.Generator().manual_seed(4))
    parts = read_parts(model, ids)
    train = torch.arange(12) < 8
    found = FactualRecall().regress_mlp(parts, 1, train)
    assert found.coefficients.shape == (4,)
    stream = parts.after(0)[:, -1]
    x = torch.cat([parts.heads[1, :, :, -1], stream[:, None]], dim=1)
    again = regression(x, parts.mlps[1, :, -1], train, penalty=1e-3)
    assert torch.equal(found.coefficients, again.coefficients) and found.fit == again.fit


def test_answers_by_layer_come_up_where_the_head_writes_them():
    model = planted_induction(previous=(0, 1), copying=(2, 3))
    facts = Facts(IDS, torch.tensor([3, 3]), torch.tensor([4, 8]))
    said = FactualRecall().answer_by_layer(model, [facts, facts.chosen(torch.tensor([True, False]))])
    assert said.shape == (4,)
    assert (said[:3].exp() - 1 / 24).abs().max() < 1e-6 and float(said[3].exp()) > 0.99
    assert facts.topic_token.tolist() == [4, 8]


def test_bad_facts_are_refused():
    with pytest.raises(ValueError, match="but there are 2 prompts"):
        Facts(IDS, torch.tensor([3]), torch.tensor([4, 8]))
    with pytest.raises(ValueError, match="train marks 3 of 3"):
        regression(torch.randn(3, 2, 4), torch.randn(3, 4), torch.ones(3, dtype=torch.bool), penalty=1.0)
