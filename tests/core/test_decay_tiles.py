import pytest
import torch

from regardant.core.decay_tiles import Decay, Run, carry, tiling, triangle

CPU = torch.device("cpu")


def test_triangle_holds_the_powers_of_each_head():
    powers = torch.tensor([[1.0, 0.5, 0.25], [1.0, 0.1, 0.01]])
    expected = torch.tensor([[1.0, 0, 0], [0.5, 1, 0], [0.25, 0.5, 1]])
    assert torch.equal(triangle(powers)[0], expected)
    assert triangle(powers)[1, 2, 0] == powers[1, 2]


@pytest.mark.parametrize(
    "b, g, share", [(1, 1, 1), (1, 8, 1), (3, 2, 4), (100, 3, 1), (2, 90, 1), (1, 2, 80)]
)
@pytest.mark.parametrize("n", [1, 63, 64, 65, 1000, 5000])
def test_tiles_cover_every_token_of_every_head_once(b, g, share, n):
    runs, together = tiling(b, g, share, n, block=64, device=CPU)
    met = torch.zeros(b, g, share, n, 1)
    for samples, groups in together:
        for run in runs:
            for tile in run.cut(met[samples, groups]):
                tile += 1
                assert tile.shape[3:5] == (run.blocks, run.size)
    assert torch.equal(met, torch.ones_like(met))
    assert [run.first for run in runs] == sorted(run.first for run in runs)


def test_buffers_given_together_take_turns_in_one_memory():
    first, second, apart = Run(0, 1, 2, 4).buffers(torch.zeros(1, 3, 1, 5, 6), ((4, 5), (5, 6)), ((4, 6),))
    assert first.flat.shape == (6, 4, 5) and second.tiled.shape == (1, 3, 1, 2, 5, 6)
    assert first.flat.data_ptr() == second.flat.data_ptr()
    assert apart.flat.data_ptr() - first.flat.data_ptr() == second.flat.nbytes
    first.flat.fill_(3.0)
    first.fade(torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1, 1))
    assert first.flat[:, 0, 0].tolist() == [3.0, 3.0, 6.0, 6.0, 9.0, 9.0]


def test_decay_counts_from_both_ends_of_a_block():
    log_decay = torch.tensor([[-0.5]], dtype=torch.float64)
    decay = Decay.over(log_decay, Run(0, 1, 3, 4), torch.zeros(1, 1, 1, 2, 2, dtype=torch.float64))
    powers = torch.exp(-0.5 * torch.arange(5, dtype=torch.float64))
    torch.testing.assert_close(decay.since.flatten(), powers[1:])
    torch.testing.assert_close(decay.until.flatten(), powers[:4].flip(0))
    torch.testing.assert_close(decay.step.flatten(), powers[4:])


@pytest.mark.parametrize("blocks", [1, 2, 5])
@pytest.mark.parametrize("leftwards", [False, True])
def test_carry_equals_one_block_after_the_other(blocks, leftwards):
    generator = torch.Generator().manual_seed(0)
    state = torch.randn(2, 3, 1, 4, 5, generator=generator, dtype=torch.float64)
    gained = torch.randn(2, 3, 1, blocks, 4, 5, generator=generator, dtype=torch.float64)
    log_decay = -torch.rand(3, 1, generator=generator, dtype=torch.float64)
    decay = Decay.over(log_decay, Run(0, 1, blocks, 8), state)

    expected, passed = torch.empty_like(gained), state
    for t in reversed(range(blocks)) if leftwards else range(blocks):
        expected[:, :, :, t] = passed
        passed = torch.exp(8 * log_decay)[..., None, None] * passed + gained[:, :, :, t]

    met, last = carry(state, gained, torch.empty_like(gained), decay, leftwards=leftwards)
    torch.testing.assert_close(met.view_as(gained), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(last, passed, rtol=0, atol=1e-12)
