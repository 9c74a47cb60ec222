"""Stable-Baselines3 learns to grow networks: MaskablePPO, or RecurrentPPO, of sb3-contrib.

    pip install "esper-rl[sb3]"
    python examples/stable_baselines.py [maskable | recurrent] [STEPS]

RecurrentPPO knows no masks: what is illegal runs as WAIT.
"""

import sys

import numpy as np
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3.common.vec_env import VecMonitor

from envs.adapters.stable_baselines import StableVecEnv

KINDS = {
    "maskable": (MaskablePPO, "MultiInputPolicy"),
    "recurrent": (RecurrentPPO, "MultiInputLstmPolicy"),
}


def learn(kind: str, steps: int, seed: int = 0, **options):
    """Train a model with its own defaults, but for ``options``, on 32 rows of ``digits``."""
    world = VecMonitor(StableVecEnv(task="digits", num_envs=32))
    algorithm, policy = KINDS[kind]
    options = {"n_steps": 50, "gamma": 0.995, "device": "cpu"} | options  # 50: an episode
    model = algorithm(policy, world, seed=seed, **options)
    return model.learn(steps)


def main() -> None:
    kind = sys.argv[1] if len(sys.argv) > 1 else "maskable"
    steps = int(sys.argv[2]) if len(sys.argv) > 2 else 20_000
    model = learn(kind, steps)
    returns = [episode["r"] for episode in model.ep_info_buffer]
    print(f"{kind}: return {np.mean(returns):.2f} over the last {len(returns)} episodes")


if __name__ == "__main__":
    main()
