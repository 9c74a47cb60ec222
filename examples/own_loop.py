"""A training loop of one's own, from the parts.

    python examples/own_loop.py [ITERATIONS]

Collector, advantages and optimizer are torchrl's and torch's; the policy, its loss and the world
are this project's. Everything that ``esper-rl train`` adds (monitors, checkpoints, evaluation) is
left out.
"""

import sys

import torch
from torchrl.collectors import Collector
from torchrl.envs import Compose, RewardSum, TransformedEnv

from envs import MorphogenesisEnv
from envs.actions import CAUSAL_RELEVANCE, Op
from esper_rl import FactoredClipPPOLoss, PolicyConfig, make_actor_critic
from esper_rl.objectives import compute_advantages

ROWS, EPOCHS = 16, 50


def main(iterations: int) -> None:
    torch.manual_seed(0)
    env = MorphogenesisEnv(task="scaffold", num_envs=ROWS, max_epochs=EPOCHS)
    ac = make_actor_critic(PolicyConfig.v2(), env)
    loss = FactoredClipPPOLoss(ac.actor, ac.critic, heads=ac.heads, relevance=CAUSAL_RELEVANCE)
    optimizer = torch.optim.Adam(loss.parameters(), lr=5e-4)
    collector = Collector(
        TransformedEnv(env, Compose(*ac.transforms(), RewardSum())),
        ac.actor,
        frames_per_batch=ROWS * EPOCHS,
        total_frames=ROWS * EPOCHS * iterations,
    )
    for i, batch in enumerate(collector):  # [ROWS, EPOCHS], whole episodes
        batch = compute_advantages(batch, ac, gamma=0.995, lmbda=0.9)
        for _ in range(4):
            for rows in torch.randperm(ROWS).chunk(2):  # rows are split, their time never is
                terms = loss(batch[rows])
                total = terms["loss_objective"] + terms["loss_critic"] + terms["loss_entropy"]
                optimizer.zero_grad()
                total.backward()
                torch.nn.utils.clip_grad_norm_(loss.parameters(), 1.0)
                optimizer.step()
        returns = batch["next", "episode_reward"][:, -1].mean()
        waiting = (batch["action", "op"] == Op.WAIT).float().mean()
        print(f"iteration {i + 1}: return {returns:.2f}, {waiting:.0%} of the ops are WAIT")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
