"""A world that has nothing to do with growing networks, and a policy that must remember.

    python examples/own_world.py [ITERATIONS]

Any TorchRL environment works that has ``"observation"``, an action of discrete heads, the first of
which decides what the others mean, and a mask for each head. Here a cue is shown at the first step
and asked for at the last one. Trained twice, with an LSTM and without: prints how many answers are
right at the end. A policy without memory can only guess.
"""

import sys
from enum import IntEnum

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.collectors import Collector
from torchrl.data import Binary, Categorical, Composite, Unbounded
from torchrl.envs import Compose, EnvBase, TransformedEnv

from esper_rl import PPO, PPOConfig, make_actor_critic
from esper_rl.policy import ActorCriticConfig

ROWS, CUES = 64, 4


class Move(IntEnum):
    """The first head: say nothing, a low number (0 or 1) or a high one (2 or 3)."""

    NOTHING = 0
    LOW = 1
    HIGH = 2


RELEVANCE = torch.tensor([[True, False], [True, True], [True, True]])
"""Heads that matter for each move: the second one, the number, doesn't if nothing is said."""

NUMBERS = torch.tensor([[True] * 4, [True, True, False, False], [False, False, True, True]])
"""Numbers that are legal for each move."""


class Recall(EnvBase):
    """At the first step one of four cues is shown; ``delay`` steps later it is asked for.

    - Observation ``[N, 5]``: the cue one-hot (zeros later), and whether this is the last step.
    - Action: ``("action", "move")`` and ``("action", "number")``. Only NOTHING is legal before the
      last step, where it is not; which numbers are legal depends on the move.
    - Reward: 1 for the right number at the end, else 0. The episode terminates there.
    """

    def __init__(self, num_envs: int, delay: int = 8, seed: int = 0) -> None:
        super().__init__(device="cpu", batch_size=[num_envs])
        self.delay = delay
        self.age = torch.zeros(num_envs, dtype=torch.int64)
        self.cue = torch.zeros(num_envs, dtype=torch.int64)
        self.set_seed(seed)
        rows = (num_envs,)
        masks = Composite(
            move=Binary(shape=(*rows, 3), dtype=torch.bool),
            number=Binary(shape=(*rows, 3, 4), dtype=torch.bool),  # for each move
            shape=rows,
        )
        self.observation_spec = Composite(
            observation=Unbounded((*rows, CUES + 1)), action_mask=masks, shape=rows
        )
        heads = Composite(
            move=Categorical(3, shape=rows), number=Categorical(4, shape=rows), shape=rows
        )
        self.action_spec = Composite(action=heads, shape=rows)
        self.reward_spec = Unbounded((*rows, 1))
        flag = Binary(shape=(*rows, 1), dtype=torch.bool)
        self.done_spec = Composite(done=flag, terminated=flag.clone(), shape=rows)

    def _set_seed(self, seed: int | None) -> None:
        self.random = torch.Generator().manual_seed(0 if seed is None else seed)

    def observe(self) -> TensorDict:
        first, last = self.age == 0, self.age == self.delay
        shown = torch.nn.functional.one_hot(self.cue, CUES) * first[:, None]
        moves = torch.stack([~last, last, last], dim=1)
        masks = {"move": moves, "number": NUMBERS & moves[:, :, None]}
        return TensorDict(
            {
                "observation": torch.cat([shown, last[:, None]], dim=1).float(),
                "action_mask": TensorDict(masks, self.batch_size),
            },
            self.batch_size,
        )

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: object) -> TensorDict:
        reset = None if tensordict is None else tensordict.get("_reset", None)
        rows = torch.ones(self.batch_size, dtype=torch.bool) if reset is None else reset.view(-1)
        cues = torch.randint(CUES, self.batch_size, generator=self.random)
        self.cue = torch.where(rows, cues, self.cue)
        self.age = torch.where(rows, 0, self.age)
        return self.observe()

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        asked = (self.age == self.delay)[:, None]
        right = asked & (tensordict["action", "number"] == self.cue)[:, None]
        self.age = self.age + ~asked[:, 0]
        ends = {"reward": right.float(), "done": asked, "terminated": asked.clone()}
        return self.observe().update(ends)


def learn(config: ActorCriticConfig, iterations: int, delay: int = 8, seed: int = 0) -> float:
    """Train a policy; returns its share of right answers in the last five iterations."""
    torch.manual_seed(seed)
    env = Recall(ROWS, delay)
    ac = make_actor_critic(config, env)
    numbers = PPOConfig(
        lr=3e-3,
        gamma=1.0,
        lmbda=0.95,
        epochs=4,
        minibatches=1,
        entropy_coeff=0.05,
        normalize_entropy=False,
    )
    ppo = PPO(ac, RELEVANCE, numbers)
    frames = ROWS * (delay + 1)
    collector = Collector(
        TransformedEnv(env, Compose(*ac.transforms())),
        ac.actor,
        frames_per_batch=frames,
        total_frames=frames * iterations,
    )
    right = []
    for batch in collector:  # [ROWS, delay + 1], whole episodes
        ppo.update(batch)
        right.append(batch["next", "reward"].sum().item() / ROWS)
        if sum(right[-5:]) > 4.75:
            break
    return sum(right[-5:]) / len(right[-5:])


def main(iterations: int) -> None:
    for name, layers in (("with", 1), ("without", 0)):
        right = learn(ActorCriticConfig(hidden_size=64, lstm_layers=layers), iterations)
        print(f"{name} memory: {right:.0%} of the answers are right")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 80)
