"""Nyströmformer: the softmax matrix from segment means."""

import pytest
import torch

from regardant.core.pattern import Padding
from regardant.sequence.nystromformer import Nystromformer, NystromRule, iterative_inverse


def heads(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 2, n, 4, dtype=torch.float64, generator=generator) for _ in range(3)]


def softmax(q, k, v):
    return (q @ k.mT / 2).softmax(-1) @ v


def test_the_three_matrices_written_out():
    q, k, v = heads(6)
    near_q, near_k = (x.unflatten(2, (3, 2)).mean(3) for x in (q, k))
    first, last = (q @ near_k.mT / 2).softmax(-1), (near_q @ k.mT / 2).softmax(-1)
    core = (near_q @ near_k.mT / 2).softmax(-1)
    inverse = core.mT / (core.sum(-2).amax(-1) * core.sum(-1).amax(-1))[..., None, None]
    unit = torch.eye(3, dtype=torch.float64)
    for _ in range(6):
        az = core @ inverse
        inverse = 0.25 * inverse @ (13 * unit - az @ (15 * unit - az @ (7 * unit - az)))
    expected = first @ inverse @ last @ v
    torch.testing.assert_close(NystromRule(3)(q, k, v), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [1, 5, 7])
def test_as_many_landmarks_as_tokens_are_softmax(n):
    q, k, v = heads(n)
    torch.testing.assert_close(NystromRule(8)(q, k, v), softmax(q, k, v), rtol=0, atol=1e-12)


def test_equal_halves_are_exact():
    """Two groups of equal tokens: rank two, which two landmarks catch."""
    q, k, v = heads(8)
    q, k = (x[:, :, [0, 0, 0, 0, 7, 7, 7, 7]] for x in (q, k))
    difference = (NystromRule(2)(q, k, v) - softmax(q, k, v)).abs().max()
    assert difference < 1e-5


def test_the_inverse_converges():
    matrix = (3 * torch.eye(6, dtype=torch.float64)).softmax(-1)
    torch.testing.assert_close(iterative_inverse(matrix), matrix.inverse(), rtol=0, atol=1e-8)


def test_pitfall_the_norm_is_each_matrix_own():
    """The official code starts the iteration from the largest norm of the batch: samples see each other."""
    q, k, v = heads(40)
    alone = NystromRule(8)(q[:1], k[:1], v[:1])
    loud = [torch.cat([x[:1], 30 * x[1:]]) for x in (q, k, v)]
    torch.testing.assert_close(NystromRule(8)(*loud)[:1], alone, rtol=0, atol=1e-12)


def test_padding_is_in_no_segment():
    q, k, v = heads(20)
    real = torch.arange(20).expand(2, 20) < torch.tensor([[13], [5]])
    out = NystromRule(8)(q, k, v, pattern=Padding(real))
    for sample, count in enumerate((13, 5)):
        its = (x[sample : sample + 1, :, :count] for x in (q, k, v))
        torch.testing.assert_close(out[sample, :, :count], NystromRule(8)(*its)[0], rtol=0, atol=1e-12)


def test_the_convolution_adds_the_neighbouring_values():
    torch.manual_seed(0)
    layer = Nystromformer(8, 2, landmarks=2, kernel=3).double()
    bare = Nystromformer(8, 2, landmarks=2, kernel=0).double()
    bare.load_state_dict({name: w for name, w in layer.state_dict().items() if "convolution" not in name})
    x = torch.randn(1, 6, 8, dtype=torch.float64)
    v = layer.to_v(x).unflatten(-1, (2, 4))
    weight = layer.convolution.weight[:, 0]
    padded = torch.nn.functional.pad(v, (0, 0, 0, 0, 1, 1))
    added = sum(weight[:, t, None] * padded[:, t : t + 6] for t in range(3)).flatten(2)
    torch.testing.assert_close(layer(x) - bare(x), added @ layer.to_out.weight.T, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("own", "word"),
    [({"landmarks": 0}, "landmarks is 0"), ({"kernel": 4}, "kernel is 4"), ({"causal": True}, "no causal")],
)
def test_bad_input(own, word):
    with pytest.raises(ValueError, match=word):
        Nystromformer(32, 4, **own)
