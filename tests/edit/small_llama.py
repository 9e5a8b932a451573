"""A small Llama of four query heads and two key heads, and two texts that it reads."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

IDS = torch.randint(50, (2, 11), generator=torch.Generator().manual_seed(1))


def small_llama(layers: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return LlamaForCausalLM(config).double().eval()
