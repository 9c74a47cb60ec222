"""Training runs: what they leave behind, how they end, that they learn."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import esper_rl.training.collection as collection
import esper_rl.training.trainer as trainer
from envs import ArrayTask, ConvHost, MorphogenesisEnv, RewardConfig, register_task
from esper_rl import PPO, FactoredClipPPOLoss, load_policy, train
from esper_rl.config import TrainConfig, load_config, pin_world
from esper_rl.errors import ConfigError
from esper_rl.growing import PRESETS
from esper_rl.runs import CheckpointError, RunFolder
from tests.support.runs import command, read_metrics, weights

Configure = Callable[..., TrainConfig]

SCAFFOLD = (
    "task=scaffold",
    "env.batches_per_epoch=null",
    "env.minibatch_size=null",
    "env.validation_size=null",
)
"""The scaffold task, which has no data."""


def test_a_run_leaves_config_metrics_checkpoint_and_picture(tiny_config: Configure) -> None:
    config = tiny_config()
    run = train(config)
    assert {file.name for file in run.iterdir()} == {
        "config.yaml",
        "metrics.csv",
        "provenance.jsonl",
        "checkpoint.pt",
        "resume",
        "learning_curve.png",
    }
    assert load_config((run / "config.yaml").read_text()) == pin_world(
        replace(config, threads=torch.get_num_threads())
    )
    assert (run / "learning_curve.png").read_bytes().startswith(b"\x89PNG")


def five_blocks() -> ArrayTask:
    host = ConvHost(1, (1, 8, 8), (4, 4, 4, 4, 4), (False, True, False, True, False), classes=4)
    images, classes = torch.rand(90, 1, 8, 8), torch.arange(90) % 4
    return ArrayTask(name="five", host=host, train=(images, classes), validation=30)


@pytest.mark.parametrize("slots", [1, 2, 4, 5])
def test_a_policy_of_that_many_slots_trains(slots: int, tiny_config: Configure) -> None:
    """At five slots 170 features go in, and 20 numbers of the embedded blueprints."""
    register_task("five", five_blocks)
    run = train(tiny_config("task=five", f"env.num_slots={slots}"))
    learned = weights(run)
    config = load_config((run / "config.yaml").read_text())
    assert config.policy.num_slots == slots
    matrices = (w for name, w in learned.items() if name.startswith("feature_net"))
    inputs = {w.shape[1] for w in matrices if w.dim() > 1}
    assert inputs == {25 + 29 * slots + 4 * slots}
    assert all(w.isfinite().all() for w in learned.values())


def test_metrics_have_one_line_an_iteration_within_their_ranges(tiny_config: Configure) -> None:
    lines = read_metrics(train(tiny_config("total_steps=50")))
    assert [line["steps"] for line in lines] == [20, 40, 60]
    for line in lines:
        assert line["episodes"] == 4
        assert 0 <= line["final_accuracy"] <= 100
        assert line["refused_rate"] == 0
        assert sum(line[name] for name in line if name.startswith("op/")) == pytest.approx(1)
        assert 0 < line["head_entropy/op"] < torch.tensor(6.0).log()
        assert 0 < line["head_entropy/blueprint"] < torch.tensor(13.0).log()
        assert line["steps_per_second"] > 0
        assert all(line[f"seconds/{part}"] > 0 for part in ("env", "policy", "update"))


def test_iterations_without_a_finished_episode_have_no_return(tiny_config: Configure) -> None:
    config = tiny_config("env.max_epochs=7", "total_steps=60")
    lines = read_metrics(train(config))
    assert [line["episodes"] for line in lines] == [0, 4, 4]
    assert [line["return"] == line["return"] for line in lines] == [False, True, True]


def test_the_same_seed_gives_the_same_metrics(tiny_config: Configure, tmp_path: Path) -> None:
    first = train(tiny_config())
    second = train(tiny_config(f"run_dir={tmp_path / 'second'}"))
    other = train(tiny_config(f"run_dir={tmp_path / 'other'}", "seed=1"))

    def untimed(run: Path) -> list[dict[str, str]]:
        return [
            {name: repr(value) for name, value in line.items() if "second" not in name}
            for line in read_metrics(run)
        ]

    assert untimed(first) == untimed(second)
    assert untimed(first) != untimed(other)
    for name, tensor in weights(first).items():
        assert torch.equal(tensor, weights(second)[name])


def test_a_run_folder_is_never_overwritten(tiny_config: Configure, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").write_text("data")
    with pytest.raises(FileExistsError, match=r"run_dir: got .* exists already"):
        train(tiny_config())
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["precious"]


def test_runs_without_a_name_get_different_ones(
    tiny_config: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folders = {RunFolder.create(None, "digits", "").path for _ in range(3)}
    assert len(folders) == 3
    assert all(path.parent == Path("runs") for path in folders)
    assert all(path.name.startswith("digits-") for path in folders)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("task=digit", "'digit'"),
        ("env.gates=loose", "gates"),
        ("env.time_limit=stop", "time_limit"),
    ],
)
def test_what_the_world_refuses_leaves_no_folder(
    tiny_config: Configure, tmp_path: Path, override: str, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        train(tiny_config(override))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("spoiled", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_raises_and_keeps_the_weights(
    tiny_config: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoiled: str
) -> None:
    good = []
    forward = FactoredClipPPOLoss.forward

    def spoil_the_fourth(self: torch.nn.Module, tensordict: object) -> object:
        losses = forward(self, tensordict)
        if not torch.is_grad_enabled():  # only looked at
            return losses
        good.append({name: value.clone() for name, value in self.state_dict().items()})
        if len(good) == 4 and spoiled == "loss":
            losses["loss_critic"] = losses["loss_critic"] * float("nan")
        elif len(good) == 4:
            losses["loss_critic"].register_hook(lambda gradient: gradient * float("inf"))
        return losses

    monkeypatch.setattr(FactoredClipPPOLoss, "forward", spoil_the_fourth)
    with pytest.raises(FloatingPointError, match="after 20 steps"):
        train(tiny_config())
    assert len(good) == 4
    kept = weights(tmp_path / "run")
    assert all(tensor.isfinite().all() for tensor in kept.values())
    after_the_first = good[2]  # iteration, of two updates
    norms = {t.norm().item() for t in after_the_first.values() if t.is_floating_point()}
    assert {tensor.norm().item() for tensor in kept.values()} <= norms
    assert [line["steps"] for line in read_metrics(tmp_path / "run")] == [20]


def test_a_policy_plays_the_same_after_loading(tiny_config: Configure) -> None:
    run = train(tiny_config())
    first, second = load_policy(run), load_policy(str(run))
    for name, tensor in first.network.state_dict().items():
        assert torch.equal(tensor, second.network.state_dict()[name])
    saved = torch.load(run / "checkpoint.pt", weights_only=True)
    assert saved["steps"] == 40
    assert saved["weights"].keys() == first.network.state_dict().keys()


def test_training_changes_every_part_of_the_policy(tiny_config: Configure, tmp_path: Path) -> None:
    trained = weights(train(tiny_config("total_steps=200", "env.max_epochs=10")))
    torch.manual_seed(tiny_config().seed)
    config = tiny_config(f"run_dir={tmp_path / 'short'}", "total_steps=20", "ppo.lr=1e-12")
    untrained = weights(train(config))
    for name, tensor in untrained.items():
        assert not torch.allclose(tensor, trained[name], atol=1e-7), name


def test_load_policy_refuses_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"run: got .*nothing"):
        load_policy(tmp_path / "nothing")


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint", None])
def test_load_policy_refuses_a_damaged_file(tiny_config: Configure, damage: bytes | None) -> None:
    run = train(tiny_config("total_steps=20"))
    file = run / "checkpoint.pt"
    file.write_bytes(file.read_bytes()[:5000] if damage is None else damage)
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt is not a checkpoint"):
        load_policy(run)


def test_load_policy_refuses_a_world_with_other_slots(tiny_config: Configure) -> None:
    run = train(tiny_config("total_steps=20"))
    env = MorphogenesisEnv(num_envs=1, num_slots=2, max_epochs=5)
    with pytest.raises(CheckpointError) as refusal:
        load_policy(run, env)
    assert (
        "a V2 policy for 3 slots, which doesn't fit this V2 policy for 2 slots: feature_net.0"
        in (str(refusal.value))
    )
    assert "is [256, 124] in the file and [256, 91] here; load it" in str(refusal.value)


@pytest.mark.parametrize(("trained", "wanted"), [("v1", "v2"), ("v2", "v1")])
def test_load_policy_refuses_another_version(
    tiny_config: Configure, trained: str, wanted: str
) -> None:
    run = train(tiny_config("total_steps=20", f"policy={trained}"))
    with pytest.raises(CheckpointError) as refusal:
        load_policy(run, policy=PRESETS[wanted]())
    shapes = {"v1": "[128, 117]", "v2": "[256, 124]"}
    assert str(refusal.value).endswith(
        f"holds a {trained.upper()} policy for 3 slots, which doesn't fit this {wanted.upper()} "
        f"policy for 3 slots: feature_net.0.weight is {shapes[trained]} in the file and "
        f"{shapes[wanted]} here; load it as what it is, into a world like that of its run, or "
        "train a new one"
    )


def test_load_policy_refuses_another_topology(tiny_config: Configure) -> None:
    run = train(tiny_config("total_steps=20"))
    with pytest.raises(CheckpointError, match="trained on convolutional hosts, not on analytic"):
        load_policy(run, MorphogenesisEnv("scaffold", num_envs=1))


def test_load_policy_takes_a_world_of_the_same_kind(tiny_config: Configure) -> None:
    run = train(tiny_config("total_steps=20"))
    other = load_policy(run, MorphogenesisEnv("digits_full", num_envs=2))
    for name, tensor in weights(run).items():
        assert torch.equal(tensor, other.network.state_dict()[name])


@pytest.mark.parametrize(
    ("workers", "kind"),
    [(1, signal.SIGHUP), (1, signal.SIGINT), (2, signal.SIGUSR1), (2, signal.SIGTERM)],
)
def test_an_end_by_a_signal_leaves_a_policy_and_a_picture(
    tiny_overrides: list[str], tmp_path: Path, workers: int, kind: signal.Signals
) -> None:
    run = tmp_path / "run"
    overrides = [*tiny_overrides, "total_steps=1000000", f"workers={workers}"]
    process = subprocess.Popen(
        command("train", *overrides),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # A process that is started in the background inherits an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        start_new_session=True,
    )
    patience = time.monotonic() + 60
    while not (run / "metrics.csv").exists() and process.poll() is None:
        assert time.monotonic() < patience
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()[1]
    if kind is signal.SIGINT:
        os.killpg(process.pid, kind)  # a terminal sends it to all processes of the command
    else:
        os.kill(process.pid, kind)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    last_line = errors.strip().splitlines()[-1]
    assert f"esper-rl evaluate {run}" in last_line
    assert "Traceback" not in errors
    assert "leaked" not in errors
    assert (run / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert not list(run.glob("*.tmp"))
    assert all(tensor.isfinite().all() for tensor in weights(run).values())


def test_ctrl_c_before_the_first_iteration_ends(
    tiny_config: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(PPO, "update", interrupt)
    with pytest.raises(trainer.TrainingInterrupted) as interrupted:
        train(tiny_config())
    assert interrupted.value.run == tmp_path / "run"
    assert weights(tmp_path / "run")
    assert (tmp_path / "run" / "learning_curve.png").exists()


def test_a_short_run_learns_to_grow(
    tiny_config: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The return is all but the sum of the stages reached, up to 6 a slot: the policy has to find
    # out how to lead seeds through their life, without the noise of a host that really trains.
    def world_that_pays_for_stages(
        config: TrainConfig, *, seed: int, num_envs: int, scheduled: bool
    ) -> MorphogenesisEnv:
        reward = RewardConfig(
            stage=1.0, progress=0.0, terminal=0.0, fossilize=0.0, fossilize_cost=0.0, bonus=0.0
        )
        return MorphogenesisEnv(
            num_envs=num_envs,
            max_epochs=config.env.max_epochs,
            batches_per_epoch=1,
            minibatch_size=8,
            validation_size=20,
            time_limit="truncate",
            reward=reward,
            seed=seed,
        )

    monkeypatch.setattr(collection, "make_env", world_that_pays_for_stages)
    config = tiny_config(
        "env.num_envs=16",
        "env.max_epochs=15",
        "steps_per_iteration=240",
        "total_steps=2400",
        "policy.hidden_size=64",
        "ppo.lr=1e-3",
        "ppo.epochs=4",
    )
    returns = [line["return"] for line in read_metrics(train(config))]
    assert sum(returns[:2]) / 2 < 5
    assert sum(returns[-2:]) / 2 > 10


@pytest.mark.parametrize(
    ("anneal", "coefficients"), [("true", [16e-3, 9e-3, 4e-3, 1e-3]), ("false", [16e-3] * 4)]
)
def test_entropies_count_less_and_less(
    tiny_config: Configure, anneal: str, coefficients: list[float]
) -> None:
    config = tiny_config(
        "total_steps=80", "ppo.entropy_coeff=16e-3", f"ppo.anneal_entropy={anneal}"
    )
    lines = read_metrics(train(config))
    assert [line["entropy_coeff"] for line in lines] == pytest.approx(coefficients)
    for line in lines:  # the entropy of every head is within 1 % of its maximum at first
        assert line["loss_entropy"] / line["entropy_coeff"] == pytest.approx(
            lines[0]["loss_entropy"] / 16e-3, rel=0.2
        )


@pytest.mark.parametrize(("time_limit", "regressed"), [("truncate", True), ("terminate", False)])
def test_the_value_at_a_time_limit_is_regressed(
    tiny_config: Configure, time_limit: str, regressed: bool
) -> None:
    lines = read_metrics(train(tiny_config(f"env.time_limit={time_limit}")))
    assert all(line.get("loss_final_value", 0.0) > 0 for line in lines) is regressed


@pytest.mark.parametrize(
    "overrides",
    [
        ("policy=v1",),
        ("policy.lstm_layers=2", "policy.attention_span=3", "policy.value_mode=expected"),
        ("policy.lstm_layers=0", "policy.value_mode=sampled", "ppo.bootstrap=expected"),
        ("ppo.ratio=per_head", "ppo.normalize_entropy=true", "env.time_limit=truncate"),
        (*SCAFFOLD, "workers=2", "bf16=true"),
    ],
    ids=" ".join,
)
def test_options_train_and_load(tiny_config: Configure, overrides: tuple[str, ...]) -> None:
    run = train(tiny_config(*overrides))
    assert len(read_metrics(run)) == 2
    load_policy(run)


def test_warnings_are_shown_once(
    tiny_config: Configure, capsys: pytest.CaptureFixture[str]
) -> None:
    """A policy of very strong preferences from the start."""
    train(tiny_config("ppo.lr=0.3", "total_steps=100"))
    shown = [line for line in capsys.readouterr().err.splitlines() if "alert: head 'op'" in line]
    assert len(shown) == 1
    assert shown[0].strip().startswith("after ")
