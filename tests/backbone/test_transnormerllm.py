"""TransNormerLLM and TNL as whole networks."""

import pytest
import torch

from regardant.backbone.transnormerllm import SGLU, TNLModel, TransNormerLLM
from regardant.sequence.tnl_lightning_attention import TNL

MODELS = [TransNormerLLM, TNLModel]


def model(kind=TransNormerLLM, seed=0, **config):
    torch.manual_seed(seed)
    return kind(13, 16, **{"heads": 2, "layers": 3} | config).double()


def draw(batch=2, length=70, seed=0):
    return torch.randint(13, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("length", [1, 64, 70])
def test_forward_is_the_equations_and_so_are_its_gradients(kind, length):
    network, tokens = model(kind, tied=True, embedding_scale=4.0), draw(length=length)
    parameters = list(network.parameters())
    fast, plain = network(tokens), network.reference(tokens)
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-9)
    ours = torch.autograd.grad(fast.square().sum(), parameters)
    theirs = torch.autograd.grad(plain.square().sum(), parameters)
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", MODELS)
def test_a_prompt_and_then_steps_give_what_forward_gives(kind):
    network, tokens = model(kind), draw()
    with torch.no_grad():
        whole = network(tokens)
        logits, state = network.prefill(tokens[:, :66])
        torch.testing.assert_close(logits, whole[:, :66], rtol=0, atol=1e-9)
        for t in range(66, 70):
            logits, state = network.step(tokens[:, t], state)
            torch.testing.assert_close(logits, whole[:, t], rtol=0, atol=1e-9)
        assert state.length == 70
        assert state.nbytes == network.start(2).nbytes
        first, _ = network.step(tokens[:, 0], network.start(2))
        torch.testing.assert_close(first, whole[:, 0], rtol=0, atol=1e-9)


def test_the_future_does_not_move_the_past():
    network, tokens = model(), draw()
    changed = tokens.clone()
    changed[:, 40:] = (changed[:, 40:] + 1) % 13
    torch.testing.assert_close(network(tokens)[:, :40], network(changed)[:, :40], rtol=0, atol=1e-12)
    assert (network(tokens)[:, 40:] - network(changed)[:, 40:]).abs().max() > 1e-3


def test_padded_tokens_send_nothing():
    network, tokens, changed = model(), draw(), draw()
    padding = torch.rand(2, 70, generator=torch.Generator().manual_seed(0)) > 0.3
    changed[~padding] = 12
    ours, theirs = network(tokens, padding=padding), network(changed, padding=padding)
    torch.testing.assert_close(ours[padding], theirs[padding], rtol=0, atol=1e-12)


def test_the_channel_mixer_has_no_activation():
    torch.manual_seed(0)
    mixer, x = SGLU(3, 5).double(), torch.randn(4, 3, dtype=torch.float64)
    torch.testing.assert_close(mixer(-2 * x), 4 * mixer(x))
    value, gate = x @ mixer.to_value.weight.T, x @ mixer.to_gate.weight.T
    torch.testing.assert_close(mixer(x), (value * gate) @ mixer.to_out.weight.T)


def test_only_the_first_layer_turns_and_deeper_ones_forget_more_slowly():
    network = model()
    assert [name for name, _ in network.named_parameters() if "theta" in name] == [
        "blocks.0.attention.position.theta"
    ]
    rates = torch.stack([block.attention.rule.log_decay for block in network.blocks])
    expected = torch.tensor([[0.0, -4.0], [0, -4 * 2 / 3], [0, -4 / 3]], dtype=torch.float64)
    torch.testing.assert_close(rates, expected, rtol=0, atol=1e-6)


def test_tnl_is_the_same_network_around_another_mixer():
    network = model(TNLModel)
    assert all(type(block.attention) is TNL for block in network.blocks)
    last = network.blocks[-1].attention.rule.log_decay
    torch.testing.assert_close(last, torch.tensor([2.0**-4, 2.0**-8]).double() * -1e-5, rtol=1e-2, atol=0)


def test_a_tied_output_is_the_embedding():
    network = model(tied=True)
    assert network.head.weight is network.embedding.weight
    assert "head.weight" in network.state_dict()


def test_bad_input_is_told_in_one_sentence():
    with pytest.raises(ValueError, match="layers is 0"):
        model(layers=0)
    with pytest.raises(ValueError, match="embedding_scale is 0"):
        model(embedding_scale=0)
    with pytest.raises(ValueError, match="does not divide into heads=3"):
        model(heads=3)
    with pytest.raises(ValueError, match="of whole numbers"):
        model()(torch.randn(2, 5))
    with pytest.raises(ValueError, match=r"it is \[b n\]"):
        model()(draw()[0])
    with pytest.raises(ValueError, match="the state is of 2 layers, but this model has 3"):
        model().step(draw()[:, 0], model(layers=2).start(2))
