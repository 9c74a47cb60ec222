"""``esper-rl grow``: the best network of fresh hosts, and its story."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from esper_rl import train
from esper_rl.cli import main
from esper_rl.config import compose_config
from tests.support.pages import Page
from tests.support.runs import TINY

SMALL = ["env.max_epochs=8", "env.batches_per_epoch=1", "env.minibatch_size=8"]

OWN_TASK = """
import torch
from dataclasses import dataclass
from torch import nn
from torch.nn.functional import cross_entropy
from envs import LoopTask, register_task

@dataclass
class Data:
    x: torch.Tensor
    y: torch.Tensor

data = Data(torch.randn(40, 1, 4, 4), torch.arange(40) % 2)

def make_network():
    return nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))

def train_epoch(network, optimizer):
    optimizer.zero_grad()
    cross_entropy(network(data.x), data.y).backward()
    optimizer.step()

def validate(network):
    outputs = network(data.x)
    return cross_entropy(outputs, data.y), 100 * (outputs.argmax(1) == data.y).float().mean()

def task():
    return LoopTask(
        make_network, train_epoch, validate, slots=["1"], example=data.x[:1], max_epochs=9
    )

register_task("own_of_a_file", task)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    return train(compose_config([*TINY, f"run_dir={folder}", "eval_episodes=0"]))


def test_a_schedule_grows_a_network(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "grown.pt2"
    schedule = "conv_light@0,norm@2:1"
    assert main(["grow", schedule, *SMALL, "--network", str(file), "--hosts", "3"]) == 0
    described = json.loads(file.with_suffix(".json").read_text())
    planted = [did for did in described["grown"] if did["op"] == "GERMINATE"]
    assert [(did["epoch"], did["blueprint"], did["slot"]) for did in planted] == [
        (1, "conv_light", 0),
        (2, "norm", 2),
    ]
    said = capsys.readouterr().out
    assert "epoch 1: GERMINATE conv_light in slot 0\n" in said
    assert f"{described['accuracy']:.1f} % with {described['parameters']:,} parameters" in said
    network = torch.export.load(file).module()
    assert network(torch.randn(5, 1, 8, 8)).shape == (5, 10)
    page = Page(file.with_suffix(".html").read_text())
    assert page.stands_alone()
    (picture,) = page.pictures
    assert picture.startswith("1: GERMINATE conv_light in slot 0; ")
    assert "depthwise" not in page.cells
    assert "conv_light" in page.cells


def test_a_run_grows_a_network_of_another_task(run: Path, tmp_path: Path) -> None:
    """With fewer slots than it was trained with, of a file of the user's own."""
    module, file = tmp_path / "own.py", tmp_path / "grown.pt2"
    module.write_text(OWN_TASK)
    sizes = ("batches_per_epoch", "minibatch_size", "validation_size", "max_epochs")
    words = ["grow", str(run), "task=own_of_a_file", *(f"env.{size}=null" for size in sizes)]
    words += ["--import", str(module), "--sampled"]
    assert main([*words, "--network", str(file), "--hosts", "2"]) == 0
    assert torch.export.load(file).module()(torch.randn(3, 1, 4, 4)).shape == (3, 2)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["conv_havy@0"], "blueprint must be one of 'conv_light', .* got 'conv_havy'"),
        (["norm@3"], "slot must be an integer from 0 to 2, the last slot, got 3"),
        (["norm@0:50"], "epoch must be an integer from 0 to 49, the last epoch, got 50"),
        (["norm@0;norm@1"], "parts must be BLUEPRINT@SLOT or BLUEPRINT@SLOT:EPOCH"),
        (["no_such_run"], "no_such_run"),
        (["heuristic", "task=scaffold"], "must have data to take a network home"),
        (["heuristic", "--import", "no_such_file.py"], "--import must name a Python file"),
        (["heuristic", "--network", "a.onnx"], "must end in .pt2"),
        (["heuristic", "tusk=digits"], "there is no field 'tusk'"),
    ],
)
def test_mistakes_are_said(words: list[str], says: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["grow", *words]) == 2
    assert re.search(says, capsys.readouterr().err)
