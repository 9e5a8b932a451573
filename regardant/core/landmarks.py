"""Landmarks: tokens that stand behind blocks of others and open or close them (Mohtashami & Jaggi, 2023).

Where they stand, how they come into a text, and the softmax in which a block shares out what its landmark
got: plainly, for landmarks anywhere, and fast, for landmarks at equal distances.
"""

from __future__ import annotations

from math import inf

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def insert_landmarks(tokens: Int[Tensor, "b n"], *, block: int, landmark: int) -> Int[Tensor, "b m"]:
    """`landmark` behind every `block` tokens. For labels, insert the label that the loss leaves out."""
    whole = tokens.shape[1] // block * block
    blocks = F.pad(tokens[:, :whole].unflatten(1, (-1, block)), (0, 1), value=landmark)
    return torch.cat([blocks.flatten(1), tokens[:, whole:]], dim=1)


def is_landmark(length: int, *, block: int) -> Bool[Tensor, "n"]:
    """Which positions of a sequence with inserted landmarks hold one."""
    return torch.arange(length) % (block + 1) == block


def grouped_softmax(
    logits: Float[Tensor, "*rows n"], mask: Bool[Tensor, "*rows n"], landmark: Bool[Tensor, "n"]
) -> Float[Tensor, "*rows n"]:
    """The weights as the equation has them, with landmarks anywhere, group by group.

    `mask` is True where a row sees a key; its own block is that of the last key it sees. A landmark counts
    only where something of its block is visible, so that the weights of a row sum to 1.
    """
    section = landmark.cumsum(0) - landmark.long()
    own = torch.where(mask, section, -1).amax(-1, keepdim=True)
    tokens = [mask & (section == group) & ~landmark for group in range(int(section.max()) + 1)]
    opens = torch.stack([each.any(-1) for each in tokens], dim=-1)[..., section]
    gates = mask & (landmark & (section < own) & opens | ~landmark & (section == own))
    share = softmax_where(logits, gates)
    weights = share.masked_fill(landmark, 0)
    for group, each in enumerate(tokens):
        gate = (share * (landmark & (section == group))).sum(-1, keepdim=True)
        weights = weights + gate * softmax_where(logits, each)
    return weights


def softmax_where(logits: Tensor, mask: Tensor) -> Tensor:
    """Over what is visible; zeros where nothing is."""
    none = ~mask.any(-1, keepdim=True)
    return logits.masked_fill(~mask, -inf).masked_fill(none, 0).softmax(-1) * ~none


class BlockSoftmax:
    """The same with a landmark behind every `block` tokens: inside the blocks, and among them.

    The logits are -inf where the mask is False.
    """

    def __init__(self, block: int):
        self.block = block

    def __call__(
        self, logits: Float[Tensor, "*rows n"], mask: Bool[Tensor, "*rows n"]
    ) -> Float[Tensor, "*rows n"]:
        n, width = logits.shape[-1], self.block + 1
        mask = unrepeated(mask)
        at = torch.arange(n, device=logits.device)
        own = (mask * (at + 1)).amax(-1, keepdim=True) - 1
        blocks = (0, -n % width)
        logits = F.pad(logits, blocks, value=-inf).unflatten(-1, (-1, width))
        mask = F.pad(mask, blocks).unflatten(-1, (-1, width))
        none = ~mask[..., :-1].any(-1, keepdim=True)
        tokens = logits[..., :-1].masked_fill(none, 0)
        # A row's own block stands beside the landmarks with all that it holds.
        own = own // width
        place = own.clamp(min=0)[..., None].expand(*tokens.shape[:-2], 1, self.block)
        total = tokens.gather(-2, place).logsumexp(-1)
        which = torch.arange(logits.shape[-2], device=logits.device)
        here = which == own
        gates = torch.where(here, total, logits[..., -1])
        share = softmax_where(gates, (here | mask[..., -1] & (which < own)) & ~none[..., 0])
        return F.pad(tokens.softmax(-1) * share[..., None], (0, 1)).flatten(-2)[..., :n]


def unrepeated(mask: Bool[Tensor, "*rows n"]) -> Bool[Tensor, "*rows n"]:
    """Of what is the same along an axis because it was expanded, one: it is broadcast all the same."""
    for axis, (size, stride) in enumerate(zip(mask.shape[:-1], mask.stride())):
        if size > 1 and stride == 0:
            mask = mask.narrow(axis, 0, 1)
    return mask
