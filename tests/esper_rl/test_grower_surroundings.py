"""Growth in a loop of one's own: policies of runs, several processes, compiled and mixed-precision
training, and what a step costs."""

from __future__ import annotations

import copy
import tempfile
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn
from torchrl.envs.utils import ExplorationType, set_exploration_type

from envs import GrowingNetwork
from envs.actions import BLUEPRINTS, HEADS, Op, Stage
from esper_rl import Grower, train
from esper_rl.config import compose_config
from esper_rl.evaluation import GREEDY, Arena
from esper_rl.growing.baselines import FixedSchedulePolicy, WaitPolicy
from esper_rl.training.acting import RunPolicy
from tests.support.own_loop import (
    BLUEPRINTS_HERE,
    CLASSES,
    IMAGES,
    SGD,
    SLOTS,
    OwnLoop,
    busy,
    host,
    weights_of,
)
from tests.support.runs import TINY

NORM = FixedSchedulePolicy(slot=1, blueprint=BLUEPRINTS.index("norm"))


# -- policies of runs ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained for a moment, with three slots."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    return train(compose_config([*TINY, f"run_dir={folder}", "eval_episodes=0"]))


@pytest.mark.parametrize("mode", ["greedy", "sampled"])
@pytest.mark.parametrize("slots", [["0"], ["0", "2"]])
def test_a_run_serves_networks_with_fewer_slots(run: Path, mode: str, slots: list[str]) -> None:
    torch.manual_seed(0)
    network = GrowingNetwork(host(), slots, IMAGES[:1])
    optimizer = SGD(network.parameters())
    grower = Grower(network, optimizer, run, max_epochs=12, mode=mode)
    for _ in range(12):
        optimizer.zero_grad()
        F.cross_entropy(network(IMAGES), CLASSES).backward()
        optimizer.step()
        step = grower.step(lambda: (1.0, 50.0))
        assert len(step.stages) == len(slots)
        assert step.slot is None or step.slot < len(slots)
        assert not step.refused
    assert mode == "greedy" or {step.op for step in grower.history} > {Op.WAIT}


def test_a_runs_policy_acts_as_it_does_in_its_world(run: Path) -> None:
    arena = Arena(run, 1)
    policy, own = arena.enter(GREEDY), RunPolicy(run)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        played = arena.world.rollout(arena.world.max_epochs, policy)
    for step in played.unbind(1):
        mine = own(step.exclude("action", "next"))["action"]
        for head in HEADS:
            assert mine[head].equal(step["action", head])


def test_a_runs_policy_goes_on_bitwise(run: Path) -> None:
    def loop(seed: int) -> OwnLoop:
        return OwnLoop(run, 14, mode="sampled", blueprints=None, seed=seed)

    one, other = loop(0), loop(1)
    for epoch in range(6):
        one.epoch(epoch)
    saved = copy.deepcopy(one.grower.state_dict())
    other.grower.load_state_dict(saved)
    for epoch in range(6, 14):
        one.epoch(epoch)
        other.epoch(epoch)
    assert one.grower.history == other.grower.history
    mine, theirs = weights_of(one), weights_of(other)
    assert all(mine[key].equal(theirs[key]) for key in mine)


def test_more_slots_than_trained_are_refused(run: Path) -> None:
    model = nn.Sequential(*(nn.Conv2d(1, 1, 1) for _ in range(5)))
    network = GrowingNetwork(model, ["0", "1", "2", "3"], IMAGES[:1])
    with pytest.raises(ValueError, match=r"network must have at most 3 slots, .*, got 4"):
        Grower(network, SGD(network.parameters()), run, max_epochs=3)


def test_blueprints_are_known_by_name(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    make = BLUEPRINTS_HERE["known"]
    network = GrowingNetwork(host(), SLOTS, IMAGES[:1], {"conv_light": make, "mine": make})
    grower = Grower(network, SGD(network.parameters()), run, max_epochs=3)
    offered = grower.world.population.offered.nonzero().squeeze(1).tolist()
    assert offered == [BLUEPRINTS.index("conv_light")]
    assert "wasn't trained with mine" in caplog.text
    # A digits policy has a choice called mlp, which no host of its training offered.
    network = GrowingNetwork(host(), SLOTS, IMAGES[:1], {"mine": make, "mlp": make})
    with pytest.raises(ValueError, match=r"trained with, attention, bottleneck, .* got mine, mlp"):
        Grower(network, SGD(network.parameters()), run, max_epochs=3)


# -- several processes -----------------------------------------------------------------------


def worker(rank: int, folder: str) -> None:
    """One of two, with its own half of every minibatch."""
    file = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=file, rank=rank, world_size=2)
    loop = OwnLoop(busy(0), 16, seed=7)
    loop.network.pieces[0].register_parameter("unused", None)
    parallel = nn.parallel.DistributedDataParallel(loop.network)
    for epoch in range(16):
        chosen = torch.randperm(120, generator=torch.Generator().manual_seed(epoch))[:60]
        for batch in chosen.view(3, 20):
            loop.optimizer.zero_grad()
            mine = batch[rank::2]
            F.cross_entropy(parallel(IMAGES[mine]), CLASSES[mine]).backward()
            loop.optimizer.step()
        shard = torch.arange(120 + rank, 160, 2)

        def validate(shard: torch.Tensor = shard) -> tuple[float, float]:
            logits = loop.network(IMAGES[shard])
            right = (logits.argmax(1) == CLASSES[shard]).double().mean()
            return F.cross_entropy(logits, CLASSES[shard]).item(), float(right) * 100

        loop.grower.step(validate)
    torch.save((weights_of(loop), loop.grower.state_dict()), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_processes_agree_and_do_what_one_process_does() -> None:
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(worker, (folder,), nprocs=2)
        (mine, state), (theirs, other) = (torch.load(f"{folder}/{rank}.pt") for rank in range(2))
    assert mine.keys() == theirs.keys()
    assert all(mine[key].equal(theirs[key]) for key in mine)
    assert state["history"] == other["history"]
    assert {step["op"] for step in state["history"]} >= {Op.GERMINATE, Op.ADVANCE}

    alone = OwnLoop(busy(0), 16, seed=7)
    for epoch in range(16):
        alone.epoch(epoch)
    for step, both in zip(alone.grower.history, state["history"], strict=True):
        assert (step.op, step.slot, step.blueprint) == (both["op"], both["slot"], both["blueprint"])
        assert step.loss == pytest.approx(both["loss"], rel=1e-3)
    for name, values in weights_of(alone).items():
        torch.testing.assert_close(values, mine[name], rtol=1e-2, atol=1e-3)


# -- compiled, and in mixed precision --------------------------------------------------------


@pytest.mark.parametrize("way", ["compiled", "bfloat16"])
def test_other_ways_to_train(way: str) -> None:
    torch.manual_seed(0)
    network = GrowingNetwork(host(), SLOTS, IMAGES[:1])
    optimizer = SGD(network.parameters())
    grower = Grower(network, optimizer, FixedSchedulePolicy(slot=1), max_epochs=10)
    runs = torch.compile(network, backend="aot_eager") if way == "compiled" else network

    def loss_of() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=way == "bfloat16"):
            return F.cross_entropy(runs(IMAGES).float(), CLASSES)

    for _ in range(10):
        optimizer.zero_grad()
        loss_of().backward()
        optimizer.step()
        step = grower.step(lambda: (loss_of().item(), 50.0))
    assert step.stages[1] is Stage.FOSSILIZED
    assert grower.history[-1].loss < grower.history[0].loss
    plain = network.freeze().eval()
    with torch.no_grad():
        torch.testing.assert_close(plain(IMAGES), network.eval()(IMAGES))


def test_networks_of_another_precision() -> None:
    torch.manual_seed(0)
    images = IMAGES.double()
    network = GrowingNetwork(host().double(), SLOTS, images[:1], BLUEPRINTS_HERE)
    optimizer = SGD(network.parameters())
    grower = Grower(network, optimizer, NORM, max_epochs=10)
    for _ in range(8):
        optimizer.zero_grad()
        F.cross_entropy(network(images), CLASSES).backward()
        optimizer.step()
        grower.step(lambda: (1.0, 50.0))
    assert {weight.dtype for weight in network.parameters()} == {torch.float64}


def test_trainers_may_step_it_in_inference_mode() -> None:
    """As they have it around validation; seeds that are planted then can be trained."""
    one, other = OwnLoop(busy(0), 12, seed=1), OwnLoop(busy(0), 12, seed=1)
    for epoch in range(12):
        one.epoch(epoch)
        generator = torch.Generator().manual_seed(epoch)
        other.train(torch.randperm(120, generator=generator)[:60].view(3, 20))
        with torch.inference_mode():
            other.grower.step(other.validate)
    assert one.grower.history == other.grower.history


def test_another_default_dtype_changes_no_network() -> None:
    loop = OwnLoop(NORM, 12)
    torch.set_default_dtype(torch.float64)
    try:
        for epoch in range(8):
            loop.epoch(epoch)
    finally:
        torch.set_default_dtype(torch.float32)
    assert loop.grower.history[-1].stages[1] is Stage.FOSSILIZED
    assert {weight.dtype for weight in loop.network.parameters()} == {torch.float32}


# -- cost ------------------------------------------------------------------------------------


def test_a_step_costs_little_beside_validation() -> None:
    model = nn.Sequential(nn.Linear(700, 700), nn.ReLU(), nn.Linear(700, 700), nn.Linear(700, 4))
    network = GrowingNetwork(model, ["1", "2"], torch.zeros(1, 700))
    assert sum(weight.numel() for weight in network.parameters()) > 900_000
    optimizer = SGD(network.parameters())
    grower = Grower(network, optimizer, WaitPolicy(), max_epochs=40)
    times = []
    for _ in range(30):
        optimizer.step()
        start = time.perf_counter()
        grower.step(lambda: (1.0, 50.0))
        times.append(time.perf_counter() - start)
    assert sorted(times)[3] < 0.1  # a loose bound: shared machines
