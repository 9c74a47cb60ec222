"""Populations: N networks that grow, behind one protocol."""

from envs.populations.base import Population, SlotInputs, Validation

__all__ = ["Population", "SlotInputs", "Validation"]
