"""The best network of an evaluation, in a process that doesn't know this project."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from envs import make_task
from esper_rl import train
from esper_rl.cli import main
from esper_rl.config import compose_config
from esper_rl.evaluation.best_network import save_best_network
from esper_rl.evaluation.players import FIXED_SCHEDULE
from tests.support.runs import TINY


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    return train(compose_config([*TINY, f"run_dir={folder}", "eval_episodes=0"]))


ALONE = """
import sys, torch
sys.modules["envs"] = sys.modules["esper_rl"] = None  # importing them fails
network = torch.export.load(sys.argv[1]).module()
images, classes = torch.load(sys.argv[2])
print(float((network(images).argmax(1) == classes).double().mean() * 100))
print(sum(w.numel() for w in torch.load(sys.argv[1].replace(".pt2", ".pt")).values() if w.dim()))
"""


def test_it_runs_without_this_project(finished: Path, tmp_path: Path) -> None:
    settings = ["env.max_epochs=8", "env.validation_size=null"]
    file, data = tmp_path / "best.pt2", tmp_path / "data.pt"
    best = save_best_network(finished, file, 4, settings=settings, player=FIXED_SCHEDULE)
    assert json.loads((tmp_path / "best.json").read_text()) == best
    (planted,) = (did for did in best["grown"] if did["op"] == "GERMINATE")
    assert planted == {"epoch": 1, "op": "GERMINATE", "slot": 0, "blueprint": "conv_heavy"}
    assert [did["epoch"] for did in best["grown"]] == sorted(did["epoch"] for did in best["grown"])
    examples = make_task("digits").validation
    torch.save((examples.inputs, examples.targets), data)
    command = [sys.executable, "-c", ALONE, str(file), str(data)]
    out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    accuracy, parameters = map(float, out.stdout.split())
    assert accuracy == pytest.approx(best["accuracy"], abs=1e-3)
    assert parameters == best["parameters"]


def test_the_command(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", str(finished), "--episodes=2", f"--output={tmp_path / 'e.json'}"]
    assert main([*words, f"--save-network={tmp_path / 'best.pt2'}"]) == 0
    assert "The best network, " in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.glob("best*")) == [
        *("best.json", "best.pt", "best.pt2")
    ]
    for name, says in (("best.pt", "must end in .pt2"), ("no/best.pt2", "a folder that exists")):
        assert main([*words, f"--save-network={tmp_path / name}"]) == 2
        assert says in capsys.readouterr().err
