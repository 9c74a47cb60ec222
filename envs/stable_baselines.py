"""The former place of :mod:`envs.adapters.stable_baselines`."""

import warnings

from envs.adapters.stable_baselines import *  # noqa: F403

warnings.warn(
    "envs.stable_baselines is envs.adapters.stable_baselines now", DeprecationWarning, stacklevel=2
)
