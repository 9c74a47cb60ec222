"""Sizes of a factored recurrent policy, for any environment."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from torchrl.envs import EnvBase

from esper_rl.errors import check_choice, check_integer, check_memory, check_number, check_types

VALUE_MODES: tuple[str, ...] = ("soft", "expected", "sampled", "state")
"""Values of ``value_mode``."""

MOST_LOGIT = 20.0
"""Initial logits are at most so far from 0: a choice that is never taken is never learned of."""


def option(default: Any, help: str) -> Any:
    """A dataclass field with the text that ``esper-rl train --help`` shows for it."""
    make = {"default_factory": default} if callable(default) else {"default": default}
    return field(**make, metadata={"help": help})


@dataclass
class ActorCriticConfig:
    """Sizes of the factored recurrent policy; the text of each field says what it is.

    Raises:
        TypeError: if a number is of the wrong kind.
        ValueError: if a number is out of range or a mode unknown.

    Examples:
        >>> ActorCriticConfig(hidden_size=64).hidden_layers("op")
        [32]
    """

    hidden_size: int = option(256, "width of feature layer and LSTM, which can't differ; even")
    lstm_layers: int = option(1, "LSTM layers: 0 for none, 1, or 2 with a residual connection")
    gru_layers: int = option(0, "GRU layers, after those: 0 for none, 1, or 2; set lstm_layers=0")
    attention_span: int = option(
        0, "latest steps of the episode that an attention layer at the end looks at; 0: no layer"
    )
    value_mode: str = option(
        "soft",
        "baseline of rollouts: soft, V at the op probabilities; expected, Σ π(op) V(op); sampled, "
        "V of the op taken, which biases the gradient (Tucker et al. 2018); state, V without an "
        "op; updates and bootstraps are of V of the op taken",
    )
    head_layers: dict[str, list[int]] = option(
        dict, "widths of the head's hidden layers; where not given one, half as wide as hidden_size"
    )
    initial_logits: dict[str, list[float]] = option(
        dict, "a number for each of the head's choices, added at first; -3: a twentieth as likely"
    )
    embeddings: dict[str, int] = option(
        dict, "numbers that an integer of the observation's entry becomes; negative ones share one"
    )
    hidden_columns: list[int] = option(list, "columns of the observation that aren't shown")
    entropy_weights: dict[str, float] = option(dict, "weight of the head's entropy; 1 if not given")

    def __post_init__(self) -> None:
        check_types(self)
        check_integer("hidden_size", self.hidden_size, least=2)
        if self.hidden_size % 2:
            raise ValueError(
                f"hidden_size must be even, since the heads halve it, got {self.hidden_size}"
            )
        for name in ("lstm_layers", "gru_layers"):
            check_choice(name, getattr(self, name), (0, 1, 2))
        check_integer("attention_span", self.attention_span, least=0)
        check_choice("value_mode", self.value_mode, VALUE_MODES)
        for head, widths in self.head_layers.items():
            for width in widths:
                check_integer(f"head_layers[{head!r}]", width)
        for head, logits in self.initial_logits.items():
            for logit in logits:
                check_number(f"initial_logits[{head!r}]", logit, least=-MOST_LOGIT, most=MOST_LOGIT)
        for key, size in self.embeddings.items():
            check_integer(f"embeddings[{key!r}]", size)
        recurrent = 8 * self.lstm_layers + 6 * self.gru_layers + 4 * (self.attention_span > 0)
        weights = (recurrent + 4) * self.hidden_size**2
        for widths in self.head_layers.values():
            weights += sum(a * b for a, b in pairwise((self.hidden_size, *widths)))
        weights += sum(self.embeddings.values())
        # With their gradients and Adam's two numbers.
        check_memory(f"a policy of hidden_size={self.hidden_size}", 4 * 4 * weights)
        for column in self.hidden_columns:
            check_integer("hidden_columns", column, least=0)
        for head, weight in self.entropy_weights.items():
            check_number(f"entropy_weights[{head!r}]", weight, least=0)

    def hidden_layers(self, head: str) -> list[int]:
        """Widths of the hidden layers of a head."""
        return list(self.head_layers.get(head, [self.hidden_size // 2]))

    def embedding_sizes(self) -> dict[str, int]:
        """The entries to look up, and the numbers that each integer becomes."""
        return dict(self.embeddings)

    def columns_left_out(self) -> list[int]:
        """Columns of the observation that the network isn't shown, in order."""
        return sorted(set(self.hidden_columns))

    def check_env(self, env: EnvBase) -> None:
        """Refuse an environment that the policy can't act in; any one by default.

        Raises:
            ValueError: if its sizes don't fit.
            KeyError: if it lacks an entry.
        """
