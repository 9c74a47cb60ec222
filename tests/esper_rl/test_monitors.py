"""What is watched, on batches made to show one thing each."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict, TensorDictBase

from envs.actions import CAUSAL_RELEVANCE, Op
from envs.observation import ACTION_FEEDBACK, feature_columns
from esper_rl import FactoredClipPPOLoss
from esper_rl.growing.monitors import (
    cell_metrics,
    credit_metrics,
    feedback_metrics,
    find_warnings,
    named_by_op,
    rollout_metrics,
)
from esper_rl.policy import ActorCritic
from esper_rl.ppo import average_metrics, gradient_norms
from tests.support.fake_world import FakeWorld, collect, small_actor_critic
from tests.support.losses import make_loss


@pytest.fixture
def world() -> FakeWorld:
    return FakeWorld(num_envs=8)


def losses(ac: ActorCritic, batch: TensorDictBase) -> TensorDictBase:
    return FactoredClipPPOLoss(ac.actor, ac.critic, heads=ac.heads, relevance=CAUSAL_RELEVANCE)(
        batch
    )


def updated(ac: ActorCritic, batch: TensorDictBase) -> dict[str, float]:
    """Metrics of an iteration with one update."""
    out = losses(ac, batch)
    return average_metrics(out, [out])


def test_a_head_that_is_decided_only_where_it_matters(
    batch: TensorDictBase, world: FakeWorld
) -> None:
    """As free as can be wherever nobody looks at it: the mean over all steps shows nothing."""
    ac = small_actor_critic(world, decided=False)
    batch["action_mask", "blueprint"][:] = True
    loss = make_loss(ac)
    germinates = batch["action", "op"] == Op.GERMINATE
    assert 0 < germinates.float().mean() < 0.5

    class Decided(torch.nn.Module):
        """Logits that leave no choice in the steps with a seed to plant."""

        def forward(self, memory: torch.Tensor) -> torch.Tensor:
            return germinates[..., None] * torch.eye(13)[3] * 100.0

    head = next(module for module in ac.actor.module if ("action", "blueprint") in module.out_keys)
    head.module[0].module = Decided()
    out = loss(batch)
    row = average_metrics(out, [out])
    assert row["normalized_entropy/blueprint"] > 0.5
    assert row["relevant_normalized_entropy/blueprint"] < 1e-3
    # The head that drew these actions was another one, so the policy seems to have moved far.
    assert find_warnings(row).keys() == {"kl_approx", "relevant_normalized_entropy/blueprint"}


def test_a_healthy_policy_gives_no_warning(batch: TensorDictBase, world: FakeWorld) -> None:
    ac = small_actor_critic(world, decided=False)
    row = {**updated(ac, batch), **feedback_metrics(batch, ac)}
    assert len([name for name in row if name.startswith("normalized_entropy/")]) == 8
    assert not find_warnings(row)


@pytest.mark.parametrize(("strength", "level"), [(2.8, "warning"), (50.0, "alert")])
def test_a_collapsed_head(
    batch: TensorDictBase, world: FakeWorld, strength: float, level: str
) -> None:
    ac = small_actor_critic(world, decided=False)
    batch["action_mask", "blueprint"][:] = True
    with torch.no_grad():
        ac.network.heads["blueprint"][-1].bias[3] = strength * 2
    row = updated(ac, batch)
    warnings = find_warnings(row)
    # The head that drew these actions was another one, so the policy seems to have moved far.
    assert warnings.keys() == {"kl_approx", "relevant_normalized_entropy/blueprint"}
    text = warnings["relevant_normalized_entropy/blueprint"]
    assert text.startswith(f"{level}: head 'blueprint' has")


def test_entropy_is_compared_with_the_legal_choices(
    batch: TensorDictBase, world: FakeWorld
) -> None:
    """Two of thirteen blueprints, equally likely, are all the entropy there can be."""
    ac = small_actor_critic(world, decided=False)
    batch["action_mask", "blueprint"][:] = False
    batch["action_mask", "blueprint"][..., :2] = True
    batch["action", "blueprint"] %= 2
    row = updated(ac, batch)
    assert row["normalized_entropy/blueprint"] == pytest.approx(1, abs=0.01)
    assert row["head_entropy/blueprint"] == pytest.approx(math.log(2), abs=0.01)


def outcome(ops: list[Op], forced: int = 0) -> TensorDictBase:
    """One row of steps with those ops; in the last ``forced`` of them WAIT alone is legal."""
    steps = len(ops)
    legal = torch.ones(1, steps, len(Op), dtype=torch.bool)
    legal[:, steps - forced :, 1:] = False
    done = torch.zeros(1, steps, 1, dtype=torch.bool)
    done[:, -1] = True
    after = {
        "done": done,
        "episode_return": torch.arange(steps).view(1, -1, 1).float(),
        "last_action_success": torch.ones_like(done),
        "metrics": {
            "val_accuracy": torch.full((1, steps, 1), 42.0),
            "rollback": ~done,
            "seed_params": torch.full((1, steps, 1), 7.0),
        },
    }
    action, mask = {"op": torch.tensor([ops])}, {"op": legal}
    return TensorDict({"action": action, "action_mask": mask, "next": after}, [1, steps])


def test_a_policy_that_only_waits() -> None:
    waiting = rollout_metrics(outcome([Op.WAIT] * 30))
    assert waiting["op/WAIT"] == 1
    assert find_warnings(waiting) == {
        "wait_rate": "alert: 100% of the ops are WAIT where another one is legal; the policy has "
        "stopped acting"
    }
    acting = rollout_metrics(outcome([Op.WAIT] * 18 + [Op.GERMINATE, Op.ADVANCE]))
    assert (acting["op/WAIT"], acting["op/GERMINATE"]) == pytest.approx((0.9, 0.05))
    assert not find_warnings(acting)


def test_waiting_where_nothing_else_is_legal_is_no_choice() -> None:
    row = rollout_metrics(outcome([Op.GERMINATE, Op.WAIT, *[Op.WAIT] * 98], forced=98))
    assert (row["op/WAIT"], row["wait_rate"]) == pytest.approx((0.99, 0.5))
    assert not find_warnings(row)
    nothing = rollout_metrics(outcome([Op.WAIT] * 10, forced=10))
    assert math.isnan(nothing["wait_rate"])
    assert not find_warnings(nothing)


def test_credit_and_how_late_it_came() -> None:
    batch = outcome([Op.WAIT] * 4)
    credit, delay = torch.zeros(1, 4, 3), torch.zeros(1, 4, 3, dtype=torch.int64)
    credit[0, 1] = torch.tensor([0.1, 0.0, 0.05])
    credit[0, 3, 1] = 0.2
    delay[0, 1, 0], delay[0, 3, 1] = 60, 20
    batch["next", "metrics", "pending_hindsight_credit"] = credit
    batch["next", "metrics", "hindsight_delay"] = delay
    row = credit_metrics(batch)
    assert row["hindsight/rate"] == 0.75
    quantiles = {"credit": (0.06, 0.1, 0.18), "delay": (4, 20, 52)}
    for name, wanted in quantiles.items():
        found = [row[f"hindsight/{name}_p{percent}"] for percent in (10, 50, 90)]
        assert found == pytest.approx(wanted)
    batch["next", "metrics", "pending_hindsight_credit"] = 0 * credit
    row = credit_metrics(batch)
    assert row.pop("hindsight/rate") == 0
    assert all(math.isnan(value) for value in row.values())


def test_ends_of_episodes() -> None:
    row = rollout_metrics(outcome([Op.WAIT] * 5))
    assert (row["episodes"], row["return"], row["final_accuracy"], row["seed_params"]) == (
        1,
        4.0,
        42.0,
        7.0,
    )


def test_how_much_episodes_differ() -> None:
    assert math.isnan(rollout_metrics(outcome([Op.WAIT] * 5))["return_std"])  # of one episode
    both = torch.cat([outcome([Op.WAIT] * 5) for _ in range(2)])
    both["next", "episode_return"][1] += 3
    both["next", "metrics", "val_accuracy"][1] = 0
    row = rollout_metrics(both)
    assert (row["return"], row["final_accuracy"]) == (5.5, 21)
    assert row["return_std"] == pytest.approx(3 / 2**0.5)
    assert row["final_accuracy_std"] == pytest.approx(42 / 2**0.5)


def cells(norms: list[float]) -> TensorDictBase:
    """A row whose cell state has those norms, one a step of an episode."""
    steps = len(norms)
    cell = torch.tensor(norms)[None, :, None, None].expand(1, steps, 1, 4) / 2  # ‖(½…½)‖ = 1
    progress = torch.arange(steps) / steps
    return TensorDict(
        {"observation": progress[None, :, None], "next": {"recurrent_state_c": cell}}, [1, steps]
    )


def test_a_drifting_cell_state() -> None:
    steady = cell_metrics(cells([2.0] * 50))
    assert steady == pytest.approx(
        {**{f"cell_norm/fifth_{i}": 2.0 for i in range(1, 6)}, "cell_norm/drift": 1.0}
    )
    assert not find_warnings(steady)
    growing = cell_metrics(cells([float(t) for t in range(1, 51)]))
    fifths = [growing[f"cell_norm/fifth_{i}"] for i in range(1, 6)]
    assert fifths == pytest.approx([5.5, 15.5, 25.5, 35.5, 45.5])
    assert growing["cell_norm/drift"] == pytest.approx(45.5 / 25.5)
    exploding = cell_metrics(cells([1.1**t for t in range(50)]))
    assert "by a factor of 6.7" in find_warnings(exploding)["cell_norm/drift"]


def test_half_an_episode_has_no_drift() -> None:
    half = cells([1.0] * 50)[:, :20]
    row = cell_metrics(half)
    assert math.isnan(row["cell_norm/drift"])
    assert not find_warnings(row)


def test_the_second_layer_drifts_by_itself() -> None:
    both = cells([2.0] * 50)
    growing = cells([1.1**t for t in range(50)])
    both["next", "upper_recurrent_state_c"] = growing["next", "recurrent_state_c"]
    assert list(find_warnings(cell_metrics(both))) == ["upper_cell_norm/drift"]


def test_one_row_has_nobody_to_exchange_feedback_with(ac: ActorCritic) -> None:
    world = FakeWorld(num_envs=1)
    row = feedback_metrics(collect(world, ac, steps=4), ac)
    assert math.isnan(row["feedback/permuted"])
    assert row["feedback/zeroed"] >= 0


def test_no_cell_state_without_a_memory() -> None:
    assert cell_metrics(cells([1.0]).exclude(("next", "recurrent_state_c"))) == {}


def test_a_policy_that_leans_on_the_feedback_columns(
    batch: TensorDictBase, world: FakeWorld
) -> None:
    ac = small_actor_critic(world, decided=False)
    assert max(feedback_metrics(batch, ac).values()) < 0.05
    batch["action_mask", "op"][:] = True
    feedback = torch.zeros(8, 10, 7)
    feedback[:4, :, 3], feedback[4:, :, 5] = 1.0, 1.0  # rows in two camps
    batch["observation"][..., feature_columns(*ACTION_FEEDBACK)] = feedback
    before = batch.clone()
    leaning = small_actor_critic(world, decided=False)
    with torch.no_grad():  # a trunk that shows hardly anything but the feedback
        leaning.network.feature_net[0].weight.mul_(0.01)
        leaning.network.feature_net[0].weight[:, feature_columns(*ACTION_FEEDBACK)] *= 1000
        leaning.network.heads["op"][-1].weight.mul_(3000)
    row = feedback_metrics(batch, leaning)
    assert row["feedback/zeroed"] > 0.5
    # Shifted by one row, two of eight rows get another camp's feedback.
    assert 0.1 < row["feedback/permuted"] <= 0.25 + 1e-5
    assert list(find_warnings(row)) == ["feedback/zeroed"]
    assert (batch == before).all()


def test_a_policy_of_the_feedback_columns_alone_moves_all_of_its_probability(
    batch: TensorDictBase, world: FakeWorld
) -> None:
    """Total variation distance is 1 between two ops that are certain, not the sum of both."""
    ac = small_actor_critic(world, decided=False)
    batch["action_mask", "op"][:] = True
    feedback = torch.zeros(8, 10, 7)
    feedback[..., 3] = 1.0
    batch["observation"][..., feature_columns(*ACTION_FEEDBACK)] = feedback

    class Echo(torch.nn.Module):
        """One op where a feedback column is set in the batch, another one where none is."""

        def forward(self, observation: torch.Tensor) -> torch.Tensor:
            told = observation[..., feature_columns(*ACTION_FEEDBACK)].any(-1)
            return torch.nn.functional.one_hot(torch.where(told, 3, 1), len(Op)) * 100.0

    head = next(module for module in ac.actor.module if ("action", "op") in module.out_keys)
    head.module[0].module = Echo()
    head.module[0].in_keys[0] = "observation"
    found = feedback_metrics(batch, ac)
    assert found["feedback/zeroed"] == pytest.approx(1.0)
    assert found["feedback/permuted"] == 0


def test_gradient_norms_of_heads(batch: TensorDictBase, ac: ActorCritic) -> None:
    out = losses(ac, batch)
    (out["loss_objective"] + out["loss_entropy"]).backward()
    norms = gradient_norms(ac)
    assert set(norms.keys()) == {f"head_grad_norm/{head}" for head in ac.heads}
    for name, head in ac.network.heads.items():
        wanted = sum(float(w.grad.double().square().sum()) for w in head.parameters()) ** 0.5
        assert norms[f"head_grad_norm/{name}"].item() == pytest.approx(wanted, rel=1e-5)
    assert norms["head_grad_norm/op"] > 0


def test_updates_are_averaged_without_those_that_say_nothing() -> None:
    def update(wait: float) -> TensorDictBase:
        kinds = ("op_critic_loss", "op_residual_variance")
        return TensorDict(
            {
                f"{kind}/{i}": torch.tensor(wait if i == 0 else 1.0)
                for kind in kinds
                for i in range(6)
            }
        ).set("explained_variance", torch.tensor(wait))

    averaged = average_metrics(update(7.0), [update(2.0), update(math.nan), update(4.0)])
    means = named_by_op(averaged)
    assert means["op_critic_loss_fitted/WAIT"] == 3.0
    assert means["op_residual_variance/ADVANCE"] == 1.0
    # Of the value it is the prediction that counts, not what was fitted to the same targets.
    assert means["op_critic_loss/WAIT"] == means["explained_variance"] == 7.0
    assert means["explained_variance_fitted"] == 3.0


def test_missing_numbers_warn_of_nothing() -> None:
    nan = math.nan
    assert not find_warnings(
        {"relevant_normalized_entropy/op": nan, "wait_rate": nan, "feedback/zeroed": nan}
    )
