"""The documents' scripts run as they stand, and what they point to or explain is all there is."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest

from envs import MorphogenesisEnv, feature_names
from envs.actions import HEADS, Op
from esper_rl import train
from esper_rl.config import compose_config
from tests.support.runs import TINY, read_metrics

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    str(path.relative_to(ROOT)) for path in sorted((*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")))
]
SCRIPTS = [
    pytest.param(name, script, id=f"{name} {i + 1}")
    for name in DOCUMENTS
    for i, script in enumerate(
        re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)
    )
]


@pytest.mark.parametrize(("name", "script"), SCRIPTS)
def test_scripts_run(name: str, script: str) -> None:
    exec(compile(script, name, "exec"), {"__name__": "script"})


def test_there_are_scripts() -> None:
    names = [parameter.values[0] for parameter in SCRIPTS]
    assert names.count("README.md") == 1
    assert names.count("docs/parts.md") == 1
    assert names.count("CONTRIBUTING.md") == 4


@pytest.mark.parametrize("name", DOCUMENTS)
def test_files_that_are_named_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    named = re.findall(r"\]\(([\w./-]+)\)", text)
    named = [str(Path(name).parent / path) for path in named]
    named += re.findall(r"`((?:envs|esper_rl|tests|benchmarks|examples|docs)/[\w./-]*)`", text)
    assert [path for path in named if not (ROOT / path).exists()] == []


def first_cells(document: str, heading: str) -> list[list[str]]:
    """What stands in backticks in the first cell of every row of a section's tables."""
    section = (ROOT / document).read_text().partition(f"\n## {heading}\n")[2]
    rows = re.findall(r"^\|(.*?)\|", section.partition("\n## ")[0], re.MULTILINE)
    return [names for row in rows if (names := re.findall(r"`(.*?)`", row))]


def test_every_number_of_a_run_is_explained(tmp_path: Path) -> None:
    """Those of a run that has all there are: a second LSTM layer, a value after the end."""
    words = ("policy.lstm_layers=2", "env.time_limit=truncate", "total_steps=20")
    run = train(compose_config([*TINY, *words, f"run_dir={tmp_path / 'run'}"]))
    named = [name for cell in first_cells("docs/runs.md", "Metrics") for name in cell]
    explained = [
        name.replace("HEAD", head).replace("OP", op.name)
        for name, head, op in product(named, HEADS, Op)
    ]
    assert len(named) == len(set(named))
    assert set(explained) == set(read_metrics(run)[0])


def test_all_that_the_environment_shows_is_explained() -> None:
    env = MorphogenesisEnv(num_envs=1, num_slots=1)
    text = (ROOT / "docs/observation.md").read_text()
    features = re.findall(r"^\| (\d+) \| `(\w+)` \|", text, re.MULTILINE)
    row, slot = features[:25], features[25:]
    assert [int(column) for column, _ in (*row, *slot)] == [*range(25), *range(29)]
    names = [name for _, name in row] + [f"slot0_{name}" for _, name in slot]
    assert tuple(names) == feature_names(1)
    for key in ("metrics", "reward_terms"):
        explained = [name for (name,) in first_cells("docs/observation.md", f'`("{key}", name)`')]
        assert explained == list(env.observation_spec[key].keys())
