"""Injective linear attention: its weights written out, its kernels, and the dossier's pitfalls."""

import pytest
import torch

from regardant.grid.inline_attention import InLineAttention, LocalKernels, convolved


def maps(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def layer(dim, heads, *, scale=1.0, **options):
    """Weights of one size, and no output projection: what comes out is what was heard."""
    made = InLineAttention(dim, heads, **options).double()
    generator = torch.Generator().manual_seed(1)
    for parameter in made.parameters():
        parameter.copy_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    made.to_out.weight.copy_(torch.eye(dim))
    made.to_out.bias.zero_()
    return made


def weights(made, x):
    """a [b, heads, n, n], from the sums of the equation."""
    q, k, _ = made.to_qkv(x.flatten(1, 2)).unflatten(-1, (3, made.heads, -1)).permute(2, 0, 3, 1, 4)
    if made.features == "relu":
        q, k = q.relu(), k.relu()
    products = torch.einsum("bhid,bhjd->bhij", q, k) * made.scale / q.shape[2]
    return products - products.sum(-1, keepdim=True) / q.shape[2] + 1 / q.shape[2]


@torch.no_grad()
@pytest.mark.parametrize("features", ["identity", "relu"])
def test_the_linear_form_is_the_explicit_matrix(features):
    made, x = layer(6, 2, local=False, features=features), maps(2, 3, 5, 6)
    v = made.to_qkv(x.flatten(1, 2))[..., 12:].unflatten(-1, (2, 3)).transpose(1, 2)
    expected = (weights(made, x) @ v).transpose(1, 2).flatten(2).unflatten(1, (3, 5))
    torch.testing.assert_close(made(x), expected, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_pitfall_without_the_number_of_positions_weights_would_grow_with_the_map():
    """A map four times over has the same means, so the same is heard at every position of it."""
    made, x = layer(6, 2, local=False), maps(1, 3, 4, 6)
    torch.testing.assert_close(made(x.repeat(1, 2, 2, 1)), made(x).repeat(1, 2, 2, 1), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_pitfall_weights_sum_to_one_by_subtraction_and_may_be_negative():
    made, x = layer(6, 2, local=False), maps(2, 3, 5, 6)
    a = weights(made, x)
    torch.testing.assert_close(a.sum(-1), torch.ones_like(a[..., 0]))
    assert (a < 0).any() and (a > 1).any()
    # Values that are the same everywhere come back as they are, whatever the scores.
    made.to_qkv.weight[12:].zero_()
    torch.testing.assert_close(made(x), made.to_qkv.bias[12:].expand_as(x), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_a_query_and_its_double_have_weights_of_their_own():
    """Divided linear attention with relu cannot tell them apart."""
    q, k = maps(4, 3).relu(), maps(7, 3, seed=1).relu() + 0.1
    divided = [(c * q) @ k.T / ((c * q) @ k.T).sum(-1, keepdim=True) for c in (1, 2)]
    ours = [(c * q) @ (k - k.mean(0)).T / 7 + 1 / 7 for c in (1, 2)]
    torch.testing.assert_close(*divided)
    assert (ours[0] - ours[1]).abs().amax(-1).min() > 1e-3


@torch.no_grad()
def test_pitfall_local_kernels_are_made_of_the_mean_of_the_map():
    made, x = layer(4, 2), maps(2, 3, 5, 4)
    plain = layer(4, 2, local=False)
    plain.to_qkv.load_state_dict(made.to_qkv.state_dict())
    v = made.to_qkv(x)[..., 8:]
    # The same positions in another order: attention's part is moved with them, and the kernels stay.
    order = torch.randperm(15, generator=torch.Generator().manual_seed(2))
    moved = x.flatten(1, 2)[:, order].unflatten(1, (3, 5))
    kernels = made.local(x.mean(dim=(1, 2)))
    for given, values in ((x, v), (moved, v.flatten(1, 2)[:, order].unflatten(1, (3, 5)))):
        torch.testing.assert_close(
            made(given) - plain(given), convolved(values, kernels), rtol=1e-9, atol=1e-9
        )


@torch.no_grad()
def test_pitfall_every_sample_has_kernels_of_its_own():
    kernels, v = maps(3, 4, 3, 3), maps(3, 5, 2, 4, seed=1)
    heard = convolved(v, kernels)
    for sample in range(3):
        for channel in range(4):
            alone = torch.nn.functional.conv2d(
                v[sample, None, ..., channel][None], kernels[sample, channel][None, None], padding=1
            )
            torch.testing.assert_close(heard[sample, ..., channel], alone[0, 0], rtol=1e-9, atol=1e-9)
    made, x = layer(4, 2), maps(2, 3, 5, 4)
    torch.testing.assert_close(made(x), torch.cat([made(x[:1]), made(x[1:])]), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_a_channels_kernel_hears_its_head_alone():
    kernels, mean = LocalKernels(6, 3).double(), maps(1, 6)
    changed = mean.clone()
    changed[0, 2:4] += 1  # the second of three heads
    same = (kernels(mean) == kernels(changed)).flatten(2).all(-1)[0]
    assert same.tolist() == [True, True, False, False, True, True]


@torch.no_grad()
def test_pitfall_windows_that_stick_out_count_what_is_on_the_map():
    made, whole, x = layer(6, 2, window=(4, 3)), layer(6, 2), maps(2, 5, 7, 6)
    heard = made(x)
    for rows in (slice(0, 4), slice(4, 5)):
        for columns in (slice(0, 3), slice(3, 6), slice(6, 7)):
            torch.testing.assert_close(
                heard[:, rows, columns], whole(x[:, rows, columns]), rtol=1e-9, atol=1e-9
            )


@torch.no_grad()
def test_sums_over_many_positions_stay_within_float16():
    # Keys and values of about 8, over 56 · 56 positions, would sum up to 200,704.
    made, x = layer(4, 1, local=False, scale=0.0), torch.ones(1, 56, 56, 4, dtype=torch.float64)
    made.to_qkv.bias.fill_(8.0)
    found = made.half()(x.half())
    torch.testing.assert_close(found, torch.full_like(found, 8.0), rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (dict(features="elu"), "features"),
        (dict(window=0), "window is 0"),
        (dict(window=(2, 3, 4)), "window is"),
    ],
)
def test_bad_input_is_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        InLineAttention(8, 2, **options)
