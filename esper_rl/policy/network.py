"""The network: embedding, feature layer, LSTM, one head per part of the action, value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn
from torchrl.modules.tensordict_module.rnn import LSTM

from envs.observation import ACTION_FEEDBACK, feature_columns
from esper_rl.policy.attention import RecentAttention
from esper_rl.policy.config import PolicyConfig

_FIRST, *_, _LAST = feature_columns(*ACTION_FEEDBACK)

EMBEDDING_SIZE = 4
BLUEPRINT_WIDTH = 128
"""Width of the blueprint head's last hidden layer."""


class BlueprintEmbedding(nn.Module):
    """Learned vectors for blueprint indices; −1, no blueprint, has one of its own.

    Args:
        num_blueprints: how many there are; index −1 maps to one more.
    """

    def __init__(self, num_blueprints: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_blueprints + 1, EMBEDDING_SIZE)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, indices: Tensor) -> Tensor:
        """int64 ``[..., S]`` to float32 ``[..., S · 4]``."""
        null = self.embedding.num_embeddings - 1
        return self.embedding(torch.where(indices < 0, null, indices)).flatten(-2)


class JoinedInputs(nn.Sequential):
    """Layers of several inputs, which are put beside each other first."""

    def forward(self, *inputs: Tensor) -> Tensor:
        return super().forward(torch.cat(inputs, dim=-1))


class Heads(nn.ModuleDict):
    """One stack of layers for each part of the action, by name."""

    def forward(self, memory: Tensor) -> tuple[Tensor, ...]:
        """Logits of every head, in order, from the normalised LSTM output ``[..., hidden]``."""
        return tuple(_at_least_float32(head(memory)) for head in self.values())


class WithoutColumns(nn.Module):
    """Features ``[..., n]`` without the neighbouring columns from ``start`` to before ``stop``."""

    def __init__(self, start: int, stop: int) -> None:
        super().__init__()
        self.start, self.stop = start, stop

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([features[..., : self.start], features[..., self.stop :]], dim=-1)


class FactoredRecurrentNetwork(nn.Module):
    """The network of the design document, section "Network Architecture Summary".

    Args:
        observation_size: features of the observation.
        head_sizes: choices of every head; the first one is the op, on which the value depends.
        config: sizes; its ``num_slots`` blueprint indices are embedded beside the observation
            where one of the heads is called "blueprint".
        compilable: build the LSTM so that ``torch.compile(fullgraph=True)`` can take it: the same
            parameters and function, slower in eager mode.

    Attributes:
        visible: what of the observation is let in.
        blueprint_embedding: 14 × 4; None without a blueprint head.
        feature_net: Linear, LayerNorm, ReLU of observation and embedded blueprints.
        lstm: the first layer; None without.
        upper_lstm: the second layer; None without.
        lstm_norm: LayerNorm after the last one.
        attention: over the latest steps; None without.
        heads: by name; two layers, the blueprint head three.
        value_head: of the normalised LSTM output and (unless ``value_mode="state"``) the weights
            of the ops, one-hot or probabilities.
    """

    def __init__(
        self,
        observation_size: int,
        head_sizes: Mapping[str, int],
        config: PolicyConfig,
        *,
        compilable: bool = False,
    ) -> None:
        super().__init__()
        num_ops = next(iter(head_sizes.values()))
        hidden, half = config.hidden_size, config.hidden_size // 2
        self.visible: nn.Module = nn.Identity()
        self.blueprint_embedding: BlueprintEmbedding | None = None
        inputs = observation_size
        if not config.action_feedback:
            self.visible = WithoutColumns(_FIRST, _LAST + 1)
            inputs -= len(ACTION_FEEDBACK)
        if "blueprint" in head_sizes:
            self.blueprint_embedding = BlueprintEmbedding(head_sizes["blueprint"])
            inputs += config.num_slots * EMBEDDING_SIZE
        self.feature_net = JoinedInputs(nn.Linear(inputs, hidden), nn.LayerNorm(hidden), nn.ReLU())
        lstm = LSTM if compilable else nn.LSTM
        layers = [lstm(hidden, hidden, batch_first=True) for _ in range(config.lstm_layers)]
        self.lstm, self.upper_lstm = [*layers, None, None][:2]
        self.lstm_norm = nn.LayerNorm(hidden)
        self.attention: RecentAttention | None = None
        if config.attention_span:
            self.attention = RecentAttention(hidden, config.attention_span)
        self.heads = Heads(
            {
                name: nn.Sequential(*_layers(hidden, hidden, BLUEPRINT_WIDTH, size))
                if name == "blueprint" and config.blueprint_layers == 3
                else nn.Sequential(*_layers(hidden, half, size))
                for name, size in head_sizes.items()
            }
        )
        weighted = 0 if config.value_mode == "state" else num_ops
        self.value_head = JoinedInputs(*_layers(hidden + weighted, half, 1))
        self._initialise()

    def forward(self, observation: Tensor, blueprint_indices: Tensor) -> tuple[Tensor, ...]:
        """Logits of every head, in order, of episodes that begin with the first step.

        Args:
            observation: float32 ``[N, T, features]``.
            blueprint_indices: int64 ``[N, T, S]``; ignored without a blueprint head.
        """
        inputs = [self.visible(observation)]
        if self.blueprint_embedding is not None:
            inputs.append(self.blueprint_embedding(blueprint_indices))
        memory = self.feature_net(*inputs)
        if self.lstm is not None:
            memory = self._remember(self.lstm, memory)
        if self.upper_lstm is not None:
            memory = memory + self._remember(self.upper_lstm, memory)
        memory = self.lstm_norm(memory)
        if self.attention is not None:
            first = torch.zeros(*memory.shape[:2], 1, dtype=torch.bool, device=memory.device)
            memory = self.attention.over_time(memory, *self.attention.nothing(memory), first)
        return self.heads(memory)

    @staticmethod
    def _remember(lstm: nn.Module, features: Tensor) -> Tensor:
        start = features.new_zeros(1, len(features), features.shape[-1])
        return lstm(features, (start, start))[0]

    def compile_parts(self) -> None:
        """Have feature layer, LSTM, heads and value head compiled at their first call.

        Needs a network that was built ``compilable``; that first call takes a minute.
        """
        parts = (self.feature_net, self.lstm, self.upper_lstm, self.heads, self.value_head)
        for part in parts:
            if part is not None:
                part.compile()

    def _initialise(self) -> None:
        """Orthogonal; small last layers in the action heads; the LSTM remembers at first."""
        for module in self.modules():
            if type(module) is nn.Linear:  # attention has an initialisation of its own
                nn.init.orthogonal_(module.weight, gain=math.sqrt(2))
                nn.init.zeros_(module.bias)
        for layers, gain in [
            *((head, 0.01) for head in self.heads.values()),
            (self.value_head, 1.0),
        ]:
            last = list(layers.parameters())[-2]
            nn.init.orthogonal_(last, gain=gain)
        for lstm in filter(None, (self.lstm, self.upper_lstm)):
            for name, parameter in lstm.named_parameters():
                if "weight" in name:
                    nn.init.orthogonal_(parameter)
                else:
                    nn.init.zeros_(parameter)
            # torch adds two biases; 1 in one of them makes the forget gate's 1 in effect.
            forget = slice(lstm.hidden_size, 2 * lstm.hidden_size)
            with torch.no_grad():
                lstm.get_parameter("bias_ih_l0")[forget] = 1.0


def _at_least_float32(x: Tensor) -> Tensor:
    """Log-probabilities need more digits than bf16 has."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _layers(*sizes: int) -> list[nn.Module]:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for size, following in pairwise(sizes):
        layers += [nn.Linear(size, following), nn.ReLU()]
    return layers[:-1]
