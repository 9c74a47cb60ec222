"""The network: embeddings, feature layer, memory, one head per part of the action, value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from esper_rl.errors import check_choice
from esper_rl.policy.config import ActorCriticConfig
from esper_rl.policy.memory import RECURRENT, Memory, RecentAttention

OBSERVATION, MEMORY = "observation", "memory"
"""Keys of the trunk's first input and of its output, which all heads read."""


class IndexEmbedding(nn.Module):
    """Learned vectors for indices; all negative ones share a vector of their own, the last.

    Args:
        num_indices: how many indices there are, from 0.
        size: numbers in a vector.
    """

    def __init__(self, num_indices: int, size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_indices + 1, size)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, indices: Tensor) -> Tensor:
        """int64 ``[..., n]`` to float32 ``[..., n · size]``."""
        null = self.embedding.num_embeddings - 1
        return self.embedding(torch.where(indices < 0, null, indices)).flatten(-2)


class JoinedInputs(nn.Sequential):
    """Layers of several inputs, which are put beside each other first."""

    def forward(self, *inputs: Tensor) -> Tensor:
        return super().forward(torch.cat(inputs, dim=-1))


class Sum(nn.Module):
    """The sum of two inputs."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b


class Head(nn.Sequential):
    """Layers that end in logits, in float32 at least: log-probabilities need its digits."""

    def forward(self, memory: Tensor) -> Tensor:
        logits = super().forward(memory)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


class Heads(nn.ModuleDict):
    """One :class:`Head` for each part of the action, by name."""

    def forward(self, memory: Tensor) -> tuple[Tensor, ...]:
        """Logits of every head, in order, from the trunk's output ``[..., hidden]``."""
        return tuple(head(memory) for head in self.values())


class ShownColumns(nn.Module):
    """Features ``[..., n]`` without some of their columns.

    Args:
        size: n.
        left_out: the columns that aren't shown.
    """

    def __init__(self, size: int, left_out: Sequence[int]) -> None:
        super().__init__()
        shown = torch.tensor([column for column in range(size) if column not in set(left_out)])
        self.shown: Tensor
        self.register_buffer("shown", shown, persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        return features.index_select(-1, self.shown)


class Layer(NamedTuple):
    """One step of the trunk: attribute of the network, what it reads, what it writes."""

    name: str
    in_keys: list[str]
    out_key: str


class FactoredRecurrentNetwork(nn.Module):
    """The network of the design document, section "Network" (docs/design.md).

    Args:
        observation_size: features of the observation.
        head_sizes: choices of every head; the first one is the op, on which the value depends.
        config: sizes.
        indices: for each of the config's embeddings, how many indices there are (from 0), and
            how many of them a step has.
        compilable: build recurrent layers that ``torch.compile(fullgraph=True)`` can take: the
            same parameters and function, slower in eager mode.

    Attributes:
        in_keys: what the trunk reads: the observation, then the embeddings' entries.
        trunk: its layers in order, a :class:`Layer` each; the last one writes :data:`MEMORY`.
        visible: what of the observation is let in.
        K_embedding: for an embedded entry ``K_indices``.
        feature_net: Linear, LayerNorm, ReLU of observation and embeddings.
        lstm, upper_lstm, gru, upper_gru: the recurrent layers, those that there are.
        lstm_norm: LayerNorm after the last one.
        attention: over the latest steps, if there is such a layer.
        heads: by name.
        value_head: of the trunk's output and (unless ``value_mode="state"``) the weights of the
            ops, one-hot or probabilities.

    Raises:
        ValueError: if the config is about heads, choices or columns that there aren't.
    """

    def __init__(
        self,
        observation_size: int,
        head_sizes: Mapping[str, int],
        config: ActorCriticConfig,
        indices: Mapping[str, tuple[int, int]],
        *,
        compilable: bool = False,
    ) -> None:
        super().__init__()
        for name in ("head_layers", "initial_logits"):
            for head in getattr(config, name):
                check_choice(f"heads of {name}", head, tuple(head_sizes))
        num_ops = next(iter(head_sizes.values()))
        hidden = config.hidden_size
        self.trunk: list[Layer] = []
        self.in_keys = [OBSERVATION]
        left_out = config.columns_left_out()
        if left_out and left_out[-1] >= observation_size:
            raise ValueError(
                f"hidden_columns must be columns of the observation, 0 to {observation_size - 1}, "
                f"got {left_out[-1]}"
            )
        visible = ShownColumns(observation_size, left_out) if left_out else nn.Identity()
        self._add("visible", visible, [OBSERVATION], "visible")
        features, width = ["visible"], observation_size - len(left_out)
        for key, size in config.embedding_sizes().items():
            num_indices, per_step = indices[key]
            name = f"{key.removesuffix('_indices')}_embedding"
            self._add(name, IndexEmbedding(num_indices, size), [key], name)
            self.in_keys.append(key)
            features.append(name)
            width += per_step * size
        feature_net = JoinedInputs(nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.ReLU())
        self._add("feature_net", feature_net, features, "features")
        self._add_memory(config, compilable)
        self.heads = Heads(
            {
                name: Head(*_layers(hidden, *config.hidden_layers(name), size))
                for name, size in head_sizes.items()
            }
        )
        weighted = 0 if config.value_mode == "state" else num_ops
        self.value_head = JoinedInputs(*_layers(hidden + weighted, hidden // 2, 1))
        self._initialise()
        self._add_initial_logits(config.initial_logits)

    def _add(self, name: str, layer: nn.Module, in_keys: list[str], out_key: str) -> None:
        setattr(self, name, layer)
        self.trunk.append(Layer(name, in_keys, out_key))

    def _add_memory(self, config: ActorCriticConfig, compilable: bool) -> None:
        """Recurrent layers, norm and attention, as far as the config has them."""
        hidden, before = config.hidden_size, "features"
        for kind, make in RECURRENT.items():
            for number in range(getattr(config, f"{kind}_layers")):
                name = f"upper_{kind}" if number else kind
                self._add(name, make(hidden, compilable=compilable), [before], name)
                if number:
                    self._add(f"{name}_residual", Sum(), [before, name], f"both_{kind}")
                before = f"both_{kind}" if number else name
        self._add("lstm_norm", nn.LayerNorm(hidden), [before], MEMORY)
        if config.attention_span:
            attention = RecentAttention(hidden, config.attention_span)
            self._add("attention", attention, [MEMORY], MEMORY)

    @property
    def memories(self) -> dict[str, Memory]:
        """The layers of the trunk that carry a state, by name, in order."""
        layers = {layer.name: self.get_submodule(layer.name) for layer in self.trunk}
        return {name: layer for name, layer in layers.items() if isinstance(layer, Memory)}

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Logits of every head, in order, of episodes that begin with the first step.

        Args:
            *inputs: of :attr:`in_keys`: float32 ``[N, T, features]`` and, for each embedding,
                int64 ``[N, T, indices]``.
        """
        values = dict(zip(self.in_keys, inputs, strict=True))
        for layer in self.trunk:
            module = self.get_submodule(layer.name)
            read = [values[key] for key in layer.in_keys]
            begin = module.from_the_beginning if isinstance(module, Memory) else module
            values[layer.out_key] = begin(*read)
        return self.heads(values[MEMORY])

    def compile_parts(self) -> None:
        """Have feature layer, recurrent layers, heads and value head compiled at their first call.

        Needs a network that was built ``compilable``; that first call takes a minute.
        """
        recurrent = [m for m in self.memories.values() if not isinstance(m, RecentAttention)]
        feature_net, value_head = self.get_submodule("feature_net"), self.value_head
        for part in (feature_net, *recurrent, *self.heads.values(), value_head):
            part.compile()

    def _initialise(self) -> None:
        """Orthogonal; small last layers in the action heads; memories remember at first."""
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
        for memory in self.memories.values():
            memory.initialise()

    def _add_initial_logits(self, initial_logits: Mapping[str, Sequence[float]]) -> None:
        for head, logits in initial_logits.items():
            *_, bias = self.heads[head].parameters()
            if len(logits) != len(bias):
                raise ValueError(
                    f"initial_logits of {head!r} must be {len(bias)}, one for each choice, got "
                    f"{len(logits)}"
                )
            with torch.no_grad():
                bias.add_(torch.tensor(logits))


def _layers(*sizes: int) -> list[nn.Module]:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for size, following in pairwise(sizes):
        layers += [nn.Linear(size, following), nn.ReLU()]
    return layers[:-1]
