"""Sweeps: a run for each combination of values."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import pytest
from hydra import compose, initialize
from hydra.core.config_store import ConfigStore

from benchmarks.killing import numbers
from esper_rl import PolicyConfig
from esper_rl.cli import main
from esper_rl.config import TrainConfig, compose_config
from esper_rl.errors import ConfigError
from esper_rl.runs.digest import sign
from esper_rl.training.sweep import sweep
from tests.support.runs import TINY


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_combination_is_run(in_folder: Path) -> None:
    seen: list[TrainConfig] = []
    folder = sweep(["policy=v1,v2", "seed=range(3)", "total_steps=1e3"], seen.append)
    assert [(each.policy, each.seed) for each in seen] == [
        (policy, seed) for policy in (PolicyConfig.v1(), PolicyConfig.v2()) for seed in range(3)
    ]
    assert {each.total_steps for each in seen} == {1000}
    places = [Path(each.run_dir or "").relative_to(in_folder / folder) for each in seen]
    assert [str(place) for place in places[:2]] == ["policy=v1,seed=0", "policy=v1,seed=1"]
    assert len(set(places)) == 6
    assert folder.parent == Path("runs")


def test_tasks_bring_their_own_numbers(in_folder: Path) -> None:
    seen: list[TrainConfig] = []
    sweep(["task=digits,scaffold"], seen.append)
    assert [each.ppo for each in seen] == [
        compose_config([f"task={task}"]).ppo for task in ("digits", "scaffold")
    ]
    assert seen[0].ppo != seen[1].ppo


def test_one_run_is_a_sweep_too(in_folder: Path) -> None:
    seen: list[TrainConfig] = []
    folder = sweep(["seed=3", "hydra.sweep.dir=here"], seen.append)
    assert folder == Path("here")
    assert [(each.seed, each.run_dir) for each in seen] == [(3, str(in_folder / "here/0"))]


def test_a_run_that_fails_does_not_end_the_others(in_folder: Path) -> None:
    seen = []

    def fail_once(config: TrainConfig) -> None:
        seen.append(config.seed)
        if config.seed == 1:
            raise FloatingPointError("the loss became nan")

    with pytest.raises(FloatingPointError, match="became nan"):
        sweep(["seed=0,1,2"], fail_once)
    assert seen == [0, 1, 2]


def test_interrupting_a_run_ends_all(in_folder: Path) -> None:
    seen = []

    def interrupt(config: TrainConfig) -> None:
        seen.append(config.seed)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(["seed=0,1"], interrupt)
    assert seen == [0]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("env.num_envs=32,33", "workers must be a divisor of env.num_envs = 33"),
        ("policy=v1,v3", "policy must be one of 'v1', 'v2', got 'v3'"),
        ("task=digits,nope", "'nope'"),
        ("ppo.lrr=1,2", "the nearest is 'ppo.lr'"),
        ("run_dir=here", "hydra.sweep.dir"),
        ("hydra/launcher=nope", "hydra/launcher/nope"),
        ("ppo.lr=interval(0,1)", "ppo.lr"),
    ],
)
def test_nothing_starts_where_one_configuration_is_wrong(
    in_folder: Path, override: str, says: str
) -> None:
    seen: list[TrainConfig] = []
    with pytest.raises(ConfigError) as refusal:
        sweep(["seed=0,1", override], seen.append)
    assert says in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not seen


def test_other_programs_keep_their_hydra(in_folder: Path) -> None:
    """Here one that has a group of the same name, and composes before and after."""
    store = ConfigStore.instance()
    before = store.repo.copy()
    store.store("mine", {"lr": 3}, group="policy")
    store.store("train", {"defaults": [{"policy": "mine"}]})
    try:
        with initialize(version_base=None, config_path=None):
            compose_config(["policy=v1"])
            sweep(["seed=0,1"], lambda config: compose_config([f"seed={config.seed}"]))
            assert compose("train") == {"policy": {"lr": 3}}
    finally:
        store.repo = before


def test_the_command_trains_and_compares(
    in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "-m", *TINY, "eval_episodes=2", "ppo.lr=1e-3,1e-4", "--json"]
    assert main(words) == 0
    out, err = capsys.readouterr()
    designs = json.loads(out)["designs"]
    assert {name: design["seeds"] for name, design in designs.items()} == {
        "ppo.lr=0.001": 1,
        "ppo.lr=0.0001": 1,
    }
    (folder,) = (in_folder / "runs").iterdir()
    assert {path.parent.name for path in folder.glob("*/evaluation.json")} == {
        "ppo.lr=0.001",
        "ppo.lr=0.0001",
    }
    assert "run 1 of 2" in err


def test_a_quiet_sweep_says_nothing(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started: list[int] = []
    sweep(["seed=4,5"], lambda config: started.append(config.seed), quiet=True)
    assert started == [4, 5]
    assert capsys.readouterr() == ("", "")


def test_a_run_begins_with_the_configuration_of_another(in_folder: Path) -> None:
    words = ["train", *TINY, "policy=v1", "seed=3", "run_dir=first", "eval_episodes=0"]
    assert main(words) == 0
    config = "--config=first/config.yaml"
    assert main(["train", config, "run_dir=second", "--quiet"]) == 0
    first, second = (in_folder / name / "config.yaml" for name in ("first", "second"))
    assert second.read_text() == sign(
        first.read_text().replace("run_dir: first", "run_dir: second")
    )
    assert numbers(in_folder / "first") == numbers(in_folder / "second")
    assert main(["train", config, "policy=v2", "ppo.lr=1e-4", "run_dir=third", "--quiet"]) == 0
    (line,) = (in_folder / "first" / "provenance.jsonl").read_text().splitlines()
    made = json.loads(line)
    assert made["versions"]["torch"] == version("torch")
    assert made["machine"]["cores"] > 0
    text = (in_folder / "third" / "config.yaml").read_text()
    assert "hidden_size: 256" in text
    assert "seed: 3" in text


@pytest.mark.parametrize("words", [["--config=nope.yaml"], ["-m"], ["seed=3"]])
def test_a_run_that_goes_on_has_its_configuration(
    in_folder: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--resume", "run", *words]) == 2
    assert f"leave out {words[0].partition('=nope')[0]}" in capsys.readouterr().err


def test_a_file_that_is_no_configuration_is_named(
    in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("odd.yaml").write_text("colour: red\n")
    assert main(["train", "--config", "odd.yaml"]) == 2
    assert "odd.yaml: not a training configuration" in capsys.readouterr().err
