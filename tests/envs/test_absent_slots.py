"""Hosts that have fewer slots than the environment shows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from envs import ArrayTask, ModuleHost, MorphogenesisEnv
from envs.actions import Op, Stage
from envs.observation import feature_columns, feature_names
from envs.populations import SlotInputs, Validation
from envs.populations.absent import with_absent_slots
from envs.populations.left_out import sets_left_out


def two_blocks() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 1),
        torch.nn.Conv2d(8, 8, 1),
        torch.nn.Flatten(),
        torch.nn.Linear(128, 3),
    )


def own_task(slots: list[str]) -> ArrayTask:
    torch.manual_seed(0)
    images, classes = torch.rand(120, 1, 4, 4), torch.arange(120) % 3
    host = ModuleHost(two_blocks, slots, torch.zeros(1, 1, 4, 4))
    return ArrayTask(name="own", host=host, train=(images, classes), validation=40)


def make_env(num_slots: int, slots: list[str], **options: object) -> MorphogenesisEnv:
    sizes = {"batches_per_epoch": 2, "minibatch_size": 8}
    return MorphogenesisEnv(
        own_task(slots), num_envs=3, num_slots=num_slots, max_epochs=8, seed=1, **sizes, **options
    )


@pytest.mark.parametrize("gates", ["permissive", "strict", "hidden"])
def test_a_host_with_fewer_slots_lives_as_it_does_without_the_others(gates):
    shown, own = make_env(4, ["0", "1"], gates=gates), make_env(2, ["0", "1"], gates=gates)
    present = feature_names(2)
    columns = feature_columns(*present, num_slots=4)
    shares = [present.index(name) for name in present if name.startswith("num_")]
    shares.append(present.index("slot_utilization"))
    state, other = shown.reset(), own.reset()
    for _ in range(8):
        torch.manual_seed(2)
        action = own.rand_action(other.clone())
        step = shown.step(state.clone().set("action", action["action"]))
        state, other = step["next"], own.step(action)["next"]
        for key in ("reward", "last_action_success", ("metrics", "val_accuracy"), "done"):
            assert state[key].equal(other[key]), key
        mine, theirs = state["observation"][:, columns], other["observation"].clone()
        theirs[:, shares] /= 2  # of the slots that are shown
        torch.testing.assert_close(mine, theirs)


def test_nothing_is_legal_in_slots_that_the_host_lacks():
    env = make_env(3, ["0"])
    state = env.reset()
    for _ in range(8):
        legal = state["action_mask", "slot"]
        assert not legal[:, Op.GERMINATE :, 1:].any()
        assert legal[:, Op.WAIT].all()
        assert (state["metrics", "stage"][:, 1:] == Stage.DORMANT).all()
        assert not state["observation"][:, feature_columns("slot1_is_active", "slot2_alpha")].any()
        step = env.step(env.rand_action(state))
        assert step["next", "last_action_success"].all()
        state = step["next"]


def test_planting_in_a_slot_that_the_host_lacks_is_refused():
    env = make_env(3, ["0"])
    state = env.reset()
    heads = env.full_action_spec.zero()["action"]
    heads["op"][:] = Op.GERMINATE
    heads["slot"][:] = torch.tensor([0, 1, 2])
    heads["blueprint"][:] = 1
    after = env.step(state.set("action", heads))["next"]
    assert after["last_action_success"].flatten().tolist() == [True, False, False]


def test_networks_of_such_hosts_come_out_and_go_in():
    env = make_env(3, ["0", "1"])
    env.rollout(4, break_when_any_done=False)
    network = env.network(1)
    assert len(network.slots) == 2
    env.load_network(1, network)
    saved = env.state_dict()
    other = make_env(3, ["0", "1"])
    other.load_state_dict(saved)
    mine, theirs = env.observe(), other.observe()
    assert mine["observation"].equal(theirs["observation"])


class Measured:
    """Whose accuracy with slots left out is a number for each set."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots

    def validate(self, inputs, rows, *, ablate):
        bits = sets_left_out(self.num_slots, torch.device("cpu")).bits.float()[None]
        none = torch.zeros(1)
        return Validation(none, none, bits, bits + 0.5, torch.ones(1, self.num_slots).bool())


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 4))
def test_leaving_out_an_absent_slot_changes_nothing(present, absent):
    num_slots = present + absent
    shown = with_absent_slots(Measured(present), present, num_slots)
    zeros = torch.zeros(1, num_slots, dtype=torch.int64)
    inputs = SlotInputs(zeros, zeros, zeros, zeros.float(), torch.zeros(1), zeros.float())
    validation = shown.validate(inputs, torch.arange(1), ablate=True)
    bits = sets_left_out(num_slots, torch.device("cpu")).bits.tolist()
    for left_out, lost in zip(bits, validation.lost[0].tolist(), strict=True):
        assert lost == left_out % (1 << present)
    assert validation.ablated[0].tolist() == [True] * present + [False] * absent
