"""Attention as cascades: the same softmax in three, two and one passes over the keys, and its relatives.

Ranks: e the width of queries and keys, f that of values, p the queries, m the keys (cut into m1 tiles of
m0). Inputs: Q[e,p] (scaled), K[e,m] and V[f,m]; K[e,m1,m0] and V[f,m1,m0] where the keys are tiled.
"""

from __future__ import annotations

from collections.abc import Mapping

from regardant.core.errors import unknown
from regardant.lens.cascade import Cascade

TILES = {"m": ("m1", "m0")}

_LOGITS = "QK[m,p] = sum[e](Q[e,p] * K[e,m])\n"
_STABLE = (
    _LOGITS
    + """
    GM[p] = max[m](QK[m,p])
    SN[m,p] = exp(QK[m,p] - GM[p])
    SD[p] = sum[m](SN[m,p])
"""
)
_TILED = """
    QK[m1,m0,p] = sum[e](Q[e,p] * K[e,m1,m0])
    LM[m1,p] = max[m0](QK[m1,m0,p])
"""
_LOCAL = (
    _TILED
    + """
    SLN[m1,m0,p] = exp(QK[m1,m0,p] - LM[m1,p])
    SLD[m1,p] = sum[m0](SLN[m1,m0,p])
    GM[p] = max[m1](LM[m1,p])
    CF[m1,p] = exp(LM[m1,p] - GM[p])
"""
)
_RUNNING = (
    _TILED
    + """
    RM[0,p] = -inf
    RD[0,p] = 0
    RM[m1+1,p] = max(RM[m1,p], LM[m1,p])
    SLN[m1,m0,p] = exp(QK[m1,m0,p] - RM[m1+1,p])
    SLD[m1,p] = sum[m0](SLN[m1,m0,p])
    PRM[m1,p] = exp(RM[m1,p] - RM[m1+1,p])
    RD[m1+1,p] = RD[m1,p] * PRM[m1,p] + SLD[m1,p]
"""
)

TEXTS: Mapping[str, str] = {
    "naive": _LOGITS
    + """
    SN[m,p] = exp(QK[m,p])
    SD[p] = sum[m](SN[m,p])
    A[m,p] = SN[m,p] / SD[p]
    AV[f,p] = sum[m](A[m,p] * V[f,m])
    """,
    "3-pass": _STABLE
    + """
    A[m,p] = SN[m,p] / SD[p]
    AV[f,p] = sum[m](A[m,p] * V[f,m])
    """,
    "3-pass deferred": _STABLE
    + """
    SNV[f,p] = sum[m](SN[m,p] * V[f,m])
    AV[f,p] = SNV[f,p] / SD[p]
    """,
    "2-pass": _LOCAL
    + """
    SD[p] = sum[m1](SLD[m1,p] * CF[m1,p])
    A[m1,m0,p] = SLN[m1,m0,p] * CF[m1,p] / SD[p]
    AV[f,p] = sum[m1,m0](A[m1,m0,p] * V[f,m1,m0])
    """,
    "1-pass": _RUNNING
    + """
    RNV[0,f,p] = 0
    SLNV[m1,f,p] = sum[m0](SLN[m1,m0,p] * V[f,m1,m0])
    RNV[m1+1,f,p] = RNV[m1,f,p] * PRM[m1,p] + SLNV[m1,f,p]
    AV[f,p] = RNV[M1,f,p] / RD[M1,p]
    """,
    "split": _LOCAL
    + """
    SD[p] = sum[m1](SLD[m1,p] * CF[m1,p])
    SLNV[m1,f,p] = sum[m0](SLN[m1,m0,p] * V[f,m1,m0])
    SNV[f,p] = sum[m1](SLNV[m1,f,p] * CF[m1,p])
    AV[f,p] = SNV[f,p] / SD[p]
    """,
    "clipped": _RUNNING
    + """
    A[m1,m0,p] = exp(QK[m1,m0,p] - RM[M1,p]) / RD[M1,p]
    C[m1,m0,p] = min(max((zeta - gamma) * A[m1,m0,p] + gamma, 0), 1)
    AV[f,p] = sum[m1,m0](C[m1,m0,p] * V[f,m1,m0])
    """,
    "sigmoid": _LOGITS
    + """
    A[m,p] = sigmoid(QK[m,p])
    AV[f,p] = sum[m](A[m,p] * V[f,m])
    """,
    "softplus re-weighted": _LOGITS
    + """
    SN[m,p] = softplus(sharpness * QK[m,p])
    SD[p] = sum[m](SN[m,p])
    R[m,p] = relu(keys * SN[m,p] / SD[p] - offset) ** power
    RD[p] = sum[m](R[m,p])
    RNV[f,p] = sum[m](R[m,p] * V[f,m])
    AV[f,p] = RNV[f,p] / RD[p]
    """,
    "linear": """
    KV[e,f] = sum[m](K[e,m] * V[f,m])
    AV[f,p] = sum[e](Q[e,p] * KV[e,f])
    """,
}
"""Name → the cascade's lines.

`3-pass` is the softmax of frameworks and of FLAT, `2-pass` keeps each tile's own maximum, `1-pass` is the
online softmax of the FlashAttention family, `split` the merge of parts that were worked out side by
side. `clipped` cuts the weights after the division, so that no way of deferring it saves a pass.
"""

_TILED_NAMES = frozenset({"2-pass", "1-pass", "split", "clipped"})


def attention_cascade(name: str) -> Cascade:
    """The cascade of this name."""
    if name not in TEXTS:
        raise unknown("cascade", name, TEXTS)
    return Cascade.read(TEXTS[name], tiles=TILES if name in _TILED_NAMES else None)
