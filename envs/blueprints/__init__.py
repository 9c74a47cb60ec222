"""The seeds: small modules that can be planted in a host."""

from envs.blueprints.base import Blueprint
from envs.blueprints.conv import CONV_BLUEPRINTS
from envs.blueprints.text import TEXT_BLUEPRINTS

__all__ = ["CONV_BLUEPRINTS", "TEXT_BLUEPRINTS", "Blueprint"]
