"""Captured mass: known answers, and against the maps written out."""

import pytest
import torch

from regardant.edit.language.hip_attention import HiPAttention
from regardant.edit.language.sink_and_window import SinkAndWindow
from regardant.host.host import host_of
from regardant.lens.captured_mass import CapturedMass
from regardant.world.families import FAMILIES

pytestmark = pytest.mark.filterwarnings("ignore")


def test_known_answers():
    for answer in CapturedMass.known_answers(torch.Generator().manual_seed(3)):
        assert answer.error() <= answer.tolerance, answer.what


@torch.no_grad()
def test_equals_the_eager_maps_summed_over_what_is_seen():
    model = FAMILIES["llama"].make(attention="eager")
    ids = FAMILIES["llama"].inputs(batch=1, length=32)["input_ids"]
    few = SinkAndWindow(budget=7, sinks=2, layers=[1, 3])
    hip = HiPAttention(budget=10, sinks=2, window=4, query_block=8, layers=[1, 3])
    found = CapturedMass({"few": few, "hip": hip}, rows=8).measure(model, input_ids=ids)
    maps = model(input_ids=ids, output_attentions=True).attentions
    i, j = torch.arange(24, 32)[:, None], torch.arange(32)
    seen = (j <= i) & ((j < 2) | (i - j < 5))
    for row, layer in enumerate((1, 3)):
        expected = (maps[layer][0, :, 24:] * seen).sum(-1).mean(-1)
        torch.testing.assert_close(found["few"][row], expected, atol=1e-6, rtol=0)
    assert found["hip"].shape == (2, host_of(model).sites[0].q_heads)
    assert (found["hip"] <= 1 + 1e-6).all() and (found["hip"] > 0).all()


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="choices is empty"):
        CapturedMass({})
    with pytest.raises(ValueError, match="at least the last query"):
        CapturedMass({"few": SinkAndWindow()}, rows=0)
