"""The trainer: the same on every run, and after any interruption."""

import pytest
import torch
from torch import nn

from regardant.train import checkpoint as checkpoints
from regardant.train.fit import evaluate, fit, schedule, seeded
from tests.train.small import Successor, small_model, weights

TASK = Successor()


class Killed(Exception):
    pass


def kill_at(step):
    def progress(done, steps, loss):
        if done == step:
            raise Killed

    return progress


def train(model=None, *, seed=0, steps=12, **own):
    model = small_model() if model is None else model
    return model, fit(model, TASK, steps=steps, batch=4, learning_rate=1e-2, seed=seed, **own)


def test_the_same_seed_gives_the_same_weights_and_another_does_not():
    (one, first), (other, second), (third, _) = train(), train(), train(seed=1)
    assert torch.equal(weights(one), weights(other)) and first == second
    assert not torch.equal(weights(one), weights(third))


def test_it_learns():
    model, before = small_model(), evaluate(small_model(), TASK)
    train(model, steps=150)
    assert before > 1.5 and evaluate(model, TASK) < 0.2


def test_the_global_generator_is_left_alone_and_does_not_matter():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, _ = train()
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)
    assert torch.equal(weights(one), weights(train()[0]))


@pytest.mark.parametrize("killed", [3, 4, 7, 11])
def test_a_killed_training_ends_where_an_uninterrupted_one_does(tmp_path, killed):
    whole, plain = train()
    path = tmp_path / "run.safetensors"
    with pytest.raises(Killed):
        train(checkpoint=path, checkpoint_every=4, progress=kill_at(killed))
    done = []
    model, resumed = train(
        checkpoint=path, checkpoint_every=4, progress=lambda step, steps, loss: done.append(step)
    )
    assert torch.equal(weights(whole), weights(model)) and resumed == plain
    assert done[0] == 4 * (killed // 4) + 1, "steps before the checkpoint are not repeated"


def test_a_finished_training_is_not_repeated(tmp_path):
    path = tmp_path / "run.safetensors"
    whole, plain = train(checkpoint=path)
    model, again = train(checkpoint=path, progress=kill_at(1))
    assert torch.equal(weights(whole), weights(model)) and again == plain


def test_a_checkpoint_of_another_run_or_model_is_refused(tmp_path):
    path = tmp_path / "run.safetensors"
    train(checkpoint=path)
    with pytest.raises(ValueError, match=r"another run: steps is 12 there and 13 here"):
        train(steps=13, checkpoint=path)
    with pytest.raises(ValueError, match="another model"):
        fit(nn.Linear(2, 2), TASK, steps=12, batch=4, learning_rate=1e-2, seed=0, checkpoint=path)


def test_a_spoilt_checkpoint_is_said_in_a_sentence(tmp_path):
    path = tmp_path / "run.safetensors"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"run.safetensors cannot be read .* delete it"):
        train(checkpoint=path)


def test_without_safetensors_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install regardant\[task\]"):
        train(checkpoint=tmp_path / "run.safetensors")


def test_a_crash_while_writing_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "run.safetensors"
    checkpoints.save(path, {"x": torch.ones(2)}, {"step": 1})

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(checkpoints.os, "replace", fail)
    with pytest.raises(OSError):
        checkpoints.save(path, {"x": torch.zeros(2)}, {"step": 2})
    tensors, facts = checkpoints.load(path)
    assert facts == {"step": 1} and torch.equal(tensors["x"], torch.ones(2))
    assert list(tmp_path.iterdir()) == [path]


def test_auxiliary_losses_count_and_deferred_changes_are_made_after_each_step():
    class Balanced(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))
            self.register_buffer("settled", torch.zeros(1))

        def forward(self, tokens, *, record=None):
            record.add_loss("pull", (self.weight - 3).square().sum())
            record.defer(self, lambda: self.settled.add_(1))
            return 0 * self.weight + torch.zeros(*tokens.shape, 7)

    model = Balanced()
    fit(model, TASK, steps=200, batch=2, learning_rate=0.1, seed=0)
    assert abs(model.weight.item() - 3) < 0.1
    assert model.settled.item() == 200


def test_warm_up_and_cosine():
    assert [schedule(step, 100) for step in (0, 4, 9, 10)] == [0.1, 0.5, 1.0, 1.0]
    assert schedule(55, 100) == pytest.approx(0.5)
    assert 0 < schedule(99, 100) < 1e-3


def test_evaluation_weighs_batches_by_what_is_in_them():
    class Unequal(Successor):
        def validation(self):
            yield torch.zeros(1), torch.full((4,), 1.0)
            yield torch.zeros(1), torch.full((1,), 6.0)

        def metric(self, outputs, targets):
            return targets.sum(), torch.tensor(len(targets))

    assert evaluate(nn.Identity(), Unequal()) == 2.0


def test_seeded_makes_models_alike():
    assert torch.equal(weights(small_model(3)), weights(small_model(3)))
    with seeded(0):
        one = torch.rand(1)
    with seeded(0):
        assert torch.equal(one, torch.rand(1))


@pytest.mark.parametrize(
    ("own", "word"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"batch": 0}, "batch is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"checkpoint_every": 0}, "checkpoint_every is 0"),
        ({"learning_rate": 1e30}, "the loss is"),
    ],
)
def test_bad_input_is_said_in_a_sentence(own, word):
    given = dict(steps=5, batch=2, learning_rate=1e-2, seed=0)
    with pytest.raises(ValueError, match=word):
        fit(small_model(), TASK, **given | own)
