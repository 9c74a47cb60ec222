"""The former place of :mod:`esper_rl.report.video`."""

import warnings

from esper_rl.report.video import *  # noqa: F403

warnings.warn("esper_rl.video is esper_rl.report.video now", DeprecationWarning, stacklevel=2)
