"""A world of random observations and masks with the keys of the real one."""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Categorical, Composite, Unbounded
from torchrl.envs import Compose, EnvBase, TransformedEnv

from envs import feature_names
from envs.actions import head_sizes
from esper_rl import PolicyConfig, make_actor_critic
from esper_rl.policy import ActorCritic

NUM_OPS = 6


class FakeWorld(EnvBase):
    """Random observations, masks and rewards.

    Row ``i`` has episodes of ``3 + i % 3`` steps; even rows terminate, odd rows are truncated.

    Args:
        num_envs: rows.
        num_slots: choices of head ``slot``.
        by_op: the slot mask has one row per op, all false where the op is illegal; otherwise it
            has one row only.
        seed: of everything random.
    """

    def __init__(
        self, num_envs: int = 6, num_slots: int = 3, *, by_op: bool = True, seed: int = 0
    ) -> None:
        super().__init__(device="cpu", batch_size=[num_envs])
        self.num_slots, self.by_op = num_slots, by_op
        self.sizes = head_sizes(num_slots)
        self._lengths = 3 + torch.arange(num_envs) % 3
        self._truncates = (torch.arange(num_envs) % 2).bool()
        self._age = torch.zeros(num_envs, dtype=torch.int64)
        self._set_seed(seed)
        rows = (num_envs,)
        masks = {head: Binary(shape=(*rows, n), dtype=torch.bool) for head, n in self.sizes.items()}
        if by_op:
            masks["slot"] = Binary(shape=(*rows, NUM_OPS, num_slots), dtype=torch.bool)
        self.observation_spec = Composite(
            observation=Unbounded((*rows, len(feature_names(num_slots)))),
            blueprint_indices=Bounded(-1, 12, (*rows, num_slots), dtype=torch.int64),
            action_mask=Composite(masks, shape=rows),
            shape=rows,
        )
        heads = {head: Categorical(n, shape=rows) for head, n in self.sizes.items()}
        self.action_spec = Composite(action=Composite(heads, shape=rows), shape=rows)
        self.reward_spec = Unbounded((*rows, 1))
        flag = Binary(shape=(*rows, 1), dtype=torch.bool)
        self.done_spec = Composite(
            done=flag.clone(), terminated=flag.clone(), truncated=flag.clone(), shape=rows
        )

    def _set_seed(self, seed: int | None) -> None:
        self._random = torch.Generator().manual_seed(0 if seed is None else seed)

    def _maybe(self, *shape: int) -> Tensor:
        return torch.rand(*self.batch_size, *shape, generator=self._random) < 0.5

    def _observe(self) -> TensorDict:
        masks = {}
        for head, size in self.sizes.items():
            masks[head] = self._maybe(size)
            some = torch.randint(size, (*self.batch_size, 1), generator=self._random)
            masks[head].scatter_(1, some, True)
        if self.by_op:
            masks["slot"] = self._maybe(NUM_OPS, self.num_slots)
            masks["slot"][:, 0] = True
            masks["op"] = masks["slot"].any(-1)
        indices = torch.randint(-1, 13, (*self.batch_size, self.num_slots), generator=self._random)
        features = len(feature_names(self.num_slots))
        return TensorDict(
            observation=torch.randn(*self.batch_size, features, generator=self._random),
            blueprint_indices=indices,
            action_mask=TensorDict(masks, self.batch_size),
            batch_size=self.batch_size,
        )

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: object) -> TensorDict:
        reset = None if tensordict is None else tensordict.get("_reset", None)
        self._age[... if reset is None else reset.squeeze(-1)] = 0
        return self._observe()

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        self._age += 1
        done = (self._age == self._lengths).unsqueeze(-1)
        truncated = done & self._truncates.unsqueeze(-1)
        return self._observe().update(
            {
                "reward": torch.randn(*self.batch_size, 1, generator=self._random),
                "done": done,
                "terminated": done & ~truncated,
                "truncated": truncated,
            }
        )


def small_actor_critic(world: FakeWorld, *, decided: bool = True) -> ActorCritic:
    """A narrow network; ``decided`` makes its preferences strong enough to be seen."""
    torch.manual_seed(0)
    ac = make_actor_critic(PolicyConfig(num_slots=world.num_slots, hidden_size=16), world)
    if decided:
        with torch.no_grad():
            for head in ac.network.heads.values():
                head[-1].weight.mul_(100)
    return ac


def collect(world: FakeWorld, ac: ActorCritic, steps: int = 8) -> TensorDictBase:
    """``[N, steps]`` with resets in between."""
    env = TransformedEnv(world, Compose(*ac.transforms()))
    with torch.no_grad():
        return env.rollout(steps, ac.actor, break_when_any_done=False)
