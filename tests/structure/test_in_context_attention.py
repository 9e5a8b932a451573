"""One layer of attention that regresses in context."""

import pytest
import torch

from regardant.structure.in_context_attention import InContextAttention, LinearInContextAttention


def layer(kind=InContextAttention, seed=0, **own):
    torch.manual_seed(seed)
    return kind(**dict(features=3, heads=2) | own).double()


def rows(n, seed=1):
    return torch.randn(4, n, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_with_whole_matrices_as_the_paper_writes_it():
    """OV_h as a full matrix whose last row is v_h: the prediction is the last coordinate."""
    model, z = layer(), rows(9)
    z[:, -1, -1] = 0
    out = torch.randn(2, 4, 4, dtype=torch.float64)
    out[:, -1] = model.value.detach()
    columns, query = z[:, :-1].mT, z[:, -1]
    total = torch.zeros(4, 4, dtype=torch.float64)
    for h in range(2):
        weights = (columns.mT @ model.key_query[h] @ query[..., None]).softmax(dim=1)
        total += (out[h] @ columns @ weights)[..., 0]
    torch.testing.assert_close(model(z), total[:, -1], rtol=0, atol=1e-12)


def test_pitfall_the_query_is_not_among_the_keys():
    model, z = layer(), rows(6)
    with torch.no_grad():
        model.key_query.zero_()
        expected = z[:, :-1].mean(dim=1) @ model.value.sum(0)
    torch.testing.assert_close(model(z), expected, rtol=0, atol=1e-12)


def test_pitfall_the_linear_layer_divides_by_the_length_it_was_made_for():
    model, z = layer(LinearInContextAttention, length=5), rows(6)
    longer = torch.cat([z[:, :-1].repeat(1, 4, 1), z[:, -1:]], dim=1)
    torch.testing.assert_close(model(longer), 4 * model(z), rtol=0, atol=1e-12)
    torch.testing.assert_close(layer()(longer), layer()(z), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("own", "word"),
    [({"features": 0}, "features is 0"), ({"heads": 0}, "heads is 0"), ({"spread": 0.0}, "spread is 0")],
)
def test_bad_configuration(own, word):
    with pytest.raises(ValueError, match=word):
        layer(**own)


def test_bad_input():
    with pytest.raises(ValueError, match="length is 0"):
        layer(LinearInContextAttention, length=0)
    with pytest.raises(ValueError, match=r"z has shape \(4, 1, 4\)"):
        layer()(rows(1))
