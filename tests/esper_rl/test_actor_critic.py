"""Actor and critic: what they draw, write, refuse, and remember."""

from __future__ import annotations

import copy

import pytest
import torch
from tensordict import TensorDictBase
from torchrl.collectors import Collector
from torchrl.envs import Compose, InitTracker, TransformedEnv, check_env_specs
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import MaskedCategorical, ProbabilisticActor

from envs.actions import HEADS
from esper_rl import PolicyConfig, make_actor_critic
from esper_rl.objectives import compute_advantages
from esper_rl.policy import ActorCritic, ActorCriticConfig
from esper_rl.policy.config import VALUE_MODES
from examples.own_world import Recall
from tests.support.by_hand import features_of, mask_of, memory_by_hand
from tests.support.fake_world import NUM_OPS, FakeWorld, collect, small_actor_critic
from tests.support.losses import LOSSES, make_loss

BY_OP = pytest.mark.parametrize("by_op", [True, False], ids=["by_op", "one_row"])


def ready(world: FakeWorld, ac: ActorCritic) -> TensorDictBase:
    """The first states of an episode, as the actor reads them."""
    return TransformedEnv(world, Compose(*ac.transforms())).reset()


def test_the_fake_world_keeps_its_specs() -> None:
    check_env_specs(FakeWorld())


@BY_OP
def test_keys_of_a_rollout(by_op: bool) -> None:
    world = FakeWorld(by_op=by_op)
    batch = collect(world, small_actor_critic(world))
    for head in HEADS:
        assert batch["action", head].shape == (6, 8)
        assert batch["action", head].dtype == torch.int64
        assert batch["action", f"{head}_log_prob"].shape == (6, 8)
    assert batch["baseline"].shape == (6, 8, 1)
    for state in ("recurrent_state_h", "recurrent_state_c"):
        assert batch[state].shape == batch["next", state].shape == (6, 8, 1, 16)
    inner = {"features", "lstm", "memory", "logits", "mask"}
    assert not inner & (set(batch.keys()) | set(batch["next"].keys()))


@BY_OP
def test_no_action_is_illegal(by_op: bool) -> None:
    world = FakeWorld(num_envs=200, by_op=by_op)
    batch = collect(world, small_actor_critic(world), steps=20)
    if by_op:
        assert not batch["action_mask", "slot"].any(-1).all(), "no op is ever illegal here"
    for head in HEADS:
        assert mask_of(batch, head).gather(-1, batch["action", head][..., None]).all(), head


@BY_OP
def test_log_probabilities_and_values_by_hand(by_op: bool) -> None:
    world = FakeWorld(by_op=by_op)
    ac = small_actor_critic(world)
    batch = collect(world, ac)
    memory = memory_by_hand(ac, batch)
    for head, logits in zip(HEADS, ac.network.heads(memory), strict=True):
        log_probs = logits.masked_fill(~mask_of(batch, head), -torch.inf).log_softmax(-1)
        wanted = log_probs.gather(-1, batch["action", head][..., None]).squeeze(-1)
        torch.testing.assert_close(batch["action", f"{head}_log_prob"], wanted)
        if head == "op":
            soft = ac.network.value_head(memory, log_probs.exp())
    torch.testing.assert_close(batch["baseline"], soft)
    hard = ac.network.value_head(memory, torch.eye(NUM_OPS)[batch["action", "op"]])
    torch.testing.assert_close(ac.critic(batch.clone())["state_value"], hard)


def test_frequencies_are_the_probabilities() -> None:
    world = FakeWorld(num_envs=1)
    ac = small_actor_critic(world)
    state = ready(world, ac)
    for head in ("op", "slot"):
        state["action_mask", head][:, 3] = False
    memory = ac.network.lstm_norm(ac.network.lstm(features_of(ac.network, state))[0])
    op_logits, slot_logits, *_ = ac.network.heads(memory)
    masks = state["action_mask"]
    op = op_logits.masked_fill(~masks["op"], -torch.inf).softmax(-1)
    slot = slot_logits[:, None].masked_fill(~masks["slot"], -torch.inf).softmax(-1)
    joint = (op[..., None] * slot.nan_to_num()).squeeze(0)
    assert len(set(joint[joint > 0].tolist())) > 3, "the policy must have preferences"

    rows = 40_000
    action = ac.actor(state.expand(rows).clone())["action"]
    cell = action["op"] * world.num_slots + action["slot"]
    share = torch.bincount(cell, minlength=joint.numel()) / rows
    deviation = (joint.flatten() * (1 - joint.flatten()) / rows).sqrt()
    assert ((share - joint.flatten()).abs() <= 4.5 * deviation).all()


def test_random_unless_told_otherwise() -> None:
    world = FakeWorld(num_envs=100)
    ac = small_actor_critic(world)
    state = ready(world, ac)
    first, second = (ac.actor(state.clone())["action", "blueprint"] for _ in range(2))
    assert (first != second).any()


@BY_OP
def test_deterministic_takes_the_likeliest_of_every_head_given_the_op(by_op: bool) -> None:
    world = FakeWorld(num_envs=50, by_op=by_op)
    ac = small_actor_critic(world)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        batch = collect(world, ac)
    for head, logits in zip(HEADS, ac.network.heads(memory_by_hand(ac, batch)), strict=True):
        likeliest = logits.masked_fill(~mask_of(batch, head), -torch.inf).argmax(-1)
        assert torch.equal(batch["action", head], likeliest)


def test_sequence_equals_steps_across_resets() -> None:
    world = FakeWorld()
    ac = small_actor_critic(world)
    batch = collect(world, ac, steps=12)
    assert batch["is_init"][:, 1:].any(1).all()
    assert not batch["recurrent_state_h"][batch["is_init"].squeeze(-1)].any()
    whole = ac.critic(batch.clone())["state_value"]
    steps = [ac.critic(batch[:, t].clone())["state_value"] for t in range(12)]
    torch.testing.assert_close(whole, torch.stack(steps, 1))
    # A sequence that begins in mid-episode goes on with the stored state.
    later = ac.critic(batch[:, 2:].clone())["state_value"]
    torch.testing.assert_close(later, whole[:, 2:])


def test_memory_matters_and_ends_with_the_episode() -> None:
    world = FakeWorld(num_envs=3)
    ac = small_actor_critic(world)
    batch = collect(world, ac, steps=8)
    value = ac.critic(batch.clone())["state_value"]
    other = batch.clone()
    other["observation"][:, 0] += 1
    changed = (ac.critic(other)["state_value"] != value).squeeze(-1)
    for row, length in enumerate([3, 4, 5]):
        assert changed[row, :length].all()
        assert not changed[row, length:].any()


def test_a_collector_can_use_it() -> None:
    world = FakeWorld()
    ac = small_actor_critic(world)
    collector = Collector(
        TransformedEnv(world, Compose(*ac.transforms())),
        ac.actor,
        frames_per_batch=24,
        total_frames=48,
    )
    first, second = (batch.clone() for batch in collector)
    collector.shutdown()
    assert first.shape == second.shape == (6, 4)
    going_on = ~second["is_init"][:, 0].squeeze(-1)
    assert going_on.any()
    before, after = first["next", "recurrent_state_h"][:, -1], second["recurrent_state_h"][:, 0]
    torch.testing.assert_close(before[going_on], after[going_on])


def test_transforms_add_what_the_policy_carries() -> None:
    world = FakeWorld()
    ac = small_actor_critic(world)
    tracker, primer = ac.transforms()
    assert isinstance(tracker, InitTracker)
    plain, state = world.reset(), ready(world, ac)
    added = {"is_init", "recurrent_state_h", "recurrent_state_c"}
    assert set(state.keys()) - set(plain.keys()) == added
    assert state["is_init"].all()
    for key in added - {"is_init"}:
        assert state[key].shape == (6, 1, 16)
        assert not state[key].any()
    assert set(primer.primers.keys()) == added - {"is_init"}


@pytest.mark.parametrize(("num_slots", "parameters"), [(3, 927_458), (5, 2_054_948)])
def test_size(num_slots: int, parameters: int) -> None:
    world = FakeWorld(num_envs=1, num_slots=num_slots)
    ac = make_actor_critic(PolicyConfig.v2(num_slots), world)
    assert ac.heads == HEADS
    assert sum(parameter.numel() for parameter in ac.network.parameters()) == parameters


def test_a_copy_acts_alike() -> None:
    world = FakeWorld()
    ac = small_actor_critic(world)
    state = ready(world, ac)
    twin = copy.deepcopy(ac.actor)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        ours, theirs = ac.actor(state.clone()), twin(state.clone())
    assert (ours["action"] == theirs["action"]).all()


def test_soft_value_trains_no_head() -> None:
    world = FakeWorld()
    ac = small_actor_critic(world)
    ac.actor(ready(world, ac))["baseline"].sum().backward()
    network = ac.network
    assert all(parameter.grad is None for parameter in network.heads.parameters())
    for part in (network.value_head, network.lstm, network.feature_net):
        assert all(parameter.grad is not None for parameter in part.parameters())


def test_hard_value_trains_no_head() -> None:
    world = FakeWorld()
    ac = small_actor_critic(world)
    ac.critic(collect(world, ac))["state_value"].sum().backward()
    assert all(parameter.grad is None for parameter in ac.network.heads.parameters())
    assert ac.network.lstm.weight_hh_l0.grad.any()


def test_another_number_of_slots_is_refused() -> None:
    with pytest.raises(ValueError, match=r"num_slots must be 3, .*, got 5"):
        make_actor_critic(PolicyConfig.v2(num_slots=5), FakeWorld())


@pytest.mark.parametrize("head", HEADS)
def test_a_head_without_a_choice_is_named(head: str) -> None:
    world = FakeWorld()
    ac = small_actor_critic(world)
    state = ready(world, ac)
    state["action_mask", head][2] = False
    with pytest.raises(ValueError, match=rf"head '{head}' must have .*, got none at index \[2\]"):
        ac.actor(state)


def test_padding_needs_no_masks() -> None:
    world = FakeWorld()
    ac = small_actor_critic(world)
    state = ready(world, ac)
    state["action_mask"].apply_(lambda mask: mask.index_fill_(0, torch.tensor([1]), False))
    state["collector", "mask"] = torch.arange(6) != 1
    acted = ac.actor(state)
    assert all(acted["action", f"{head}_log_prob"].isfinite().all() for head in HEADS)


def test_the_policy_is_a_sequence_of_probabilistic_actors() -> None:
    world = FakeWorld()
    ac = small_actor_critic(world)
    actors = [module for module in ac.actor.module if isinstance(module, ProbabilisticActor)]
    assert [actor.dist_sample_keys for actor in actors] == [[("action", head)] for head in HEADS]
    for head, actor in zip(HEADS, actors, strict=True):
        logits, draw = actor.module
        assert logits.module is ac.network.heads[head]
        assert draw.distribution_class is MaskedCategorical
        assert draw.log_prob_key == ("action", f"{head}_log_prob")
        assert actor.spec["action", head] == world.action_spec["action", head]


@BY_OP
def test_heads_alone_are_the_parents(by_op: bool) -> None:
    """A head does as :class:`ProbabilisticActor` would, draw for draw."""
    world = FakeWorld(by_op=by_op)
    ac = small_actor_critic(world)
    state = ready(world, ac)
    for module in ac.actor.module:
        if not isinstance(module, ProbabilisticActor):
            module(state)
            continue
        theirs = state.copy()
        with torch.random.fork_rng():
            ProbabilisticActor.forward(module, theirs)
        module(state)
        assert set(theirs.keys(True, True)) == set(state.keys(True, True))
        for key in module.out_keys:
            assert state[key].equal(theirs[key]), key


@BY_OP
def test_the_distribution_of_a_rollout_is_that_of_its_ops(by_op: bool) -> None:
    """Re-evaluated by torchrl's own interface, stored actions keep their log-probability."""
    world = FakeWorld(by_op=by_op)
    ac = small_actor_critic(world)
    batch = collect(world, ac)
    log_probs = ac.actor.log_prob(batch.exclude("baseline"))
    for head in HEADS:
        stored = batch["action", f"{head}_log_prob"]
        torch.testing.assert_close(log_probs["action", f"{head}_log_prob"], stored)


def test_initial_logits_are_added_to_what_an_untrained_head_says() -> None:
    world = FakeWorld()
    logits = [0.0, -3.0, 0.5, 0.0, 0.0, 0.0]
    batch = collect(world, small_actor_critic(world))
    said = {}
    for name, initial in (("plain", {}), ("biased", {"op": logits})):
        torch.manual_seed(0)
        ac = make_actor_critic(PolicyConfig(hidden_size=16, initial_logits=initial), world)
        said[name] = ac.network(batch["observation"], batch["blueprint_indices"])
    op, *others = (after - before for after, before in zip(*reversed(said.values()), strict=True))
    torch.testing.assert_close(op, torch.tensor(logits).expand_as(op))
    assert all((other == 0).all() for other in others)


def test_integers_of_any_name_are_embedded_and_columns_left_out() -> None:
    world = FakeWorld()
    features = world.observation_spec["observation"].shape[-1]
    config = ActorCriticConfig(
        hidden_size=8,
        embeddings={"blueprint_indices": 2},
        head_layers={"op": [5, 7], "slot": []},
        hidden_columns=[features - 1, 0, 4],
    )
    ac = make_actor_critic(config, world)
    network = ac.network
    assert network.blueprint_embedding.embedding.weight.shape == (14, 2)
    assert network.feature_net[0].in_features == features - 3 + 3 * 2
    x = torch.arange(float(features))
    shown = [i for i in range(features) if i not in (0, 4, features - 1)]
    assert network.visible(x[None]).tolist() == [shown]
    widths = {
        name: [layer.out_features for layer in head if isinstance(layer, torch.nn.Linear)]
        for name, head in network.heads.items()
    }
    assert widths["op"] == [5, 7, 6]
    assert widths["slot"] == [3]
    assert widths["tempo"] == [4, 3]


@pytest.mark.parametrize(
    ("config", "error", "says"),
    [
        ({"head_layers": {"opp": [8]}}, ValueError, "heads of head_layers must be .*'opp'"),
        ({"initial_logits": {"opp": [0.0]}}, ValueError, "heads of initial_logits .*'opp'"),
        ({"initial_logits": {"op": [0.0, 1.0]}}, ValueError, "'op' must be 6, .*, got 2"),
        ({"initial_logits": {"op": [-99.0] * 6}}, ValueError, "initial_logits.*-20.* got -99"),
        ({"embeddings": {"colour": 2}}, KeyError, "no 'colour', which the policy embeds"),
        ({"hidden_columns": [500]}, ValueError, r"hidden_columns must be .* 0 to \d+, got 500"),
    ],
)
def test_what_the_environment_lacks_is_named(
    config: dict, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        make_actor_critic(ActorCriticConfig(**config), FakeWorld())


def test_masks_of_another_dtype_are_refused() -> None:
    world = FakeWorld(num_envs=2)
    ac = small_actor_critic(world)
    state = TransformedEnv(world, Compose(*ac.transforms())).reset()
    state["action_mask", "style"] = state["action_mask", "style"].to(torch.int8)
    with pytest.raises(
        TypeError, match=r"head 'style' must be bool, .* got torch.int8; .*bool\(\)"
    ):
        ac.actor(state)


def test_a_step_without_the_transforms_says_what_to_do() -> None:
    world = FakeWorld(num_envs=2)
    ac = small_actor_critic(world)
    message = r"lacks .*'is_init'.*TransformedEnv\(env, Compose\(\*actor_critic.transforms\(\)\)\)"
    with pytest.raises(KeyError, match=message):
        ac.actor(world.reset())
    with pytest.raises(KeyError, match=message):
        next(iter(Collector(world, ac.actor, frames_per_batch=4, total_frames=4)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("mode", VALUE_MODES)
def test_policies_of_other_precisions_act_and_learn(mode: str, dtype: torch.dtype) -> None:
    world = FakeWorld(num_envs=4)
    ac = make_actor_critic(PolicyConfig(hidden_size=16, value_mode=mode), world)
    batch = compute_advantages(collect(world, ac, steps=6), ac)
    ac.network.to(dtype)
    batch = batch.apply(lambda x: x.to(dtype) if x.is_floating_point() else x)
    step = ac.actor(batch[:, 0].clone())
    assert step["baseline"].isfinite().all()
    losses = make_loss(ac)(batch)
    loss = sum(losses[key] for key in LOSSES)
    loss.backward()
    assert loss.isfinite()
    assert all(
        weight.grad.isfinite().all()
        for weight in ac.network.parameters()
        if weight.grad is not None
    )


def test_a_policy_for_seeds_needs_a_world_with_seeds() -> None:
    with pytest.raises(KeyError, match="ActorCriticConfig for another environment"):
        make_actor_critic(PolicyConfig.v2(), Recall(num_envs=2))
