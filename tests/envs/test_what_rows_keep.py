"""Batch norm, dropout, drawn buffers and frozen parameters: all of it is a row's own."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDictBase
from torch import Tensor, nn

from envs import ArrayTask, ModuleHost, MorphogenesisEnv
from envs.actions import Algorithm, Op, Stage
from envs.batched.optimizers import SGD, AdamW, Optimizer
from envs.batched.randomness import fold
from envs.networks.growing import Blend, GrowingNetwork
from envs.populations import SlotInputs
from envs.populations.compiled import CompiledPasses
from envs.populations.data import LabelledData
from envs.populations.trained import TrainedPopulation
from tests.support.populations import use_plain_passes

CPU = torch.device("cpu")
IMAGES = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(40) % 3
ROWS = 6


class Net(nn.Module):
    """Convolutions with batch norm, and something behind the first of them."""

    def __init__(self, layer: Callable[[], nn.Module] = nn.Identity) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()
        )
        self.layer = layer()
        self.body = nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6))
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.body(self.layer(self.stem(x)))).mean((2, 3)))


class Normed(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.norm(self.conv(x)))


def population(
    factory: Callable[[], nn.Module],
    seeds: dict[str, Callable[[int], nn.Module]] | None = None,
    rows: int = ROWS,
    optimizer: Optimizer | None = None,
) -> TrainedPopulation:
    host = ModuleHost(factory, ["stem", "body"], IMAGES[:1], seeds or {"normed": Normed})
    examples = IMAGES, TARGETS
    data = LabelledData(
        examples, examples, host.prepare, batches_per_epoch=3, minibatch_size=10, device=CPU
    )
    made = TrainedPopulation(host, data, optimizer or SGD(), rows, 2, CPU)
    made.reset_hosts(torch.arange(rows), fold(torch.arange(rows), 1))
    slots = growth(made)
    keys = fold(torch.arange(rows)[:, None] * 10 + torch.arange(2), 2)
    made.plant(slots.blueprint >= 0, slots.blueprint, keys)
    return made


def growth(made: TrainedPopulation) -> SlotInputs:
    """Idle, in training, or mixed in each way."""
    place = torch.arange(made.num_rows)[:, None] + torch.arange(2) * 3
    stages = torch.tensor([Stage.TRAINING, Stage.BLENDING, Stage.DORMANT, Stage.HOLDING])
    stage = stages[place % 4]
    offered = made.offered.nonzero().squeeze(1)
    return SlotInputs(
        stage,
        torch.where(stage == Stage.DORMANT, -1, offered[place % len(offered)]),
        (place // 2) % len(Algorithm),
        torch.where(stage >= Stage.BLENDING, 0.6, 0.0),
        torch.full((made.num_rows,), 0.05),
        torch.full((made.num_rows, 2), 0.03),
    )


def train(made: TrainedPopulation, epochs: int = 2, rows: Tensor | None = None) -> None:
    for epoch in range(epochs):
        keys = fold(torch.arange(made.num_rows), 7, epoch)
        chosen = torch.arange(made.num_rows) if rows is None else rows
        made.train_epoch(growth(made), keys, chosen)


def trained_by_hand(network: GrowingNetwork, examples: Tensor, optimizer: Optimizer) -> None:
    seeds = [p for slot in network.slots if isinstance(slot, Blend) for p in slot.parameters()]
    groups = [{"params": [*network.pieces.parameters()], "lr": 0.05}, {"params": seeds, "lr": 0.03}]
    if isinstance(optimizer, SGD):
        stepper: torch.optim.Optimizer = torch.optim.SGD(groups, lr=1, momentum=optimizer.momentum)
    else:
        stepper = torch.optim.AdamW(groups, lr=1, weight_decay=0.01)
    network.train()
    for chosen in examples:
        stepper.zero_grad()
        F.cross_entropy(network(IMAGES[chosen]), TARGETS[chosen]).backward()
        stepper.step()
    network.eval()


@pytest.mark.parametrize("plain", [False, True], ids=["compiled", "plain"])
@pytest.mark.parametrize("optimizer", [SGD(), AdamW()])
def test_batch_norm_trains_as_in_a_plain_loop(optimizer: Optimizer, plain: bool) -> None:
    """Parameters, statistics and the validation, for each mode of a seed with batch norm too."""
    made = population(Net, optimizer=optimizer)
    assert isinstance(made.passes, CompiledPasses)
    made = use_plain_passes(made) if plain else made
    inputs, rows = growth(made), torch.arange(ROWS)
    networks = [made.network(row, inputs) for row in range(ROWS)]
    examples = made.data.draw(fold(rows, 3))
    made.train_on(inputs, examples)
    validation = made.validate(inputs, rows, ablate=True)
    for row, network in enumerate(networks):
        before = {name: buffer.clone() for name, buffer in network.named_buffers()}
        trained_by_hand(network, examples[row], optimizer)
        theirs = made.network(row, inputs)
        for name, values in network.state_dict().items():
            torch.testing.assert_close(values, theirs.state_dict()[name], rtol=1e-4, atol=1e-5)
        assert any(not buffer.equal(before[name]) for name, buffer in network.named_buffers())
        counts = [b for name, b in theirs.named_buffers() if name.endswith("tracked")]
        assert {int(count) for count in counts} == {3}
        with torch.no_grad():
            loss = F.cross_entropy(theirs(IMAGES), TARGETS)
            torch.testing.assert_close(validation.loss[row], loss, rtol=1e-5, atol=1e-6)
            for slot in range(2):
                right = (theirs(IMAGES, left_out=[slot]).argmax(1) == TARGETS).float().mean()
                lost = validation.lost[row, 1 << slot]
                assert float(validation.accuracy[row] - lost) == pytest.approx(100 * float(right))


class Dropped(nn.Module):
    """Dropout as a function, which no class tells."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.3, training=self.training)


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn_like(x) if self.training else x


class StochasticDepth(nn.Module):
    """Whole examples left out, in a forward that can't be traced."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * (torch.rand(x.shape[0], 1, 1, 1) > 0.2)


class Attending(nn.Module):
    """Attention between pixels, with dropout inside."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        h = x.flatten(2).transpose(1, 2)
        h = h + self.attention(h, h, h, need_weights=False)[0]
        return h.transpose(1, 2).reshape(x.shape)


RANDOM = {
    "dropout": lambda: nn.Dropout(0.3),
    "function": Dropped,
    "channels": lambda: nn.Dropout2d(0.3),
    "noise": Noise,
    "rrelu": nn.RReLU,
    "depth": StochasticDepth,
    "attention": Attending,
}


def random_population(name: str, rows: int = ROWS) -> TrainedPopulation:
    seeds = {"random": lambda channels: nn.Sequential(Normed(channels), Dropped())}
    return population(lambda: Net(RANDOM[name]), seeds, rows)


@pytest.mark.parametrize("name", RANDOM)
def test_random_numbers_are_the_rows_own(name: str) -> None:
    """Whatever the number of rows and threads; they repeat, and leave torch's generator alone."""
    threads = torch.get_num_threads()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    whole = random_population(name)
    assert whole.networks.draws
    train(whole)
    again, few = random_population(name), random_population(name)
    try:
        torch.set_num_threads(4)
        train(again)
    finally:
        torch.set_num_threads(threads)
    train(few, rows=torch.tensor([4, 1]))
    assert torch.get_rng_state().equal(state)
    assert again.params.equal(whole.params)
    torch.testing.assert_close(few.params[[1, 4]], whole.params[[1, 4]], rtol=0, atol=0)
    loss = [whole.validate(growth(whole), torch.arange(ROWS), ablate=True).loss for _ in range(2)]
    assert loss[0].equal(loss[1])


def test_each_row_epoch_and_minibatch_has_random_numbers_of_its_own() -> None:
    """The same networks on the same examples: what they learn differs by the key alone."""
    made = random_population("dropout", rows=4)
    made.params[:] = made.params[:1]
    inputs = growth(made)
    inputs = SlotInputs(**{k: v[:1].expand_as(v) for k, v in vars(inputs).items()})
    examples = torch.arange(10).expand(4, 1, 10)
    made.train_on(inputs, examples, keys=torch.tensor([3, 3, 4, 5]))
    assert made.params[0].equal(made.params[1])
    assert len(made.params.unique(dim=0)) == 3
    first = made.params[0].clone()
    made.params[:], made.buffers[:] = population_params(made), 0
    made.train_on(inputs, examples.expand(4, 2, 10), keys=torch.tensor([3, 3, 4, 5]))
    assert not made.params[0].equal(first)


def population_params(made: TrainedPopulation) -> Tensor:
    return random_population("dropout", rows=4).params[:1].expand_as(made.params)


class Features(nn.Module):
    """A random projection that never learns, drawn at construction, and a mask that is constant."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("project", torch.randn(4, 4))
        self.register_buffer("mask", torch.ones(8, 8).tril())
        self.frozen = nn.Parameter(torch.randn(4), requires_grad=False)
        self.same = nn.Parameter(torch.ones(4), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.einsum("bchw,cd->bdhw", x, self.project) * self.mask
        return x + h * (self.frozen * self.same)[:, None, None]


def test_what_is_drawn_and_never_learns_is_a_rows_own() -> None:
    torch.manual_seed(0)
    made = population(lambda: Net(Features), optimizer=AdamW())
    torch.manual_seed(1)
    other = population(lambda: Net(Features), optimizer=AdamW())
    assert other.params.equal(made.params)
    names = [name for segment in made.host.segments for name in segment.kept_shapes]
    assert [name.rpartition(".")[2] for name in names if "layer" in name] == ["frozen", "project"]
    before = [made.network(row, growth(made)).state_dict() for row in range(ROWS)]
    train(made)
    after = [made.network(row, growth(made)).state_dict() for row in range(ROWS)]
    for name in before[0]:
        if "layer" in name:
            assert all(a[name].equal(b[name]) for a, b in zip(before, after, strict=True)), name
            assert before[0][name].equal(before[1][name]) == name.endswith(("mask", "same"))
    assert not before[0]["pieces.0.stem.0.weight"].equal(after[0]["pieces.0.stem.0.weight"])


def test_a_saved_world_carries_its_statistics_on() -> None:
    host = ModuleHost(lambda: Net(Dropped), ["stem", "body"], IMAGES[:1], {"normed": Normed})
    task = ArrayTask(name="own", host=host, train=(IMAGES, TARGETS), validation=10)
    options = {"num_slots": 2, "max_epochs": 9, "batches_per_epoch": 2, "minibatch_size": 8}
    worlds = [MorphogenesisEnv(task, num_envs=3, seed=1, **options) for _ in range(2)]
    ops = [Op.GERMINATE, Op.ADVANCE, Op.WAIT, Op.ADVANCE, Op.WAIT]
    first, second = worlds

    def step(env: MorphogenesisEnv, state: TensorDictBase, op: Op) -> TensorDictBase:
        action = env.action_spec.zero()
        action["action", "op"] += int(op)
        action["action", "blueprint"] += env.population.blueprints.index("normed")
        return env.step(state.update(action))["next"]

    state = first.reset()
    for op in ops[:3]:
        state = step(first, state, op)
    second.reset()
    second.load_state_dict(first.state_dict())
    for env in worlds:
        after = state.clone()
        for op in ops[3:]:
            after = step(env, after, op)
    assert (first.state.slots.stage[:, 0] >= Stage.TRAINING).all()
    results = [env.population.params for env in worlds]
    assert results[0].equal(results[1])


class Numpy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * float(np.random.rand())


class AlwaysDropped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5)


class Replaced(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.mean((0, 2, 3))
        return x - self.mean[:, None, None]


class OneByOne(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(1, 4, 8, 8)


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        (Numpy, "random numbers must come from torch's generator alone"),
        (AlwaysDropped, "must not draw random numbers in evaluation"),
        (Replaced, "buffers must change in place, .*place of 'layer.mean'"),
        (OneByOne, "a module must take any number of examples, got an error for 2 of shape"),
    ],
)
def test_what_cannot_be_a_rows_own_is_refused(layer: type[nn.Module], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        population(lambda: Net(layer))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_modules_of_other_precisions_run_in_float32(dtype: torch.dtype) -> None:
    made = population(lambda: Net().to(dtype))
    train(made)
    assert made.params.isfinite().all()
    assert {p.dtype for p in made.network(0, growth(made)).parameters()} == {torch.float32}


def test_batch_norm_without_statistics_needs_no_more_than_its_batch() -> None:
    """Such as would fail for one example."""

    def factory() -> nn.Module:
        stem = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 6))
        body = nn.BatchNorm1d(6, track_running_stats=False)
        return nn.Sequential(OrderedDict(stem=stem, body=body, head=nn.Linear(6, 3)))

    made = population(factory, {"linear": lambda channels: nn.Linear(channels, channels)})
    train(made)
    seen = made.validate(growth(made), torch.arange(ROWS), ablate=True)
    assert seen.loss.isfinite().all()
