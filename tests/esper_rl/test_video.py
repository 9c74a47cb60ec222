"""An episode as a film: its frames, its file, and what can't be written."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from torchrl.envs.utils import set_exploration_type

from envs.rendering import draw_network
from esper_rl import train
from esper_rl.cli import main
from esper_rl.config import compose_config
from esper_rl.evaluation import FIXED_SCHEDULE, GREEDY, Arena
from esper_rl.evaluation.arena import EXPLORATION
from esper_rl.report.video import play_frames, record_episode
from tests.support.runs import TINY


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    return train(compose_config([*TINY, f"run_dir={folder}", "eval_episodes=0"]))


def test_frames_are_those_of_the_first_episode_of_an_evaluation(run: Path):
    """The last one shows the accuracy with which the evaluation's first row ends."""
    frames = play_frames(run, GREEDY)
    assert {frame.shape for frame in frames} == {(360, 640, 3)}
    again = play_frames(run, GREEDY)
    assert all(np.array_equal(a, b) for a, b in zip(frames, again, strict=True))
    assert len({frame.tobytes() for frame in frames}) == len(frames)
    arena = Arena(run, episodes=1)
    policy, env = arena.enter(GREEDY), arena.world
    with torch.no_grad(), set_exploration_type(EXPLORATION[GREEDY.mode]):
        steps = env.rollout(env.max_epochs, policy)[0]
    shown = steps["next"][-1]
    played = arena.play(GREEDY).final_accuracy
    assert shown["metrics", "val_accuracy"].item() == played.item()
    curve = [steps["metrics", "val_accuracy"][0].item()]
    curve += steps["next", "metrics", "val_accuracy"].flatten().tolist()
    action = {head: int(chosen) for head, chosen in steps["action"][-1].items()}
    assert np.array_equal(frames[-1], draw_network(shown, curve, len(frames) - 1, action))


@pytest.mark.parametrize("name", ["film.gif", "film.MP4"])
def test_a_film_has_a_frame_an_epoch(run: Path, tmp_path: Path, name: str):
    if name.endswith("MP4"):
        pytest.importorskip("imageio_ffmpeg")
    record_episode(run, tmp_path / name, FIXED_SCHEDULE)
    frames = play_frames(run, FIXED_SCHEDULE)
    film = imageio.imread(tmp_path / name)
    assert film.shape == (len(frames), 360, 640, 3)
    assert np.abs(film[-1].astype(int) - frames[-1]).mean() < 3  # as far as the format allows


def test_the_command_writes_a_film(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    film = tmp_path / "film.gif"
    assert main(["evaluate", str(run), "--episodes", "2", "--video", str(film)]) == 0
    assert f"greedy policy is in {film}" in capsys.readouterr().out
    assert film.stat().st_size > 1000
    assert main(["evaluate", str(run), "--episodes", "2", "--video", str(film), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["run"] == str(run)
    assert f"greedy policy is in {film}" in captured.err


@pytest.mark.parametrize(
    ("name", "message"),
    [("film.avi", "must end in .gif or .mp4"), ("nowhere/film.gif", "in a folder that exists")],
)
def test_what_cannot_be_written_is_refused_before_anything_is_played(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, message: str
):
    assert main(["evaluate", str(run), "--video", str(tmp_path / name)]) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert out == ""


def test_mp4_without_its_encoder_says_what_to_install(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert main(["evaluate", str(run), "--video", str(tmp_path / "film.mp4")]) == 2
    assert "pip install 'esper-rl[video]'" in capsys.readouterr().err
