"""What a host's mask says, for computations that know patterns and not masks.

Only two things can be told: that a query sees no later key, and that some keys are padding. A mask that hides
anything else is refused, as is one that adds to the logits.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool
from torch import Tensor

from regardant.core.errors import require
from regardant.host.call import Call


def real_keys(call: Call, *, causal: bool) -> Bool[Tensor, "b n"] | None:
    """Which keys up to the last query's own place (all keys, where order does not count) are no padding.

    None: all of them. The rows of queries that are padding themselves say nothing.
    """
    site, places = call.site, call.places()
    require(call.bias is None, f"{site} adds a bias to its logits, which the rule in its place would drop")
    require(
        call.first_key == 0,
        f"the cache of {site} has dropped its first {call.first_key} keys, but the rule in its place reads "
        "a whole text",
    )
    end = call.past + call.queries if causal else call.keys
    if call.mask is None:
        require(
            causal == call.causal or call.queries == 1,
            f"{site} is {'not ' * causal}causal, but the rule in its place is{' not' * (not causal)}: give "
            "causal=",
        )
        return None
    visible = call.visible()[..., :end]
    require(
        visible.shape[1] == 1 or bool((visible == visible[:, :1]).all()),
        f"the mask of {site} differs by head, but the rule in its place knows order and padding alone",
    )
    if call.mask.dtype != torch.bool:
        added = call.mask.masked_fill(call.mask <= torch.finfo(call.mask.dtype).min / 2, 0)
        require(
            not bool(added.any()),
            f"the mask of {site} adds to the logits, which the rule in its place would drop",
        )
    visible = visible[:, 0].expand(call.batch, call.queries, -1)
    real = visible[:, -1] if causal else visible.any(1)
    expected = real[:, None]
    if causal:
        expected = expected & (torch.arange(end, device=real.device) <= places[:, None])
    rows = real[:, places] if end > int(places[-1]) else torch.ones_like(visible[..., 0])
    require(
        bool((expected == visible)[rows].all()),
        f"the mask of {site} hides more than {'later keys and ' * causal}padding, and the rule in its place "
        f"knows no more than that{'' if causal else ' (where order counts, give causal=True)'}",
    )
    return None if bool(real.all()) else real


def texts(real: Bool[Tensor, "b n"]) -> Iterator[tuple[list[int], slice]]:
    """The samples whose real keys are the same stretch, and that stretch."""
    groups: dict[tuple[int, int], list[int]] = {}
    for sample, (first, count) in enumerate(zip(real.int().argmax(1).tolist(), real.sum(1).tolist())):
        groups.setdefault((first, first + count), []).append(sample)
    for (first, end), samples in groups.items():
        require(
            bool(real[samples, first:end].all()),
            "the padding of a text lies between its tokens, but only padding on its sides can be left out",
        )
        yield samples, slice(first, end)
