"""What the agent costs: V1 beside V2, plain network beside loss and policy.

    python -m benchmarks.agent [--device cpu] [--rows 64 256] [--no-compile]

For batches of episodes of 50 steps: forward of the network, its forward and backward, the whole
loss with its backward, a PPO update (loss, backward, clipping, Adam); for one step of 64 rows: the
network and the whole policy (masks, sampling, log-probabilities, value, recurrent state). In
float32 and in bf16, eager and compiled. All variants run by turns in this process; medians are
shown. Results go to benchmarks/results/agent.json (agent-cuda.json on a GPU).
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median

import torch
from tensordict import TensorDictBase
from torchrl.envs import Compose, TransformedEnv
from tqdm import tqdm

from envs import MorphogenesisEnv
from envs.actions import CAUSAL_RELEVANCE
from esper_rl import FactoredClipPPOLoss, make_actor_critic
from esper_rl.growing import PRESETS
from esper_rl.objectives import compute_advantages
from esper_rl.policy import ActorCritic

RESULTS = Path(__file__).parent / "results"
STEPS = 50
STEP_ROWS = 64


class Subject:
    """One preset with everything that is timed.

    Args:
        preset: its name.
        rows: N of the batch.
        device: where all of it runs.
        compiled: compile the network's parts.
        bf16: run under autocast.
    """

    def __init__(self, preset: str, rows: int, device: str, *, compiled: bool, bf16: bool) -> None:
        torch.manual_seed(0)
        env = MorphogenesisEnv("scaffold", num_envs=rows, device=device)
        self.ac: ActorCritic = make_actor_critic(PRESETS[preset](3), env, compilable=compiled)
        self.device, self.bf16 = device, bf16
        world = TransformedEnv(env, Compose(*self.ac.transforms()))
        with torch.no_grad():
            rollout = world.rollout(STEPS, self.ac.actor, break_when_any_done=False)
        self.batch: TensorDictBase = compute_advantages(rollout, self.ac)
        self.state = rollout[:STEP_ROWS, 20].select(*self.ac.actor.in_keys)
        if compiled:
            self.ac.network.compile_parts()
        self.loss = FactoredClipPPOLoss(
            self.ac.actor, self.ac.critic, heads=self.ac.heads, relevance=CAUSAL_RELEVANCE
        )
        self.parameters = list(self.ac.network.parameters())
        self.optimizer = torch.optim.Adam(self.parameters)

    def _precision(self) -> AbstractContextManager:
        return torch.autocast(self.device, torch.bfloat16) if self.bf16 else nullcontext()

    def _inputs(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.batch["observation"], self.batch["blueprint_indices"]

    def forward(self) -> None:
        with torch.no_grad(), self._precision():
            self.ac.network(*self._inputs())

    def forward_backward(self) -> None:
        with self._precision():
            logits = self.ac.network(*self._inputs())
        self._backward(sum(part.square().mean() for part in logits))

    def loss_backward(self) -> None:
        with self._precision():
            losses = self.loss(self.batch)
        self._backward(sum(term for key, term in losses.items() if key.startswith("loss_")))

    def _backward(self, loss: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()

    def update(self) -> None:
        self.loss_backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()

    def network_step(self) -> None:
        step = self.state[:, None]
        with torch.no_grad(), self._precision():
            self.ac.network(step["observation"], step["blueprint_indices"])

    def policy_step(self) -> None:
        with torch.no_grad(), self._precision():
            self.ac.actor(self.state.copy())

    def memory(self) -> float:
        """MB of parameters, gradients and the optimizer's moments."""
        return 4 * sum(p.numel() * p.element_size() for p in self.parameters) / 1e6


MEASURES: tuple[str, ...] = (
    "forward",
    "forward_backward",
    "loss_backward",
    "update",
    "network_step",
    "policy_step",
)


def milliseconds(calls: dict[tuple[str, ...], Callable[[], None]], device: str) -> dict:
    """Median time of every call; they run by turns."""
    times: dict[tuple[str, ...], list[float]] = {key: [] for key in calls}
    for call in tqdm(calls.values(), "warm up", leave=False):
        call()
        call()
    for _ in tqdm(range(9), "measure", leave=False):
        for key, call in calls.items():
            start = time.perf_counter()
            call()
            if device != "cpu":
                torch.cuda.synchronize()
            times[key].append((time.perf_counter() - start) * 1e3)
    return {key: median(values) for key, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rows", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled ones out")
    args = parser.parse_args()
    results = []
    modes = [(False, False), (False, True)]
    modes += [] if args.no_compile else [(True, False), (True, True)]
    for rows, (compiled, bf16) in product(args.rows, modes):
        subjects = {
            preset: Subject(preset, rows, args.device, compiled=compiled, bf16=bf16)
            for preset in PRESETS
        }
        calls = {
            (preset, measure): partial(getattr(subject, measure))
            for measure in MEASURES
            for preset, subject in subjects.items()
        }
        took = milliseconds(calls, args.device)
        name = f"[{rows}, {STEPS}] {'compiled' if compiled else 'eager'}"
        name += " bf16" if bf16 else " float32"
        for preset, subject in subjects.items():
            numbers = {measure: took[preset, measure] for measure in MEASURES}
            results.append(
                {"batch": [rows, STEPS], "compiled": compiled, "bf16": bf16, "preset": preset}
                | {f"{key}_ms": value for key, value in numbers.items()}
                | {"loss_over_network": numbers["loss_backward"] / numbers["forward_backward"]}
                | {"memory_mb": subject.memory()}
            )
        print_table(name, results[-len(subjects) :])
    RESULTS.mkdir(exist_ok=True)
    machine = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    machine |= {"python": platform.python_version(), "device": args.device}
    suffix = "" if args.device == "cpu" else f"-{args.device}"
    (RESULTS / f"agent{suffix}.json").write_text(
        json.dumps({"machine": machine, "results": results}, indent=2) + "\n"
    )


def print_table(name: str, columns: list[dict]) -> None:
    print(f"\n{name:32}" + "".join(f"{column['preset'].upper():>10}" for column in columns))
    rows = [(f"{measure.replace('_', ' + ', 1)} (ms)", f"{measure}_ms") for measure in MEASURES[:4]]
    rows += [(f"{m.replace('_', ' ')}, N = {STEP_ROWS} (ms)", f"{m}_ms") for m in MEASURES[4:]]
    rows += [("loss over network", "loss_over_network"), ("weights and Adam (MB)", "memory_mb")]
    for title, key in rows:
        print(f"{title:32}" + "".join(f"{column[key]:10.2f}" for column in columns))


if __name__ == "__main__":
    main()
