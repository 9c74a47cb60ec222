"""Policies that grow networks: Policy V1 and V2 of the design document, and what lies between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torchrl.envs import EnvBase

from envs.actions import HEADS
from envs.observation import ACTION_FEEDBACK, feature_columns
from esper_rl.errors import check_choice, check_integer
from esper_rl.policy.config import ActorCriticConfig, option

ENTROPY_WEIGHTS: dict[str, float] = {
    "op": 1.0,
    "slot": 1.0,
    "blueprint": 1.5,
    "style": 1.2,
    "tempo": 1.5,
    "alpha_target": 1.2,
    "alpha_speed": 1.3,
    "alpha_curve": 1.3,
}
"""V2's weight of each head's entropy (Policy V2, "Differential Entropy Coefficients"): more for
heads that few ops give a training signal."""

EMBEDDING_SIZE = 4
"""Numbers that a blueprint's index becomes."""

BLUEPRINT_WIDTH = 128
"""Width of the blueprint head's last hidden layer where it has three layers."""


@dataclass
class PolicyConfig(ActorCriticConfig):
    """Sizes of a policy for :class:`envs.MorphogenesisEnv`, by default those of Policy V2.

    Its other fields are those of :class:`esper_rl.policy.ActorCriticConfig`.

    Raises:
        TypeError: if a number is of the wrong kind.
        ValueError: if a number is out of range or a mode unknown.

    Examples:
        >>> PolicyConfig.v2().hidden_size, PolicyConfig.v1().value_mode
        (256, 'state')
    """

    num_slots: int = option(3, "slots that the policy acts on; follows env.num_slots")
    action_feedback: bool = option(True, "show the network what became of the last action")
    blueprint_layers: int = option(3, "layers of the blueprint head: 2 or 3")
    entropy_weights: dict[str, float] = option(ENTROPY_WEIGHTS.copy, "weight of the head's entropy")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("num_slots", self.num_slots)
        check_choice("blueprint_layers", self.blueprint_layers, (2, 3))
        for name in ("head_layers", "initial_logits", "entropy_weights"):
            for head in getattr(self, name):
                check_choice(f"heads of {name}", head, HEADS)

    def hidden_layers(self, head: str) -> list[int]:
        if head == "blueprint" and self.blueprint_layers == 3 and head not in self.head_layers:
            return [self.hidden_size, BLUEPRINT_WIDTH]
        return super().hidden_layers(head)

    def embedding_sizes(self) -> dict[str, int]:
        return {"blueprint_indices": EMBEDDING_SIZE, **self.embeddings}

    def columns_left_out(self) -> list[int]:
        feedback = [] if self.action_feedback else feature_columns(*ACTION_FEEDBACK)
        return sorted({*self.hidden_columns, *feedback})

    def check_env(self, env: EnvBase) -> None:
        spec = env.full_observation_spec
        if "blueprint_indices" not in set(spec.keys()):
            raise KeyError(
                "the environment has no 'blueprint_indices', which a PolicyConfig is about; give "
                "an ActorCriticConfig for another environment"
            )
        slots = spec["blueprint_indices"].shape[-1]
        if slots != self.num_slots:
            raise ValueError(
                f"num_slots must be {slots}, the slots of the environment, got {self.num_slots}"
            )

    def describe(self) -> str:
        """Its name for people.

        Examples:
            >>> PolicyConfig.v1().describe(), PolicyConfig(lstm_layers=2).describe()
            ('V1 policy for 3 slots', 'V2 policy (lstm_layers=2) for 3 slots')
        """
        preset, changes = self.nearest_preset()
        changed = ", ".join(f"{field}={value}" for field, value in changes.items())
        details = f" ({changed})" if changed else ""
        return f"{preset.upper()} policy{details} for {self.num_slots} slots"

    def nearest_preset(self) -> tuple[str, dict[str, Any]]:
        """The preset that it differs least from, and the fields in which it does.

        Examples:
            >>> PolicyConfig(lstm_layers=2).nearest_preset()
            ('v2', {'lstm_layers': 2})
        """
        changes = {}
        for name, make in PRESETS.items():
            preset = vars(make(self.num_slots))
            changes[name] = {
                field: value for field, value in vars(self).items() if value != preset[field]
            }
        return min(changes.items(), key=lambda each: len(each[1]))

    @classmethod
    def v1(cls, num_slots: int = 3) -> PolicyConfig:
        """The design document's "before": half as wide, no feedback, a value without the op."""
        return cls(
            num_slots=num_slots,
            hidden_size=128,
            action_feedback=False,
            blueprint_layers=2,
            value_mode="state",
            entropy_weights=dict.fromkeys(ENTROPY_WEIGHTS, 1.0),
        )

    @classmethod
    def v2(cls, num_slots: int = 3) -> PolicyConfig:
        """Policy V2 of the design document: hidden size 256, 384 from five slots on."""
        return cls(num_slots=num_slots, hidden_size=384 if num_slots >= 5 else 256)


PRESETS: dict[str, Callable[[int], PolicyConfig]] = {"v1": PolicyConfig.v1, "v2": PolicyConfig.v2}
"""By name; each takes the number of slots."""
