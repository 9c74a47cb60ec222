"""PPO in one file, on Gymnasium's vector environment, with masked heads.

    python examples/single_file_ppo.py [ITERATIONS]

An iteration is an episode of each of 32 networks. The policy is a plain network without memory
that draws all heads at once, so it may pair an op with a slot where that op is illegal: such an
action is refused, and the epoch runs as WAIT.
"""

import sys

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Categorical

ROWS, STEPS, EPOCHS, MINIBATCHES = 32, 50, 4, 4
GAMMA, LAMBDA, CLIP, ENTROPY, LEARNING_RATE = 0.995, 0.95, 0.2, 0.01, 5e-4


def as_inputs(observation: dict[str, np.ndarray]) -> Tensor:
    """Features, blueprints and action feedback side by side, ``[N, inputs]``."""
    names = ("observation", "blueprint_indices", "last_action_success", "last_action_op")
    columns = [observation[name].reshape(len(observation[name]), -1) for name in names]
    return torch.from_numpy(np.concatenate(columns, 1)).float()


class Agent(nn.Module):
    """A policy with a masked choice for each head, and a value."""

    def __init__(self, inputs: int, choices: list[int]) -> None:
        super().__init__()
        self.choices = choices
        self.actor = nn.Sequential(
            nn.Linear(inputs, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh()
        )
        self.logits = nn.Linear(128, sum(choices))
        self.critic = nn.Sequential(
            nn.Linear(inputs, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 1)
        )

    def heads(self, x: Tensor, masks: Tensor) -> list[Categorical]:
        logits = self.logits(self.actor(x)).masked_fill(~masks, -1e9)
        return [Categorical(logits=part) for part in logits.split(self.choices, -1)]

    def judge(self, x: Tensor, masks: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities of actions, entropies and values, each ``[B]``."""
        heads = self.heads(x, masks)
        log_prob = sum(h.log_prob(a) for h, a in zip(heads, actions.unbind(-1), strict=True))
        entropy = sum(head.entropy() for head in heads)
        return log_prob, entropy, self.critic(x).squeeze(-1)


def advantages(rewards: Tensor, values: Tensor, ends: Tensor) -> Tensor:
    """Generalised advantage estimates ``[T, N]``; ``values [T + 1, N]``."""
    found, last = torch.zeros_like(rewards), torch.zeros(rewards.shape[1])
    for t in reversed(range(len(rewards))):
        goes_on = 1 - ends[t]
        delta = rewards[t] + GAMMA * values[t + 1] * goes_on - values[t]
        last = found[t] = delta + GAMMA * LAMBDA * goes_on * last
    return found


def learn(iterations: int, seed: int = 0, learning_rate: float = LEARNING_RATE) -> Agent:
    """Train an agent, printing how it does."""
    torch.manual_seed(seed)
    envs = gymnasium.make_vec(
        "envs:esper_rl/Morphogenesis-v0", ROWS, task="digits", autoreset_mode="SameStep"
    )
    choices = envs.single_action_space.nvec.tolist()
    observation, info = envs.reset(seed=seed)
    x, masks = as_inputs(observation), torch.from_numpy(info["action_mask"])
    agent = Agent(x.shape[1], choices)
    optimizer = torch.optim.Adam(agent.parameters(), lr=learning_rate, eps=1e-5)
    for iteration in range(iterations):
        steps, accuracy = [], np.zeros(ROWS)
        for _ in range(STEPS):
            with torch.no_grad():
                actions = torch.stack([head.sample() for head in agent.heads(x, masks)], -1)
                log_prob, _, value = agent.judge(x, masks, actions)
            observation, rewards, terminated, truncated, info = envs.step(actions.numpy())
            ends = torch.from_numpy(terminated | truncated).float()
            steps.append((x, masks, actions, log_prob, value, torch.tensor(rewards).float(), ends))
            x, masks = as_inputs(observation), torch.from_numpy(info["action_mask"])
            if terminated.any():
                accuracy = info["final_info"]["metrics"]["val_accuracy"]
        seen, legal, chosen, before, values, rewards, ends = map(
            torch.stack, zip(*steps, strict=True)
        )
        with torch.no_grad():
            after = agent.critic(x).squeeze(-1)
        gains = advantages(rewards, torch.cat([values, after[None]]), ends)
        batch = [
            part.flatten(0, 1) for part in (seen, legal, chosen, before, gains, gains + values)
        ]
        for _ in range(EPOCHS):
            for index in torch.randperm(len(batch[0])).chunk(MINIBATCHES):
                inputs, allowed, actions, old, gain, target = (part[index] for part in batch)
                new, entropy, value = agent.judge(inputs, allowed, actions)
                ratio = (new - old).exp()
                gain = (gain - gain.mean()) / (gain.std() + 1e-8)
                policy_loss = -torch.min(
                    ratio * gain, ratio.clamp(1 - CLIP, 1 + CLIP) * gain
                ).mean()
                loss = (
                    policy_loss + 0.5 * (value - target).square().mean() - ENTROPY * entropy.mean()
                )
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
                optimizer.step()
        discounts = GAMMA ** torch.arange(STEPS)
        earned = (discounts[:, None] * rewards).sum(0).mean()
        print(f"iteration {iteration}: return {earned:.2f}, accuracy {accuracy.mean():.1f} %")
    return agent


def main() -> None:
    learn(int(sys.argv[1]) if len(sys.argv) > 1 else 13)


if __name__ == "__main__":
    main()
