"""The policy's options: layers, attention, value modes, each against a slow, obvious reference."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDictBase
from torch import Tensor, nn
from torchrl.envs import Compose, TransformedEnv

from envs import feature_names
from envs.actions import CAUSAL_RELEVANCE
from envs.observation import ACTION_FEEDBACK, feature_columns
from esper_rl import FactoredClipPPOLoss, PolicyConfig, make_actor_critic
from esper_rl.objectives import compute_advantages
from esper_rl.policy import ActorCritic
from esper_rl.policy.memory import RecentAttention
from esper_rl.policy.value import ExpectedValue
from tests.support.fake_world import NUM_OPS, FakeWorld, collect
from tests.support.policies import build, fresh

OPTIONS: dict[str, PolicyConfig] = {
    "v1": PolicyConfig.v1(),
    "v2": PolicyConfig.v2(),
    "two layers": PolicyConfig(hidden_size=16, lstm_layers=2),
    "no memory": PolicyConfig(hidden_size=16, lstm_layers=0),
    "gru": PolicyConfig(hidden_size=16, lstm_layers=0, gru_layers=1),
    "lstm, gru": PolicyConfig(hidden_size=16, lstm_layers=1, gru_layers=2),
    "attention": PolicyConfig(hidden_size=16, attention_span=4),
    "attention alone": PolicyConfig(hidden_size=16, lstm_layers=0, attention_span=40),
    "all of it": PolicyConfig(
        hidden_size=16,
        lstm_layers=2,
        attention_span=3,
        value_mode="expected",
        action_feedback=False,
    ),
    "expected": PolicyConfig(hidden_size=16, value_mode="expected"),
    "sampled": PolicyConfig(hidden_size=16, value_mode="sampled"),
    "state": PolicyConfig(hidden_size=16, value_mode="state"),
}


def run_alone(ac: ActorCritic, episode: TensorDictBase) -> Iterator[Tensor]:
    """What the trunk makes of every step ``[hidden]`` of one episode ``[T]``, step after step."""
    network = ac.network
    layers = dict(network.memories)
    attention = layers.pop("attention", None)
    states = dict.fromkeys(layers)
    past: list[Tensor] = []
    for step in episode:
        observation = step["observation"]
        if not isinstance(network.visible, nn.Identity):
            shown = [name for name in feature_names() if name not in ACTION_FEEDBACK]
            observation = observation[feature_columns(*shown)]
        embedded = network.blueprint_embedding(step["blueprint_indices"])
        x = network.feature_net(observation, embedded)
        for name, layer in layers.items():
            out, states[name] = layer(x[None], states[name])
            x = out[0] + (x if name.startswith("upper_") else 0)
        x = network.lstm_norm(x)
        past.append(x)
        if attention is not None:
            x = attend(attention, past)
        yield x


def attend(attention: RecentAttention, past: list[Tensor]) -> Tensor:
    """The last of some steps looks at the latest ones, head by head."""
    query = attention.project(past[-1]).chunk(3)[0]
    seen = [attention.project(x).chunk(3)[1:] for x in past[-attention.span :]]
    looked = []
    for head in range(attention.num_heads):
        width = attention.size // attention.num_heads
        part = slice(head * width, (head + 1) * width)
        scores = torch.stack([query[part] @ key[part] for key, _ in seen]) / width**0.5
        weights = scores.softmax(0)
        looked.append(sum(w * value[part] for w, (_, value) in zip(weights, seen, strict=True)))
    return past[-1] + attention.project_back(torch.cat(looked))


def episodes(batch: TensorDictBase) -> Iterator[tuple[int, slice]]:
    """Row and steps of every episode in ``[N, T]``."""
    for row in range(len(batch)):
        starts = batch["is_init"][row, :, 0].nonzero()[:, 0].tolist()
        for start, stop in zip(starts, [*starts[1:], batch.shape[1]], strict=True):
            yield row, slice(start, stop)


def baseline(mode: str, head: nn.Module, memory: Tensor, weights: Tensor, op: Tensor) -> Tensor:
    """The rollout's value of one step."""
    if mode == "state":
        return head(memory)
    if mode == "soft":
        return head(memory, weights)
    values = [head(memory, one_hot) for one_hot in torch.eye(NUM_OPS)]
    if mode == "sampled":
        return values[op]
    return sum(weight * value for weight, value in zip(weights, values, strict=True))


@pytest.mark.parametrize("name", OPTIONS)
def test_rollout_is_the_reference_step_by_step(name: str) -> None:
    world = FakeWorld(num_envs=4)
    ac = build(OPTIONS[name], world)
    batch = collect(world, ac, steps=11)
    with torch.no_grad():
        for row, steps in episodes(batch):
            episode = batch[row, steps]
            for step, memory in zip(episode, run_alone(ac, episode), strict=True):
                logits = ac.network.heads["op"](memory)
                legal = step["action_mask", "op"]
                log_probs = logits.masked_fill(~legal, -torch.inf).log_softmax(0)
                op = step["action", "op"]
                torch.testing.assert_close(
                    step["action", "op_log_prob"], log_probs[op], atol=1e-4, rtol=1e-4
                )
                mode = OPTIONS[name].value_mode
                wanted = baseline(mode, ac.network.value_head, memory, log_probs.exp(), op)
                torch.testing.assert_close(step["baseline"], wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", OPTIONS)
def test_sequence_equals_steps_across_resets(name: str) -> None:
    world = FakeWorld(num_envs=4)
    ac = build(OPTIONS[name], world)
    batch = collect(world, ac, steps=11)
    cut = batch[:, 4:]  # begins in mid-episode with the stored state
    for part in (batch, cut):
        again = fresh(ac, part)
        torch.testing.assert_close(again["baseline"], part["baseline"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", OPTIONS)
def test_loss_of_a_fresh_rollout(name: str) -> None:
    world = FakeWorld(num_envs=4)
    ac = build(OPTIONS[name], world)
    batch = compute_advantages(collect(world, ac, steps=11), ac)
    loss = FactoredClipPPOLoss(ac.actor, ac.critic, heads=ac.heads, relevance=CAUSAL_RELEVANCE)
    out = loss(batch)
    assert out["max_ratio"].item() == pytest.approx(1, abs=1e-5)
    assert abs(out["kl_approx"].item()) < 1e-6
    out["loss_critic"].backward()
    for module_name, parameter in ac.network.named_parameters():
        trained = parameter.grad is not None and bool((parameter.grad != 0).any())
        assert trained is not module_name.startswith("heads."), module_name


@pytest.mark.parametrize("name", ["v2", "expected", "state", "all of it"])
def test_expected_bootstrap(name: str) -> None:
    world = FakeWorld(num_envs=6)
    ac = build(OPTIONS[name], world)
    batch = collect(world, ac, steps=11)
    got = compute_advantages(batch.clone(), ac, bootstrap="expected")["next", "baseline"]
    row, step = (batch["next", "truncated"][..., 0] & ~batch["is_init"][..., 0]).nonzero()[0]
    start = int(batch["is_init"][row, : step + 1, 0].nonzero().max())
    seen = ["observation", "blueprint_indices", "action_mask"]
    before, last = batch[row, start : step + 1], batch["next"][row, step]
    after = torch.cat([before.select(*seen), last.select(*seen)[None]])
    with torch.no_grad():
        *_, memory = run_alone(ac, after)
        logits = ac.network.heads["op"](memory)
        weights = logits.masked_fill(~after["action_mask", "op"][-1], -torch.inf).softmax(0)
        if OPTIONS[name].value_mode == "state":
            wanted = ac.network.value_head(memory)
        else:
            wanted = weights @ ac.network.value_head(memory.expand(6, -1), torch.eye(6))
    torch.testing.assert_close(got[row, step], wanted, atol=1e-4, rtol=1e-4)


def test_an_unknown_bootstrap_is_refused() -> None:
    world = FakeWorld(num_envs=2)
    ac = build(OPTIONS["attention"], world)
    with pytest.raises(ValueError, match="must be one of 'sampled', 'expected', got"):
        compute_advantages(collect(world, ac), ac, bootstrap="mean")


def test_expected_value_in_one_pass() -> None:
    """Against six passes, in double precision, with gradients; none for the op's logits."""
    torch.manual_seed(0)
    world = FakeWorld(num_envs=2)
    head = make_actor_critic(OPTIONS["expected"], world).network.value_head.double()
    memory = torch.randn(7, 16, dtype=torch.float64, requires_grad=True)
    logits = torch.randn(7, NUM_OPS, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(7, NUM_OPS) < 0.5
    mask[:, 0] = True
    got = ExpectedValue(head, NUM_OPS)(memory, logits, mask)
    probabilities = logits.detach().masked_fill(~mask, -torch.inf).softmax(-1)
    wanted = torch.zeros(7, 1, dtype=torch.float64)
    for op in range(NUM_OPS):
        one_hot = F.one_hot(torch.full((7,), op), NUM_OPS).double()
        wanted = wanted + probabilities[:, op, None] * head(memory, one_hot)
    torch.testing.assert_close(got, wanted)
    leaves = [memory, *head.parameters()]
    for mine, theirs in zip(
        torch.autograd.grad(got.sum(), leaves, retain_graph=True),
        torch.autograd.grad(wanted.sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)
    assert torch.autograd.grad(got.sum(), logits, allow_unused=True) == (None,)


def test_attention_starts_as_the_identity() -> None:
    attention = RecentAttention(8, 5)
    x = torch.randn(3, 4, 8)
    assert attention.over_time(x, *attention.nothing(x)).equal(x)


def test_compilable_network_has_the_same_weights_and_function() -> None:
    world = FakeWorld(num_envs=3)
    plain = make_actor_critic(OPTIONS["all of it"], world)
    compilable = make_actor_critic(OPTIONS["all of it"], world, compilable=True)
    compilable.network.load_state_dict(plain.network.state_dict())
    batch = collect(world, plain, steps=8)
    for ac in (plain, compilable):
        out = fresh(ac, batch)
        torch.testing.assert_close(out["baseline"], batch["baseline"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["v2", "all of it"])
def test_forward_is_the_actors(name: str) -> None:
    world = FakeWorld(num_envs=3)
    ac = build(OPTIONS[name], world)
    batch = collect(world, ac, steps=3)  # no resets
    got = ac.network(batch["observation"], batch["blueprint_indices"])
    wanted = fresh(ac, batch)["logits"]
    for head, logits in zip(ac.heads, got, strict=True):
        torch.testing.assert_close(logits, wanted[head], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        pytest.param(
            "v1",
            "inductor",
            marks=pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler"),
        ),
        ("v2", "aot_eager"),
        ("all of it", "aot_eager"),
    ],
)
def test_network_compiles_whole(name: str, backend: str) -> None:
    world = FakeWorld(num_envs=2)
    torch.manual_seed(0)
    network = make_actor_critic(OPTIONS[name], world, compilable=True).network
    batch = collect(world, make_actor_critic(OPTIONS[name], world), steps=3)
    inputs = batch["observation"], batch["blueprint_indices"]
    compiled = torch.compile(network, fullgraph=True, backend=backend)
    for mine, theirs in zip(compiled(*inputs), network(*inputs), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def test_a_reset_row_forgets_what_it_attended_to() -> None:
    """The state of the attention after a reset is that of a fresh episode."""
    world = FakeWorld(num_envs=4)
    ac = build(OPTIONS["attention alone"], world)
    env = TransformedEnv(world, Compose(*ac.transforms()))
    batch = env.rollout(11, ac.actor, break_when_any_done=False)
    starts = batch["is_init"].squeeze(-1)
    assert (batch["next", "attention_count"].squeeze(-1)[starts] == 1).all()
    count = batch["next", "attention_count"].squeeze(-1)
    age = torch.zeros(4, dtype=torch.int64)
    for t in range(11):
        age = torch.where(starts[:, t], 1, age + 1)
        assert count[:, t].equal(age)
