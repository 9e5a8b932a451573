"""Rules learn what a model's own attention does, layer by layer; a killed training goes on."""

from __future__ import annotations

import pytest
import torch

import regardant
from regardant.core.mixer import MultiHead
from regardant.core.rule import SoftmaxRule
from regardant.train.at_sites import AtSites
from regardant.train.distill import distill, mismatch
from regardant.train.texts import Texts
from regardant.world.families import FAMILIES


class ScaledRule(SoftmaxRule):
    """Softmax with a temperature a head that is learned: at 1 it is softmax."""

    def __init__(self, heads):
        super().__init__()
        self.sharpness = torch.nn.Parameter(torch.full((heads, 1, 1), 2.0))

    def forward(self, q, k, v, *, pattern=None, scale=None):
        return super().forward(q * self.sharpness, k, v, pattern=pattern, scale=scale)


class Scaled(MultiHead):
    def __init__(self, dim, heads, **shared):
        super().__init__(dim, heads, rule=ScaledRule(heads), **shared)


def tokens(count=400, seed=0):
    return torch.randint(5, 80, (count,), generator=torch.Generator().manual_seed(seed))


def swapped_model(**config):
    return regardant.swap(FAMILIES["llama"].make(), Scaled, **config)


def test_the_rule_that_can_be_the_models_own_attention_becomes_it():
    swapped = swapped_model(layers=[0, 2])
    others = {
        name: weight.clone() for name, weight in swapped.model.named_parameters() if "swapped" not in name
    }
    before = mismatch(swapped, [tokens()], length=32)
    assert list(before) == ["model.layers.0.self_attn", "model.layers.2.self_attn"]
    fitted = distill(swapped, [tokens()], length=32, steps=120, batch=2, learning_rate=0.05)
    after = mismatch(swapped, [tokens(seed=1)], length=32)
    assert fitted.losses[-1] < 1e-3 * fitted.losses[0]
    assert max(after.values()) < 1e-4 < 1e-2 < min(before.values())
    for layer in swapped.layers.values():
        torch.testing.assert_close(layer.rule.sharpness, torch.ones(4, 1, 1), atol=0.02, rtol=0)
    assert all(
        torch.equal(weight, others[name])
        for name, weight in swapped.model.named_parameters()
        if name in others
    )
    assert all(weight.grad is None for name, weight in swapped.model.named_parameters() if name in others)


def test_the_loss_is_the_relative_squared_error_of_the_heads_on_the_models_own_queries():
    swapped = swapped_model(layers=[3])
    ids = tokens(32)
    found = mismatch(swapped, [ids], length=32)["model.layers.3.self_attn"]
    seen = {}

    class Seeing:
        def stages(self, site):
            return frozenset(["read"] if site.layer == 3 else [])

        def read(self, call, heads, weights, site, run):
            sharp = call.weights(2 * call.logits())
            seen["loss"] = (call.mix(sharp) - heads).square().sum() / heads.square().sum()

    from regardant.host.seam import Seam

    with swapped.aside(), torch.no_grad():
        reader = Seeing()
        Seam.of(swapped.model).enter([reader])
        swapped.model(ids[None])
        Seam.of(swapped.model).leave([reader])
    assert found == pytest.approx(float(seen["loss"]), rel=1e-4)


def test_no_layer_learns_from_anothers_error():
    both, one = swapped_model(layers=[0, 2]), swapped_model(layers=[2])
    found, alone = (mismatch(each, [tokens()], length=32)["model.layers.2.self_attn"] for each in (both, one))
    assert found == pytest.approx(alone, rel=1e-6)


def test_a_training_that_was_killed_goes_on_to_the_same_end(tmp_path):
    settings = dict(length=16, steps=12, batch=2, learning_rate=0.05, checkpoint_every=4)
    whole = swapped_model(layers=[1])
    expected = distill(whole, [tokens()], **settings)

    class Killed(Exception):
        pass

    def kill(done, steps, loss):
        if done == 7:
            raise Killed

    path = tmp_path / "rules.safetensors"
    first = swapped_model(layers=[1])
    with pytest.raises(Killed):
        distill(first, [tokens()], **settings, checkpoint=path, progress=kill)
    assert not any(key == "_regardant" for key in vars(first.edit))
    first.back()
    second, told = swapped_model(layers=[1]), []
    found = distill(second, [tokens()], **settings, checkpoint=path, progress=lambda *at: told.append(at[0]))
    assert told[0] == 5 and told[-1] == 12
    assert found.losses == expected.losses
    assert torch.equal(second.parameters()[0], whole.parameters()[0])
    third = swapped_model(layers=[1])
    with pytest.raises(ValueError, match="is of another run: task is"):
        distill(third, [tokens(seed=3)], **settings, checkpoint=path)


def test_modes_and_the_swap_are_as_before():
    swapped = swapped_model(layers=[1])
    swapped.model.train()
    ids = tokens(20)[None]
    before = swapped.model(ids).logits
    distill(swapped, [tokens()], length=16, steps=1, batch=1, learning_rate=1e-9)
    assert all(module.training for name, module in swapped.model.named_modules() if "swapped" not in name)
    torch.testing.assert_close(swapped.model(ids).logits, before, atol=1e-5, rtol=1e-4)


def test_windows_come_from_all_texts_laid_end_to_end():
    texts = Texts([torch.arange(5), torch.arange(10, 15)], length=4)
    rows, targets = texts.batch(200, torch.Generator().manual_seed(0))
    assert torch.equal(rows, targets) and rows.shape == (200, 4)
    assert {tuple(row) for row in rows.tolist()} == {
        tuple(([*range(5), *range(10, 15)])[at : at + 4]) for at in range(7)
    }
    strings = Texts(["ab", "c"], length=2, tokenizer=lambda text: {"input_ids": [ord(each) for each in text]})
    assert strings.tokens.tolist() == [97, 98, 99]
    assert len(list(strings.validation())) == 2


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        ([], "texts is empty"),
        ("one string", "texts is str"),
        (["a string"], "text 0 is a string: give the model's tokenizer="),
        ([tokens(), 3.5], "text 1 is float"),
        ([torch.zeros(3)], r"text 0 is Tensor torch.float32 \[3\]"),
        ([tokens(20)], "texts hold 20 tokens in all, but one window takes length=32"),
        ([tokens() + 90], "but the model knows 0 to 95"),
    ],
)
def test_bad_texts_are_refused_before_any_step(texts, sentence):
    swapped = swapped_model(layers=[1])
    with pytest.raises(ValueError, match=sentence):
        distill(swapped, texts, length=32)


def test_nothing_to_train_is_said():
    with pytest.raises(ValueError, match="Performer has no parameters: there is nothing to distil"):
        distill(regardant.swap(FAMILIES["llama"].make(), "performer"), [tokens()])
    swapped = swapped_model()
    swapped.back()
    with pytest.raises(ValueError, match="nothing is swapped in"):
        distill(swapped, [tokens()])


def test_a_site_that_no_pass_comes_by_is_named():
    model = FAMILIES["llama"].make()
    reading = AtSites(model, {}, {"nowhere": lambda call, heads: heads.sum()})
    with pytest.raises(ValueError, match="reading text did not come by nowhere"):
        reading(tokens(8)[None])
