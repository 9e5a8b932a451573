"""Interim: dense softmax under a pattern."""

import torch


def attend_rows(q, k, v, mask=None, *, scale=None, bias=None, normaliser=None):
    """Attention of given rows under a given mask."""
    b, h, m, d = q.shape
    share = h // k.shape[1]
    k, v = k.repeat_interleave(share, dim=1), v.repeat_interleave(share, dim=1)
    logits = q @ k.transpose(-1, -2) * (d**-0.5 if scale is None else scale)
    if bias is not None:
        logits = logits + bias.to(logits.dtype)
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf"))
    if normaliser is not None:
        return normaliser(logits, mask) @ v
    if mask is None:
        return logits.softmax(-1) @ v
    some = mask.any(-1, keepdim=True)
    weights = torch.where(some, logits, torch.zeros_like(logits)).softmax(-1)
    return torch.where(some, weights, torch.zeros_like(weights)) @ v


def attend_dense(q, k, v, pattern=None, *, scale=None, bias=None, normaliser=None):
    i, j = torch.arange(q.shape[2], device=q.device), torch.arange(k.shape[2], device=q.device)
    mask = None if pattern is None else pattern.block(i, j, batch=q.shape[0], heads=q.shape[1])
    return attend_rows(
        q, k, v, mask, scale=scale, bias=None if bias is None else bias.block(i, j), normaliser=normaliser
    )


def attend(q, k, v, pattern=None, *, scale=None, bias=None, normaliser=None, plan=None, offset=0):
    return attend_dense(q, k, v, pattern, scale=scale, bias=bias, normaliser=normaliser)
