"""The names that layers usually give to their arguments, and what can be read off a made layer."""

from __future__ import annotations

import inspect

from torch import nn

NAMES = {
    "dim": ("dim", "channels", "embed_dim", "d_model", "hidden_size", "hidden_dim", "model_dim", "dim_model",
            "embedding_dim", "n_embd", "in_channels", "in_features", "width", "features", "query_dim"),
    "heads": ("heads", "num_heads", "n_heads", "nhead", "n_head", "nheads", "num_attention_heads"),
    "causal": ("causal", "is_causal"),
    "kv_heads": ("kv_heads", "num_kv_heads", "n_kv_heads", "num_key_value_heads"),
    "context_dim": ("context_dim",),
    "pattern": ("pattern",),
    "position": ("position",),
    "max_length": ("max_length",),
}  # fmt: skip
"""The usual names of what a constructor may take, ours first."""
NOT_OWN = {"head_dim", "scale", "rule", "grid_pattern", "bias", "seed"} | {
    name for names in NAMES.values() for name in names
}
TRIPLES = (("q", "k", "v"), ("query", "key", "value"), ("queries", "keys", "values"))


def width_of(layer: nn.Module) -> int | None:
    for name in (*NAMES["dim"], *(f"_{name}" for name in NAMES["dim"])):
        value = getattr(layer, name, None)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    for module in layer.modules():
        for name in ("embed_dim", "in_features", "in_channels", "num_features", "input_size"):
            if isinstance(getattr(module, name, None), int):
                return getattr(module, name)
        if isinstance(module, nn.LayerNorm):
            return module.normalized_shape[-1]
    return None


def heads_of(layer: nn.Module) -> int | None:
    for module in layer.modules():
        for name in NAMES["heads"]:
            if isinstance(value := getattr(module, name, None), int):
                return value
    return None


def takes_triple(layer: nn.Module) -> bool:
    """Whether `forward` takes queries, keys and values."""
    parameters = list(inspect.signature(layer.forward).parameters)
    return tuple(parameters[:3]) in TRIPLES
