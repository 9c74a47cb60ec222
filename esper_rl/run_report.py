"""The former place of :mod:`esper_rl.report.run_report`."""

import warnings

from esper_rl.report.run_report import *  # noqa: F403

warnings.warn(
    "esper_rl.run_report is esper_rl.report.run_report now", DeprecationWarning, stacklevel=2
)
