"""Other libraries' agents on the same world, after as many steps.

    python -m benchmarks.peers [--seeds 5] [--players maskable esper] [--steps N --name NAME]

``maskable`` and ``recurrent`` are MaskablePPO and RecurrentPPO of sb3-contrib with their defaults
(examples/stable_baselines.py, needs the extra ``sb3``), ``single-file`` is PPO in one file
(examples/single_file_ppo.py), ``esper`` is this project's policy with its defaults. Each of the
first three is also trained with the best learning rate of some, chosen by a training seed of its
own: "tuned". Afterwards all play the same 128 hosts of ``digits``, drawing their actions, and again
taking the likeliest ones. Discounted returns. Every run that ends is written to
benchmarks/results/peers.json at once and is not repeated; the picture is peers.png.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from tqdm import tqdm

from benchmarks.intervals import interval
from benchmarks.seeds import Run, measure_missing, open_study, study_parser, train_seed, write_json
from envs.adapters.gymnasium import GymnasiumVectorEnv, Observation
from esper_rl.evaluation import EVALUATION_SEED, GREEDY, SAMPLED, Arena
from esper_rl.figures import legend_below

EPISODES = 128
STEPS_AN_ITERATION = 32 * 50
STEPS = 13 * STEPS_AN_ITERATION
GAMMA = 0.995
MODES = ("sampled", "greedy")
LEARNING_RATES = (1e-4, 3e-4, 1e-3)
TUNING_SEED = 100
LABELS = {
    "maskable": "MaskablePPO",
    "recurrent": "RecurrentPPO",
    "single-file": "PPO in one file",
    "esper": "esper-rl",
}
"""Of the players, in a picture."""

PEERS = tuple(player for player in LABELS if player != "esper")

Act = Callable[[Observation, np.ndarray, bool], np.ndarray]
"""Actions ``[N, 8]`` from observations, masks ``[N, choices]``, and if an episode begins."""


def learn(player: str, steps: int, seed: int, rate: float | None) -> Callable[[bool], Act]:
    """Train a peer; returns what makes it act, greedily or not."""
    if player == "single-file":
        from examples.single_file_ppo import LEARNING_RATE, as_inputs
        from examples.single_file_ppo import learn as learn_single

        with redirect_stdout(StringIO()):
            agent = learn_single(steps // STEPS_AN_ITERATION, seed, rate or LEARNING_RATE)

        def act(greedy: bool, observation: Observation, masks: np.ndarray, begins: bool):
            with torch.no_grad():
                heads = agent.heads(as_inputs(observation), torch.from_numpy(masks))
            drawn = [head.probs.argmax(-1) if greedy else head.sample() for head in heads]
            return torch.stack(drawn, -1).numpy()

        return lambda greedy: partial(act, greedy)

    from examples.stable_baselines import learn as learn_stable

    model = learn_stable(player, steps, seed, **({} if rate is None else {"learning_rate": rate}))
    return lambda greedy: _StableAct(model, greedy, masked=player == "maskable")


class _StableAct:
    """A model of Stable-Baselines3, with the memory that a recurrent one needs."""

    def __init__(self, model: object, greedy: bool, masked: bool) -> None:
        self.model, self.greedy, self.masked = model, greedy, masked
        self.memory = None

    def __call__(self, observation: Observation, masks: np.ndarray, begins: bool) -> np.ndarray:
        if self.masked:
            return self.model.predict(observation, deterministic=self.greedy, action_masks=masks)[0]
        actions, self.memory = self.model.predict(
            observation, self.memory, np.full(len(masks), begins), deterministic=self.greedy
        )
        return actions


def play(act: Act) -> dict[str, float]:
    """Mean discounted return and final accuracy on the hosts of an evaluation."""
    torch.manual_seed(EVALUATION_SEED)
    envs = GymnasiumVectorEnv("digits", num_envs=EPISODES, autoreset_mode="Disabled")
    observation, info = envs.reset(seed=EVALUATION_SEED)
    earned, discount, over = np.zeros(EPISODES), 1.0, False
    begins = True
    while not over:
        actions = act(observation, info["action_mask"], begins)
        observation, rewards, terminated, _, info = envs.step(actions)
        earned += discount * rewards
        discount *= GAMMA
        begins, over = False, bool(terminated.all())
    accuracy = info["metrics"]["val_accuracy"].mean()
    return {"return": float(earned.mean()), "accuracy": float(accuracy)}


def measure(player: str, steps: int, rate: float | None, seed: int) -> Run:
    """Train with a seed, then play in both modes."""
    if player == "esper":
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            train_seed(seed, [f"total_steps={steps}"], run)
            arena = Arena(run, EPISODES)
            played = {player.name: arena.play(player) for player in (GREEDY, SAMPLED)}
        return {
            mode: {
                "return": result.returns.mean().item(),
                "accuracy": result.final_accuracy.mean().item(),
            }
            for mode, result in played.items()
        }
    act = learn(player, steps, seed, rate)
    return {mode: play(act(mode == "greedy")) for mode in MODES} | {"rate": rate}


def tune(player: str, steps: int) -> float:
    """The learning rate with which a seed of its own earns most, drawing actions."""
    earned = {
        rate: measure(player, steps, rate, TUNING_SEED)["sampled"]["return"]
        for rate in tqdm(LEARNING_RATES, "learning rates", unit="run")
    }
    return max(earned, key=earned.__getitem__)


def show(report: dict[str, dict[str, Run]]) -> None:
    for name, runs in report.items():
        line = f"{name:<22} {len(runs)} seeds"
        for mode in MODES:
            for key, form in (("return", "5.2f"), ("accuracy", "5.1f")):
                mean, width = interval([run[mode][key] for run in runs.values()])
                line += f"  {mode} {key} {mean:{form}} ± {width:{form}}"
        print(line)


def draw(report: dict[str, dict[str, Run]], path: Path) -> None:
    """Returns of every training seed, and their mean."""
    figure, axis = plt.subplots(figsize=(8, 0.5 * len(report) + 1.2), layout="constrained")
    names = list(report)[::-1]
    for place, (mode, colour) in enumerate(zip(MODES, ("#0072B2", "#D55E00"), strict=True)):
        for row, name in enumerate(names):
            found = [run[mode]["return"] for run in report[name].values()]
            height = row + 0.15 - 0.3 * place
            axis.plot(found, [height] * len(found), "o", color=colour, alpha=0.4)
            label = mode if row == 0 else None
            axis.plot(np.mean(found), height, "|", color=colour, ms=16, mew=3, label=label)
    labels = [name.replace(player := name.partition(",")[0], LABELS[player]) for name in names]
    axis.set_yticks(range(len(names)), labels)
    axis.set_xlabel("discounted return on the same hosts")
    axis.set_title(
        "agents of several libraries: dots are training seeds, bars their means", fontsize="medium"
    )
    axis.grid(axis="x", alpha=0.3)
    legend_below(axis, ncols=len(MODES))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = study_parser(__doc__, seeds=5, settings=False)
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of training (default {STEPS})")
    parser.add_argument(
        "--players", nargs="+", choices=[*LABELS], default=[*LABELS], help="(default all)"
    )
    args, path, report = open_study(parser, "peers", "steps")

    def study(name: str, player: str, rate: float | None) -> None:
        runs = report.setdefault(name, {})
        one = partial(measure, player, args.steps, rate)
        measure_missing(runs, args.seeds, one, lambda: write_json(path, report))

    for player in args.players:
        study(player, player, None)
        if player in PEERS:
            name = f"{player}, tuned"
            known = report.get(name) or {"": {"rate": None}}
            rate = next(iter(known.values()))["rate"] or tune(player, args.steps)
            study(name, player, rate)
    show(report)
    draw(report, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
