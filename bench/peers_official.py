"""Peers that no registry has: authors' repositories, read from checkouts.

    REGARDANT_OFFICIAL=<folder> python -m bench.peers --only official --lengths 128,256,512,1024,2048

The folder holds checkouts under the names of their repositories: nanoTransNormer (Doraemonzzz),
landmark-attention (epfml) and MusicTransformer-Pytorch (gwinndr: the authors' own code is for TensorFlow,
and this port is used most). Without them the rows are skipped, with the reason. Nothing of theirs is changed
or kept here; what they import and do not need (a tokeniser, kernels for GPUs) may be missing.
"""

from __future__ import annotations

import importlib
import os
import sys
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from torch import Tensor, nn

import regardant
from bench.contest import Contest
from bench.peers_layers import DIM, HEADS, give, tokens
from regardant.core.errors import require

VARIABLE = "REGARDANT_OFFICIAL"
LONGEST = 2048
"""All of them write out scores for every pair."""
BLOCK = 50
"""Tokens between landmarks."""
LAYER, LAYERS = 1, 4
"""Which layer of TransNormer: not the first, which alone turns queries and keys."""


def missing(repository: str) -> str | None:
    """Why a repository cannot be read, or None."""
    folder = os.environ.get(VARIABLE)
    if not folder:
        return f"{VARIABLE} names no folder with a checkout of {repository}"
    if not (Path(folder) / repository).is_dir():
        return f"the folder in {VARIABLE} holds no {repository}"
    return None


@contextmanager
def reading(repository: str, *folders: str, without: tuple[str, ...] = ()):
    """Import from a checkout, with empty modules for what it imports and need not have."""
    reason = missing(repository)
    require(reason is None, f"{reason}, so that it cannot be measured")
    paths = [str(Path(os.environ[VARIABLE]) / repository / folder) for folder in folders or ("",)]
    absent = {name: ModuleType(name) for name in without if name not in sys.modules}
    before = set(sys.modules)
    for module in absent.values():
        module.lightning_attention = None
    sys.modules.update(absent)
    sys.path[:0] = paths
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        for path in paths:
            sys.path.remove(path)
        for name in [*absent, *(set(sys.modules) - before)]:
            # Names such as "models" belong to whoever is imported next.
            if name in absent or any(
                str(getattr(sys.modules[name], "__file__", "")).startswith(p) for p in paths
            ):
                sys.modules.pop(name, None)


def transnormer_against_naive(length: int) -> Contest:
    """A layer with the authors' decay, against their path without kernels; the mask is made beforehand."""
    with reading("nanoTransNormer", without=("transnormer.lightning_attention",)):
        model = importlib.import_module("transnormer.model")
        config = SimpleNamespace(n_embd=DIM, n_head=HEADS, bias=False, use_triton=False)
        theirs = model.NormLinearAttention(config, use_lrpe=False).train()
    ours = regardant.create("transnormerllm", dim=DIM, heads=HEADS, layer=LAYER, layers=LAYERS, decay="alibi")
    q, k, v, gate = theirs.qkvu_proj.weight.chunk(4)
    give(ours, q=q, k=k, v=v, gate=gate, out=theirs.out_proj.weight)
    slopes = torch.tensor([2 ** (-8 * (head + 1) / HEADS) for head in range(HEADS)]).view(-1, 1, 1)
    slopes = slopes * (1 - LAYER / (LAYERS - 1) + 1e-5)
    at = torch.arange(length)
    mask = (at - at[:, None]).float().masked_fill(at > at[:, None], -torch.inf)
    x = tokens(length)
    used = (list(ours.parameters()), list(theirs.parameters()))

    def peer(x: Tensor) -> Tensor:
        return theirs(x, attn_mask=mask, slope_rate=slopes)[0]

    return Contest(ours, peer, (x,), used, exact=ours.reference)


class InPlace:
    """No positions."""

    def adapt_queries(self, q: Tensor, **_) -> Tensor:
        return q

    adapt_keys = adapt_attention_before_softmax = adapt_queries


def landmarks_against_official(length: int) -> Contest:
    """The grouped softmax as it is trained, a landmark behind every so many tokens."""
    with reading("landmark-attention", "lm_benchmark", without=("tiktoken",)):
        model = importlib.import_module("models.landmark")
        config = SimpleNamespace(
            n_embd=DIM, n_head=HEADS, bias=False, dropout=0.0, group_dropout=None, sequence_length=length,
            softmax_func="mem_opt", postpone_lm_cache=True, enable_rem_score=False,
            max_groups_for_softmax=length // (BLOCK + 1) + 4,
        )  # fmt: skip
        theirs = model.CausalSelfAttention(config, None)
    ours = regardant.create("landmark-attention", dim=DIM, heads=HEADS, block=BLOCK)
    q, k, v = theirs.c_attn.weight.chunk(3)
    give(ours, q=q, k=k, v=v, out=theirs.c_proj.weight)
    is_landmark = (torch.arange(length) % (BLOCK + 1) == BLOCK)[None]
    used = (list(ours.parameters()), list(theirs.parameters()))

    def peer(x: Tensor) -> Tensor:
        return theirs(x, is_landmark, InPlace(), None, 0)[0]

    return Contest(ours, peer, (tokens(length),), used, exact=ours.reference)


def relative_attention_against_port(length: int) -> Contest:
    """Skewed relative attention; the port's heads share one table, and so do ours here."""
    with reading("MusicTransformer-Pytorch"):
        theirs = importlib.import_module("model.rpr").MultiheadAttentionRPR(
            DIM, HEADS, bias=False, er_len=length
        )
    ours = regardant.create("music-transformer", dim=DIM, heads=HEADS, causal=True, max_distance=length)
    q, k, v = theirs.in_proj_weight.chunk(3)
    give(ours, q=q, k=k, v=v, out=theirs.out_proj.weight)
    ours.rule.table = nn.Parameter(theirs.Er.detach()[None].clone())
    mask = torch.full((length, length), -torch.inf).triu(1)
    used = (list(ours.parameters()), list(theirs.parameters()))

    def peer(x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        return theirs(x, x, x, need_weights=False, attn_mask=mask)[0].transpose(0, 1)

    return Contest(ours, peer, (tokens(length),), used, exact=ours.reference)
