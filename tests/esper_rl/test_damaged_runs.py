"""Runs whose files are damaged or of another kind: errors that name the file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from esper_rl import TrainConfig, cli, load_policy, train
from esper_rl.errors import ConfigError
from esper_rl.runs import CheckpointError
from esper_rl.runs.digest import sign

Configure = Callable[..., TrainConfig]


@pytest.fixture
def run(tiny_config: Configure) -> Path:
    return train(tiny_config("total_steps=20", "policy.attention_span=3"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is missing"),
        (b"\xff\xfe\x00", "codec can't decode"),
        (sign("total_steps: {").encode(), "not a training configuration"),
        (sign("nonsense: 1").encode(), "not a training configuration"),
        (sign("total_steps: -3").encode(), "total_steps must be"),
    ],
)
def test_a_damaged_configuration_is_named(run: Path, content: bytes, says: str) -> None:
    (run / "config.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=f"config.yaml.*{says}"):
        load_policy(run)


def spoil(run: Path, change: Callable[[dict], object]) -> None:
    content = torch.load(run / "checkpoint.pt", weights_only=True)
    change(content)
    torch.save(content, run / "checkpoint.pt")


NAN = {
    "nan": (
        lambda c: c["weights"]["lstm.bias_ih_l0"].fill_(torch.nan),
        "lstm.bias_ih_l0 must be a tensor of finite numbers",
    ),
    "no tensor": (
        lambda c: c["weights"].update({"lstm.bias_ih_l0": 3}),
        "lstm.bias_ih_l0 must be a tensor",
    ),
    "no dictionary": (lambda c: c.update(weights=[1, 2]), "weights must be a tensor"),
    "unknown field": (lambda c: c["policy"].update(colour=1), "another version: .*'colour'"),
    "bad field": (lambda c: c["policy"].update(lstm_layers=7), "another version: lstm_layers"),
}


@pytest.mark.parametrize("case", NAN)
def test_weights_that_can_not_play_are_named(run: Path, case: str) -> None:
    change, says = NAN[case]
    spoil(run, change)
    with pytest.raises(CheckpointError, match=f"checkpoint.pt .*{says}"):
        load_policy(run)
    assert cli.main(["evaluate", str(run)]) == 2


def test_another_span_of_attention_is_another_policy(run: Path, tiny_config: Configure) -> None:
    """The weights would fit; what they mean wouldn't."""
    other = replace(tiny_config().policy, attention_span=5)
    with pytest.raises(CheckpointError, match="attention_span is 3 there, 5 here"):
        load_policy(run, policy=other)
    assert load_policy(run).network.attention.span == 3


def test_what_a_command_line_leaves_open_is_said(
    tiny_overrides: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*tiny_overrides, "eval_episodes=0", "total_steps=25"]
    assert cli.main(["train", *words]) == 0
    said = capsys.readouterr().err
    assert "total_steps is given more than once; the last one counts" in said
    assert "total_steps=25 is rounded up to 40, to whole iterations of 20 steps" in said
