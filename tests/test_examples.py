"""The examples run, show what they say they show, and use public names only."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


def run(path: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(path), *arguments],
        cwd=path.parent.parent,
        env={"PYTHONPATH": str(path.parent.parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["own_task", "own_blueprint", "own_network"])
def test_growing_pays_on_a_task_or_host_of_ones_own(name: str) -> None:
    """Task, host, blueprint and its choice in the action, all from outside."""
    (path,) = (path for path in EXAMPLES if path.stem == name)
    waiting, grown = map(float, re.findall(r"(\d+\.\d) ±", run(path)))
    assert grown > waiting + 20


def test_a_network_grows_in_a_loop_of_ones_own() -> None:
    (path,) = (path for path in EXAMPLES if path.stem == "grow_in_your_loop")
    first, *steps, last = run(path).splitlines()
    assert len(steps) == 50
    (alone,) = map(float, re.findall(r"without growth: (\d+\.\d) %", first))
    (grown,) = map(float, re.findall(r"grown: (\d+\.\d) %", last))
    assert grown > alone + 20


def test_a_loop_of_ones_own_trains() -> None:
    (path,) = (path for path in EXAMPLES if path.stem == "own_loop")
    lines = run(path, "2").splitlines()
    assert len(lines) == 2
    pattern = r"iteration \d: return -?\d\.\d\d, \d+% .*WAIT, .* \d\.\d\d nats"
    assert all(re.fullmatch(pattern, line) for line in lines)


def test_policies_with_and_without_memory_train() -> None:
    """What they learn is in tests/esper_rl/test_own_world.py."""
    (path,) = (path for path in EXAMPLES if path.stem == "own_world")
    names = re.findall(r"(\w+) memory: \d+% of the answers are right\n", run(path, "5"))
    assert names == ["with", "without"]


def test_ppo_in_one_file_trains() -> None:
    (path,) = (path for path in EXAMPLES if path.stem == "single_file_ppo")
    lines = run(path, "2").splitlines()
    assert len(lines) == 2
    assert all(
        re.fullmatch(r"iteration \d: return \d\.\d\d, accuracy \d\d\.\d %", x) for x in lines
    )


@pytest.mark.skipif(not find_spec("sb3_contrib"), reason="needs the extra sb3")
def test_another_librarys_agent_trains() -> None:
    (path,) = (path for path in EXAMPLES if path.stem == "stable_baselines")
    assert re.fullmatch(
        r"maskable: return \S+ over the last 32 episodes\n", run(path, "maskable", "1600")
    )


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_use_public_names_only(path: Path) -> None:
    tree = ast.parse(path.read_text())
    names = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names += [alias.name for alias in node.names]
    assert not [name for name in names if name.startswith("_") and name != "__init__"]
    assert ast.get_docstring(tree)
