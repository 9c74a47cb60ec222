"""The world with NumPy arrays in place of TensorDicts, as Gymnasium wants it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.error import InvalidAction, ResetNeeded
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from envs.actions import HEADS, Op
from envs.morphogenesis import MorphogenesisEnv
from envs.observation import HIGH, LOW, feature_names
from envs.rendering import cut_sheet, draw_network, draw_sheet

Observation = dict[str, Any]
Info = dict[str, Any]


class NumpyWorld:
    """Many networks that take and give arrays.

    Args:
        arguments: of :class:`envs.MorphogenesisEnv`.

    Attributes:
        env: the environment itself.
    """

    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments
        self.env = MorphogenesisEnv(**arguments)
        self.shown: TensorDictBase | None = None
        self.action: np.ndarray | None = None  # that led to it
        self.accuracies = np.full((self.env.max_epochs + 1, self.env.num_envs), np.nan)

    def __getstate__(self) -> dict[str, Any]:
        # Not the environment itself: blueprints are functions, which pickle may not know by name.
        return vars(self) | {"env": self.env.get_extra_state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.env = MorphogenesisEnv(**self.arguments)
        self.env.set_extra_state(state["env"])

    def _show(self, shown: TensorDictBase, action: np.ndarray | None) -> None:
        """Take over what a reset or a step shows, for the agent and for pictures."""
        self.shown, self.action = shown, action
        epochs = _array(shown["metrics", "epoch"])[:, 0]
        rows = np.arange(len(epochs))
        self.accuracies[:, epochs == 0] = np.nan
        self.accuracies[epochs, rows] = _array(shown["metrics", "val_accuracy"])[:, 0]

    def observation_space(self) -> spaces.Dict:
        """Of one row."""
        blueprints, slots = self.env.head_sizes["blueprint"], self.env.num_slots
        return spaces.Dict(
            {
                "observation": spaces.Box(LOW, HIGH, (len(feature_names(slots)),), np.float32),
                "blueprint_indices": spaces.Box(-1, blueprints - 1, (slots,), np.int64),
                "last_action_success": spaces.Discrete(2),
                "last_action_op": spaces.Discrete(len(Op)),
            }
        )

    def action_space(self) -> spaces.MultiDiscrete:
        """Of one row."""
        return spaces.MultiDiscrete([self.env.head_sizes[head] for head in HEADS])

    def reset(self, mask: np.ndarray | None = None) -> None:
        """Begin an episode in all rows, or in those that ``mask [N]`` marks."""
        before = None
        if mask is not None:
            marks = torch.from_numpy(mask)[:, None].to(self.env.device)
            before = self.now().clone(False).set("_reset", marks)
        self._show(self.env.reset(before), None)

    def step(self, actions: object, mask: np.ndarray) -> np.ndarray:
        """Step the rows that ``mask [N]`` marks, and return rewards ``[N]``, 0 for the others.

        Raises:
            InvalidAction: if the actions aren't integers ``[N, 8]`` of the action space.
            ResetNeeded: if a row's episode is over, or hasn't begun.
        """
        over = self.flag("done") & mask
        if over.any():
            raise ResetNeeded(f"row {over.argmax()} must be reset before it is stepped: it is over")
        given = np.asarray(actions)
        wanted = (self.env.num_envs, len(HEADS))
        if given.shape != wanted or given.dtype.kind not in "iu":
            raise InvalidAction(
                f"the action must be integers, one for each of {', '.join(HEADS)}, of shape "
                f"{list(wanted)} with a row for each network, got {given.dtype} of shape "
                f"{list(given.shape)}"
            )
        heads = torch.from_numpy(given.astype(np.int64)).to(self.env.device).unbind(1)
        action = dict(zip(HEADS, heads, strict=True))
        data = TensorDict({"action": action}, self.env.batch_size, device=self.env.device)
        if not mask.any():
            return np.zeros(len(mask))
        if not mask.all():
            data["_step"] = torch.from_numpy(mask)[:, None].to(self.env.device)
        try:
            self._show(self.env.step(data)["next"], given)
        except ValueError as error:
            raise InvalidAction(str(error)) from None
        return _array(self.now()["reward"])[:, 0].astype(np.float64)

    def now(self) -> TensorDictBase:
        """The last that a reset or a step showed."""
        if self.shown is None:
            raise ResetNeeded("the environment must be reset before anything else")
        return self.shown

    def observation(self) -> Observation:
        """By name, ``[N, …]``."""
        shown = self.now()
        return {
            "observation": _array(shown["observation"]),
            "blueprint_indices": _array(shown["blueprint_indices"]),
            "last_action_success": _array(shown["last_action_success"])[:, 0].astype(np.int64),
            "last_action_op": _array(shown["last_action_op"]),
        }

    def info(self) -> Info:
        """By name, ``[N, …]``."""
        shown = self.now()
        return {
            "action_mask": self.action_masks(),
            "slot_mask": _array(shown["action_mask", "slot"]),
            "metrics": {name: _array(x) for name, x in shown["metrics"].items()},
            "reward_terms": {name: _array(x)[:, 0] for name, x in shown["reward_terms"].items()},
        }

    def picture(self) -> np.ndarray:
        """The first network, see :func:`envs.rendering.draw_network`."""
        chosen = None
        if self.action is not None:
            chosen = dict(zip(HEADS, self.action[0].tolist(), strict=True))
        curve = self.accuracies[:, 0]
        return draw_network(
            self.now()[0],
            curve[~np.isnan(curve)].tolist(),
            self.env.max_epochs,
            chosen,
            blueprints=self.env.population.blueprints,
        )

    def pictures(self) -> tuple[np.ndarray, ...]:
        """A small one of each network, see :func:`envs.rendering.draw_sheet`."""
        names = self.env.population.blueprints
        sheet = draw_sheet(self.now(), self.accuracies, self.env.max_epochs, blueprints=names)
        return cut_sheet(sheet, self.env.num_envs)

    def action_masks(self) -> np.ndarray:
        """Legal choices of all heads, one after the other: bool ``[N, choices]``.

        A slot is legal if it is for an op other than WAIT, all of them where there is no such op.
        """
        masks = self.now()["action_mask"]
        slots = masks["slot"][:, Op.WAIT + 1 :].any(1)
        slots |= ~slots.any(1, keepdim=True)
        return _array(torch.cat([slots if head == "slot" else masks[head] for head in HEADS], 1))

    def flag(self, name: str) -> np.ndarray:
        """``done``, ``terminated`` or ``truncated``, ``[N]``."""
        return _array(self.now()[name])[:, 0]


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.cpu().numpy()
