"""The same world for Gymnasium: one network at a time, or many in a vector environment.

Both are registered as ``esper_rl/Morphogenesis-v0``. Gymnasium finds it once ``envs`` is imported,
or imports ``envs`` itself if the id says so:

>>> import gymnasium
>>> env = gymnasium.make("envs:esper_rl/Morphogenesis-v0", task="scaffold")
>>> observation, info = env.reset(seed=0)
>>> observation["observation"].shape, info["action_mask"].shape
((112,), (41,))
>>> envs = gymnasium.make_vec("esper_rl/Morphogenesis-v0", num_envs=64, task="scaffold")
>>> envs.reset(seed=0)[0]["observation"].shape
(64, 112)

Observation: a Dict of ``observation``, the features of :func:`envs.feature_names`;
``blueprint_indices``, −1 where no module sits; ``last_action_success`` and ``last_action_op``.

Action: a MultiDiscrete with a choice of every head of :data:`envs.actions.HEADS`, in their order.

Infos: ``action_mask`` bool ``[choices of all heads, one after the other]``; ``slot_mask`` bool
``[6, S]``, the legal slots of each op; ``metrics`` and ``reward_terms``, as in
:class:`envs.MorphogenesisEnv`. A MultiDiscrete can't say which slot is legal for which op, so
``action_mask`` allows a slot if it is legal for any op other than WAIT, for which all are (where
only WAIT is legal, it allows all slots). An action drawn by it may therefore be refused: the step
runs as WAIT, and ``last_action_success`` is 0.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from envs.adapters.numpy_world import Info, NumpyWorld, Observation
from envs.checks import check_choice

METADATA: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 5}


class GymnasiumEnv(gymnasium.Env):
    """One network that grows while it trains, see :mod:`envs.adapters.gymnasium`.

    Args:
        task: see :class:`envs.MorphogenesisEnv`, as all others.
        render_mode: ``"rgb_array"`` for pictures.

    Raises:
        ValueError, TypeError: as :class:`envs.MorphogenesisEnv` does.
        gymnasium.error.InvalidAction: for an action outside the action space.
        gymnasium.error.ResetNeeded: for a step before a reset, or after the end.

    Examples:
        >>> env = GymnasiumEnv("scaffold", max_epochs=3)
        >>> observation, info = env.reset(seed=0)
        >>> env.step(env.action_space.sample())[2:4]
        (False, False)
    """

    metadata = METADATA

    def __init__(self, task: Any = "digits", *, render_mode: str | None = None, **options: Any):
        self.render_mode = _check_render_mode(render_mode)
        if "num_envs" in options:
            raise TypeError(
                f"num_envs must be left out for one network, got {options['num_envs']!r}; "
                "gymnasium.make_vec makes many"
            )
        self._world = NumpyWorld(task=task, num_envs=1, **options)
        self.observation_space = self._world.observation_space()
        self.action_space = self._world.action_space()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, Info]:
        """Begin an episode with a fresh network; with a seed, all after it is as that says."""
        super().reset(seed=seed)
        check_reset_options(options, ())
        if seed is not None:
            self._world.env.set_seed(seed)
        self._world.reset()
        return _first(self._world.observation()), _first(self._world.info())

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, Info]:
        """Train the network for an epoch."""
        (reward,) = self._world.step(np.asarray(action)[None], np.ones(1, bool)).tolist()
        return (
            _first(self._world.observation()),
            reward,
            bool(self._world.flag("terminated")[0]),
            bool(self._world.flag("truncated")[0]),
            _first(self._world.info()),
        )

    def render(self) -> np.ndarray | None:
        """Draw the network, uint8 ``[360, 640, 3]``; None without a ``render_mode``."""
        return self._world.picture() if self.render_mode else None

    def action_masks(self) -> np.ndarray:
        """Legal choices of all heads, one after the other: bool ``[choices]``."""
        return self._world.action_masks()[0]

    def close(self) -> None:
        """End its use."""
        self._world.env.close(raise_if_closed=False)


class GymnasiumVectorEnv(VectorEnv):
    """Many networks that grow while they train, in one batch; see :mod:`envs.adapters.gymnasium`.

    With a seed s, all rows are random by s and their own number: row 0 is what
    :class:`GymnasiumEnv` gives with s.

    Args:
        task: see :class:`envs.MorphogenesisEnv`, as all others.
        num_envs: rows N.
        autoreset_mode: what becomes of a row whose episode is over. ``"NextStep"``: the next step
            resets it, whatever its action says. ``"SameStep"``: it is reset at once, and
            ``infos`` hold ``final_obs`` and ``final_info``. ``"Disabled"``: it must be reset by
            ``reset(options={"reset_mask": …})``.
        render_mode: ``"rgb_array"`` for pictures.

    Raises:
        ValueError, TypeError: as :class:`envs.MorphogenesisEnv` does.
        gymnasium.error.InvalidAction: for actions outside the action space.
        gymnasium.error.ResetNeeded: for a step of a row that must be reset.

    Examples:
        >>> envs = GymnasiumVectorEnv("scaffold", num_envs=3)
        >>> observations, infos = envs.reset(seed=0)
        >>> infos["action_mask"].shape
        (3, 41)
    """

    def __init__(
        self,
        task: Any = "digits",
        num_envs: int = 64,
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        **options: Any,
    ) -> None:
        self.render_mode = _check_render_mode(render_mode)
        if not isinstance(autoreset_mode, AutoresetMode):
            check_choice("autoreset_mode", autoreset_mode, [mode.value for mode in AutoresetMode])
            autoreset_mode = AutoresetMode(autoreset_mode)
        self.autoreset_mode = autoreset_mode
        self.metadata = METADATA | {"autoreset_mode": autoreset_mode}
        self._world = NumpyWorld(task=task, num_envs=num_envs, **options)
        self.num_envs = num_envs
        self.single_observation_space = self._world.observation_space()
        self.single_action_space = self._world.action_space()
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._over = np.zeros(num_envs, bool)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, Info]:
        """Begin episodes with fresh networks.

        Args:
            seed: of all that follows.
            options: ``reset_mask``, bool ``[N]``, resets only the rows that it marks.

        Raises:
            gymnasium.error.Error: if the seed isn't an integer of at least 0.
            TypeError: if the mask is no bool array.
            ValueError: for another option, or a mask of another shape or without a mark.
        """
        super().reset(seed=seed)
        check_reset_options(options, ("reset_mask",))
        mask = None if not options else options.get("reset_mask")
        if mask is not None:
            mask = np.asarray(mask)
            if mask.dtype != np.bool_:
                raise TypeError(f"options['reset_mask'] must be bool, got {mask.dtype}")
            if mask.shape != (self.num_envs,) or not mask.any():
                raise ValueError(
                    f"options['reset_mask'] must be of shape [{self.num_envs}] and mark a row, got "
                    f"{int(mask.sum())} marks of shape {list(mask.shape)}"
                )
        if seed is not None:
            self._world.env.set_seed(seed)
        self._world.reset(mask)
        self._over = self._world.flag("terminated") | self._world.flag("truncated")
        return self._world.observation(), _marked(self._world.info(), self.num_envs)

    def step(self, actions: Any) -> tuple[Observation, np.ndarray, np.ndarray, np.ndarray, Info]:
        """Train all networks for an epoch."""
        resting = self._over & (self.autoreset_mode is AutoresetMode.NEXT_STEP)
        rewards = self._world.step(actions, ~resting)
        if resting.any():
            self._world.reset(resting)
        terminated, truncated = self._world.flag("terminated"), self._world.flag("truncated")
        self._over = terminated | truncated
        last: Info = {}
        if self.autoreset_mode is AutoresetMode.SAME_STEP and self._over.any():
            last = self._last()
            self._world.reset(self._over)
        infos = _marked(self._world.info(), self.num_envs) | last
        return self._world.observation(), rewards, terminated, truncated, infos

    def render(self) -> tuple[np.ndarray, ...] | None:
        """Draw every network, uint8 ``[100, 160, 3]`` each; None without a ``render_mode``."""
        return self._world.pictures() if self.render_mode else None

    def _last(self) -> Info:
        """The last observations and infos of rows that are over."""
        observations, infos = self._world.observation(), self._world.info()
        final = np.full(self.num_envs, None, dtype=object)
        for row in self._over.nonzero()[0]:
            final[row] = {name: values[row] for name, values in observations.items()}
        ended = self._over.copy()
        return {
            "final_obs": final,
            "_final_obs": ended,
            "final_info": _marked(infos, self.num_envs, ended),
            "_final_info": ended,
        }

    def action_masks(self) -> np.ndarray:
        """Legal choices of all heads, one after the other: bool ``[N, choices]``."""
        return self._world.action_masks()

    def close_extras(self, **kwargs: Any) -> None:
        """End its use; :meth:`close` calls it."""
        self._world.env.close(raise_if_closed=False)


def _first(values: dict[str, Any]) -> dict[str, Any]:
    """The first row of arrays, also of those in dicts."""
    return {
        name: _first(value) if isinstance(value, dict) else value[0]
        for name, value in values.items()
    }


def _marked(values: Info, rows: int, which: np.ndarray | None = None) -> Info:
    """Infos as Gymnasium's vector environments give them: with ``_name``, the rows that have it."""
    which = np.ones(rows, bool) if which is None else which
    marked: Info = {}
    for name, value in values.items():
        marked[name] = _marked(value, rows, which) if isinstance(value, dict) else value
        marked[f"_{name}"] = which.copy()
    return marked


def check_reset_options(options: dict[str, Any] | None, known: tuple[str, ...]) -> None:
    """Refuse options of a reset that there aren't.

    Raises:
        ValueError: naming them.
    """
    unknown = sorted(set(options or ()) - set(known))
    if unknown:
        raise ValueError(f"options must be among {sorted(known)}, got {unknown}")


def _check_render_mode(render_mode: str | None) -> str | None:
    check_choice("render_mode", render_mode, [None, "rgb_array"])
    return render_mode
