"""Modules that people may import from where they were: they warn, and give the same things."""

from __future__ import annotations

import sys
from importlib import import_module

import pytest

import esper_rl


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("envs.gymnasium", "envs.adapters.gymnasium", "GymnasiumVectorEnv"),
        ("envs.stable_baselines", "envs.adapters.stable_baselines", "StableVecEnv"),
        ("esper_rl.training.composition", "esper_rl.config", "compose_config"),
        ("esper_rl.training.config", "esper_rl.config", "TrainConfig"),
        ("esper_rl.run_report", "esper_rl.report.run_report", "report_run"),
        ("esper_rl.video", "esper_rl.report.video", "record_episode"),
        ("esper_rl.search", "esper_rl.evaluation.schedule_search", "best_schedule"),
    ],
)
def test_a_module_that_has_moved_says_where(old: str, new: str, name: str) -> None:
    try:
        moved = import_module(new)
    except ImportError:
        pytest.skip(f"{new} needs a package that isn't installed")
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"{old} is {new} now"):
        former = import_module(old)
    assert getattr(former, name) is getattr(moved, name)


def test_public_names_come_from_where_things_are() -> None:
    for name in esper_rl._MODULES.values():
        module = import_module(f"esper_rl.{name}")
        assert "The former place" not in (module.__doc__ or ""), name
