"""The former place of :mod:`esper_rl.evaluation.schedule_search`."""

import warnings

from esper_rl.evaluation.schedule_search import *  # noqa: F403

warnings.warn(
    "esper_rl.search is esper_rl.evaluation.schedule_search now", DeprecationWarning, stacklevel=2
)
