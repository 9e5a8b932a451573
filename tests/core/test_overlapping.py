import pytest
import torch

from regardant.core.overlapping import laid_down, rectangles


@pytest.mark.parametrize(
    ("side", "size", "step"),
    [((8, 9), (4, 3), (2, 3)), ((7, 13), (7, 5), (1, 4)), ((5, 6), (2, 2), (3, 3)), ((4, 4), (1, 4), (1, 1))],
)
def test_rectangles_and_their_gradients_are_those_of_unfold(side, size, step):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, *side, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    found = rectangles(x, size, step)
    plain = x.unfold(1, size[0], step[0]).unfold(2, size[1], step[1]).permute(0, 1, 2, 4, 5, 3)
    assert torch.equal(found, plain)
    gradient = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    (one,), (other,) = (torch.autograd.grad(each, x, gradient) for each in (found, plain))
    assert torch.allclose(one, other, rtol=0, atol=1e-12)
    assert torch.autograd.gradgradcheck(lambda x: rectangles(x, size, step).square(), x)


def test_a_rectangle_of_each_sample_under_vmap():
    x = torch.arange(2 * 16.0).view(2, 1, 4, 4, 1)
    together = torch.func.vmap(lambda each: rectangles(each, (2, 2), (2, 2)))(x)
    assert torch.equal(together[1], rectangles(x[1], (2, 2), (2, 2)))


def test_pieces_laid_down_by_hand():
    pieces = torch.tensor([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])
    assert laid_down(pieces, 0, 2, 6).tolist() == [1, 2, 13, 20, 30, 0]
    assert laid_down(pieces, 0, 1, 4).tolist() == [1, 12, 23, 30]
