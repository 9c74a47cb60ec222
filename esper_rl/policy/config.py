"""Presets of the policy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class PolicyConfig:
    """Sizes of the factored recurrent policy.

    Attributes:
        num_slots: slots of the host that it acts on.
        hidden_size: width of the feature layer and of the LSTM: one number, so that they can't
            differ.

    Raises:
        ValueError: if a number is smaller than 1, or ``hidden_size`` odd.

    Examples:
        >>> PolicyConfig.v2()
        PolicyConfig(num_slots=3, hidden_size=256)
    """

    num_slots: int = 3
    hidden_size: int = 256

    def __post_init__(self) -> None:
        if self.num_slots < 1:
            raise ValueError(f"num_slots must be at least 1, got {self.num_slots}")
        if self.hidden_size < 2 or self.hidden_size % 2:
            raise ValueError(
                f"hidden_size must be even and at least 2, since the heads halve it; "
                f"got {self.hidden_size}"
            )

    @classmethod
    def v2(cls, num_slots: int = 3) -> PolicyConfig:
        """Policy V2 of the design document: hidden size 256, 384 from five slots on."""
        return cls(num_slots=num_slots, hidden_size=384 if num_slots >= 5 else 256)


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
