"""The former place of :mod:`esper_rl.config`."""

import warnings

from esper_rl.config import *  # noqa: F403

warnings.warn(
    "esper_rl.training.composition is esper_rl.config now", DeprecationWarning, stacklevel=2
)
