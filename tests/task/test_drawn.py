"""The tasks that draw their data: trigger copy, reference patch, sums of sines."""

import pytest
import torch

from regardant.task.forecast import Forecast, draw_sines
from regardant.task.reference_patch import ReferencePatch, draw_reference_patch
from regardant.task.trigger_copy import TriggerCopy, draw_trigger_copy


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class TestTriggerCopy:
    def drawn(self, **own):
        given = dict(symbols=16, length=200, share=0.2, distance=5, certainty=0.8)
        return draw_trigger_copy(64, generator=generator(), **given | own)

    def test_behind_a_trigger_stands_what_stood_before_it(self):
        tokens = self.drawn()
        rows, at = (tokens[:, :-1] == 16).nonzero(as_tuple=True)
        copied, source = tokens[rows, at + 1], tokens[rows, at - 5]
        symbols = source < 16
        assert symbols.double().mean() > 0.7
        assert torch.equal(copied[symbols], source[symbols])
        assert (copied < 16).all()

    def test_elsewhere_the_successor_follows_as_often_as_asked(self):
        tokens = self.drawn()
        plain = (tokens[:, 1:] < 16) & (tokens[:, :-1] < 16)
        follows = tokens[:, 1:] == (tokens[:, :-1] + 1) % 16
        # The successor also comes up among the 1 in 5 that are anything.
        assert abs(follows[plain].double().mean() - (0.8 + 0.2 / 16)) < 0.02

    def test_share_of_triggers(self):
        # A trigger never follows another: a share s of the positions that may have one is s / (1 + s).
        assert abs((self.drawn()[:, 20:] == 16).double().mean() - 0.2 / 1.2) < 0.01

    def test_targets_are_the_next_tokens(self):
        inputs, targets = TriggerCopy().batch(4, generator())
        assert torch.equal(inputs[:, 1:], targets[:, :-1])

    @pytest.mark.parametrize(
        ("own", "word"), [({"share": 1.0}, "share is 1"), ({"distance": 0}, "distance is 0")]
    )
    def test_bad_input(self, own, word):
        with pytest.raises(ValueError, match=word):
            self.drawn(**own)


class TestReferencePatch:
    def drawn(self, **own):
        given = dict(side=32, colours=4, squares=8, edge=4, noise=0.0)
        return draw_reference_patch(32, generator=generator(), **given | own)

    def test_a_square_is_of_class_2_where_its_colour_is_the_patchs(self):
        images, classes = self.drawn()
        for image, its in zip(images, classes):
            patch = image[..., 4] == 1
            assert patch.sum() == 16 and (its[patch] == 0).all()
            colour = image[patch][0, :4].argmax()
            assert (image[patch][:, :4].argmax(dim=-1) == colour).all()
            square = its > 0
            assert square.sum() == 8 * 16
            same = image[square][:, :4].argmax(dim=-1) == colour
            assert torch.equal(its[square] == 2, same) and same.any()

    def test_perfect_overlap_is_one_and_of_a_missing_half_less(self):
        task = ReferencePatch()
        _, classes = task.batch(4, generator())
        right = torch.nn.functional.one_hot(classes, 3).float()
        inside, union = task.metric(right, classes)
        assert torch.equal(inside, union)
        ground = torch.nn.functional.one_hot(torch.zeros_like(classes), 3).float()
        inside, union = task.metric(ground, classes)
        assert inside.tolist()[1:] == [0, 0] and (inside / union)[0] == (classes == 0).double().mean().float()

    @pytest.mark.parametrize(
        ("own", "word"), [({"squares": 16}, "squares is 16"), ({"colours": 1}, "colours is 1")]
    )
    def test_bad_input(self, own, word):
        with pytest.raises(ValueError, match=word):
            self.drawn(**own)


class TestForecast:
    def test_targets_are_the_values_ahead_of_every_position(self):
        past, future = Forecast(length=20, horizon=3).batch(4, generator())
        assert past.shape == (4, 20, 1) and future.shape == (4, 20, 3)
        for ahead in range(3):
            assert torch.equal(future[:, : 19 - ahead, ahead], past[:, ahead + 1 :, 0])

    def test_a_wave_alone_obeys_its_recurrence(self):
        # x_{t+1} + x_{t-1} = 2 cos(ω) x_t holds for any one sine.
        x = draw_sines(64, length=40, waves=1, noise=0.0, generator=generator()).double()
        ratio = (x[:, 2:] + x[:, :-2]) / (2 * x[:, 1:-1])
        middle = ratio.median(dim=1, keepdim=True).values
        safe = x[:, 1:-1].abs() > 0.2 * x.abs().amax(dim=1, keepdim=True)
        assert (ratio - middle).abs()[safe].max() < 1e-4

    def test_metric_is_the_mean_squared_error(self):
        task = Forecast()
        _, future = task.batch(4, generator())
        total, count = task.metric(future + 2, future)
        assert torch.isclose(total / count, torch.tensor(4.0))
        assert task.loss(future, future) == 0
