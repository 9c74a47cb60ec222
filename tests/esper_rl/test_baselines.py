"""The baselines over whole episodes of the real world."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDictBase

from envs import ArrayTask, ConvHost, MorphogenesisEnv, TextHost
from envs.actions import BLUEPRINTS, HEADS, Op, Stage, head_sizes
from envs.networks.blueprints import CONV_BLUEPRINTS, TEXT_BLUEPRINTS
from envs.observation import feature_columns
from esper_rl.growing.baselines import (
    FixedSchedulePolicy,
    HeuristicPolicy,
    RandomPolicy,
    SchedulePolicy,
    WaitPolicy,
)

EPOCHS = 14


@pytest.fixture
def env() -> MorphogenesisEnv:
    return MorphogenesisEnv(
        num_envs=6, max_epochs=EPOCHS, batches_per_epoch=1, minibatch_size=8, validation_size=20
    )


def ops(rollout: TensorDictBase) -> list[list[int]]:
    return rollout["action", "op"].tolist()


POLICIES = [
    WaitPolicy(),
    RandomPolicy(),
    FixedSchedulePolicy(),
    SchedulePolicy(torch.tensor([1, 2, 4]), torch.tensor([0, 3, 0]), EPOCHS),
    HeuristicPolicy(patience=1),
]


@pytest.mark.parametrize("policy", POLICIES)
def test_actions_fit_the_spec_and_are_never_refused(
    env: MorphogenesisEnv, policy: torch.nn.Module
) -> None:
    rollout = env.rollout(2 * EPOCHS, policy, break_when_any_done=False)
    assert rollout["next", "last_action_success"].all()
    assert (rollout["next", "metrics", "executed_op"] == rollout["action", "op"]).all()
    for head, size in head_sizes(3).items():
        choices = rollout["action", head]
        assert choices.dtype == torch.int64
        assert choices.shape == (6, 2 * EPOCHS)
        assert choices.min() >= 0
        assert choices.max() < size


@pytest.mark.parametrize("policy", [FixedSchedulePolicy(), HeuristicPolicy(patience=1)])
@pytest.mark.parametrize(
    ("topology", "offered", "grown"),
    [
        ("convolutional", ["conv_light", "conv_heavy"], "conv_heavy"),
        ("convolutional", ["conv_light", "norm"], "conv_light"),
        ("transformer", ["attention", "flex_attention"], "flex_attention"),
    ],
)
def test_what_is_grown_by_default_is_offered(
    policy: torch.nn.Module, topology: str, offered: list[str], grown: str
) -> None:
    convolutional = topology == "convolutional"
    blueprints = CONV_BLUEPRINTS if convolutional else TEXT_BLUEPRINTS
    chosen = {name: blueprints[name] for name in offered}
    if convolutional:
        host = ConvHost(1, (1, 4, 4), (4, 8), (True, False), classes=3, blueprints=chosen)
        inputs, targets = torch.rand(20, 1, 4, 4), torch.arange(20) % 3
    else:
        host = TextHost(3, (4, 4, 4), chosen)
        inputs = targets = torch.arange(80).view(20, 4) % 3
    task = ArrayTask(name="own", host=host, train=(inputs, targets), validation=5)
    env = MorphogenesisEnv(task, num_envs=2, num_slots=2, max_epochs=8, batches_per_epoch=1)
    rollout = env.rollout(8, policy)
    planted = rollout["action", "op"] == Op.GERMINATE
    assert planted.any()
    kinds = rollout["action", "blueprint"][planted]
    assert (kinds == env.population.blueprints.index(grown)).all()


def test_wait_never_touches_the_host(env: MorphogenesisEnv) -> None:
    rollout = env.rollout(EPOCHS, WaitPolicy())
    assert ops(rollout) == [[Op.WAIT] * EPOCHS] * 6
    assert (rollout["next", "metrics", "stage"] == Stage.DORMANT).all()
    assert (rollout["next", "metrics", "seed_params"] == 0).all()


def test_random_draws_uniformly_what_is_legal(env: MorphogenesisEnv) -> None:
    torch.manual_seed(0)
    state = env.reset()
    rows = 20_000
    state = state[:1].expand(rows).clone()
    state["action_mask", "op"][:] = torch.tensor([True, True, False, False, False, True])
    state["action_mask", "slot"][:, Op.GERMINATE] = torch.tensor([True, False, True])
    state["action_mask", "slot"][:, Op.ADVANCE] = torch.tensor([False, True, False])
    action = RandomPolicy()(state)["action"]

    share = torch.bincount(action["op"], minlength=len(Op)) / rows
    wanted = torch.tensor([1, 1, 0, 0, 0, 1]) / 3
    torch.testing.assert_close(share, wanted, atol=0.02, rtol=0)
    planted = action["slot"][action["op"] == Op.GERMINATE]
    slots = torch.bincount(planted, minlength=3) / len(planted)
    torch.testing.assert_close(slots, torch.tensor([0.5, 0, 0.5]), atol=0.02, rtol=0)
    assert (action["slot"][action["op"] == Op.ADVANCE] == 1).all()
    blueprints = torch.bincount(action["blueprint"], minlength=len(BLUEPRINTS)) > 0
    assert (blueprints == state["action_mask", "blueprint"][0]).all()


def test_fixed_schedule_walks_one_seed_through_its_life(env: MorphogenesisEnv) -> None:
    rollout = env.rollout(EPOCHS, FixedSchedulePolicy(slot=1, blueprint="conv_small"))
    # Plant, start training, start blending; the fast ramp takes three epochs, the first of
    # which is the one in which blending starts.
    life = [Op.GERMINATE, Op.ADVANCE, Op.ADVANCE, Op.WAIT, Op.WAIT, Op.ADVANCE, Op.FOSSILIZE]
    assert ops(rollout) == [life + [Op.WAIT] * (EPOCHS - len(life))] * 6
    stage, alpha = (rollout["next", "metrics", name][:, -1] for name in ("stage", "alpha"))
    assert (stage == torch.tensor([Stage.DORMANT, Stage.FOSSILIZED, Stage.DORMANT])).all()
    assert (alpha == torch.tensor([0.0, 1.0, 0.0])).all()
    planted = rollout["next", "blueprint_indices"][:, -1, 1]
    assert (planted == BLUEPRINTS.index("conv_small")).all()


def test_fixed_schedule_plants_again_in_the_next_episode_only(env: MorphogenesisEnv) -> None:
    rollout = env.rollout(2 * EPOCHS, FixedSchedulePolicy(), break_when_any_done=False)
    planted = (rollout["action", "op"] == Op.GERMINATE).nonzero()
    assert planted.tolist() == [[row, epoch] for row in range(6) for epoch in (0, EPOCHS)]


def test_fixed_schedule_does_not_replace_a_lost_seed(env: MorphogenesisEnv) -> None:
    policy = FixedSchedulePolicy()
    state = env.reset()
    state["observation"][:, 0] = 0.5
    assert (policy(state)["action", "op"] == Op.WAIT).all()


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        ({"blueprint": "conv_huge"}, r"blueprint must be one of .*, got 'conv_huge'"),
        ({"tempo_epochs": 4}, "tempo_epochs must be one of 3, 5, 8, got 4"),
        ({"alpha_target": 0.9}, "alpha_target must be one of 0.5, 0.7, 1.0, got 0.9"),
    ],
)
def test_fixed_schedule_refuses_choices_that_do_not_exist(choice: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        FixedSchedulePolicy(**choice)


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        ({"slot": 3}, "slot must be .* 0 to 2.*, got 3"),
        ({"blueprint": "mlp"}, "got 'mlp'"),
    ],
)
def test_fixed_schedule_refuses_what_the_world_does_not_have(
    env: MorphogenesisEnv, choice: dict, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        FixedSchedulePolicy(**choice)(env.reset())


def test_a_row_of_a_schedule_plants_what_and_when_it_says(env: MorphogenesisEnv) -> None:
    heavy, norm = BLUEPRINTS.index("conv_heavy"), BLUEPRINTS.index("norm")
    blueprints = torch.tensor([[heavy, -1, -1], [-1, norm, -1], [norm, heavy, norm]]).repeat(2, 1)
    epochs = torch.tensor([[0, 0, 0], [9, 5, 0], [0, 0, 3]]).repeat(2, 1)
    rollout = env.rollout(EPOCHS, SchedulePolicy(blueprints, epochs, EPOCHS))
    planted = rollout["action", "op"] == Op.GERMINATE
    slots, kinds = rollout["action", "slot"], rollout["action", "blueprint"]
    expected = [[(0, 0, heavy)], [(5, 1, norm)], [(0, 0, norm), (1, 1, heavy), (3, 2, norm)]]
    for row in range(6):
        when = planted[row].nonzero().flatten().tolist()
        found = [(t, slots[row, t].item(), kinds[row, t].item()) for t in when]
        assert found == expected[row % 3]
    assert (rollout["next", "last_action_success"]).all()


def test_a_schedule_of_one_seed_is_the_fixed_one(env: MorphogenesisEnv) -> None:
    blueprints = torch.tensor([-1, BLUEPRINTS.index("conv_heavy"), -1])
    schedule = SchedulePolicy(blueprints, torch.zeros_like(blueprints), EPOCHS)
    played = []
    for policy in (schedule, FixedSchedulePolicy(slot=1)):
        env.set_seed(1)
        played.append(env.rollout(EPOCHS, policy)["next"])
    for key in ("observation", "reward"):
        assert played[0][key].equal(played[1][key])


def test_schedules_refuse_what_the_world_does_not_have(env: MorphogenesisEnv) -> None:
    mlp = torch.tensor([BLUEPRINTS.index("mlp"), -1, -1])
    with pytest.raises(ValueError, match="got 'mlp'"):
        SchedulePolicy(mlp, torch.zeros_like(mlp), EPOCHS)(env.reset())


def test_schedules_refuse_shapes_that_differ() -> None:
    with pytest.raises(ValueError, match=r"epochs must have the shape of blueprints, \[3\], got"):
        SchedulePolicy(torch.zeros(3), torch.zeros(2), 50)


def test_every_head_is_written(env: MorphogenesisEnv) -> None:
    for policy in POLICIES:
        assert set(policy(env.reset())["action"].keys()) == set(HEADS)


# -- the heuristic ----------------------------------------------------------------------------


def seen(env: MorphogenesisEnv, **features: float) -> TensorDictBase:
    """A first state of one seed in slot 1, with the features and legal ops that it would have."""
    state = env.reset()
    for name, value in features.items():
        state["observation"][:, feature_columns(name)] = value
    state["action_mask", "slot"][:, [Op.GERMINATE, Op.PRUNE, Op.FOSSILIZE, Op.ADVANCE]] = False
    state["action_mask", "slot"][:, Op.GERMINATE, [0, 2]] = True
    return state


def chosen(state: TensorDictBase, *legal: Op, **options: object) -> tuple[Op, int]:
    state["action_mask", "slot"][:, list(legal), 1] = True
    state["action_mask", "op"] = state["action_mask", "slot"].any(-1)
    action = HeuristicPolicy(**options)(state)["action"]
    assert (action["op"] == action["op"][0]).all()
    return Op(action["op"][0].item()), action["slot"][0].item()


@pytest.mark.parametrize(("plateau", "op"), [(2, Op.WAIT), (3, Op.GERMINATE), (9, Op.GERMINATE)])
def test_heuristic_plants_on_a_plateau(env: MorphogenesisEnv, plateau: int, op: Op) -> None:
    assert chosen(seen(env, plateau_norm=plateau / 20)) == (op, 0)
    assert chosen(seen(env, plateau_norm=plateau / 20), slots=[2, 0])[1] == 2


def test_heuristic_grows_one_seed_at_a_time(env: MorphogenesisEnv) -> None:
    assert chosen(seen(env, plateau_norm=1.0), Op.PRUNE)[0] is Op.WAIT


@pytest.mark.parametrize(("health", "op"), [(0.4, Op.WAIT), (0.6, Op.ADVANCE)])
def test_heuristic_blends_when_the_gradient_is_healthy(
    env: MorphogenesisEnv, health: float, op: Op
) -> None:
    features = {"slot1_stage_training": 1.0, "slot1_gradient_health": health}
    assert chosen(seen(env, **features), Op.ADVANCE, Op.PRUNE)[0] is op
    features["slot1_stage_training"] = 0.0  # fresh, or its ramp is over
    assert chosen(seen(env, **features), Op.ADVANCE, Op.PRUNE) == (Op.ADVANCE, 1)


@pytest.mark.parametrize(
    ("points", "epochs", "op"),
    [
        (1.0, 1, Op.FOSSILIZE),
        (0.9, 1, Op.WAIT),
        (0.9, 3, Op.PRUNE),
        (-5.0, 2, Op.WAIT),
        (-5.0, 3, Op.PRUNE),
    ],
)
def test_heuristic_keeps_what_contributes_and_prunes_the_rest(
    env: MorphogenesisEnv, points: float, epochs: int, op: Op
) -> None:
    state = seen(
        env,
        slot1_stage_holding=1.0,
        slot1_contribution_norm=points / 10,
        slot1_epochs_in_stage_norm=epochs / 50,
    )
    assert chosen(state, Op.FOSSILIZE, Op.PRUNE)[0] is op


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"patience": 0}, "patience must be an integer of at least 1, got 0"),
        ({"contribution": -1.0}, "contribution must be a number of at least 0"),
        ({"gradient_health": 2.0}, "gradient_health must be .* at most 1, got 2.0"),
        ({"blueprint": "conv_huge"}, "blueprint must be one of"),
        ({"slots": [0, 3]}, "slot must be .* 0 to 2.*, got 3"),
        ({"blueprint": "mlp"}, "got 'mlp'"),
    ],
)
def test_heuristic_refuses(env: MorphogenesisEnv, options: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        HeuristicPolicy(**options)(env.reset())
