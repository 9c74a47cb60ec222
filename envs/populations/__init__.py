"""What is grown: N networks in training, behind one protocol."""

from envs.populations.base import Population, SlotInputs, Validation

__all__ = ["Population", "SlotInputs", "Validation"]
