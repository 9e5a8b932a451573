"""Tensors and facts in one safetensors file, written atomically: a training that was killed goes on."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

from regardant.core.errors import require


def available() -> bool:
    """Whether checkpoints can be written here (they need safetensors)."""
    return find_spec("safetensors") is not None


def save(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Whoever reads `path` finds the old checkpoint or the new one, whole, also after a crash."""
    _check_available(path)
    from safetensors.torch import save as to_bytes

    # safetensors refuses tensors that share storage, as tied weights do.
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    content = to_bytes(own, metadata={"facts": json.dumps(dict(facts))})
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the facts of a checkpoint."""
    _check_available(path)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["facts"])
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, facts
    except (SafetensorError, TypeError, KeyError, ValueError) as error:
        raise ValueError(f"the checkpoint {path} cannot be read ({error}): delete it") from error


def _check_available(path: Path) -> None:
    require(
        available(),
        f"checkpoint is {path}, but checkpoints need safetensors: pip install regardant[task]",
    )
