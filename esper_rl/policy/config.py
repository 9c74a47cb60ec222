"""Sizes and presets of the policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

VALUE_MODES: tuple[str, ...] = ("soft", "expected", "sampled", "state")

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
"""V2's weight of each head's entropy: more for heads that few ops give a training signal."""


def option(default: Any, help: str) -> Any:
    """A dataclass field with the text that ``esper-rl train --help`` shows for it."""
    return field(default=default, metadata={"help": help})


@dataclass
class PolicyConfig:
    """Sizes of the factored recurrent policy.

    Attributes:
        num_slots: slots of the host that it acts on; without meaning in worlds without slots.
        hidden_size: width of the feature layer and of the LSTM: one number, so that they can't
            differ.
        action_feedback: show the network the columns ``last_action_success`` and
            ``last_action_op`` of the observation.
        blueprint_layers: layers of the blueprint head, 2 or 3.
        lstm_layers: 1; 2 with a residual connection around the second; 0 for no memory at all.
        attention_span: how many of the latest steps of the episode an attention layer after the
            LSTM looks at; 0 for no such layer.
        value_mode: what the rollout's baseline is: ``"soft"`` V(s, π(op|s)), the value head at
            the op probabilities; ``"expected"`` Σ π(op|s) V(s, op); ``"sampled"`` V(s, op taken),
            which biases the policy gradient (Tucker et al. 2018); or ``"state"`` V(s), with a
            value head that doesn't see the op. Updates and bootstraps are of V(s, op taken).
        entropy_weights: what each head's entropy counts in the bonus.

    Raises:
        ValueError: if a number is out of range or a mode unknown.

    Examples:
        >>> PolicyConfig.v2().hidden_size, PolicyConfig.v1().value_mode
        (256, 'state')
    """

    num_slots: int = option(3, "slots that the policy acts on; follows env.num_slots")
    hidden_size: int = option(256, "width of feature layer and LSTM")
    action_feedback: bool = option(True, "show the last action's op and success to the network")
    blueprint_layers: int = option(3, "layers of the blueprint head: 2 or 3")
    lstm_layers: int = option(1, "LSTM layers: 0 for none, 1, or 2 with a residual connection")
    attention_span: int = option(0, "latest steps that an attention layer looks at; 0: no layer")
    value_mode: str = option("soft", "baseline of rollouts: soft | expected | sampled | state")
    entropy_weights: dict[str, float] = field(
        default_factory=ENTROPY_WEIGHTS.copy, metadata={"help": "weight of the head's entropy"}
    )

    def __post_init__(self) -> None:
        if self.num_slots < 1:
            raise ValueError(f"num_slots must be at least 1, got {self.num_slots}")
        if self.hidden_size < 2 or self.hidden_size % 2:
            raise ValueError(
                f"hidden_size must be even and at least 2, since the heads halve it; "
                f"got {self.hidden_size}"
            )
        for name, allowed in (
            ("blueprint_layers", (2, 3)),
            ("lstm_layers", (0, 1, 2)),
            ("value_mode", VALUE_MODES),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(map(str, allowed))}; "
                    f"got {getattr(self, name)}"
                )
        if self.attention_span < 0:
            raise ValueError(f"attention_span must be at least 0, got {self.attention_span}")

    def describe(self) -> str:
        """Its name for people.

        Examples:
            >>> PolicyConfig.v1().describe(), PolicyConfig(lstm_layers=2).describe()
            ('V1 policy for 3 slots', 'V2 policy (lstm_layers=2) for 3 slots')
        """
        presets = {name: preset(self.num_slots) for name, preset in PRESETS.items()}
        differing = {
            name: [field for field, value in vars(self).items() if value != getattr(preset, field)]
            for name, preset in presets.items()
        }
        nearest = min(differing, key=lambda name: len(differing[name]))
        changes = ", ".join(f"{field}={getattr(self, field)}" for field in differing[nearest])
        details = f" ({changes})" if changes else ""
        return f"{nearest.upper()} policy{details} for {self.num_slots} slots"

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
