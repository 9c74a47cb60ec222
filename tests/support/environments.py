"""Small environments and actions for the tests of MorphogenesisEnv."""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase

from benchmarks.invariants import action
from envs import MorphogenesisEnv, feature_names
from envs.actions import BLUEPRINTS, Op
from envs.populations import SlotInputs

SMALL = {
    "num_envs": 3,
    "max_epochs": 8,
    "validation_size": 40,
    "minibatch_size": 8,
    "batches_per_epoch": 1,
    "seed": 0,
}


def small_env(**changes: object) -> MorphogenesisEnv:
    return MorphogenesisEnv(**{**SMALL, **changes})


def act(env: MorphogenesisEnv, state: TensorDictBase, **heads: int | list[int]) -> TensorDictBase:
    """The state after one step with that action; ``state`` stays as it is."""
    chosen = state.clone().set("action", action(env.num_envs, **heads))
    return env.step(chosen)["next"]


def random_states(env: MorphogenesisEnv, steps: int, seed: int = 0) -> list[TensorDictBase]:
    """Reset and steps with the same random actions for every row count and environment."""
    generator = torch.Generator().manual_seed(seed)
    states = [env.reset()]
    for _ in range(steps):
        heads = {
            head: torch.randint(spec.n, (), generator=generator).item()
            for head, spec in env.action_spec["action"].items()
        }
        states.append(act(env, states[-1], **heads))
    return states


def legal_action(state, generator: torch.Generator) -> dict[str, list[int]]:
    """A random legal action of every row that seldom prunes."""
    masks = state["action_mask"]
    weights = torch.tensor([3.0, 2.0, 0.5, 0.1, 1.0, 2.0]) * masks["op"]
    op = torch.multinomial(weights, 1, generator=generator)
    slot = masks["slot"].float().gather(1, op[:, :, None].expand(-1, -1, 3)).squeeze(1)
    heads = {"op": op.squeeze(1), "slot": torch.multinomial(slot, 1, generator=generator)[:, 0]}
    for head in ("blueprint", "style", "tempo", "alpha_target", "alpha_speed", "alpha_curve"):
        heads[head] = torch.multinomial(masks[head].float(), 1, generator=generator)[:, 0]
    return {head: index.tolist() for head, index in heads.items()}


CONV_LIGHT, CONV_HEAVY = BLUEPRINTS.index("conv_light"), BLUEPRINTS.index("conv_heavy")
GATED, MULTIPLY = 3, 1
GROW = [{"op": Op.GERMINATE, "blueprint": CONV_LIGHT, "alpha_target": 2}, *[{"op": Op.ADVANCE}] * 2]
"""Plant and blend at slot 0 as early as possible."""

HOLDING = [*GROW, {}, {}, {"op": Op.ADVANCE}]
"""The same until the ramp is over and the seed holds."""


def column(name: str) -> int:
    return feature_names(3).index(name)


def play(env: MorphogenesisEnv, plan: list[dict]) -> list:
    """States of a reset and then one step for each choice of heads."""
    states = [env.reset()]
    for heads in plan:
        states.append(act(env, states[-1], **heads))
    return states


def fully_live(env: MorphogenesisEnv) -> list:
    """Rows with different seeds in different stages."""
    n = env.num_envs
    blueprints = [1 + row % 7 for row in range(n)]
    styles = [row % 4 for row in range(n)]
    slots = [row % env.num_slots for row in range(n)]
    chosen = {"slot": slots, "blueprint": blueprints, "style": styles}
    ops = [Op.GERMINATE, Op.ADVANCE, Op.ADVANCE, Op.WAIT]
    return play(env, [{"op": op, **chosen} for op in ops])


def reset_rows(env: MorphogenesisEnv, state: TensorDict, rows: list[int]) -> TensorDict:
    mask = torch.zeros(env.num_envs, 1, dtype=torch.bool)
    mask[rows] = True
    return env.reset(state.clone().set("_reset", mask))


def watch_training(env: MorphogenesisEnv) -> list[tuple[SlotInputs, torch.Tensor]]:
    """A list that grows by what every epoch of training is given from now on."""
    given, train = [], env.population.train_on

    def watched(growth: SlotInputs, indices: torch.Tensor, *others: torch.Tensor) -> tuple:
        given.append((growth, indices))
        return train(growth, indices, *others)

    env.population.train_on = watched
    return given
