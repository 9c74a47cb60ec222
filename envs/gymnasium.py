"""The former place of :mod:`envs.adapters.gymnasium`."""

import warnings

from envs.adapters.gymnasium import *  # noqa: F403

warnings.warn("envs.gymnasium is envs.adapters.gymnasium now", DeprecationWarning, stacklevel=2)
