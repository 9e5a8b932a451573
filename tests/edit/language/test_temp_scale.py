"""TempScale: the equation, its pitfalls, and the measures of length collapse."""

from __future__ import annotations

import pytest
import torch

from regardant.edit.apply import apply
from regardant.edit.language.temp_scale import TempScale
from regardant.host.seam import Seam
from regardant.lens.low_pass import gain, likeness, spread, variation
from regardant.world.families import FAMILIES, PAD

pytestmark = pytest.mark.filterwarnings("ignore")


class Maps:
    """Keeps each site's heads, and what the equation gives for them."""

    def __init__(self, temperature):
        self.temperature, self.pairs = temperature, []

    def stages(self, site):
        return frozenset() if site.cross else frozenset({"qkv", "read"})

    def qkv(self, q, k, v, site, run):
        self.given = q
        return q, k, v

    def read(self, call, heads, weights, site, run):
        k, v = (x.repeat_interleave(site.group, dim=1) for x in (call.k, call.v))
        logits = self.given @ k.mT * call.scaling
        if call.bias is not None:
            logits = logits + call.bias * self.temperature  # it was divided with the logits
        hidden = torch.where(call.visible(), 0.0, -torch.inf)
        expected = (logits / self.temperature + hidden).softmax(-1) @ v
        self.pairs.append((heads, expected))


@pytest.mark.parametrize("name", ["bert", "t5", "gpt2", "llama"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_equation(name, attention):
    family = FAMILIES[name]
    model, inputs = family.make(attention=attention), family.inputs()
    if "attention_mask" in inputs:
        inputs["attention_mask"][0, -3:] = 0
    lens = Maps(0.7)
    seam = Seam.of(model)
    seam.enter([lens])
    try:
        with torch.no_grad(), apply(model, TempScale(0.7)):
            model(**inputs)
    finally:
        seam.leave([lens])
    assert len(lens.pairs) >= 4
    for heads, expected in lens.pairs:
        torch.testing.assert_close(heads, expected, atol=2e-5, rtol=1e-4)


def test_pitfall_the_mask_is_not_scaled():
    family = FAMILIES["bert"]
    model, inputs = family.make(attention="eager"), family.inputs()
    inputs["attention_mask"][:, 8:] = 0
    other = dict(inputs, input_ids=inputs["input_ids"].clone())
    other["input_ids"][:, 8:] = 11
    with (
        torch.no_grad(),
        apply(model, TempScale(50.0)),
    ):  # a mask of -3e38 / 50 would still hide; -100 / 50 not
        first, second = model(**inputs).logits[:, :8], model(**other).logits[:, :8]
    torch.testing.assert_close(first, second, atol=1e-6, rtol=1e-6)


def test_pitfall_a_finite_mask_that_is_a_bias_is_scaled_with_the_logits():
    family = FAMILIES["swin"]
    model, inputs = family.make(), family.inputs()
    with torch.no_grad():
        with apply(model, TempScale(0.5)):
            fused = model(**inputs).logits
        model.set_attn_implementation("eager")
        with apply(model, TempScale(0.5)):
            eager = model(**inputs).logits
    torch.testing.assert_close(fused, eager, atol=1e-5, rtol=1e-4)


def test_pitfall_a_very_low_temperature_is_one_hot_and_not_nan():
    family = FAMILIES["bert"]
    model, inputs = family.make(), family.inputs()
    with torch.no_grad(), apply(model, TempScale(1e-4)):
        assert torch.isfinite(model(**inputs).logits).all()


def test_a_temperature_that_cannot_be():
    with pytest.raises(ValueError, match="temperature is 0"):
        TempScale(0.0)


def test_pitfall_padding_does_not_count_in_the_measures():
    states = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    real = torch.ones(2, 6, dtype=torch.bool)
    real[0, 4:] = False
    assert torch.allclose(variation(states, real)[0], variation(states[:1, :4])[0], atol=1e-12)


def test_the_measures_where_the_answer_is_known():
    even = torch.full((5, 7), 1 / 7, dtype=torch.float64)
    assert float(gain(even)) < 1e-12  # an even map lets no variation through
    identity = torch.eye(6, dtype=torch.float64)
    assert float(gain(identity)) == pytest.approx(1.0)
    assert float(variation(torch.ones(1, 4, 3, dtype=torch.float64))[0]) < 1e-12
    opposite = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]], dtype=torch.float64)
    assert float(variation(opposite)[0]) == pytest.approx(1.0)
    points = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    assert likeness(points) == pytest.approx((0 + 0 - 1) / 3)
    assert spread(torch.tensor([[0.0, 0.0], [2.0, 0.0]])) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="at least two texts"):
        likeness(points[:1])


def test_pitfall_padded_prompts_get_the_same_temperature():
    family = FAMILIES["bert"]
    model = family.make()
    ids = family.inputs(batch=1, length=9)["input_ids"]
    padded = torch.cat([ids, torch.full((1, 4), PAD)], dim=1)
    with torch.no_grad(), apply(model, TempScale(0.6)):
        alone = model(input_ids=ids).logits
        found = model(input_ids=padded, attention_mask=(padded != PAD).long()).logits[:, :9]
    torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-4)
