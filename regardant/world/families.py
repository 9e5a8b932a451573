"""Small models of transformers' architectures, from configs, with weights that a seed draws: what the seam
and every edit are proved on.

    family = FAMILIES["llama"]
    model = family.make()
    inputs = family.inputs(model, batch=2, length=12)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

VOCABULARY = 96
PAD = 0
IMAGE = 90
"""The id that stands for a piece of an image, in the models that read both."""

_IDS = dict(vocab_size=VOCABULARY, pad_token_id=PAD, bos_token_id=1, eos_token_id=2)
_SIZES = dict(hidden_size=64, intermediate_size=96, num_attention_heads=4)
_TEXT = _IDS | _SIZES | dict(num_hidden_layers=4, max_position_embeddings=256)
_GROUPED = _TEXT | dict(num_key_value_heads=2)
_GEMMA = _GROUPED | dict(
    head_dim=16, sliding_window=6, query_pre_attn_scalar=16,
    layer_types=["sliding_attention", "full_attention"] * 2,
)  # fmt: skip
_GPT2 = _IDS | dict(n_embd=64, n_layer=4, n_head=4, n_positions=256)
_BAMBA = _GROUPED | dict(
    mamba_n_heads=8, mamba_d_head=16, mamba_d_state=16, mamba_n_groups=1, mamba_chunk_size=16,
    attn_layer_indices=[1, 3],
)  # fmt: skip
_VISION = _SIZES | dict(num_hidden_layers=4, image_size=32, patch_size=8)
_SWIN = dict(image_size=32, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4)
_SHORT = _TEXT | dict(max_position_embeddings=64)
_CLIP = dict(
    text_config=_SHORT | dict(projection_dim=32), vision_config=_VISION | dict(projection_dim=32),
    projection_dim=32,
)  # fmt: skip
_SIGLIP = dict(text_config=_SHORT, vision_config=_VISION)
_T5 = _IDS | dict(d_model=64, d_kv=16, d_ff=96, num_layers=4, num_heads=4, decoder_start_token_id=0)
_TWO_SIDED = _IDS | dict(
    d_model=64, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=96, decoder_ffn_dim=96,
)  # fmt: skip
_BART = _TWO_SIDED | dict(
    encoder_layers=4, decoder_layers=4, max_position_embeddings=128, decoder_start_token_id=2,
    forced_eos_token_id=None,
)  # fmt: skip
_WHISPER = _TWO_SIDED | dict(
    encoder_layers=4, decoder_layers=4, num_mel_bins=8, max_source_positions=20, max_target_positions=64,
    decoder_start_token_id=3, suppress_tokens=None, begin_suppress_tokens=None,
)  # fmt: skip
_LLAVA = dict(
    text_config=_GROUPED | dict(model_type="llama"),
    vision_config=_VISION | dict(model_type="clip_vision_model"),
    image_token_id=IMAGE, vision_feature_layer=-1,
)  # fmt: skip
_QWEN2_VL = dict(
    text_config=_GROUPED
    | dict(rope_parameters=dict(rope_type="default", mrope_section=[2, 3, 3], rope_theta=10000.0)),
    vision_config=dict(
        depth=2, embed_dim=32, hidden_size=64, num_heads=2, patch_size=8, mlp_ratio=2, spatial_merge_size=2,
        temporal_patch_size=2,
    ),
    image_token_id=IMAGE, video_token_id=91, vision_start_token_id=92, vision_end_token_id=93,
)  # fmt: skip


@dataclass(frozen=True)
class Family:
    """An architecture: its class, its config, what its models read.

    `reads` is "text" (a decoder that continues it), "masked" (an encoder of text), "image", "pair" (image and
    text side by side), "both" (image within text), "translation" (encoder and decoder), "sound".
    """

    name: str
    model: str
    config: str
    settings: dict[str, Any]
    reads: str
    static: bool = True
    """Whether its models can use a static cache."""

    def make(self, *, attention: str = "sdpa", seed: int = 0, **settings: Any) -> nn.Module:
        """A model in evaluation mode, the same each time. Weights are spread wide enough to matter."""
        import transformers

        config = getattr(transformers, self.config)(**(self.settings | settings))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config._attn_implementation = attention
            model = getattr(transformers, self.model)(config)
            with torch.no_grad():
                for weight in model.parameters():
                    if weight.ndim > 1:
                        weight.normal_(0, 1.2 * weight.shape[-1] ** -0.5)
        return model.eval()

    @property
    def causal(self) -> bool:
        """Whether its models write text, a token after the other."""
        return self.reads in ("text", "both", "translation", "sound")

    @property
    def across(self) -> bool:
        """Whether a decoder looks at an encoder's states."""
        return self.reads in ("translation", "sound")

    def inputs(self, *, batch: int = 2, length: int = 12, seed: int = 0) -> dict[str, Tensor]:
        """What a forward pass takes; without padding."""
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(5, 80, (batch, length), generator=generator)
        real = torch.ones_like(ids)
        pixels = torch.randn(batch, 3, 32, 32, generator=generator)
        if self.reads in ("text", "masked"):
            return dict(input_ids=ids, attention_mask=real)
        if self.reads == "image":
            return dict(pixel_values=pixels)
        if self.reads == "pair":
            return dict(input_ids=ids, pixel_values=pixels) | (
                {} if self.name == "siglip" else dict(attention_mask=real)
            )
        if self.reads == "translation":
            return dict(input_ids=ids, attention_mask=real, decoder_input_ids=ids.flip(1)[:, :8])
        if self.reads == "sound":
            sounds = torch.randn(batch, 8, 40, generator=generator)
            return dict(input_features=sounds, decoder_input_ids=ids[:, :8])
        return self._with_image(ids, pixels, generator)

    def _with_image(self, ids: Tensor, pixels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Text with an image's tokens within, the same places in each sample."""
        batch = len(ids)
        if self.name == "qwen2-vl":
            grid = torch.tensor([[1, 4, 4]] * batch)
            pixels = torch.randn(batch * 16, 3 * 2 * 8 * 8, generator=generator)
            count, given = 4, dict(pixel_values=pixels, image_grid_thw=grid)
        else:
            count, given = 16, dict(pixel_values=pixels)
        ids = torch.cat([ids[:, :3], torch.full((batch, count), IMAGE), ids[:, 3:]], dim=1)
        given |= dict(input_ids=ids, attention_mask=torch.ones_like(ids))
        if self.name == "qwen2-vl":
            given["mm_token_type_ids"] = (ids == IMAGE).long()
        return given

    @property
    def logits(self) -> Callable[[Any], Tensor]:
        """What to compare: the scores, or what comes nearest to them in this family's outputs."""

        def read(output: Any) -> Tensor:
            for name in ("logits", "logits_per_image", "last_hidden_state"):
                if getattr(output, name, None) is not None:
                    return getattr(output, name)
            raise ValueError(f"{self.name} gives neither scores nor a last hidden state")

        return read


def _family(name: str, model: str, config: str, settings: dict[str, Any], reads: str, **more: Any) -> Family:
    return Family(name, model, config, settings, reads, **more)


FAMILIES = {
    family.name: family
    for family in (
        _family("llama", "LlamaForCausalLM", "LlamaConfig", _GROUPED, "text"),
        _family("qwen2", "Qwen2ForCausalLM", "Qwen2Config", _GROUPED, "text"),
        _family("qwen3", "Qwen3ForCausalLM", "Qwen3Config", _GROUPED | dict(head_dim=16), "text"),
        _family("gemma3", "Gemma3ForCausalLM", "Gemma3TextConfig", _GEMMA, "text"),
        _family("mistral", "MistralForCausalLM", "MistralConfig", _GROUPED | dict(sliding_window=6), "text"),
        _family("gpt2", "GPT2LMHeadModel", "GPT2Config", _GPT2, "text"),
        _family("gpt-neox", "GPTNeoXForCausalLM", "GPTNeoXConfig", _TEXT, "text"),
        _family("bamba", "BambaForCausalLM", "BambaConfig", _BAMBA, "text", static=False),
        _family("bert", "BertForMaskedLM", "BertConfig", _TEXT, "masked"),
        _family("roberta", "RobertaForMaskedLM", "RobertaConfig", _TEXT, "masked"),
        _family("deberta", "DebertaV2ForMaskedLM", "DebertaV2Config", _TEXT, "masked"),
        _family("vit", "ViTForImageClassification", "ViTConfig", _VISION, "image"),
        _family("dinov2", "Dinov2ForImageClassification", "Dinov2Config", _VISION, "image"),
        _family("swin", "SwinForImageClassification", "SwinConfig", _SWIN, "image"),
        _family("clip", "CLIPModel", "CLIPConfig", _CLIP, "pair"),
        _family("siglip", "SiglipModel", "SiglipConfig", _SIGLIP, "pair"),
        _family("t5", "T5ForConditionalGeneration", "T5Config", _T5, "translation"),
        _family("bart", "BartForConditionalGeneration", "BartConfig", _BART, "translation"),
        _family("whisper", "WhisperForConditionalGeneration", "WhisperConfig", _WHISPER, "sound"),
        _family("llava", "LlavaForConditionalGeneration", "LlavaConfig", _LLAVA, "both"),
        _family("qwen2-vl", "Qwen2VLForConditionalGeneration", "Qwen2VLConfig", _QWEN2_VL, "both"),
    )
}
