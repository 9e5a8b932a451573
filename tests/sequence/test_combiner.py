"""Combiner in its three forms: fixed, axial, logsparse."""

import pytest
import torch

from regardant.sequence.combiner_axial import CombinerAxial
from regardant.sequence.combiner_fixed import CombinerFixed
from regardant.sequence.combiner_logsparse import CombinerLogsparse
from regardant.sequence.softmax import Softmax

FORMS = [
    (CombinerFixed, {"segment": 4}),
    (CombinerFixed, {"segment": 3, "summary": "mean"}),
    (CombinerAxial, {"segment": 4}),
    (CombinerAxial, {"segment": 5, "summary": "sum"}),
    (CombinerLogsparse, {}),
    (CombinerLogsparse, {"summary": "mean", "position": "rotary"}),
]


def layer(form, config, causal=True, seed=0):
    torch.manual_seed(seed)
    return form(16, 2, causal=causal, **config).double()


def inputs(n, batch=2, seed=1):
    return torch.randn(batch, n, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("form, config", FORMS)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("n", [1, 4, 23])
def test_forward_is_the_equation_and_so_are_its_gradients(form, config, causal, n):
    model, x = layer(form, config, causal), inputs(n).requires_grad_()
    parameters = [x, *model.parameters()]
    fast, plain = model(x), model.reference(x)
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-9)
    weight = torch.randn_like(fast)
    ours = torch.autograd.grad((fast * weight).sum(), parameters)
    theirs = torch.autograd.grad((plain * weight).sum(), parameters)
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


@pytest.mark.parametrize("form, config", FORMS)
@pytest.mark.parametrize("prompt", [0, 8, 11])
def test_stepping_equals_forward(form, config, prompt):
    model, x = layer(form, config), inputs(27)
    with torch.no_grad():
        whole, state = model(x), model.start(2)
        if prompt:
            _, state = model.prefill(x[:, :prompt])
        for t in range(prompt, 27):
            y, state = model.step(x[:, t], state)
            torch.testing.assert_close(y, whole[:, t], rtol=0, atol=1e-9)


@pytest.mark.parametrize("form, config", FORMS)
@pytest.mark.parametrize("causal", [True, False])
def test_every_token_in_reach_has_weight_and_rows_sum_to_one(form, config, causal):
    matrix = layer(form, config, causal).mixing_matrix(inputs(22))
    reach = torch.ones(22, 22, dtype=torch.bool)
    reach = reach.tril() if causal else reach
    assert (matrix[..., reach] > 0).all()
    assert (matrix[..., ~reach] == 0).all()
    torch.testing.assert_close(matrix.sum(-1), torch.ones(2, 2, 22, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("form, config", FORMS)
@pytest.mark.parametrize("causal", [True, False])
def test_pitfall_a_short_end_and_padding_are_in_no_summary(form, config, causal):
    model, x = layer(form, config, causal), inputs(22)
    padding = torch.ones(2, 22, dtype=torch.bool)
    padding[0, 14:] = padding[1, 5:11] = False
    y = model(x, padding=padding)
    torch.testing.assert_close(y, model.reference(x, padding=padding), rtol=0, atol=1e-9)
    torch.testing.assert_close(y[:1, :14], model(x[:1, :14]), rtol=0, atol=1e-9)
    changed = torch.where(padding[..., None], x, 1e4)
    torch.testing.assert_close(model(changed, padding=padding)[padding], y[padding], rtol=0, atol=1e-9)


@pytest.mark.parametrize("form, config", FORMS)
def test_pitfall_no_summary_holds_the_present_or_the_future(form, config):
    model = layer(form, config)
    _, regions, visible = model.parts(22)
    last = torch.where(regions, torch.arange(22), -1).amax(-1)
    there = last >= 0
    assert (last[there] < torch.arange(22)[:, None]).logical_or(~visible[:, there]).all()


@pytest.mark.parametrize("form, config", FORMS)
@pytest.mark.parametrize("causal", [True, False])
def test_what_is_seen_directly_is_in_no_region_that_is_seen(form, config, causal):
    direct, regions, visible = layer(form, config, causal).parts(22)
    assert not ((visible.double() @ regions.double() > 0) & direct).any()


def test_pitfall_tokens_and_summaries_share_one_softmax():
    """Worked by hand: segments of two, the second token of the second segment."""
    model = layer(CombinerFixed, {"segment": 2})
    q, k, v = (rows[0, 0] for rows in model.project(inputs(4, batch=1)))
    scale = 8**-0.5
    asks, key = q[:2].amax(0), k[:2].amax(0)
    value = (k[:2] @ asks * scale).softmax(0) @ v[:2]
    weights = (torch.stack([k[2], k[3], key]) @ q[3] * scale).softmax(0)
    right = weights @ torch.stack([v[2], v[3], value])
    found = model.attend(*model.project(inputs(4, batch=1)), x=None, pattern=None)[0, 0]
    torch.testing.assert_close(found[3], right, rtol=0, atol=1e-12)


def test_pitfall_axial_regions_are_shifted_by_one():
    """Token 8 of rows of three, the last of the third row: which region holds whom."""
    direct, regions, visible = layer(CombinerAxial, {"segment": 3}).parts(9)
    assert direct[8].nonzero().flatten().tolist() == [2, 5, 6, 7, 8]
    seen = sorted(region.nonzero().flatten().tolist() for region in regions[visible[8]])
    assert seen == [[0, 1], [0, 3], [1, 4], [3, 4]]
    seen = sorted(region.nonzero().flatten().tolist() for region in regions[visible[4]])
    assert seen == [[0], [0], [2], [2]]


def test_logsparse_regions_are_the_ones_of_the_binary_number():
    _, regions, visible = layer(CombinerLogsparse, {}).parts(12)
    seen = sorted(region.nonzero().flatten().tolist() for region in regions[visible[11]])
    assert seen == [[0, 1, 2, 3, 4, 5, 6, 7], [8, 9], [10]]
    assert not visible[0].any()


@pytest.mark.parametrize("form", [CombinerFixed, CombinerAxial])
@pytest.mark.parametrize("causal", [True, False])
def test_one_segment_is_softmax(form, causal):
    model, x = layer(form, {"segment": 30}, causal), inputs(20)
    dense = Softmax(16, 2, causal=causal).double()
    dense.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(x), dense(x), rtol=0, atol=1e-12)


def test_the_fixed_form_keeps_one_segment_and_the_summaries():
    model, x = layer(CombinerFixed, {"segment": 4}), inputs(22)
    state = model.prefill(x)[1]
    assert state.keys.rows.shape[2] == 2 and state.summary_keys.rows.shape[2] == 5


@pytest.mark.parametrize("form", [CombinerFixed, CombinerAxial, CombinerLogsparse])
def test_bad_configuration_says_what_would_be_right(form):
    with pytest.raises(ValueError, match="no summary is called 'average'"):
        form(16, 2, summary="average")
    with pytest.raises(ValueError, match="position is Alibi"):
        form(16, 2, position="alibi")
    if form is not CombinerLogsparse:
        with pytest.raises(ValueError, match="segment is 0"):
            form(16, 2, segment=0)
