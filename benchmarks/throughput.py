"""Env-steps per second, beside a plain loop that trains the same networks one by one.

    python -m benchmarks.throughput [--task digits] [--rows 1 8 64 256] [--device cuda]

Three situations: ``empty`` (no seeds), ``mixed`` (one or two live seeds in every row, all
blueprints, slots and stages) and ``full`` (a seed mixed in at every slot of every row, where most
has to be measured: all sets of seeds left out). The plain loop takes the same networks
(``env.network``), the same number of minibatches of the same size, the same validation, with one
more validation for every set of seeds that is left out. Both run by turns in one process; medians
are shown. "Limit" is the share of an arithmetic limit that the environment reaches: the plain
loop's multiply-adds over what large matrix products reach on all cores. The tasks ``module``
and ``residual`` are ``digits`` with hosts of one's own, in a ModuleHost: the same host, and a
residual network with batch norm; ``gpt`` is ``pydoc`` with a two-layer transformer. Every case has
a process of its own, so that the memory shown, the peak less that before the environment was made,
is the environment's.
Results go to benchmarks/results/throughput.json and throughput.png, those of another task or device
to files that are named after it.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import combinations
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from tensordict import TensorDict, TensorDictBase
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from benchmarks.own_networks import MODULES, module_task
from envs import ArrayTask, MorphogenesisEnv
from envs.actions import HEADS, Op, Style
from envs.batched.optimizers import SGD, AdamW
from envs.networks.growing import Blend, GrowingNetwork
from envs.tasks.examples import Examples

RESULTS = Path(__file__).parent / "results"
_SPEEDS = ("env_steps_per_second", "plain_steps_per_second")
MOST_PLAIN_ROWS = 32
"""The plain loop's time a row doesn't depend on their number."""


TASKS = ("digits", "digits_full", "pydoc", "module", "residual", "gpt")


def waiting(env: MorphogenesisEnv) -> dict[str, torch.Tensor]:
    return {head: torch.zeros(env.num_envs, dtype=torch.int64, device=env.device) for head in HEADS}


def step(env: MorphogenesisEnv, action: dict[str, torch.Tensor]) -> TensorDictBase:
    data = TensorDict({"action": action}, batch_size=env.batch_size, device=env.device)
    return env.step(data)["next"]


def grow_mixed(env: MorphogenesisEnv) -> None:
    """Put a seed in every row and a second one in half of them, in all stages of life."""
    rows = torch.arange(env.num_envs, device=env.device)
    indices = env.population.offered.nonzero().squeeze(1)
    for round_ in range(2):
        plants = torch.ones_like(rows, dtype=torch.bool) if round_ == 0 else rows % 2 == 0
        action = waiting(env)
        action["slot"] = (rows + round_) % env.num_slots
        action["blueprint"] = indices[(rows // env.num_slots + 3 * round_) % len(indices)]
        action["style"] = (rows + round_) % len(Style)
        action["alpha_target"] += 2
        action["op"] = torch.where(plants, Op.GERMINATE, Op.WAIT)
        step(env, action)
        for advances in (rows % 8 != 0, rows % 4 != 1, rows % 4 > 1):
            action["op"] = torch.where(plants & advances, Op.ADVANCE, Op.WAIT)
            step(env, action)


def grow_full(env: MorphogenesisEnv) -> None:
    """Put a seed into every slot of every row, all mixed in."""
    rows = torch.arange(env.num_envs, device=env.device)
    indices = env.population.offered.nonzero().squeeze(1)
    for slot in range(env.num_slots):
        action = waiting(env)
        action["slot"] += slot
        action["blueprint"] = indices[(rows // env.num_slots + 3 * slot) % len(indices)]
        action["style"] = (rows + slot) % len(Style)
        action["alpha_target"] += 2
        for op in (Op.GERMINATE, Op.ADVANCE, Op.ADVANCE):
            action["op"] = torch.full_like(rows, op)
            step(env, action)


SITUATIONS: dict[str, Callable[[MorphogenesisEnv], None]] = {
    "empty": lambda env: None,
    "mixed": grow_mixed,
    "full": grow_full,
}
"""By name, what grows an environment that was just reset."""


def train_plain(networks: list[GrowingNetwork], env: MorphogenesisEnv, task: ArrayTask) -> None:
    """One epoch and one validation of every network, one after the other."""
    train, validation = (
        Examples(*(values.to(env.device) for values in examples))
        for examples in (task.train, task.validation)
    )
    examples = len(train.targets)
    inputs = validation.inputs[: env.validation_size]
    targets = validation.targets[: env.validation_size]
    for network in networks:
        optimizer = plain_optimizer(network, task)
        order = torch.randperm(examples, device=env.device)
        network.train()
        for batch in range(env.batches_per_epoch):
            chosen = order[batch * env.minibatch_size : (batch + 1) * env.minibatch_size]
            loss = F.cross_entropy(network(train.inputs[chosen]), train.targets[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        network.eval()
        with torch.no_grad():
            logits = network(inputs)
            F.cross_entropy(logits, targets)
            (logits.argmax(1) == targets).float().mean()
            mixed = [
                slot
                for slot, seed in enumerate(network.slots)
                if isinstance(seed, Blend) and seed.alpha > 0
            ]
            for number in range(1, len(mixed) + 1):
                for left_out in combinations(mixed, number):
                    (network(inputs, left_out).argmax(1) == targets).float().mean()


def plain_networks(env: MorphogenesisEnv) -> list[GrowingNetwork]:
    """Ordinary modules that do what the first rows of an environment do."""
    rows = range(min(env.num_envs, MOST_PLAIN_ROWS))
    return [env.network(row).to(env.device) for row in rows]


def plain_optimizer(network: nn.Module, task: ArrayTask) -> torch.optim.Optimizer:
    parameters, rule = network.parameters(), task.optimizer
    if isinstance(rule, AdamW):
        return torch.optim.AdamW(parameters, lr=task.host_lr, weight_decay=rule.weight_decay)
    assert isinstance(rule, SGD)
    return torch.optim.SGD(parameters, lr=task.host_lr, momentum=rule.momentum)


def clock(device: torch.device) -> float:
    """The time in seconds when all that was begun on a device is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def timed(function: Callable[[], object], device: torch.device) -> float:
    start = clock(device)
    function()
    return clock(device) - start


def clocked(run: Callable, phase: str, seconds: dict[str, float], device: torch.device) -> Callable:
    """``run``, adding its seconds to those of its phase."""

    def wrapper(*args: object, **kwargs: object) -> object:
        start = clock(device)
        result = run(*args, **kwargs)
        seconds[phase] += clock(device) - start
        return result

    return wrapper


def clock_phases(env: MorphogenesisEnv) -> dict[str, float]:
    """Make the environment add up the seconds of its phases."""
    seconds: dict[str, float] = defaultdict(float)
    phases = {
        "train": (env.population, "train_epoch"),
        "validate": (env.population, "validate"),
        "observation": (env, "observe"),
    }
    for phase, (owner, method) in phases.items():
        setattr(owner, method, clocked(getattr(owner, method), phase, seconds, env.device))
    return seconds


def measure(
    task_name: str, num_envs: int, seeds: str, repeats: int, device_name: str
) -> dict[str, object]:
    """Medians over ``repeats`` turns of the environment and the plain loop."""
    device = torch.device(device_name)
    asked: str | ArrayTask = module_task(task_name) if task_name in MODULES else task_name
    # Loaded with the first environment, but not its memory: data, kernels and their libraries.
    small = MorphogenesisEnv(asked, num_envs=1, device=device)
    small.reset()
    step(small, waiting(small))
    before = peak_memory(device)
    env = MorphogenesisEnv(asked, num_envs=num_envs, max_epochs=1000, device=device)
    task = env.task
    env.reset()
    SITUATIONS[seeds](env)
    action = waiting(env)
    step(env, action)
    memory = peak_memory(device) - before
    networks = plain_networks(env)
    train_plain(networks[:2], env, task)
    with FlopCounterMode(display=False) as counter:
        train_plain(networks, env, task)
    multiply_adds = counter.get_total_flops() / 2 / len(networks)
    seconds = clock_phases(env)
    batched, plain = [], []
    for _ in range(repeats):
        batched.append(timed(lambda: step(env, action), device) / num_envs)
        plain.append(timed(lambda: train_plain(networks, env, task), device) / len(networks))
    total = sum(batched) * num_envs
    shares = {phase: spent / total for phase, spent in seconds.items()}
    shares["rest"] = 1 - sum(shares.values())
    training = seconds["train"] / repeats
    return {
        "rows": num_envs,
        "seeds": seeds,
        "env_steps_per_second": 1 / median(batched),
        "plain_steps_per_second": 1 / median(plain),
        "ratio": median(p / b for p, b in zip(plain, batched, strict=True)),
        "share_of_step": shares,
        "attribution_over_training": attribution_seconds(env, repeats) / training,
        "share_of_limit": multiply_adds / median(batched) / matmul_peak(device),
        "memory_mb": memory,
    }


def attribution_seconds(env: MorphogenesisEnv, repeats: int) -> float:
    """Median time that leaving seeds out adds to a validation."""
    inputs, rows = env.slot_inputs(env.state.slots), torch.arange(env.num_envs, device=env.device)

    def validation(ablate: bool) -> float:
        return timed(lambda: env.population.validate(inputs, rows, ablate=ablate), env.device)

    return median(validation(True) - validation(False) for _ in range(repeats))


def matmul_peak(device: torch.device, repeats: int = 10) -> float:
    """Multiply-adds per second of large matrix products on a device, the best of some."""
    size = 1024 if device.type == "cpu" else 8192
    a, b = torch.rand(2, size, size, device=device).unbind()
    return size**3 / min(timed(lambda: a @ b, device) for _ in range(repeats))


def peak_memory(device: torch.device) -> float:
    """The most memory this process has ever held, in MB; on a GPU, what its tensors held there."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+)", status)[1]) / 1024


def draw(results: list[dict], path: Path) -> None:
    """Steps per second against rows, batched and plain."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), sharey=True, layout="constrained")
    titles = ("no seeds", "mixed live seeds", "a seed in every slot")
    for axis, seeds, title in zip(axes, SITUATIONS, titles, strict=True):
        here = [result for result in results if result["seeds"] == seeds]
        rows = [result["rows"] for result in here]
        axis.loglog(rows, [r["env_steps_per_second"] for r in here], "o-", label="MorphogenesisEnv")
        axis.loglog(rows, [r["plain_steps_per_second"] for r in here], "s--", label="plain loop")
        for result in here:
            place = (result["rows"], result["env_steps_per_second"])
            axis.annotate(
                f"×{result['ratio']:.1f}", place, (0, 7), textcoords="offset points", ha="center"
            )
        axis.set_xticks(rows, [str(n) for n in rows], minor=False)
        axis.minorticks_off()
        axis.set(xlabel="rows", title=title)
        axis.margins(x=0.13)  # labels stay inside the frame
        axis.grid(alpha=0.3)
    speeds = [r[key] for r in results for key in _SPEEDS]
    low, high = min(speeds) / 1.5, max(speeds) * 2.5
    ticks = [n * 10**power for power in range(5) for n in (1, 2, 5) if low < n * 10**power < high]
    axes[0].set_yticks(ticks, [str(tick) for tick in ticks], minor=False)
    axes[0].set_ylim(low, high)
    axes[0].set_ylabel("env-steps per second")
    axes[0].legend(loc="lower right" if high / low < 100 else "upper left", fontsize="small")
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", default="digits", choices=TASKS)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--repeats", type=int, default=7, help="turns of each (default 7)")
    parser.add_argument("--device", default="cpu", help="for both (default cpu)")
    args = parser.parse_args()
    results = []
    cases = [(rows, seeds) for seeds in SITUATIONS for rows in args.rows]
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for rows, seeds in tqdm(cases, unit="case"):
            results.append(pool.apply(measure, (args.task, rows, seeds, args.repeats, args.device)))
    print(
        " rows  seeds  steps/s   plain  ratio  memory MB  limit  attribution/training  "
        "share of a step"
    )
    for r in results:
        shares = ", ".join(f"{phase} {share:.1%}" for phase, share in r["share_of_step"].items())
        print(
            f"{r['rows']:>5} {r['seeds']:>6} {r['env_steps_per_second']:>8.0f} "
            f"{r['plain_steps_per_second']:>7.0f} {r['ratio']:>6.1f} {r['memory_mb']:>10.0f} "
            f"{r['share_of_limit']:>6.1%} "
            f"{r['attribution_over_training']:>21.2f}  {shares}"
        )
    others = [word for word in (args.task, args.device) if word not in ("digits", "cpu")]
    name = "_".join(["throughput", *others])
    RESULTS.mkdir(exist_ok=True)
    report = {
        "task": args.task,
        "torch": torch.__version__,
        "device": args.device,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "results": results,
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(report, indent=2) + "\n")
    draw(results, RESULTS / f"{name}.png")


if __name__ == "__main__":
    main()
