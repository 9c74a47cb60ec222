"""The V2 network: embedding, feature layer, LSTM, one head per part of the action, value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

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
        return tuple(head(memory) for head in self.values())


class FactoredRecurrentNetwork(nn.Module):
    """The network of the design document, section "Network Architecture Summary".

    Args:
        observation_size: features of the observation.
        num_slots: blueprint indices that are embedded beside them.
        head_sizes: choices of every head; the first one is the op, on which the value depends.
        hidden_size: width of feature layer and LSTM.

    Attributes:
        blueprint_embedding: 14 × 4.
        feature_net: Linear, LayerNorm, ReLU of observation and embedded blueprints.
        lstm: one layer.
        lstm_norm: LayerNorm after it.
        heads: by name; two layers, the blueprint head three.
        value_head: of the normalised LSTM output and the weights of the ops, one-hot or
            probabilities.
    """

    def __init__(
        self,
        observation_size: int,
        num_slots: int,
        head_sizes: Mapping[str, int],
        hidden_size: int,
    ) -> None:
        super().__init__()
        num_ops = next(iter(head_sizes.values()))
        self.blueprint_embedding = BlueprintEmbedding(head_sizes["blueprint"])
        self.feature_net = JoinedInputs(
            nn.Linear(observation_size + num_slots * EMBEDDING_SIZE, hidden_size),
            nn.LayerNorm(hidden_size),
            nn.ReLU(),
        )
        self.lstm = nn.LSTM(hidden_size, hidden_size, batch_first=True)
        self.lstm_norm = nn.LayerNorm(hidden_size)
        half = hidden_size // 2
        self.heads = Heads(
            {
                name: nn.Sequential(*_layers(hidden_size, hidden_size, BLUEPRINT_WIDTH, size))
                if name == "blueprint"
                else nn.Sequential(*_layers(hidden_size, half, size))
                for name, size in head_sizes.items()
            }
        )
        self.value_head = JoinedInputs(*_layers(hidden_size + num_ops, half, 1))
        self._initialise()

    def _initialise(self) -> None:
        """Orthogonal; small last layers in the action heads; the LSTM remembers at first."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.orthogonal_(module.weight, gain=math.sqrt(2))
                nn.init.zeros_(module.bias)
        for layers, gain in [
            *((head, 0.01) for head in self.heads.values()),
            (self.value_head, 1.0),
        ]:
            last = list(layers.parameters())[-2]
            nn.init.orthogonal_(last, gain=gain)
        for name, parameter in self.lstm.named_parameters():
            if "weight" in name:
                nn.init.orthogonal_(parameter)
            else:
                nn.init.zeros_(parameter)
        # torch adds two biases; 1 in one of them makes the forget gate's 1 in effect.
        forget = slice(self.lstm.hidden_size, 2 * self.lstm.hidden_size)
        with torch.no_grad():
            self.lstm.get_parameter("bias_ih_l0")[forget] = 1.0


def _layers(*sizes: int) -> list[nn.Module]:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for size, following in pairwise(sizes):
        layers += [nn.Linear(size, following), nn.ReLU()]
    return layers[:-1]
