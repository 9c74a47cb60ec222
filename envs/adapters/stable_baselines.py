"""The batched world for Stable-Baselines3; needs ``pip install "esper-rl[sb3]"``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from envs.adapters.gymnasium import METADATA, GymnasiumVectorEnv, check_reset_options


class StableVecEnv(VecEnv):
    """Many networks that grow while they train, as Stable-Baselines3's own kind of environment.

    It steps all rows at once, where ``make_vec_env`` would make a world for each. Ended rows are
    reset at once. Masks are where ``MaskablePPO`` of sb3-contrib looks for them; infos are those of
    the last step of an episode only.

    Args:
        arguments: of :class:`envs.adapters.gymnasium.GymnasiumVectorEnv`.

    Examples:
        >>> from sb3_contrib import MaskablePPO
        >>> model = MaskablePPO("MultiInputPolicy", StableVecEnv(task="scaffold", num_envs=4))
    """

    def __init__(self, **arguments: Any) -> None:
        self.envs = GymnasiumVectorEnv(**arguments, autoreset_mode="SameStep")
        self.render_mode = self.envs.render_mode
        self._actions: np.ndarray | None = None
        super().__init__(
            self.envs.num_envs, self.envs.single_observation_space, self.envs.single_action_space
        )
        self.metadata |= {"render_fps": METADATA["render_fps"]}

    def set_options(self, options: list[dict] | dict | None = None) -> None:
        """Refuse all options: a reset has none here.

        Raises:
            ValueError: if there is one.
        """
        for each in [options] if isinstance(options, dict) else options or []:
            check_reset_options(each, ())

    def reset(self) -> Any:
        """Begin an episode in all rows; seeded if ``seed`` was called before."""
        observation, _ = self.envs.reset(seed=self._seeds[0])
        self._reset_seeds()  # a seed is used once, or all episodes were the same
        self.reset_infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        return observation

    def step_async(self, actions: np.ndarray) -> None:
        """Take actions ``[N, 8]``; :meth:`step_wait` does them."""
        self._actions = actions

    def step_wait(self) -> Any:
        """Train all networks for an epoch."""
        observation, rewards, terminated, truncated, infos = self.envs.step(self._actions)
        by_row: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for row in (terminated | truncated).nonzero()[0]:
            by_row[row] = {
                "terminal_observation": infos["final_obs"][row],
                "TimeLimit.truncated": bool(truncated[row]),
                "metrics": {
                    name: values[row]
                    for name, values in infos["final_info"]["metrics"].items()
                    if not name.startswith("_")
                },
            }
        return observation, rewards.astype(np.float32), terminated | truncated, by_row

    def close(self) -> None:
        """End its use."""
        self.envs.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """An attribute of the world, once for each row."""
        value = getattr(self.envs, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Refused, since rows share one world.

        Raises:
            AttributeError: always.
        """
        raise AttributeError(f"rows share one world, so {attr_name!r} can't be set for some")

    def env_method(
        self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of the world that gives a value for each row, such as ``action_masks``."""
        values = getattr(self.envs, method_name)(*method_args, **method_kwargs)
        return [values[row] for row in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        """False for each row."""
        rows: Iterable[int] = self._get_indices(indices)
        return [False for _ in rows]

    def get_images(self) -> list[np.ndarray | None]:
        """A picture of each row; None without a ``render_mode``."""
        return list(self.envs.render() or [None] * self.num_envs)
