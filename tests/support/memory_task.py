"""A world that has nothing to do with seeds: say at the end what was shown at the beginning."""

from __future__ import annotations

from enum import IntEnum

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Binary, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

DELAY = 20
"""Steps between seeing the cue and being asked for it."""

CUES = 4


class Move(IntEnum):
    """The first head: say nothing, a low number (0 or 1) or a high one (2 or 3)."""

    NOTHING = 0
    LOW = 1
    HIGH = 2


RELEVANCE = torch.tensor([[True, False], [True, True], [True, True]])
"""The second head, the number, matters unless nothing is said."""

NUMBERS = torch.tensor([[True] * 4, [True, True, False, False], [False, False, True, True]])
"""Which numbers are legal for each move."""


class MemoryTask(EnvBase):
    """At the first step one of four cues is shown; :data:`DELAY` steps later it is asked for.

    - Observation ``[N, 5]``: the cue one-hot (zeros later), and whether this is the last step.
    - Action: ``("action", "move")`` and ``("action", "number")``. Only NOTHING is legal before the
      last step, where it is not; which numbers are legal depends on the move.
    - Reward: 1 for the right number at the end, else 0. The episode terminates there.
    """

    def __init__(self, num_envs: int, seed: int = 0) -> None:
        super().__init__(device="cpu", batch_size=[num_envs])
        rows = (num_envs,)
        self._age = torch.zeros(num_envs, dtype=torch.int64)
        self._cue = torch.zeros(num_envs, dtype=torch.int64)
        self._set_seed(seed)
        self.observation_spec = Composite(
            observation=Unbounded((*rows, CUES + 1)),
            action_mask=Composite(
                move=Binary(shape=(*rows, 3), dtype=torch.bool),
                number=Binary(shape=(*rows, 3, 4), dtype=torch.bool),
                shape=rows,
            ),
            shape=rows,
        )
        heads = Composite(
            move=Categorical(3, shape=rows), number=Categorical(4, shape=rows), shape=rows
        )
        self.action_spec = Composite(action=heads, shape=rows)
        self.reward_spec = Unbounded((*rows, 1))
        self.done_spec = Composite(
            done=Binary(shape=(*rows, 1), dtype=torch.bool),
            terminated=Binary(shape=(*rows, 1), dtype=torch.bool),
            shape=rows,
        )

    def _set_seed(self, seed: int | None) -> None:
        self._random = torch.Generator().manual_seed(0 if seed is None else seed)

    def _observe(self) -> TensorDict:
        first, last = self._age == 0, self._age == DELAY
        shown = torch.nn.functional.one_hot(self._cue, CUES) * first[:, None]
        moves = torch.stack([~last, last, last], dim=1)
        return TensorDict(
            observation=torch.cat([shown, last[:, None]], dim=1).float(),
            action_mask=TensorDict(
                move=moves, number=NUMBERS & moves[:, :, None], batch_size=self.batch_size
            ),
            batch_size=self.batch_size,
        )

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: object) -> TensorDict:
        reset = None if tensordict is None else tensordict.get("_reset", None)
        rows = torch.ones(self.batch_size, dtype=torch.bool) if reset is None else reset.view(-1)
        cues = torch.randint(CUES, self.batch_size, generator=self._random)
        self._cue = torch.where(rows, cues, self._cue)
        self._age = torch.where(rows, 0, self._age)
        return self._observe()

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        asked = self._age == DELAY
        right = asked & (tensordict["action", "number"] == self._cue)
        self._age = self._age + ~asked
        return self._observe().update(
            {
                "reward": right.float()[:, None],
                "done": asked[:, None],
                "terminated": asked[:, None].clone(),
            }
        )
