"""Wrong types and sizes: every public constructor says in one line what is wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn

from envs import (
    ArrayTask,
    ConvHost,
    MorphogenesisEnv,
    Ramp,
    RewardConfig,
    RewardSchedule,
    feature_names,
)
from envs.actions import Op
from envs.batched.optimizers import SGD, AdamW
from envs.checks import check_memory
from envs.hosts import ModuleHost
from envs.hosts.text import TextHost
from envs.typed import check_type
from esper_rl import PolicyConfig, PPOConfig
from esper_rl.config import EnvConfig, RewardOptions, TrainConfig
from esper_rl.policy.config import ActorCriticConfig

WRONG: tuple[Any, ...] = (
    None, True, -1, 2.5, math.nan, math.inf, 10**400, 10**30, "x", "", b"x", [], [1], ["a"],
    (1, 2, 3), {}, {"a": 1}, {1: 2}, object(), torch.ones(2), torch.tensor(3), np.ones(2),
    np.int64(2), np.float32(0.5), len, nn.Linear(2, 2), int, 1j, [None], [[1]], {"op": None},
    {"op": [None]}, {"op": "x"},
)  # fmt: skip


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 1), nn.Flatten(), nn.Linear(512, 10))


IMAGES = (np.zeros((60, 1, 8, 8), np.float32), np.arange(60) % 10)
MADE: Mapping[Callable[..., Any], Mapping[str, Any]] = {
    **{
        kind: dict.fromkeys((each.name for each in fields(kind)), ...)
        for kind in (
            RewardConfig, RewardOptions, PolicyConfig, ActorCriticConfig, PPOConfig, EnvConfig,
            TrainConfig, SGD, AdamW,
        )
    },
    Ramp: {"key": "rent", "start": 0.1, "begin": 0.2, "end": 0.6},
    RewardSchedule: {"final": RewardConfig(), "ramps": [], "steps": 10, "every": 1},
    ConvHost: dict.fromkeys(
        ("kernel_size", "image_shape", "channels", "pooled", "classes", "drawn_channel"), ...
    ),
    TextHost: {"tokens": 5, "channels": (4, 4), "blueprints": ...},
    ModuleHost: {
        "factory": network, "slots": ["0"], "example": torch.zeros(1, 1, 8, 8), "blueprints": ...,
        "topology": ..., "channel_dim": ...,
    },
    ArrayTask: {
        "name": "mine", "host": ConvHost(), "train": IMAGES, "validation": 20,
        **dict.fromkeys(
            (
                "topology", "num_slots", "warm_up", "host_lr", "reward", "reward_terms", "training",
                "best_plan", "loss", "optimizer", "minibatch_size", "class_names", "description",
            ),
            ...,
        ),
    },
    MorphogenesisEnv: {
        "task": "scaffold", "num_envs": 2,
        **dict.fromkeys(
            ("num_slots", "max_epochs", "seed", "device", "gates", "reward", "time_limit"), ...
        ),
    },
}  # fmt: skip
"""By constructor, its arguments and what is right; ... leaves one out."""


def refusal(make: Callable[..., Any], **arguments: Any) -> str | None:
    """What a constructor says against its arguments; None where it takes them."""
    try:
        make(**arguments)
    except (TypeError, ValueError) as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("make", "name"), [(make, name) for make, names in MADE.items() for name in names]
)
def test_wrong_arguments_are_one_line_that_says_what_must_be(
    make: Callable[..., Any], name: str
) -> None:
    right = {key: value for key, value in MADE[make].items() if value is not ...}
    for value in WRONG:
        said = refusal(make, **{**right, name: value})
        assert said is None or any(word in said for word in ("must", "can be", "takes")), value


@pytest.mark.parametrize(
    ("value", "hint", "fits"),
    [
        (True, int, False),
        (True, float, False),
        (1, bool, False),
        (np.bool_(True), bool, True),
        (np.int64(1), int, True),
        (1, float, True),
        (1.0, int, False),
        (None, int | None, True),
        ("layer1", Sequence[str], False),
        (("a",), list[str], True),
        ([1, "a"], list[str], False),
        ((1, 2), tuple[int, int], True),
        ((1, 2, 3), tuple[int, int], False),
        ({"a": [1.0]}, dict[str, list[float]], True),
        ({"a": ["b"]}, Mapping[str, list[float]], False),
        ({Op.WAIT: 1}, dict[Op, float], True),
        ({1: 1}, dict[Op, float], True),
        ({99: 1}, dict[Op, float], False),
        (len, Callable[[Any], int], True),
        (3, Callable[[Any], int], False),
        (3, nn.Module, False),
        (len, nn.Module, False),
        ("a", Literal["a", "b"], True),
        ("c", Literal["a", "b"], False),
        (object(), Any, True),
    ],
)
def test_what_is_of_a_type(value: object, hint: Any, fits: bool) -> None:
    if fits:
        check_type("it", value, hint)
    else:
        with pytest.raises(TypeError, match="it must be"):
            check_type("it", value, hint)


@pytest.mark.parametrize(
    "make",
    [
        lambda: feature_names(10**30),
        lambda: ConvHost(channels=(10**9, 10**9, 3)),
        lambda: TextHost(tokens=10**12),
        lambda: MorphogenesisEnv("scaffold", num_envs=10**12),
        lambda: MorphogenesisEnv("digits", num_envs=10**8),
        lambda: PolicyConfig(hidden_size=10**8),
        lambda: PolicyConfig(head_layers={"op": [10**9, 10**9]}),
        lambda: PolicyConfig(embeddings={"stages": 10**15}),
    ],
)
def test_sizes_beyond_the_machine_are_refused_before_anything_is_allocated(make) -> None:
    with pytest.raises(ValueError, match=r"must be smaller: it takes about .* GiB|from 1 to 16"):
        make()


def test_what_fits_is_not_refused() -> None:
    check_memory("a byte", 1)
    check_memory("far too much, of an unknown size", 10**30, "meta")


def test_a_network_is_given_as_what_makes_it() -> None:
    with pytest.raises(TypeError, match=r"such as lambda: Sequential\(…\).* got a Sequential"):
        ModuleHost(network(), ["0"], torch.zeros(1, 1, 8, 8))
    for shape in ((8, 8), (8,), (3, 1, 8, 8)):
        with pytest.raises(ValueError, match=r"with its batch dimension, \[1, …\], got shape"):
            ModuleHost(network, ["0"], torch.zeros(shape))
