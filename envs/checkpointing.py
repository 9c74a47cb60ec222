"""Carrying on where something stopped: environments as dicts of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.envs import EnvBase, Transform, TransformedEnv

from envs.batched_state import cloned
from envs.populations.base import Population
from envs.state import State


def save_tensors(state: State, population: Population) -> dict[str, Any]:
    """Copy all that decides how rows go on, in nested dicts."""
    return {"state": cloned(state.state_dict()), "networks": population.state_dict()}


def load_tensors(saved: Mapping[str, Any], state: State, population: Population) -> State:
    """Take over what :func:`save_tensors` gave for as many rows of the same kind.

    Returns:
        The state; that of the populations is changed in place.

    Raises:
        ValueError: if a tensor is missing or has another shape; nothing is changed then.
    """
    loaded = state.copy()
    loaded.load_state_dict(saved["state"])
    population.load_state_dict(saved["networks"])
    return loaded


def check_options(mine: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Refuse a state that was saved by an environment with other options.

    Args:
        mine: options of the environment that loads it, by name.
        saved: those of the one that saved it.

    Raises:
        ValueError: naming the first option that differs.
    """
    for name in dict.fromkeys([*mine, *saved]):
        if (name in mine, mine.get(name)) != (name in saved, saved.get(name)):
            here, there = (
                f"{name}={options[name]!r}" if name in options else f"no {name}"
                for options in (mine, saved)
            )
            raise ValueError(
                f"state must be of an environment with {here}, got one with {there}; make this "
                "environment with the options of the one that was saved"
            )


class _Keeper(Transform):
    """Puts an environment, and where it stands, into the state of the transforms around it.

    TorchRL's collectors save and load the transforms of an environment, and nothing else of it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.root: Callable[[], TensorDictBase] | None = None  # from which the next step starts
        self.loaded: TensorDictBase | None = None

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        return tensordict

    def get_extra_state(self) -> dict[str, Any]:
        root = {} if self.root is None else self.root().clone().flatten_keys("/").to_dict()
        generator = torch.get_rng_state()
        return {"env": self.parent.base_env.state_dict(), "root": root, "generator": generator}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        base_env = self.parent.base_env
        base_env.load_state_dict(state["env"])
        if state["root"]:
            root = TensorDict(state["root"], base_env.batch_size, device=base_env.device)
            self.loaded = root.clone().unflatten_keys("/")
        torch.set_rng_state(state["generator"].cpu())


class ResumableEnv(TransformedEnv):
    """A :class:`~torchrl.envs.TransformedEnv` whose ``state_dict`` is all that carries on.

    TorchRL's own keeps transforms only. This one also keeps the environment inside, if that has
    a ``state_dict`` as :class:`envs.MorphogenesisEnv` does, and the TensorDict from which the next
    step starts, with whatever policies and transforms carry on in it, such as recurrent states.
    Collectors keep it with theirs, in one process or in several.

    After ``load_state_dict``, the first reset of all rows resets nothing: it gives that TensorDict.
    So a loop or a collector goes on where the saved one stood::

        collector.load_state_dict(saved)
        collector.reset()

    The state of PyTorch's CPU generator belongs to it, since policies draw from that: loading
    changes the generator of the process that the environment is in.

    Args:
        env: the environment.
        transform: what is around it, if anything.

    Examples:
        >>> from envs import MorphogenesisEnv
        >>> from torchrl.envs import StepCounter
        >>> make = lambda: ResumableEnv(MorphogenesisEnv(num_envs=2), StepCounter())
        >>> one, other = make(), make()
        >>> data = one.rollout(5, break_when_any_done=False)
        >>> other.load_state_dict(one.state_dict())
        >>> other.reset()["step_count"].flatten()
        tensor([5, 5])
    """

    def __init__(self, env: EnvBase, transform: Transform | None = None) -> None:
        super().__init__(env, transform)
        self._keeper = [_Keeper()]  # in a list, so that it isn't a second submodule
        self.append_transform(self._keeper[0])

    def reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        keeper = self._keeper[0]
        loaded, keeper.loaded = keeper.loaded, None
        some = tensordict is not None and tensordict.get("_reset", None) is not None
        root = super().reset(tensordict, **kwargs) if loaded is None or some else loaded
        # Some transforms give one number for all rows, into which collectors can't write.
        root = root.contiguous()
        keeper.root = lambda: root
        return root

    def step(self, tensordict: TensorDictBase) -> TensorDictBase:
        stepped = super().step(tensordict)
        self._keeper[0].loaded = None
        self._keeper[0].root = lambda: self.step_mdp(stepped)
        return stepped

    def step_and_maybe_reset(
        self, tensordict: TensorDictBase
    ) -> tuple[TensorDictBase, TensorDictBase]:
        stepped, root = super().step_and_maybe_reset(tensordict)
        self._keeper[0].root = lambda: root
        return stepped, root
