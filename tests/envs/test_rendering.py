"""Pictures of growing networks: what must be seen in them is there."""

from __future__ import annotations

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.wrappers import RecordVideo
from matplotlib.colors import to_rgb

from envs import ModuleHost, MorphogenesisEnv
from envs.actions import BLUEPRINTS, STAGES, Op, Stage
from envs.adapters.gymnasium import GymnasiumEnv, GymnasiumVectorEnv
from envs.rendering import cut_sheet, draw_network, draw_sheet
from examples.own_blueprint import Squares, network, rings

ID = "esper_rl/Morphogenesis-v0"


def shown(rows: int = 1, **metrics: list):
    """What a fresh environment shows, with other metrics in its first row."""
    state = MorphogenesisEnv("scaffold", num_envs=rows, seed=0).reset()
    for name, values in metrics.items():
        state["metrics", name][0] = torch.tensor(values)
        if name == "stage":
            planted = torch.tensor(values) > Stage.DORMANT
            state["blueprint_indices"][0] = torch.where(planted, 1, -1)
    return state


def pixels(picture: np.ndarray, colour: str, strength: float = 1.0) -> np.ndarray:
    """Where a colour is, mixed with white by its strength: bool ``[height, width]``."""
    wanted = 255 * (1 - strength + strength * np.array(to_rgb(colour)))
    return (np.abs(picture.astype(float) - wanted) <= 2).all(2)


def test_every_stage_has_a_colour_of_its_own():
    assert list(STAGES) == list(Stage)
    seen = [to_rgb(STAGES[stage].colour) for stage in Stage if stage > Stage.DORMANT]
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("stage", [stage for stage in Stage if stage > Stage.DORMANT])
def test_a_slot_has_the_colour_of_its_stage_where_it_is(stage):
    """Slots lie side by side: the middle one's colour is in the middle third only."""
    stages = [Stage.DORMANT, stage, Stage.DORMANT]
    columns = pixels(draw_network(shown(stage=stages)[0], [10.0], 50), STAGES[stage].colour)
    columns = columns[:180].any(0).nonzero()[0]  # without the curve below
    assert len(columns) > 50
    assert columns.min() > 220
    assert columns.max() < 430


def test_the_fill_is_as_high_as_alpha():
    heights = []
    for alpha in (0.0, 0.25, 0.5, 1.0):
        state = shown(stage=[Stage.BLENDING, 1, 1], alpha=[alpha, 0.0, 0.0])
        filled = pixels(draw_network(state[0], [10.0], 50), STAGES[Stage.BLENDING].colour, 0.35)
        heights.append(filled.any(1).sum())
    assert heights[0] == 0
    assert heights[1] / heights[3] == pytest.approx(0.25, abs=0.03)
    assert heights[2] / heights[3] == pytest.approx(0.5, abs=0.03)


def test_a_curve_ends_at_the_epoch_that_it_shows():
    """Further right with more epochs, and higher with more accuracy."""
    places = []
    for curve in ([10.0, 20.0], [10.0] * 25 + [20.0], [10.0] * 25 + [90.0]):
        line = pixels(draw_network(shown()[0], curve, 50), "#0072B2")[200:, :400]
        places.append((line.any(0).nonzero()[0].max(), line.any(1).nonzero()[0].min()))
    assert places[1][0] > places[0][0] + 100
    assert places[2][1] < places[1][1] - 50


@pytest.mark.parametrize("slots", [1, 3, 5])
def test_words_of_neighbouring_slots_do_not_meet(slots):
    """White columns are left between the boxes, whatever is written in and below them."""
    state = shown()[0]
    names = ("stage", "alpha", "contribution")
    for name, value in zip(names, (int(Stage.FOSSILIZED), 0.88, -100.0), strict=True):
        state["metrics", name] = torch.full((slots,), value)
    state["blueprint_indices"] = torch.full((slots,), 12)  # the longest name
    picture = draw_network(state, [100.0], 50)
    assert picture.shape == (360, 640, 3)
    assert picture.dtype == np.uint8
    low = picture[165:185]  # the contributions
    dark = (low.sum(2) < 300).any(0)
    runs = np.flatnonzero(np.diff(np.concatenate([[0], dark.astype(int), [0]])))
    gaps = runs[2::2] - runs[1:-1:2]
    assert (gaps > 25).sum() == slots - 1


def test_a_sheet_is_cut_into_the_cells_of_its_rows():
    state = shown(rows=11)
    accuracies = np.full((3, 11), 10.0)
    accuracies[2, 4] = np.nan  # an episode that began later than the others
    sheet = draw_sheet(state, accuracies, 50)
    assert sheet.shape == (200, 8 * 160, 3)
    assert sheet.dtype == np.uint8
    cells = cut_sheet(sheet, 11)
    assert len(cells) == 11
    assert {cell.shape for cell in cells} == {(100, 160, 3)}
    assert np.array_equal(cells[10], sheet[100:, 320:480])
    assert not np.array_equal(cells[4], cells[5])


def test_environments_draw_what_they_are_asked_to():
    env = gymnasium.make(ID, task="scaffold", render_mode="rgb_array", max_epochs=4)
    env.reset(seed=0)
    before = env.render()
    offered = env.unwrapped.action_masks()[6 + 3 :].argmax()
    env.step(np.array([Op.GERMINATE, 1, offered, 0, 0, 0, 0, 0]))
    after = env.render()
    yellow = STAGES[Stage.GERMINATED].colour
    assert pixels(after, yellow).sum() > 500 > 10 > pixels(before, yellow).sum()
    envs = gymnasium.make_vec(ID, num_envs=3, task="scaffold", render_mode="rgb_array")
    envs.reset(seed=0)
    envs.step(envs.action_space.sample())
    assert [frame.shape for frame in envs.render()] == [(100, 160, 3)] * 3
    for quiet in (GymnasiumEnv("scaffold"), GymnasiumVectorEnv("scaffold", num_envs=2)):
        quiet.reset()
        assert quiet.render() is None


@pytest.mark.parametrize("kind", ["one", "many"])
def test_blueprints_of_ones_own_have_their_names(kind):
    """Planted and drawn: the picture is another one where the name is."""
    pictures = []
    for name in ("mine", "a_much_longer_name"):
        host = ModuleHost(network, ["first", "second"], torch.zeros(1, 2), {name: Squares})
        task = replace(rings(), host=host)
        options = {"task": task, "num_slots": 2, "render_mode": "rgb_array", "max_epochs": 5}
        env = (
            GymnasiumEnv(**options) if kind == "one" else GymnasiumVectorEnv(num_envs=2, **options)
        )
        own = len(BLUEPRINTS)  # the first beyond those that all hosts know
        env.reset(seed=0)
        action = np.array([Op.GERMINATE, 1, own, 0, 0, 0, 0, 0])
        env.step(action if kind == "one" else np.stack([action] * 2))
        drawn = env.render()
        pictures.append(drawn if kind == "one" else drawn[1])
    assert (pictures[0] != pictures[1]).any(2).sum() > 50


def test_a_vectors_curves_begin_anew_with_their_episodes():
    envs = gymnasium.make_vec(
        ID, num_envs=2, task="scaffold", render_mode="rgb_array", max_epochs=6
    )
    envs.reset(seed=0)
    fresh = envs.render()
    for _ in range(3):
        envs.step(np.zeros((2, 8), int))
    envs.reset(options={"reset_mask": np.array([True, False])})
    first, second = envs.render()
    blue = [pixels(cell, "#0072B2", 1.0).any(0).sum() for cell in (*fresh, first, second)]
    assert blue[2] <= blue[0] + 1
    assert blue[3] > blue[1] + 20


def test_a_recorded_video_has_a_frame_a_step(tmp_path):
    pytest.importorskip("moviepy")
    env = gymnasium.make(ID, task="scaffold", render_mode="rgb_array", max_epochs=3)
    env = RecordVideo(env, str(tmp_path), disable_logger=True)
    env.reset(seed=0)
    for _ in range(3):
        env.step(env.action_space.sample())
    env.close()
    (video,) = tmp_path.glob("*.mp4")
    assert video.stat().st_size > 1000
