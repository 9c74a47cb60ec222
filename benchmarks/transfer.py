"""Does a controller carry over to networks and data that it never saw?

    python -m benchmarks.transfer [--seeds 5] [--hosts 4] [--runs FOLDER]

Trains policies on ``digits``, one for each training seed, and lets each grow networks in ordinary
PyTorch loops (``esper_rl.Grower``), 50 epochs each: a network of the same kind but wider, one with
two blocks, one whose 3×3 kernels need nothing, MNIST-1D, two of scikit-learn's tables with
perceptrons, and a text model. Where features aren't ``[B, C, H, W]``, seeds that do what the
convolutional ones do are offered by the same names. The same hosts are left alone, grown by the
heuristic, and by the best schedule that a search has found on ``digits``
(benchmarks/results/main_job.json), as far as they offer its seeds.

A policy wins on a network where its mean score over the hosts is higher than the other's by more
than half of the difference's 95 % interval; below that by as much it loses, else it is a tie.
Everything that ends is written to benchmarks/results/transfer.json at once and is not repeated; the
picture is transfer.png. Some minutes for each training, then a few seconds for each network.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from statistics import fmean

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_breast_cancer, load_wine
from torch import Tensor, nn
from torch.multiprocessing import get_context
from tqdm import tqdm

from benchmarks.intervals import interval
from benchmarks.mnist1d import mnist1d
from benchmarks.seeds import RESULTS, open_study, study_parser, train_seed, write_json
from envs import GrowingNetwork, make_task
from envs.actions import BLUEPRINTS
from envs.networks.blueprints import Blueprint
from envs.networks.layers import Residual, zero
from esper_rl import Grower
from esper_rl.figures import legend_below
from esper_rl.growing.baselines import HeuristicPolicy, SchedulePolicy, WaitPolicy

EPOCHS, SLOTS = 50, 3
SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9)

# -- networks and data -------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """A network to grow, and data to train it on.

    Attributes:
        make: makes the network.
        slots: of it.
        data: inputs and classes ``[M, …]``, of which the last ``validation`` are held out.
        blueprints: None for those of its kind.
        batches, size: of minibatches.
        make_optimizer: for parameters.
        seed_lr: learning rate of seeds, times the host's.
        channel_dim: of the features, see :class:`envs.GrowingNetwork`.
    """

    make: Callable[[], nn.Module]
    slots: list[str]
    data: Callable[[], tuple[Tensor, Tensor]]
    validation: int
    blueprints: Mapping[str, Blueprint] | None = None
    batches: int = 5
    size: int = 64
    make_optimizer: Callable[..., torch.optim.Optimizer] = SGD
    seed_lr: float = 1.0
    channel_dim: int | None = None


def images(channels: list[int], kernel_size: int) -> nn.Module:
    """Blocks like those of ``digits``, of other sizes; pooling after the first two."""
    blocks: list[nn.Module] = []
    for block, (of, to) in enumerate(zip([1, *channels], channels, strict=False)):
        conv = nn.Conv2d(of, to, kernel_size, padding=kernel_size // 2, bias=False)
        pool = nn.MaxPool2d(2) if block < 2 else nn.Identity()
        blocks.append(nn.Sequential(conv, nn.GroupNorm(1, to), nn.ReLU(), pool))
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], 10)]
    return nn.Sequential(*blocks, *head)


def signals() -> nn.Module:
    """Blocks of kernels of one point."""
    blocks = [
        nn.Sequential(nn.Conv1d(of, to, 1, bias=False), nn.GroupNorm(1, to), nn.ReLU(), pool)
        for of, to, pool in (
            (1, 8, nn.MaxPool1d(2)),
            (8, 16, nn.MaxPool1d(2)),
            (16, 32, nn.Identity()),
        )
    ]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, 10))


def perceptron(features: int, classes: int) -> nn.Module:
    """Two narrow hidden layers."""
    first = nn.Sequential(nn.Linear(features, 8), nn.ReLU())
    second = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    return nn.Sequential(first, second, nn.Linear(8, classes))


def _repeated(layer: Callable[[int], nn.Module], times: int, channels: int) -> nn.Module:
    parts: list[nn.Module] = []
    for _ in range(times):
        parts += [layer(channels), nn.GroupNorm(1, channels), nn.ReLU()]
    return Residual(*parts)


def _narrow(layer: Callable[..., nn.Module], channels: int) -> nn.Module:
    narrow = max(channels // 4, 4)
    return Residual(layer(channels, narrow), nn.ReLU(), zero(layer(narrow, channels)))


def _conv3(channels: int) -> nn.Module:
    return nn.Conv1d(channels, channels, 3, padding=1, bias=False)


def _depthwise(channels: int) -> nn.Module:
    each = nn.Conv1d(channels, channels, 3, padding=1, groups=channels, bias=False)
    layers = [each, nn.Conv1d(channels, channels, 1, bias=False), nn.GroupNorm(1, channels)]
    return Residual(*layers, nn.ReLU())


def _conv1(channels: int, to: int) -> nn.Module:
    return nn.Conv1d(channels, to, 1)


def _linear(channels: int) -> nn.Module:
    return nn.Linear(channels, channels)


SIGNAL_SEEDS: dict[str, Blueprint] = {
    "depthwise": _depthwise,
    "conv_light": partial(_repeated, _conv3, 1),
    "conv_heavy": partial(_repeated, _conv3, 2),
    "bottleneck": partial(_narrow, _conv1),
}
TABLE_SEEDS: dict[str, Blueprint] = {
    "conv_light": partial(_repeated, _linear, 1),
    "conv_heavy": partial(_repeated, _linear, 2),
    "bottleneck": partial(_narrow, nn.Linear),
}
"""By the names of the convolutional seeds that do the like."""


def of_task(name: str) -> tuple[Tensor, Tensor]:
    """All examples of a task, those of its validation last."""
    task = make_task(name)
    parts = (task.train, task.validation)
    return torch.cat([p.inputs for p in parts]), torch.cat([p.targets for p in parts])


digits, text = partial(of_task, "digits"), partial(of_task, "pydoc")


def signals_data() -> tuple[Tensor, Tensor]:
    inputs, classes = mnist1d(5000)
    return torch.from_numpy(inputs), torch.from_numpy(classes)


def table(load: Callable[..., tuple]) -> tuple[Tensor, Tensor]:
    inputs, classes = load(return_X_y=True)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(inputs, dtype=torch.float32)[order]
    return (x - x.mean(0)) / x.std(0), torch.tensor(classes)[order]


class Text(nn.Module):
    """Blocks that see one character each."""

    def __init__(self, width: int = 32, tokens: int = 63) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.block0 = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU())
        self.block1 = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU())
        self.block2 = nn.Linear(width, width // 2)
        self.head = nn.Sequential(nn.LayerNorm(width // 2), nn.Linear(width // 2, tokens))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block2(self.block1(self.block0(self.embedding(x))))).transpose(1, 2)


PROBLEMS: dict[str, Problem] = {
    "the source": Problem(partial(images, [8, 16, 32], 1), ["0", "1", "2"], digits, 500),
    "wider": Problem(partial(images, [16, 32, 64], 1), ["0", "1", "2"], digits, 500),
    "two blocks": Problem(partial(images, [12, 24], 1), ["0", "1"], digits, 500),
    "3×3 kernels": Problem(partial(images, [12, 24, 48], 3), ["0", "1", "2"], digits, 500),
    "MNIST-1D": Problem(signals, ["0", "1", "2"], signals_data, 1000, SIGNAL_SEEDS, channel_dim=1),
    "breast cancer": Problem(
        partial(perceptron, 30, 2),
        ["0", "1"],
        partial(table, load_breast_cancer),
        200,
        TABLE_SEEDS,
        size=32,
    ),
    "wine": Problem(
        partial(perceptron, 13, 3),
        ["0", "1"],
        partial(table, load_wine),
        70,
        TABLE_SEEDS,
        batches=3,
        size=32,
    ),
    "pydoc, width 32": Problem(
        Text,
        ["block0", "block1", "block2"],
        text,
        64,
        size=16,
        make_optimizer=partial(torch.optim.AdamW, lr=1e-2),
        seed_lr=0.3,
    ),
}
"""Networks and data, by name."""

# -- players ------------------------------------------------------------------------------------

WAIT, HEURISTIC, SCHEDULE = "waiting", "heuristic", "schedule"
OTHERS = (WAIT, HEURISTIC, SCHEDULE)


def source_schedule() -> SchedulePolicy:
    """The schedule that earned most of those that searches have found on ``digits``."""
    runs = json.loads((RESULTS / "main_job.json").read_text()).values()
    best = max(runs, key=lambda run: run["best schedule_return"])["best schedule"]
    blueprints, epochs = torch.full((2, SLOTS), -1), torch.zeros(SLOTS, dtype=torch.int64)
    for name, slot, epoch in re.findall(r"(\w+) at slot (\d) from epoch (\d+)", best):
        blueprints[0, int(slot)], epochs[int(slot)] = BLUEPRINTS.index(name), int(epoch)
    return SchedulePolicy(blueprints[0], epochs, EPOCHS)


def policy_of(player: str, problem: Problem, offered: Collection[str]) -> object:
    """A baseline, or the folder of a run; the schedule has only what is offered."""
    if player == WAIT:
        return WaitPolicy()
    if player == HEURISTIC:
        return HeuristicPolicy()
    if player == SCHEDULE:
        schedule, slots = source_schedule(), len(problem.slots)
        known = torch.tensor([name in offered for name in BLUEPRINTS])
        blueprints = torch.where(known[schedule.blueprints], schedule.blueprints, -1)
        return SchedulePolicy(blueprints[:slots], schedule.epochs[:slots], EPOCHS)
    return player


@cache
def data_of(name: str) -> tuple[Tensor, Tensor]:
    return PROBLEMS[name].data()


def grow(name: str, player: str, host: int) -> dict[str, float] | None:
    """Train one network and let a player grow it; None where it can't, for want of its seeds."""
    torch.set_num_threads(1)
    problem, (inputs, targets) = PROBLEMS[name], data_of(name)
    train = len(inputs) - problem.validation
    torch.manual_seed(host)
    model = problem.make()
    cut = {"blueprints": problem.blueprints, "channel_dim": problem.channel_dim}
    network = GrowingNetwork(model, problem.slots, inputs[:1], **cut)
    optimizer = problem.make_optimizer(network.parameters())
    options = {"max_epochs": EPOCHS, "seed_lr": problem.seed_lr, "seed": host}
    policy = policy_of(player, problem, network.offer.blueprints)
    if isinstance(policy, SchedulePolicy) and not policy.planted:
        return None
    grower = Grower(network, optimizer, policy, **options)

    def validate() -> tuple[float, float]:
        outputs, right = network(inputs[train:]), targets[train:]
        score = 100 * (outputs.argmax(1) == right).float().mean()
        return F.cross_entropy(outputs, right).item(), score.item()

    chance = torch.Generator().manual_seed(host)
    grower.begin(validate)
    for _ in range(EPOCHS):
        network.train()
        order = torch.randperm(train, generator=chance)
        for batch in order[: problem.batches * problem.size].view(problem.batches, problem.size):
            optimizer.zero_grad()
            F.cross_entropy(network(inputs[batch]), targets[batch]).backward()
            optimizer.step()
        step = grower.step(validate)
    return {"score": step.score, "seed_params": step.seed_params}


# -- the study ----------------------------------------------------------------------------------

Found = dict[str, dict[str, list[dict[str, float] | None]]]
"""By problem and player: what each host came to."""


def compare(mine: list[float], theirs: list[float]) -> str:
    """Win, tie or loss on the same hosts."""
    mean, width = interval([a - b for a, b in zip(mine, theirs, strict=True)])
    return "win" if mean > width else "loss" if mean < -width else "tie"


def policies(found: Found, problem: str) -> list[str]:
    return [player for player in found[problem] if player not in OTHERS]


def scores(found: Found, problem: str, player: str) -> list[float] | None:
    hosts = found[problem][player]
    return None if None in hosts else [host["score"] for host in hosts if host is not None]


def show(found: Found) -> None:
    """Scores; and what policies score more than others, with wins, ties and losses."""
    titles = f"{'':<16}{'policies':>11}{'parameters':>13}"
    print(titles + "".join(f"{other:>10}{'more':>13}{'w/t/l':>8}" for other in OTHERS))
    for problem in found:
        players = policies(found, problem)
        learned = [scores(found, problem, each) for each in players]
        mean, width = interval([fmean(each) for each in learned])
        params = fmean(host["seed_params"] for each in players for host in found[problem][each])
        line = f"{problem:<16}{mean:>5.1f} ± {width:<4.1f}{params:>12,.0f}"
        for other in OTHERS:
            theirs = scores(found, problem, other)
            if theirs is None:
                line += f"{'–':>10}{'':>21}"
                continue
            more, spread = interval([fmean(each) - fmean(theirs) for each in learned])
            results = [compare(each, theirs) for each in learned]
            counts = "/".join(str(results.count(r)) for r in ("win", "tie", "loss"))
            line += f"{fmean(theirs):>10.1f}{more:>+7.1f} ± {spread:<4.1f}{counts:>7}"
        print(line)


def draw(found: Found, path: Path) -> None:
    """Scores of each player on each network, those of a policy as points."""
    figure, axes = plt.subplots(figsize=(9, 3.8), layout="constrained")
    colors = {WAIT: "#999999", HEURISTIC: "#E69F00", SCHEDULE: "#009E73"}
    for place, problem in enumerate(found):
        for number, other in enumerate(OTHERS):
            theirs = scores(found, problem, other)
            if theirs is not None:
                x = place - 0.3 + 0.15 * number
                label = other if place == 0 else None
                axes.bar(x, fmean(theirs), 0.14, color=colors[other], label=label)
        means = [fmean(scores(found, problem, each) or [0]) for each in policies(found, problem)]
        places = [place + 0.2 + 0.03 * n for n in range(len(means))]
        label = "policies, one for each training seed" if place == 0 else None
        axes.plot(places, means, "o", color="#0072B2", markersize=4, label=label)
    axes.set_xticks(range(len(found)), list(found))
    axes.set_ylabel("score in the end (%)")
    axes.grid(axis="y", alpha=0.3)
    legend_below(axes, ncols=4)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = study_parser(__doc__, seeds=5, settings=False)
    parser.add_argument("--hosts", type=int, default=4, help="of each network (default 4)")
    parser.add_argument(
        "--runs",
        type=Path,
        default=Path("runs/transfer"),
        help="training runs (default %(default)s)",
    )
    args, path, found = open_study(parser, "transfer", "hosts")
    runs = {f"seed {seed}": args.runs / f"digits_{seed}" for seed in range(args.seeds)}
    players = [*OTHERS, *runs]
    missing = [
        (problem, player)
        for problem in PROBLEMS
        for player in players
        if player not in found.get(problem, {})
    ]
    wanted = {player for _, player in missing}
    for seed, (player, run) in enumerate(tqdm(runs.items(), "training", unit="run")):
        if player in wanted and not (run / "checkpoint.pt").exists():
            train_seed(seed, [], run)
    with get_context("spawn").Pool(2) as pool:
        for problem, player in tqdm(missing, "networks", unit="player"):
            who = str(runs.get(player, player))
            jobs = [(problem, who, host) for host in range(args.hosts)]
            found.setdefault(problem, {})[player] = pool.starmap(grow, jobs, chunksize=1)
            write_json(path, found)
    show(found)
    draw(found, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
