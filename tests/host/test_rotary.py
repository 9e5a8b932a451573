"""Queries and keys before their positions were turned in."""

from __future__ import annotations

import pytest
import torch

from regardant.host.seam import Seam
from regardant.world.families import FAMILIES


class Taking:
    """Keeps what calls say of queries and keys without positions."""

    def __init__(self):
        self.found = {}

    def stages(self, site):
        return frozenset(["read"])

    def read(self, call, heads, weights, site, run):
        self.found.setdefault(site.name, []).append(call.unturned())


def taken(model, *passes):
    reader = Taking()
    Seam.of(model).enter([reader])
    try:
        with torch.no_grad():
            cache = None
            for ids in passes:
                cache = model(ids, past_key_values=cache, use_cache=True).past_key_values
    finally:
        Seam.of(model).leave([reader])
    return reader.found


@pytest.mark.parametrize("name", ["llama", "qwen2", "mistral"])
def test_they_are_what_the_projections_gave(name):
    model, projected = FAMILIES[name].make(), {}
    for number, layer in enumerate(model.model.layers):
        for part in ("q_proj", "k_proj"):

            def keep(module, args, output, at=(number, part)):
                projected.setdefault(at, []).append(output.unflatten(-1, (-1, 16)).transpose(1, 2))

            getattr(layer.self_attn, part).register_forward_hook(keep)
    ids = torch.randint(5, 80, (2, 11), generator=torch.Generator().manual_seed(0))
    found = taken(model, ids[:, :8], ids[:, 8:9], ids[:, 9:])
    for number in range(4):
        for at, (q, k) in enumerate(found[f"model.layers.{number}.self_attn"]):
            torch.testing.assert_close(q, projected[number, "q_proj"][at], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(k, projected[number, "k_proj"][at], atol=1e-5, rtol=1e-5)
    assert not any(layer.self_attn._forward_pre_hooks for layer in model.model.layers)


def test_where_nothing_is_turned_that_is_said():
    with pytest.raises(ValueError, match="GPT2Attention at layer 0 of main has no rotary positions"):
        taken(FAMILIES["gpt2"].make(), torch.arange(5, 9)[None])
