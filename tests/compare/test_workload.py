import pytest
import torch

from regardant.compare.workload import Setting, Workload, decodes, map_size, settle


@pytest.mark.parametrize(
    ("length", "size"),
    [(1, (1, 1)), (1024, (32, 32)), (2048, (32, 64)), (512, (16, 32)), (1009, (31, 31)), (6, (2, 3))],
)
def test_maps_are_nearly_square(length, size):
    assert map_size(length) == size


def test_a_system_that_cannot_be_causal_is_not():
    assert settle(Setting("small_layers:NotCausal")).causal is False
    assert settle(Setting("small_layers:Small")).causal is True


def test_only_what_steps_decodes():
    assert decodes(settle(Setting("small_layers:Steps")))
    assert not decodes(settle(Setting("small_layers:Small")))
    assert not decodes(settle(Setting("small_layers:Steps", causal=False)))


def test_the_seed_settles_weights_and_inputs():
    first, again = (Workload(Setting("softmax", dim=8, heads=2, seed=3)) for _ in range(2))
    assert torch.equal(first.layer(5).to_q.weight, again.layer(5).to_q.weight)
    assert torch.equal(first.draw(5), again.draw(5))
    other = Workload(Setting("softmax", dim=8, heads=2, seed=4))
    assert not torch.equal(first.draw(5), other.draw(5))


def test_a_workload_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    Workload(Setting("softmax", dim=8, heads=2)).draw(4)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("softmax", (1, 12, 8)), ("axial-transformer", (1, 3, 4, 8)), ("eca-net", (1, 8, 3, 4))],
)
def test_inputs_have_the_shape_of_their_kind(name, shape):
    workload = Workload(Setting(name, dim=8, heads=2))
    x = workload.draw(12)
    assert x.shape == shape
    assert workload.call("forward", 12)().shape == shape
    grads = workload.call("backward", 12)()
    assert grads[0].shape == shape
    assert all(grad is not None for grad in grads)


def test_a_layer_that_wants_to_know_the_length_is_told():
    workload = Workload(Setting("routing-transformer", dim=8, heads=2))
    assert [workload.layer(n).window for n in (64, 256)] == [8, 16]
    assert workload.layer(64) is workload.layer(64)
    same = Workload(Setting("softmax", dim=8, heads=2))
    assert same.layer(64) is same.layer(256)


@pytest.mark.parametrize("name", ["nowhere:Layer", "small_layers:Missing", "softmaxx"])
def test_an_unknown_name_is_one_sentence(name):
    with pytest.raises(ValueError, match="no "):
        settle(Setting(name))
