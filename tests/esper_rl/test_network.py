"""The network: its size to the parameter, its initial weights."""

from __future__ import annotations

import math
from itertools import chain

import pytest
import torch
from torch import Tensor, nn

from envs import feature_names
from envs.actions import head_sizes
from esper_rl import PolicyConfig
from esper_rl.policy.network import FactoredRecurrentNetwork, IndexEmbedding


def build(config: PolicyConfig | None = None) -> FactoredRecurrentNetwork:
    config = config or PolicyConfig.v2()
    return FactoredRecurrentNetwork(
        len(feature_names(config.num_slots)),
        head_sizes(config.num_slots),
        config,
        {"blueprint_indices": (13, config.num_slots)},
    )


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture(scope="module")
def network() -> FactoredRecurrentNetwork:
    torch.manual_seed(0)
    return build()


def is_orthogonal(weight: Tensor, gain: float) -> bool:
    """Rows or columns, whichever are fewer, at right angles, of length ``gain``."""
    short = weight if weight.shape[0] <= weight.shape[1] else weight.T
    return torch.allclose(short @ short.T, gain**2 * torch.eye(len(short)), atol=1e-5 * gain**2)


def test_number_of_parameters(network: FactoredRecurrentNetwork) -> None:
    assert count(network) == 927_458
    parts = {name: count(module) for name, module in network.named_children()}
    heads = {name: count(head) for name, head in network.heads.items()}
    assert parts == {
        "visible": 0,
        "blueprint_embedding": 14 * 4,
        "feature_net": 124 * 256 + 256 + 2 * 256,
        "lstm": 4 * (256 * 256 + 256 * 256 + 2 * 256),
        "lstm_norm": 2 * 256,
        "heads": sum(heads.values()),
        "value_head": 262 * 128 + 128 + 129,
    }
    assert heads.pop("blueprint") == 256 * 256 + 256 + 256 * 128 + 128 + 128 * 13 + 13
    assert sum(heads.values()) == 233_884


def test_number_of_parameters_with_five_slots() -> None:
    hidden, half = 384, 192
    others = 6 + 5 + 4 + 3 + 3 + 4 + 5
    assert count(build(PolicyConfig.v2(num_slots=5))) == (
        14 * 4
        + (190 * hidden + hidden + 2 * hidden)
        + 4 * (2 * hidden * hidden + 2 * hidden)
        + 2 * hidden
        + 7 * (hidden * half + half)
        + others * (half + 1)
        + (hidden * hidden + hidden + hidden * 128 + 128 + 128 * 13 + 13)
        + ((hidden + 6) * half + half + half + 1)
    )


def test_number_of_parameters_of_v1() -> None:
    assert count(build(PolicyConfig.v1())) == 224_802


def test_number_of_parameters_of_the_options() -> None:
    v2, hidden = count(build()), 256
    lstm = 4 * (2 * hidden * hidden + 2 * hidden)
    attention = 3 * (hidden * hidden + hidden) + hidden * hidden + hidden
    assert count(build(PolicyConfig(lstm_layers=2))) == v2 + lstm
    assert count(build(PolicyConfig(lstm_layers=0))) == v2 - lstm
    assert count(build(PolicyConfig(lstm_layers=0, gru_layers=1))) == v2 - lstm // 4
    assert count(build(PolicyConfig(attention_span=20))) == v2 + attention
    assert count(build(PolicyConfig(value_mode="state"))) == v2 - 6 * 128
    assert count(build(PolicyConfig(action_feedback=False))) == v2 - 7 * 256
    shallow = 256 * 128 + 128 + 128 * 13 + 13
    deep = 256 * 256 + 256 + shallow
    assert count(build(PolicyConfig(blueprint_layers=2))) == v2 - deep + shallow
    wide = count(build(PolicyConfig(hidden_size=512)))
    assert wide == (
        14 * 4
        + (124 * 512 + 3 * 512)
        + 4 * (2 * 512 * 512 + 2 * 512)
        + 2 * 512
        + 7 * (512 * 256 + 256)
        + 28 * 257
        + (512 * 512 + 512 + 512 * 128 + 128 + 128 * 13 + 13)
        + (518 * 256 + 256 + 257)
    )


def test_memory_of_a_training_run(network: FactoredRecurrentNetwork) -> None:
    parameters = list(network.parameters())
    optimizer = torch.optim.Adam(parameters)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moments = [
        moment
        for state in optimizer.state.values()
        for name, moment in state.items()
        if name != "step"
    ]
    size = sum(
        tensor.numel() * tensor.element_size()
        for tensor in chain(parameters, (p.grad for p in parameters), moments)
    )
    assert size / 1e6 == pytest.approx(14.8, abs=0.05)


def test_last_layers_are_small_in_action_heads_only(network: FactoredRecurrentNetwork) -> None:
    for head in network.heads.values():
        *hidden, last = (layer for layer in head if isinstance(layer, nn.Linear))
        assert is_orthogonal(last.weight, 0.01)
        assert all(is_orthogonal(layer.weight, math.sqrt(2)) for layer in hidden)
    first, last = network.value_head[0], network.value_head[-1]
    assert is_orthogonal(first.weight, math.sqrt(2))
    assert is_orthogonal(last.weight, 1.0)
    assert is_orthogonal(network.feature_net[0].weight, math.sqrt(2))
    assert not any(layer.bias.any() for layer in network.modules() if isinstance(layer, nn.Linear))


def test_lstm_remembers_at_first(network: FactoredRecurrentNetwork) -> None:
    lstm = network.lstm
    assert is_orthogonal(lstm.weight_ih_l0, 1.0)
    assert is_orthogonal(lstm.weight_hh_l0, 1.0)
    # Order of the gates: input, forget, cell, output.
    in_effect = (lstm.bias_ih_l0 + lstm.bias_hh_l0).unflatten(0, (4, 256))
    assert (in_effect == torch.tensor([0.0, 1.0, 0.0, 0.0])[:, None]).all()


def test_gru_keeps_its_state_at_first() -> None:
    """Without an input that says otherwise, most of the state stays."""
    gru = build(PolicyConfig(lstm_layers=0, gru_layers=1)).gru
    assert is_orthogonal(gru.weight_ih_l0, 1.0)
    # Order of the gates: reset, update, new.
    in_effect = (gru.bias_ih_l0 + gru.bias_hh_l0).unflatten(0, (3, 256))
    assert (in_effect == torch.tensor([0.0, 1.0, 0.0])[:, None]).all()


def test_embedding_is_small_and_has_a_vector_for_no_blueprint() -> None:
    torch.manual_seed(0)
    embedding = IndexEmbedding(13, 4)
    table = embedding.embedding.weight
    assert table.shape == (14, 4)
    assert IndexEmbedding(5000, 4).embedding.weight.std().item() == pytest.approx(0.02, rel=0.05)
    got = embedding(torch.tensor([[-1, 0, 12]]))
    assert torch.equal(got, torch.cat([table[13], table[0], table[12]])[None])


def test_shapes_with_and_without_time(network: FactoredRecurrentNetwork) -> None:
    for shape in [(2,), (2, 5)]:
        embedded = network.blueprint_embedding(torch.full((*shape, 3), -1))
        features = network.feature_net(torch.randn(*shape, 112), embedded)
        assert features.shape == (*shape, 256)
        sizes = [logits.shape[-1] for logits in network.heads(features)]
        assert sizes == list(head_sizes(3).values())
        assert network.value_head(features, torch.zeros(*shape, 6)).shape == (*shape, 1)


def test_value_depends_on_the_op(network: FactoredRecurrentNetwork) -> None:
    memory = torch.randn(256).expand(6, -1)
    assert network.value_head(memory, torch.eye(6)).unique().numel() == 6
    # Entries of the ops come after those of the memory, whole numbers as well as floats.
    value = torch.cat([memory, torch.eye(6)], -1)
    for layer in network.value_head:
        value = layer(value)
    torch.testing.assert_close(network.value_head(memory, torch.eye(6, dtype=torch.int64)), value)


@pytest.mark.parametrize(("slots", "hidden"), [(1, 256), (3, 256), (4, 256), (5, 384), (8, 384)])
def test_preset(slots: int, hidden: int) -> None:
    assert PolicyConfig.v2(slots) == PolicyConfig(num_slots=slots, hidden_size=hidden)


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"num_slots": 0}, "num_slots must be an integer of at least 1, got 0"),
        ({"hidden_size": 0}, "hidden_size must be an integer of at least 2, got 0"),
        ({"hidden_size": 33}, "hidden_size must be even.*, got 33"),
        ({"lstm_layers": 3}, "lstm_layers must be one of 0, 1, 2, got 3"),
        ({"gru_layers": 3}, "gru_layers must be one of 0, 1, 2, got 3"),
        ({"blueprint_layers": 1}, "blueprint_layers must be one of 2, 3, got 1"),
        ({"attention_span": -1}, "attention_span must be an integer of at least 0, got -1"),
        (
            {"value_mode": "hard"},
            "value_mode must be one of 'soft', .*, 'state', got",
        ),
    ],
)
def test_config_refuses(sizes: dict[str, int | str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        PolicyConfig(**sizes)
