"""Do embeddings of long texts bunch together, and does a temperature on the attention keep them apart?

    python examples/long_texts.py                 # under a minute on a laptop; writes long_texts.png

The same texts, cut after 16 to 256 tokens, go through all-MiniLM-L6-v2, as it is and with every attention
logit divided by a temperature. Nothing is trained, and when the block ends the model is what it was. On these
texts the answers are yes, and no: a paper's idea is one line to try.
"""

import matplotlib.pyplot as plt
import torch

import regardant
from regardant.edit.language.temp_scale import TempScale
from regardant.lens.low_pass import likeness
from regardant.task.bytes import library_folder, source_files
from regardant.world.pretrained import minilm

LENGTHS = (16, 32, 64, 128, 256)
model, tokenizer = minilm()

# Forty modules of the standard library, from their first words on.
sources = [library_folder() / path for path in source_files(library_folder())[::12]]
texts = [
    path.read_text(encoding="utf-8", errors="replace")[:4000]
    for path in sources
    if path.stat().st_size > 4000
]
ids = tokenizer(texts[:40], truncation=True, max_length=256, return_tensors="pt").input_ids
if ids.shape[1] < 256:
    raise SystemExit("the texts are too short")


@torch.no_grad()
def embed(length: int) -> torch.Tensor:
    return model(input_ids=ids[:, :length]).last_hidden_state.mean(dim=1)


figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
for temperature in (1.0, 0.9, 0.8, 0.7):
    with regardant.apply(model, TempScale(temperature)):
        found = [likeness(embed(length)) for length in LENGTHS]
    print(f"τ = {temperature}: " + ", ".join(f"{n} tokens {value:.3f}" for n, value in zip(LENGTHS, found)))
    axes.plot(LENGTHS, found, marker="o", label=f"τ = {temperature:g}")
axes.set(
    xscale="log", xticks=LENGTHS, xticklabels=LENGTHS, xlabel="tokens", ylabel="mean cosine of two texts"
)
axes.minorticks_off()
axes.legend(frameon=False)
axes.spines[["top", "right"]].set_visible(False)
figure.savefig("long_texts.png", dpi=150)
print("the picture is long_texts.png")
