"""Comparing designs over training seeds: statistics by brute force, and what is left out."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import esper_rl.cli as cli
from esper_rl.config import compose_config, dump_config
from esper_rl.errors import ConfigError
from esper_rl.report.comparison import (
    find_runs,
    interquartile_mean,
    interval_of,
    performance_profile,
    probability_of_improvement,
    read_designs,
)
from esper_rl.runs.digest import sign
from tests.support.pages import Page

SCORES = st.lists(st.integers(-5, 5), min_size=2, max_size=8).map(lambda x: np.array(x, float))


def make_run(folder: Path, seed: int, score: float, *settings: str, player: str = "greedy") -> Path:
    """A run as training and evaluation leave it, with three iterations."""
    run = folder / f"run{len(list(folder.iterdir()))}"
    run.mkdir()
    config = compose_config([*settings, f"seed={seed}", f"run_dir={run}"])
    (run / "config.yaml").write_text(sign(dump_config(config)))
    measured = {"mean": score, "ci95": 0.1}
    found = {player: {"returns": measured, "final_accuracy": {"mean": 70 + score, "ci95": 1.0}}}
    (run / "evaluation.json").write_text(json.dumps({"policies": found}))
    lines = [f"{steps},{score * steps / 300}" for steps in (100, 200, 300)]
    (run / "metrics.csv").write_text("\n".join(["steps,return", *lines, ""]))
    return run


# -- statistics -------------------------------------------------------------------------------


@given(SCORES, SCORES)
def test_probability_of_improvement_counts_pairs(x: np.ndarray, y: np.ndarray) -> None:
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a in x for b in y]
    found = probability_of_improvement(x, y)
    assert found == pytest.approx(sum(wins) / len(wins))
    assert found + probability_of_improvement(y, x) == pytest.approx(1)


def test_an_interquartile_mean_leaves_out_a_quarter_at_each_end() -> None:
    scores = np.array([100.0, 3.0, -50.0, 1.0, 2.0, 4.0, 99.0, -60.0])
    assert interquartile_mean(scores) == pytest.approx((1 + 2 + 3 + 4) / 4)


@given(SCORES)
def test_a_profile_is_the_share_above_a_level(scores: np.ndarray) -> None:
    levels = np.arange(-6.0, 7.0)
    wanted = [sum(score > level for score in scores) / len(scores) for level in levels]
    assert performance_profile(scores, levels).tolist() == pytest.approx(wanted)


def test_an_interval_is_the_bootstraps() -> None:
    """Of a mean, resampled by hand with other random numbers."""
    scores = np.random.default_rng(1).normal(5, 2, 40)
    found = interval_of(np.mean, scores)
    chosen = np.random.default_rng(2).choice(scores, (20_000, 40))
    low, high = np.percentile(chosen.mean(1), (2.5, 97.5))
    assert found.value == pytest.approx(scores.mean())
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.05)
    assert found == interval_of(np.mean, scores)


def test_one_seed_has_no_interval_and_equal_scores_an_empty_one() -> None:
    assert math.isnan(interval_of(np.mean, np.array([3.0])).low)
    assert interval_of(np.mean, np.array([3.0, 3.0])) == (3, 3, 3)


# -- runs -------------------------------------------------------------------------------------


def test_a_design_is_runs_that_differ_in_nothing_but_the_seed(tmp_path: Path) -> None:
    for seed in range(3):
        make_run(tmp_path, seed, 5.0 + seed, "ppo.lr=0.001")
        make_run(tmp_path, seed, 4.0, "ppo.lr=0.002", "workers=1", "eval_episodes=3")
    designs = read_designs([tmp_path], "greedy", "returns")
    assert {design.name: sorted(design.scores) for design in designs} == {
        "ppo.lr=0.001": [5, 6, 7],
        "ppo.lr=0.002": [4, 4, 4],
    }
    assert designs[0].runs[0].curve.tolist()[0][0] == 100
    (alone,) = read_designs([tmp_path / "run0", tmp_path / "run2"], "greedy", "final_accuracy")
    assert alone.name == "all runs"
    assert sorted(alone.scores) == [75, 76]


def test_a_run_is_found_once(tmp_path: Path) -> None:
    run = make_run(tmp_path, 0, 1.0)
    assert find_runs([tmp_path, run, f"{run}/."]) == [run]
    with pytest.raises(ConfigError, match="no run is"):
        find_runs([tmp_path / "nowhere"])


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("evaluation.json", None, "`esper-rl evaluate` makes one"),
        ("evaluation.json", "{", "Expecting"),
        ("evaluation.json", '{"policies": {"wait": {}}}', "its evaluation has wait, no 'greedy'"),
        ("evaluation.json", '{"policies": {"greedy": {"returns": {"mean": null}}}}', "is None"),
        ("evaluation.json", "[]", "left out"),
        ("config.yaml", "a: [", "left out"),
        ("config.yaml", "- 1", "left out"),
        ("metrics.csv", "steps,return\n1,x\n", "has no learning curve"),
        ("metrics.csv", None, "has no learning curve"),
    ],
)
def test_what_cannot_be_read_is_named_and_the_rest_is_shown(
    file: str, content: str | None, says: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for seed in range(2):
        make_run(tmp_path, seed, 1.0)
    bad = make_run(tmp_path, 7, 9.0)
    (bad / file).unlink() if content is None else (bad / file).write_text(content)
    with caplog.at_level(logging.WARNING):
        (design,) = read_designs([tmp_path], "greedy", "returns")
    assert says in caplog.text
    assert str(bad) in caplog.text
    kept = file == "metrics.csv"
    assert sorted(design.scores) == ([1, 1, 9] if kept else [1, 1])


def test_other_tasks_and_equal_seeds_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_run(tmp_path, 0, 1.0)
    make_run(tmp_path, 0, 2.0)
    make_run(tmp_path, 1, 3.0, "task=digits_full")
    (design,) = read_designs([tmp_path], "greedy", "returns")
    assert design.scores.tolist() == [1]
    assert "run0 has the same settings and seed" in caplog.text
    assert "of task digits_full, the first run of digits" in caplog.text


# -- the command ------------------------------------------------------------------------------


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Six seeds of two designs."""
    folder = tmp_path / "sweep"
    folder.mkdir()
    for seed in range(6):
        make_run(folder, seed, 5 + 0.1 * seed, "ppo.lr=0.001")
        make_run(folder, seed, 4 + 0.1 * seed, "ppo.lr=0.002")
    return folder


def test_compare_prints_tables(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", str(sweep)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = [line.split() for line in captured.out.splitlines()]
    (better,) = [line for line in lines if line[:2] == ["ppo.lr=0.001", "6"]]
    assert better[2] == "5.25"
    assert ["ppo.lr=0.001", "ppo.lr=0.002", "1.00", "[1.00,", "1.00]"] in lines
    assert captured.out.startswith("returns of greedy on digits: 12 runs of 2 designs\n")


def test_few_seeds_prove_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, 0, 1.0)
    assert cli.main(["compare", str(run), "--json"]) == 0
    captured = capsys.readouterr()
    design = json.loads(captured.out)["designs"]["all runs"]
    assert design["mean"] == [1.0, None, None]
    assert design["scores"] == {str(run): 1.0}
    assert "Fewer than 5 training seeds (all runs): this proves nothing" in captured.err


def test_a_page_stands_alone(sweep: Path, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    assert cli.main(["compare", str(sweep), "--output", str(file)]) == 0
    page = Page(file.read_text())
    assert [link[:22] for link in page.links] == 3 * ["data:image/png;base64,"]
    assert {"ppo.lr=0.001", "ppo.lr=0.002", str(sweep / "run3")} <= set(page.cells)


def test_close_designs_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(5):
        make_run(tmp_path, seed, 5.001, "ppo.lr=0.001")
        make_run(tmp_path, seed, 5.002, "ppo.lr=0.002")
    assert cli.main(["compare", str(tmp_path)]) == 0
    assert {"5.001", "5.002"} <= set(capsys.readouterr().out.split())


def test_markdown_holds_both_tables(sweep: Path, tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    assert cli.main(["compare", str(sweep), "--measure=final_accuracy", f"--output={file}"]) == 0
    lines = file.read_text().splitlines()
    assert lines[0] == "# final_accuracy of greedy on digits: 12 runs of 2 designs"
    assert sum(line.startswith("| ppo.lr=") for line in lines) == 3


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--output=page.txt"], "must end in .html or .md, got 'page.txt'"),
        (["--player=nobody"], "none has an evaluation of 'nobody'"),
    ],
)
def test_bad_input_is_exit_code_2(
    words: list[str], says: str, sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["compare", str(sweep), *words]) == 2
    assert says in capsys.readouterr().err
