"""Gates put into networks: where they go, what they do there, and that nothing is left when they are out."""

import copy

import pytest
import torch
from torch import nn

import regardant.gate
from regardant.backbone.mobilenet import MobileNet
from regardant.backbone.pyramid import Pyramid
from regardant.backbone.resnet import Residual, ResNet
from regardant.gate import insert
from regardant.gate.eca_net import ECA
from regardant.gate.ela import ELA
from regardant.gate.insertion import width_of


@pytest.fixture
def model():
    torch.manual_seed(0)
    return ResNet(classes=5, widths=(8, 16), depths=(1, 2)).double().eval()


def images(channels=3, seed=0):
    return torch.randn(
        2, channels, 12, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


def snapshot(model):
    """Everything that says what a module is: its parts, hooks and values."""
    return {
        name: {key: dict(value) if isinstance(value, dict) else value for key, value in vars(module).items()}
        for name, module in model.named_modules()
    }


def test_a_gate_is_applied_to_what_its_place_puts_out(model):
    inserted = insert(model, "eca", where="stages.*.*.second.1")
    assert list(inserted.gates) == ["stages.0.0.second.1", "stages.1.0.second.1", "stages.1.1.second.1"]
    assert [gate.channels for gate in inserted.gates.values()] == [8, 16, 16]
    block, x = model.stages[1][1], torch.rand(2, 16, 5, 4, dtype=torch.float64)
    plain = nn.functional.batch_norm(
        block.second[0](block.first(x).relu()), block.second[1].running_mean, block.second[1].running_var,
        block.second[1].weight, block.second[1].bias, eps=block.second[1].eps,
    )  # fmt: skip
    expected = (x + inserted.gates["stages.1.1.second.1"](plain)).relu()
    torch.testing.assert_close(block(x), expected, rtol=1e-12, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("where", ["stem", "stem.0", "stages.0.layers.0"])
def test_in_a_backbone_whose_maps_have_channels_last_it_weighs_channels(where):
    torch.manual_seed(0)
    model = Pyramid(widths=(8,), heads=(2,), depths=(1,), classes=3, mixer="axial").double().eval()
    place, x = model.get_submodule(where), torch.randn(2, 8, 5, 8 if where[:3] == "sta" else 3).double()
    plain, images_before = place(x), model(images())
    # A map of 8 rows: an axis that is taken for the channels would not be noticed by its length.
    with insert(model, "eca", where=where, probe=images()) as inserted:
        gate = inserted.gates[where].gate
        weights = gate.weights(plain.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        assert gate.channels == plain.shape[-1] and weights.shape[1:3] == (1, 1)
        torch.testing.assert_close(place(x), plain * weights, rtol=1e-12, atol=1e-12)
        assert not torch.allclose(model(images()), images_before)
    assert torch.equal(model(images()), images_before)


@pytest.mark.parametrize(
    "where", ["stages.*.*.second.1", "stages.**.second", "stem", nn.BatchNorm2d, nn.Conv2d]
)
def test_removal_restores_the_model(model, where):
    x, before, modules = images(), snapshot(model), dict(model.named_modules())
    plain = model(x)
    with insert(model, "eca", where=where):
        assert not torch.allclose(model(x), plain)
    assert torch.equal(model(x), plain)
    assert dict(model.named_modules()) == modules
    assert snapshot(model) == before


def test_removal_on_the_way_out_of_an_error_and_twice(model):
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="on the way"), insert(model, ECA, where="stem.1") as inserted:
        raise RuntimeError("on the way")
    inserted.remove()
    assert snapshot(model) == before


def test_a_whole_block_takes_a_probe(model):
    with pytest.raises(
        ValueError, match=r"channels of 'stages.0.0' \(Residual\) cannot be read.* pass probe="
    ):
        insert(model, "ela", where=Residual)
    model.stages[0].train()
    inserted = insert(model, "ela", where=Residual, probe=images(), variant="T")
    assert [gate.channels for gate in inserted.gates.values()] == [8, 16, 16]
    assert model.stages[0][0].training and not model.stages[1].training
    assert model.stages[0][0].inserted_gate.training and not model.stages[1][0].inserted_gate.training


def test_a_sequential_calls_its_gate_once(model):
    with insert(model, Counted, where="stages.1", probe=images()) as inserted:
        model(images())
        (gate,) = inserted.gates.values()
        assert gate.calls == 1 and gate.channels == 16


class Counted(nn.Module):
    def __init__(self, *, channels):
        super().__init__()
        self.channels, self.calls = channels, 0

    def forward(self, x):
        self.calls += 1
        return x


def test_two_gates_at_one_place_and_out_in_any_order(model):
    x, before = images(), snapshot(model)
    first = insert(model, "eca", where="stem.1")
    one = model(x)
    second = insert(model, "ela", where="stem.1")
    assert isinstance(model.stem[1].inserted_gate_2, ELA) and not torch.allclose(model(x), one)
    second.remove()
    assert torch.equal(model(x), one)
    first.remove()
    assert snapshot(model) == before


def test_gates_train_move_and_are_saved_with_the_model(model):
    names = set(model.state_dict())
    inserted = insert(model, "eca", where="stages.*.0.second.1")
    new = set(model.state_dict()) - names
    assert new == {f"stages.{at}.0.second.1.inserted_gate.conv.weight" for at in (0, 1)}
    assert {id(each) for each in inserted.parameters()} <= {id(each) for each in model.parameters()}
    assert all(each.dtype is torch.float64 for each in inserted.parameters())
    model(images()).sum().backward()
    assert all(each.grad is not None and each.grad.any() for each in inserted.parameters())


def test_a_copy_of_the_model_has_gates_of_its_own(model):
    insert(model, "eca", where="stem.1")
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.stem[1].inserted_gate.conv.weight.fill_(5.0)
    assert not torch.allclose(other(images()), model(images()))
    model.stem[1].inserted_gate.conv.weight.data.fill_(5.0)
    torch.testing.assert_close(other(images()), model(images()))


def test_channels_are_read_off_where_that_is_certain():
    tail = [nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6)]
    assert width_of(nn.Sequential(*tail, nn.ReLU(), nn.MaxPool2d(2))) == 6
    assert width_of(nn.Sequential(*tail, Residual(6, 9))) is None
    assert width_of(nn.Sequential(nn.ReLU())) is None and width_of(nn.ConvTranspose2d(3, 7, 2)) == 7


@pytest.mark.parametrize("name", ["eca", "ECA", "eca-net", "eca_net"])
def test_a_gate_goes_by_its_class_or_its_file(model, name):
    (gate,) = insert(model, name, where="stem.1", kernel=5).gates.values()
    assert isinstance(gate, ECA) and gate.kernel == 5


def test_mobilenet_hosts_gates_behind_its_depthwise_convolutions():
    model = MobileNet(classes=4, channels=1, widths=(8, 16, 16), strides=(1, 2, 1)).double()
    x = images(channels=1)
    assert model(x).shape == (2, 4)
    inserted = insert(model, "squeeze-excitation", where="blocks.*.0")
    assert [gate.channels for gate in inserted.gates.values()] == [8, 16]
    assert model(x).isfinite().all()


def test_torchvision_hosts_gates():
    models = pytest.importorskip("torchvision.models", exc_type=ImportError)
    model, heard = models.resnet18(weights=None).eval(), []

    def hear(norm, given, made):
        heard.append(made)

    # One hook before the gate's own, and one behind it.
    model.layer1[0].bn2.register_forward_hook(hear)
    inserted = insert(model, "eca", where="layer*.*.bn2")
    model.layer1[0].bn2.register_forward_hook(hear)
    model(torch.randn(1, 3, 64, 64))
    assert len(inserted.gates) == 8
    torch.testing.assert_close(heard[1], inserted.gates["layer1.0.bn2"](heard[0]))


@pytest.mark.parametrize(
    ("gate", "where", "sentence"),
    [
        (
            "eca",
            "stage.0.second.1",
            r"where='stage.0.second.1' matches no module; the nearest are stages.1.0.s",
        ),
        ("eca", nn.Conv1d, "where=Conv1d matches no module; the nearest classes are Conv2d"),
        ("ecca", "stem", "no gate is called 'ecca'; the nearest are eca"),
        ("eca", "stages", "'stages' is a ModuleList, which is never called"),
        ("eca", "head", r"channels of 'head' \(Linear\) cannot be read"),
    ],
)
def test_bad_input_is_one_sentence_and_changes_nothing(model, gate, where, sentence):
    before = snapshot(model)
    with pytest.raises(ValueError, match=sentence):
        insert(model, gate, where=where)
    assert snapshot(model) == before


def test_what_is_no_map_is_refused(model):
    with pytest.raises(ValueError, match=r"'head' gives a tensor of shape \(2, 5\), but a gate takes a map"):
        insert(model, "eca", where="head", probe=images())


def test_the_package_says_what_it_has():
    assert regardant.gate.insert is insert
    with pytest.raises(AttributeError, match="no attribute 'insrt'"):
        _ = regardant.gate.insrt
