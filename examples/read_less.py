"""How many keys does a language model need, and who finds them?

    python examples/read_less.py                  # about a minute on a laptop; writes read_less.png

SmolLM2-135M reads 640 tokens of a source file while each query may look at so many keys: the first and the
last ones (sink and window), those that HiP finds by halving, or the best there are (the oracle, which looks
at all keys to know). What is lost is measured on every token. The model is not changed: `apply` puts each
edit on, and takes it off.
"""

import matplotlib.pyplot as plt
import torch

import regardant
from regardant.edit.language.hip_attention import HiPAttention
from regardant.edit.language.oracle_keys import OracleKeys
from regardant.edit.language.sink_and_window import SinkAndWindow
from regardant.task.bytes import library_folder
from regardant.world.pretrained import smollm2

BUDGETS = (32, 64, 128)
DEEP = range(3, 30)  # the first three layers stay as they are
EDITS = {
    "sink and window": lambda budget: SinkAndWindow(budget, layers=DEEP),
    "HiP": lambda budget: HiPAttention(budget, window=budget // 4, query_block=1, layers=DEEP),
    "oracle": lambda budget: OracleKeys(budget, layers=DEEP),
}

model, tokenizer = smollm2()
text = (library_folder() / "heapq.py").read_text(encoding="utf-8")
ids = tokenizer(text, return_tensors="pt").input_ids[:, :640]


@torch.no_grad()
def loss() -> float:
    return float(model(input_ids=ids, labels=ids).loss)


full = loss()
print(f"all keys: {full:.3f} nats a token")
figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
for name, make in EDITS.items():
    lost = []
    for budget in BUDGETS:
        with regardant.apply(model, make(budget)):
            lost.append(loss() - full)
    print(f"{name}: " + ", ".join(f"{budget} keys {more:+.3f}" for budget, more in zip(BUDGETS, lost)))
    axes.plot(BUDGETS, lost, marker="o", label=name)
axes.axhline(0, color="grey", linewidth=0.8)
axes.set(xscale="log", xticks=BUDGETS, xticklabels=BUDGETS, xlabel="keys a query may read")
axes.set_ylabel("lost against all keys, nats a token")
axes.minorticks_off()
axes.legend(frameon=False)
axes.spines[["top", "right"]].set_visible(False)
figure.savefig("read_less.png", dpi=150)
print("the picture is read_less.png")
