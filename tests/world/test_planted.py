import torch

from regardant.lens.attention_statistics import induction_keys, share_at_distance, share_on, sink_share
from regardant.lens.tape import Reading, Tape
from regardant.world.planted import feature_direction, planted_feature, planted_induction

IDS = torch.tensor([[0, 5, 6, 7, 8, 9, 10, 11, 5]])


def test_the_pair_continues_what_began_before():
    model = planted_induction()
    said = model.generate(IDS, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert said[0, -4:].tolist() == [6, 7, 8, 9]


def test_statistics_find_exactly_the_heads_that_were_planted():
    for previous, copying in (((0, 1), (2, 3)), ((1, 0), (2, 0)), ((0, 2), (1, 1))):
        model = planted_induction(previous=previous, copying=copying)
        readings = {
            "back": Reading(reduce=share_at_distance(1), rows=slice(2, None)),
            "induction": Reading(reduce=share_on(induction_keys(IDS)), rows=[-1]),
            "sink": Reading(reduce=sink_share(), rows=[-1]),
        }
        with torch.no_grad(), Tape(model, **readings) as tape:
            model(IDS)
        for name, head in (("back", previous), ("induction", copying)):
            expected = torch.zeros(3, 4, dtype=torch.float64)
            expected[head] = 1.0
            assert (tape.head_map(name).values - expected).abs().max() < 1e-3
        idle = torch.ones(3, 4, dtype=torch.float64)
        idle[previous] = idle[copying] = 0.0
        assert (tape.head_map("sink").values - idle).abs().max() < 1e-3


def test_the_feature_is_written_in_its_layer_along_its_direction():
    model = planted_feature(moving=(2, 1))
    texts = torch.tensor([[0, 7, 1, 9, 8], [0, 7, 2, 9, 8]])
    with torch.no_grad():
        states = model.model(texts, output_hidden_states=True).hidden_states
    along = torch.stack([state[:, -1] @ feature_direction(model) for state in states[:-1]])
    assert torch.equal(along[:3], torch.zeros(3, 2, dtype=torch.float64))
    assert float(along[3, 0]) > 0.5 and float((along[3, 0] + along[3, 1]).abs()) < 1e-6
