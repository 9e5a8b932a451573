"""Which heads does a language model look things up with?

    python examples/retrieval_heads.py            # about a minute on a laptop; writes retrieval_heads.png

A secret code is hidden in ordinary text and asked for. A head that looks at the very token that the model
says next, inside the code, scores; the best few are then silenced, and the model forgets the code. As many
random heads are silenced beside them, and it does not.
"""

import torch

from regardant.lens.retrieval_head import RetrievalHeads
from regardant.task.secret_codes import draw_codes, needle_cases
from regardant.world.pretrained import smollm2

model, tokenizer = smollm2()
draw = torch.Generator().manual_seed(0)
cases = list(
    needle_cases(
        tokenizer, draw_codes(4, generator=draw), lengths=[150], depths=[0.2, 0.5, 0.8], generator=draw
    )
)
lens = RetrievalHeads(cases, batch=4)
read = lens.read(model)

heads = lens(model, read=read)
print(
    f"{heads.kept} of {len(cases)} answers right, {len(heads.retrieving)} of {heads.measured} heads retrieve:"
)
for layer, head in heads.top(5):
    print(f"  layer {layer:2}, head {head}: score {heads[layer, head]:.2f}")

others = heads.draw(10, without=heads.retrieving, generator=draw)
masks = {"nothing": [], "the ten best": heads.top(10), "ten others": others}
for name, recalls in lens.masked(model, masks, read=read).items():
    right = sum(recall == 1 for recall in recalls)
    print(f"{name} silenced: {right} of {len(cases)} codes right")

heads.plot("retrieval_heads.png", title="Heads that look up a secret code, SmolLM2-135M")
