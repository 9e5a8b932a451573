"""Which token plays which part: system prompt, prompt, image; what comes behind the prompt is generated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from regardant.core.errors import require, unknown

GENERATED = "generated"


class Roles:
    """A role for each token of the prompts [b, n]; tokens behind the prompt are "generated".

        Roles.of_ids(inputs.input_ids, image=processor.image_token_id, system=system_ids)
        Roles({"system": slice(0, 24), "image": slice(24, 600), "prompt": slice(600, 640)})

    Every token that no role was given is "prompt".
    """

    def __init__(self, spans: Mapping[str, slice | Sequence[int] | Tensor], *, length: int | None = None):
        require(len(spans) > 0, "spans is empty, but at least one role must be told")
        require(
            GENERATED not in spans, f"spans names {GENERATED!r}, but that is what comes behind the prompt"
        )
        ends = [
            span.stop
            if isinstance(span, slice)
            else span.shape[-1]
            if isinstance(span, Tensor)
            else max(span) + 1
            for span in spans.values()
        ]
        require(None not in ends, "spans holds a slice without an end: slice(start, stop) is wanted")
        self.length = max(ends) if length is None else length
        require(
            max(ends) <= self.length,
            f"spans reaches to place {max(ends)}, but the prompt has {self.length} tokens",
        )
        self._masks: dict[str, Tensor] = {}
        for name, span in spans.items():
            if isinstance(span, Tensor):
                require(
                    span.dtype == torch.bool and span.ndim == 2,
                    f"the role {name!r} is {span.dtype} {list(span.shape)}, but a mask is bool [b, n]",
                )
                mask = torch.zeros(len(span), self.length, dtype=torch.bool)
                mask[:, : span.shape[1]] = span.cpu()
            else:
                mask = torch.zeros(1, self.length, dtype=torch.bool)
                mask[:, span if isinstance(span, slice) else list(span)] = True
            self._masks[name] = mask
        taken = torch.zeros(1, self.length, dtype=torch.bool)
        for name, mask in self._masks.items():
            require(
                not (taken & mask).any(),
                f"the role {name!r} is given to tokens that already have another role",
            )
            taken = taken | mask
        self._masks["prompt"] = self._masks.get("prompt", torch.zeros(1, 1, dtype=torch.bool)) | ~taken

    @classmethod
    def of_ids(
        cls, ids: Int[Tensor, "b n"], *, image: int | None = None, system: Sequence[int] | None = None
    ) -> Roles:
        """Roles read off the tokens: `image` is the id of the processor's image token, `system` the ids
        that every prompt begins with (behind padding on the left)."""
        require(ids.ndim == 2, f"ids is {list(ids.shape)}, but prompts are [batch, length]")
        ids, spans = ids.cpu(), {}
        if image is not None:
            spans["image"] = ids == image
            require(
                bool(spans["image"].any(dim=1).all()),
                f"the image token {image} is not in every prompt: its role cannot be told from the ids",
            )
        if system is not None:
            wanted = torch.as_tensor(list(system))
            require(len(wanted) > 0, "system is empty, but it is the ids that every prompt begins with")
            mask = torch.zeros_like(ids, dtype=torch.bool)
            for row, sample in enumerate(ids):
                starts = [
                    at for at in range(len(sample) - len(wanted) + 1)
                    if torch.equal(sample[at : at + len(wanted)], wanted)
                ]  # fmt: skip
                require(
                    len(starts) > 0,
                    f"prompt {row} does not hold the {len(wanted)} ids of the system prompt side by side: "
                    "its role cannot be told from the ids",
                )
                mask[row, starts[0] : starts[0] + len(wanted)] = True
            spans["system"] = mask
        return cls(spans, length=ids.shape[1])

    @property
    def names(self) -> list[str]:
        return [*self._masks, GENERATED]

    def mask(self, name: str, keys: int, *, batch: int | None = None) -> Bool[Tensor, "b n"]:
        """Which of the first `keys` places have this role; repeated where a search has several beams."""
        if name == GENERATED:
            mask = torch.zeros(1, self.length, dtype=torch.bool)
        elif name in self._masks:
            mask = self._masks[name]
        else:
            raise unknown("role", name, self.names)
        if batch is not None and mask.shape[0] != batch:
            require(
                batch % mask.shape[0] == 0,
                f"the roles are of {mask.shape[0]} prompts, but the model reads {batch}",
            )
            mask = mask.repeat_interleave(batch // mask.shape[0], dim=0)
        if keys <= self.length:
            return mask[:, :keys]
        behind = torch.full((mask.shape[0], keys - self.length), name == GENERATED)
        return torch.cat([mask, behind], dim=1)
