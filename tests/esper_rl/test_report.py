"""The report on a run: traces that are true, and a page that shows what can be read."""

from __future__ import annotations

import logging
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from envs.actions import HEADS, Op, Stage
from esper_rl import cli, train
from esper_rl.config import compose_config
from esper_rl.evaluation import FIXED_SCHEDULE, Arena
from esper_rl.report.episode_trace import EpisodeTrace, draw_trace, trace_episodes
from esper_rl.report.run_figures import SECTIONS, draw_learning, draw_policy
from esper_rl.report.run_report import report_run
from esper_rl.runs.digest import sign
from tests.support.pages import Page
from tests.support.runs import TINY

EPISODES = 4


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    words = [*TINY, f"run_dir={folder}", "env.max_epochs=30", "steps_per_iteration=120"]
    assert cli.main(["train", *words, "total_steps=240", "--quiet"]) == 0
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


# -- pictures --------------------------------------------------------------------------------


def test_prices_that_changed_are_told(run: Path) -> None:
    assert "Prices changed" not in report_run(run, episodes=1)
    text = (run / "config.yaml").read_text()
    assert "  schedule: []\n" in text
    ramp = "{key: rent, start: 0.5, begin: 0.2, end: 0.6}"
    (run / "config.yaml").write_text(sign(text.replace("schedule: []", f"schedule: [{ramp}]")))
    told = "Prices changed: rent from 0.5 to 0.005, between 20% and 60% of the steps."
    assert told in report_run(run, episodes=1)


def test_a_further_head_has_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    heads = [*HEADS, "ninth", "tenth"]
    monkeypatch.setattr("esper_rl.report.run_figures.HEADS", heads)
    names = {f"relevant_normalized_entropy/{head}": np.ones(3) for head in heads}
    entropy, _ = draw_policy({"steps": np.arange(3), **names})
    lines = [line for line in entropy.axes[0].get_lines() if line.get_label() in heads]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == len(heads)


# -- traces ----------------------------------------------------------------------------------


def test_stories_are_the_episodes_of_an_evaluation(finished: Path) -> None:
    traces = trace_episodes(finished, EPISODES, 0.9, FIXED_SCHEDULE)
    played = Arena(finished, EPISODES).play(FIXED_SCHEDULE, gamma=0.9)
    assert [trace.earned for trace in traces] == pytest.approx(
        played.returns.sort(descending=True).values.tolist()
    )
    assert sorted(trace.accuracy[-1] for trace in traces) == pytest.approx(
        played.final_accuracy.sort().values.tolist()
    )


def test_a_story_tells_what_the_schedule_did(finished: Path) -> None:
    trace = trace_episodes(finished, EPISODES, 1.0, FIXED_SCHEDULE)[0]
    told = trace.describe().split("; ")
    assert told[0] == "1: GERMINATE conv_heavy in slot 0"
    assert told[-1].endswith("FOSSILIZE in slot 0")
    assert len(told) == np.sum((trace.op != Op.WAIT) & trace.success)
    assert trace.stage[-1].tolist() == [Stage.FOSSILIZED, Stage.DORMANT, Stage.DORMANT]
    assert trace.blueprint[-1].tolist() == ["conv_heavy", "", ""]
    assert trace.alpha[-1].tolist() == [1, 0, 0]
    assert len(trace.accuracy) == len(trace.op) + 1 == 31


def test_what_could_not_be_done_is_not_told() -> None:
    trace = EpisodeTrace(
        earned=0.0,
        accuracy=np.zeros(3),
        stage=np.full((2, 1), Stage.DORMANT),
        alpha=np.zeros((2, 1)),
        blueprint=np.full((2, 1), ""),
        op=np.array([Op.GERMINATE, Op.WAIT]),
        slot=np.zeros(2, int),
        success=np.array([False, True]),
    )
    assert trace.describe() == "it only waits"
    assert draw_trace(trace).startswith(b"\x89PNG")


# -- the page ---------------------------------------------------------------------------------


def test_the_command_writes_a_page_that_stands_alone(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["report", str(run), f"--episodes={EPISODES}"]) == 0
    assert f"The report is in {run / 'report.html'}" in capsys.readouterr().out
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    assert page.stands_alone()
    text = " ".join(page.cells)
    for title in ("Result", "Learning", *(title for title, _, _ in SECTIONS), "What it grows"):
        assert title in page.cells
    for said in ("V2 policy for 3 slots, trained on digits with seed 0", "240 of 240", "torch 2."):
        assert said in text
    assert {"greedy", "wait", "fixed-schedule"} <= set(page.cells)
    assert len(page.pictures) == 2 * (1 + len(SECTIONS)) + 3


def test_a_page_follows_a_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is there after every iteration, without episodes, and loads itself again until the end."""
    pages: list[str] = []
    lines = (run / "metrics.csv").read_text().splitlines(keepends=True)
    (run / "metrics.csv").write_text("".join(lines[:2]))

    def later(seconds: float) -> None:
        pages.append((run / "report.html").read_text())
        (run / "metrics.csv").write_text("".join(lines[: 2 + len(pages)]))

    monkeypatch.setattr("esper_rl.cli.report.time.sleep", later)
    assert cli.main(["report", str(run), "--live", "--episodes=2"]) == 0
    assert len(pages) == len(lines) - 2
    assert all('http-equiv="refresh"' in page and "What it grows" not in page for page in pages)
    last = (run / "report.html").read_text()
    assert "refresh" not in last
    assert "What it grows" in last


def test_a_run_that_was_not_evaluated_yet_says_so_on_its_page_only(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (run / "evaluation.json").unlink()
    assert "None yet: <code>esper-rl evaluate" in report_run(run, episodes=0)
    assert not caplog.text


@pytest.mark.parametrize(
    ("file", "content", "lost", "said"),
    [
        ("metrics.csv", "steps,return\n1,x\n", "Learning", "metrics.csv can't be read"),
        ("metrics.csv", None, "Learning", "metrics.csv can't be read"),
        ("evaluation.json", "{", "Result", "evaluation.json can't be read"),
        ("evaluation.json", '{"policies": {"greedy": {}}}', "Result", "can't be read"),
        ("checkpoint.pt", "nonsense", None, "no episodes are shown"),
        ("provenance.jsonl", "nonsense", None, ""),
    ],
)
def test_what_is_broken_is_said_and_the_rest_is_shown(
    run: Path,
    file: str,
    content: str | None,
    lost: str | None,
    said: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (run / file).unlink()
    if content is not None:
        (run / file).write_text(content)
    with caplog.at_level(logging.WARNING):
        page = Page(report_run(run, 1))
    assert said in caplog.text
    titles = {"Result", "Learning", "What it grows"}
    assert titles & set(page.cells) == titles - {lost}


def test_metrics_that_a_run_does_not_have_are_left_out() -> None:
    """A policy without an LSTM, and one iteration in which no episode ended."""
    columns = {name: np.array([np.nan]) for name in ("return", "final_accuracy", "op/WAIT")}
    columns["steps"] = np.array([20.0])
    for draw in (lambda c: draw_learning(c, {}), *(draw for _, draw, _ in SECTIONS)):
        assert [len(figure.axes) for figure in draw(columns)] == [1, 1]


def test_an_iteration_in_which_no_episode_ended_leaves_no_gap() -> None:
    values = np.array([1.0, np.nan, 3.0])
    columns = dict.fromkeys(("return", "return_std", "final_accuracy"), values)
    columns["steps"] = np.array([20.0, 40.0, 60.0])
    (axes,) = draw_learning(columns, {})[0].axes
    (line,), (band,) = axes.get_lines(), axes.collections
    assert line.get_xdata().tolist() == [20, 60]
    (outline,) = band.get_paths()
    assert {x for x, _ in outline.vertices} == {20, 60}


def test_no_run_no_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "has no config.yaml" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_run_that_has_only_begun_has_a_report(tmp_path: Path) -> None:
    config = compose_config([*TINY, f"run_dir={tmp_path / 'run'}", "eval_episodes=0"])
    run = train(config, quiet=True)
    (run / "checkpoint.pt").unlink()
    (run / "metrics.csv").unlink()
    page = Page(report_run(run, 1))
    assert "0 of 40 environment steps" in " ".join(page.cells)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_a_browser_opens_the_page_without_a_complaint(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(report_run(run, 1), encoding="utf-8")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    opened = subprocess.run(
        [*command, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=120
    )
    assert "What it grows" in opened.stdout
    assert "CONSOLE" not in opened.stderr
