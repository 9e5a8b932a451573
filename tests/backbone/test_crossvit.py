"""CrossViT: the visits of the class tokens, and the dossier's pitfalls."""

import pytest
import torch
from torch import nn

from regardant.backbone.crossvit import CrossViT, Round, Visit
from regardant.core.record import Record


def tokens(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_pitfall_a_visit_is_the_papers():
    """The norm is over the visitor and the patches alike; the residual lies within the other's width."""
    visit = Visit(6, 8, 2).double()
    visitor, patches = tokens(3, 1, 6), tokens(3, 5, 8, seed=1)
    norm, act, linear = visit.leave
    projected = linear(act(norm(visitor)))
    z = visit.norm(torch.cat([projected, patches], dim=1))
    q, k, v = visit.to_q(z[:, :1]), visit.to_k(z), visit.to_v(z)
    heard = []
    for at in (slice(4), slice(4, 8)):
        weights = (q[..., at] @ k[..., at].mT / 2).softmax(dim=-1)
        heard.append(weights @ v[..., at])
    y = projected + visit.to_out(torch.cat(heard, dim=-1))
    norm, act, linear = visit.come_back
    torch.testing.assert_close(visit(visitor, patches), linear(act(norm(y))))


@torch.no_grad()
def test_pitfall_nothing_goes_around_the_way_back():
    visit = Visit(6, 8, 2).double()
    nn.init.zeros_(visit.come_back[2].weight), nn.init.zeros_(visit.come_back[2].bias)
    assert not visit(tokens(2, 1, 6), tokens(2, 5, 8)).any()


@torch.no_grad()
def test_pitfall_visits_are_made_at_once_and_leave_the_patches_alone():
    part = Round((6, 8), (2, 2), (0, 0), expansion=2, fuse=True, rates=[0.0]).double()
    given = [tokens(2, 5, 6), tokens(2, 3, 8, seed=1)]
    first, second = part(given, record=Record(), plainly=False)
    torch.testing.assert_close(first[:, :1], part.visits[0](given[0][:, :1], given[1][:, 1:]))
    torch.testing.assert_close(second[:, :1], part.visits[1](given[1][:, :1], given[0][:, 1:]))
    assert torch.equal(first[:, 1:], given[0][:, 1:]) and torch.equal(second[:, 1:], given[1][:, 1:])


@torch.no_grad()
def test_pitfall_logits_are_averaged():
    model = CrossViT(**CrossViT.small[0]).double().eval()
    images = tokens(2, 3, 16, 16)
    found, _ = model.tokens(images, record=Record(), plainly=False)
    logits = [head(x[:, 0]) for head, x in zip(model.heads, found)]
    torch.testing.assert_close(model(images), (logits[0] + logits[1]) / 2)


@torch.no_grad()
def test_pitfall_an_image_is_resized_to_whole_patches_and_not_cut():
    model = CrossViT(**CrossViT.small[0]).double().eval()
    sizes = {}
    for side in (16, 17, 24):
        branches = [branch(tokens(1, 3, side, 32), p) for branch, p in zip(model.branches, model.proportions)]
        sizes[side] = [size for _, size in branches]
    # Patches of 4 on images of 20 for each 16, and patches of 8.
    assert sizes == {16: [(5, 10), (2, 4)], 17: [(6, 10), (3, 4)], 24: [(8, 10), (3, 4)]}
    images = tokens(1, 3, 17, 32).requires_grad_()
    with torch.enable_grad():
        (felt,) = torch.autograd.grad(model(images).square().sum(), images)
    assert felt.abs().amax(dim=(0, 1)).gt(0).all()


@torch.no_grad()
def test_without_fusion_the_branches_meet_in_their_logits_alone():
    model = CrossViT(**CrossViT.small[1]).double().eval()
    assert not any(len(each.visits) for each in model.rounds)
    images = tokens(2, 1, 32, 32)
    before, _ = model.tokens(images, record=Record(), plainly=False)
    model.branches[0].positions.table += tokens(*model.branches[0].positions.table.shape)
    after, _ = model.tokens(images, record=Record(), plainly=False)
    assert torch.equal(before[1], after[1]) and not torch.allclose(before[0], after[0])


@torch.no_grad()
def test_released_positions_are_parted():
    model = CrossViT(**CrossViT.small[0])
    table = torch.arange(5.0)[:, None].expand(1, 5, 12)
    with pytest.raises(ValueError, match="is missing there") as said:
        model.load_official({"pos_embed.1": table})
    assert "branches.1.positions.table" not in str(said.value)
    assert "branches.1.class_position" not in str(said.value)


@pytest.mark.parametrize(
    ("own", "sentence"),
    [
        ({"fusion": "crossed"}, "no fusion is called 'crossed'; the nearest are cross"),
        ({"stem": "patch"}, "no stem is called 'patch'; the nearest are patches"),
        ({"images": (22, 16)}, "images holds 22, which patches of 4 do not fill"),
        ({"depths": (1,)}, r"are of lengths \[1, 2\]"),
        ({"stem": "convolutions"}, "patches holds 4, but convolutions are known for 12, 16"),
    ],
)
def test_bad_input_is_one_sentence(own, sentence):
    with pytest.raises(ValueError, match=sentence):
        CrossViT(**dict(CrossViT.small[0]) | own)
    with pytest.raises(ValueError, match="a single branch has no other to visit"):
        CrossViT(widths=(8,), heads=(2,), depths=(1,), patches=(4,), images=(16,))
