"""A training loop of one's own, from the parts.

    python examples/own_loop.py [ITERATIONS]

The collector is torchrl's; the world, the policy and its PPO are this project's. Everything that
``esper-rl train`` adds (monitors, checkpoints, evaluation) is left out.
"""

import sys

import torch
from torchrl.collectors import Collector
from torchrl.envs import Compose, RewardSum, TransformedEnv

from envs import MorphogenesisEnv
from envs.actions import CAUSAL_RELEVANCE, Op
from esper_rl import PPO, PolicyConfig, make_actor_critic

ROWS, EPOCHS = 16, 50


def main(iterations: int) -> None:
    torch.manual_seed(0)
    env = MorphogenesisEnv(task="scaffold", num_envs=ROWS, max_epochs=EPOCHS)
    ac = make_actor_critic(PolicyConfig.v2(), env)
    ppo = PPO(ac, CAUSAL_RELEVANCE)
    collector = Collector(
        TransformedEnv(env, Compose(*ac.transforms(), RewardSum())),
        ac.actor,
        frames_per_batch=ROWS * EPOCHS,
        total_frames=ROWS * EPOCHS * iterations,
    )
    for i, batch in enumerate(collector):  # [ROWS, EPOCHS], whole episodes
        metrics = ppo.update(batch, progress=i / iterations)
        returns = batch["next", "episode_reward"][:, -1].mean()
        waiting = (batch["action", "op"] == Op.WAIT).float().mean()
        entropy = metrics["head_entropy/op"]
        print(
            f"iteration {i + 1}: return {returns:.2f}, {waiting:.0%} of the ops are WAIT, their "
            f"entropy is {entropy:.2f} nats"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
