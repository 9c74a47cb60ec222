"""Networks of the user's own as hosts."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from envs import ArrayTask, ConvHost, ModuleHost, MorphogenesisEnv
from envs.actions import Algorithm, Op, Stage
from envs.batched.optimizers import SGD
from envs.batched.randomness import fold
from envs.networks.segments import make_seed
from envs.populations import SlotInputs
from envs.populations.data import LabelledData
from envs.populations.trained import TrainedPopulation
from tests.support.plain import PlainNetwork

CPU = torch.device("cpu")
IMAGE = torch.zeros(1, 1, 8, 8)


class Conv(nn.Module):
    """The host of ``digits`` as an ordinary module."""

    def __init__(self) -> None:
        super().__init__()
        plain = PlainNetwork((1, 1, 1), [])
        self.block1, self.block2, self.block3 = plain.blocks
        self.classifier = plain.classifier

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(x)))
        return self.classifier(x.mean((2, 3)))


class Residual(nn.Module):
    """A stage of a residual network, in torchvision's style."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.GroupNorm(2, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.GroupNorm(2, outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Conv2d(inputs, outputs, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += self.downsample(x)
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.layer1 = nn.Sequential(Residual(4, 8))
        self.layer2 = nn.Sequential(Residual(8, 8))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(F.relu(self.conv1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def population(host: ModuleHost | ConvHost, rows: int, num_slots: int = 3) -> TrainedPopulation:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(40, 1, 8, 8, generator=generator)
    examples = images, torch.arange(40) % host.num_classes
    data = LabelledData(
        examples, examples, host.prepare, batches_per_epoch=3, minibatch_size=8, device=CPU
    )
    return TrainedPopulation(host, data, SGD(), rows, num_slots, CPU)


def growth(rows: int, blueprint: int) -> SlotInputs:
    """Nothing, one in training, and one mixed in each way."""
    stages = [Stage.DORMANT, Stage.TRAINING, Stage.HOLDING, Stage.BLENDING, Stage.FOSSILIZED]
    stage = torch.tensor(
        [[int(stages[(row + slot) % 5]) for slot in range(3)] for row in range(rows)]
    )
    algorithm = (torch.arange(rows)[:, None] + torch.arange(3)) % len(Algorithm)
    return SlotInputs(
        stage,
        torch.where(stage == Stage.DORMANT, -1, blueprint),
        algorithm,
        torch.where(stage >= Stage.BLENDING, 0.7, 0.0),
        torch.full((rows,), 0.05),
        torch.full((rows, 3), 0.03),
    )


def test_the_built_in_host_as_a_module_gives_the_same_epoch() -> None:
    """Parameters after two epochs, losses and accuracies, with seeds in every mode."""
    rows = 10
    built_in, own = population(ConvHost(), rows), population(host := conv_host(), rows)
    assert host.slot_channels == (8, 16, 32)
    assert own.params.shape == built_in.params.shape
    built_in.reset_hosts(torch.arange(rows), fold(torch.arange(rows), 1))
    blueprint = built_in.blueprints.index("conv_light")
    inputs = growth(rows, blueprint)
    for row, slot in (inputs.blueprint >= 0).nonzero().tolist():
        index = torch.tensor([row])
        built_in.plant_at(index, slot, blueprint, fold(index, slot))
    own.params[:] = built_in.params
    keys = fold(torch.arange(rows), 2)
    for made in (built_in, own):
        for epoch in range(2):
            made.train_epoch(inputs, keys + epoch, torch.arange(rows))
    torch.testing.assert_close(own.params, built_in.params, rtol=1e-5, atol=1e-5)
    mine, theirs = (
        made.validate(inputs, torch.arange(rows), ablate=True) for made in (own, built_in)
    )
    torch.testing.assert_close(mine.loss, theirs.loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mine.accuracy, theirs.accuracy)


def test_weights_that_a_piece_uses_twice_are_the_rows_own() -> None:
    def twice(channels: int) -> nn.Module:
        first, second = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        second.weight = first.weight
        return nn.Sequential(first, nn.Tanh(), second)

    segment = make_seed(twice, 1)
    assert segment.size == 64
    weight, x = torch.randn(3, 8, 8), torch.randn(3, 5, 8)
    given = segment(weight.flatten(1), x)
    torch.testing.assert_close(given, (x @ weight.mT).tanh() @ weight.mT)


def test_threads_share_no_module() -> None:
    """As many rows as give each thread several chunks; in-place layers and seeds of modules."""
    rows, threads = 48, torch.get_num_threads()
    seeds = {"conv": lambda channels: nn.Conv2d(channels, channels, 3, padding=1)}
    found = []
    try:
        for count in (1, 4):
            torch.set_num_threads(count)
            made = population(ModuleHost(ResNet, ["layer1", "layer2"], IMAGE, seeds), rows, 2)
            made.reset_hosts(torch.arange(rows), fold(torch.arange(rows), 1))
            inputs = growth(rows, number := made.blueprints.index("conv"))
            inputs = SlotInputs(
                **{name: x[:, :2] if x.dim() > 1 else x for name, x in vars(inputs).items()}
            )
            for row, slot in (inputs.blueprint >= 0).nonzero().tolist():
                index = torch.tensor([row])
                made.plant_at(index, slot, number, fold(index, slot))
            made.train_epoch(inputs, fold(torch.arange(rows), 2), torch.arange(rows))
            loss = made.validate(inputs, torch.arange(rows), ablate=True).loss
            found.append((made.params, loss))
    finally:
        torch.set_num_threads(threads)
    for alone, together in zip(*found, strict=True):
        assert together.equal(alone)


def conv_host() -> ModuleHost:
    return ModuleHost(Conv, ["block1", "block2", "block3"], IMAGE)


def test_hosts_start_as_the_module_does_by_their_keys_alone() -> None:
    made = population(conv_host(), 3)
    made.reset_hosts(torch.arange(3), torch.tensor([5, 6, 5]))
    state = torch.random.get_rng_state()
    first = made.params.clone()
    made.reset_hosts(torch.arange(3), torch.tensor([5, 6, 5]))
    assert made.params.equal(first)
    assert first[0].equal(first[2])
    assert not first[0].allclose(first[1])
    assert torch.random.get_rng_state().equal(state)
    bound = 1 / math.sqrt(8)  # of the second block's 1×1 kernels
    weights = made.host_params[0, 8 + 16 : 8 + 16 + 128]
    assert 0.8 * bound < weights.abs().max() <= bound


def test_a_seed_starts_as_its_module_does() -> None:
    """Weights of both signs within their bound, scales that are 1."""
    seeds = {"mine": lambda c: nn.Sequential(nn.Conv2d(c, c, 3, padding=1), nn.GroupNorm(1, c))}
    made = population(ModuleHost(ResNet, ["layer1"], IMAGE, seeds), 50, num_slots=1)
    made.plant_at(torch.arange(50), 0, made.blueprints.index("mine"), fold(torch.arange(50), 2))
    gate, weight, bias, scale, shift = made.seed_params[0].split([9, 8 * 8 * 9, 8, 8, 8], dim=1)
    bound = 1 / math.sqrt(8 * 9)
    for drawn in (weight, bias):
        assert 0.95 * bound < drawn.max() <= bound
        assert -bound <= drawn.min() < -0.95 * bound
    assert (gate == 0).all()
    assert (scale == 1).all()
    assert (shift == 0).all()


def test_drawing_hosts_and_seeds_leaves_other_random_numbers_alone() -> None:
    seeds = {"mine": lambda channels: nn.Conv2d(channels, channels, 1)}
    own = population(ModuleHost(Conv, ["block1"], IMAGE, seeds), 3, num_slots=1)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    own.reset_hosts(torch.arange(3), fold(torch.arange(3), 1))
    own.plant_at(torch.arange(3), 0, own.blueprints.index("mine"), fold(torch.arange(3), 2))
    assert torch.get_rng_state().equal(before)


def test_a_residual_network_grows() -> None:
    host = ModuleHost(ResNet, ["layer1", "layer2"], IMAGE)
    assert (host.slot_channels, host.num_classes) == ((8, 8), 3)
    images = torch.randn(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    task = ArrayTask(
        name="own", host=host, train=(images, (images.mean((1, 2, 3)) > 0).long()), validation=20
    )
    env = MorphogenesisEnv(task, num_envs=2, num_slots=2, max_epochs=4, batches_per_epoch=1)
    state = env.reset()
    for op in (Op.GERMINATE, Op.ADVANCE, Op.ADVANCE):
        state.update(env.action_spec.zero())
        state["action", "op"] += op
        state["action", "blueprint"] += env.population.blueprints.index("conv_heavy")
        state = env.step(state)["next"]
        assert state["last_action_success"].all()
    assert (state["metrics", "stage"][:, 0] == Stage.BLENDING).all()
    assert (state["metrics", "seed_params"] > 0).all()


class Adapter(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.linear(x))


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 10))


def test_a_seed_of_ones_own_is_trained_as_the_module_would_be() -> None:
    host = ModuleHost(perceptron, ["2"], IMAGE, {"adapter": Adapter})
    assert host.topology == "module"
    made = population(host, 1, num_slots=1)
    row = torch.arange(1)
    made.reset_hosts(row, fold(row, 1))
    made.plant_at(row, 0, made.blueprints.index("adapter"), fold(row, 2))
    network, seed = perceptron(), Adapter(6)
    with torch.no_grad():
        nn.utils.vector_to_parameters(made.host_params[0].clone(), network.parameters())
        nn.utils.vector_to_parameters(made.seed_params[0][0, 7:].clone(), seed.parameters())
    one = torch.ones(1, 1)
    inputs = SlotInputs(
        one.long() * Stage.HOLDING,
        one.long() * made.blueprints.index("adapter"),
        one.long() * Algorithm.ADD,
        0.6 * one,
        torch.tensor([0.05]),
        0.02 * one,
    )
    images, targets = made.data.inputs, made.data.targets
    examples = made.data.draw(fold(row, 3))
    made.train_on(inputs, examples)
    optimizer = torch.optim.SGD(
        [{"params": network.parameters(), "lr": 0.05}, {"params": seed.parameters(), "lr": 0.02}],
        lr=0.1,
        momentum=0.9,
    )
    for chosen in examples[0]:
        h = network[:3](images[chosen])
        loss = F.cross_entropy(network[3](h + 0.6 * (seed(h) - h)), targets[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    wanted = nn.utils.parameters_to_vector([*network.parameters(), *seed.parameters()])
    mine = torch.cat([made.host_params[0], made.seed_params[0][0, 7:]])
    torch.testing.assert_close(mine, wanted.detach(), rtol=1e-5, atol=1e-6)


# -- what is refused --------------------------------------------------------------------------


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.head((self.second(h) + h).mean((2, 3)))


class Twice(Around):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.second(self.first(x))).mean((2, 3)))


class Branching(Around):
    def forward(self, x: Tensor) -> Tensor:
        h = self.second(self.first(x))
        return self.head(h.mean((2, 3))) if h.sum() > 0 else self.head(h.amax((2, 3)))


class Tied(Around):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.third = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1)
        self.third.weight = self.second.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.third(self.second(self.first(x))).mean((2, 3)))


def chain(*layers: nn.Module) -> nn.Module:
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(nn.Conv2d(1, 4, 1), *layers, pool, nn.Linear(4, 3))


REFUSED = {
    "no such slot": (lambda: chain(), ["stem"], r"got \['stem'\], of which run \[\]; there are"),
    "wrong order": (Conv, ["block2", "block1"], r"of which run \['block1', 'block2'\]"),
    "twice": (Twice, ["second"], r"of which run \['second', 'second'\]"),
    "led around": (Around, ["second"], "nothing may lead around the slot after 'second'"),
    "by values": (Branching, ["first"], "the module can't be cut at its slots: "),
    "shared": (Tied, ["second"], "share parameters, got 'second.weight' on both sides of 'second'"),
    "at the end": (chain, ["2"], "something must come after the slot of '2', got nothing"),
    "no logits": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 1), nn.Flatten(0)),
        [],
        r"must give logits \[B, classes\], or",
    ),
    "features of two kinds": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 1), nn.Flatten(), nn.LazyLinear(6), nn.Linear(6, 3)),
        ["0", "2"],
        r"blueprints must be given, .* the same at every slot, got shapes \[\[1, 4, .*\[1, 6\]\]",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_modules_that_cannot_be_hosts_are_refused(case: str) -> None:
    factory, slots, says = REFUSED[case]
    with pytest.raises(ValueError, match=says):
        ModuleHost(factory, slots, IMAGE)


def test_flat_features_have_default_blueprints_too() -> None:
    host = ModuleHost(perceptron, ["2"], IMAGE)
    assert host.topology == "dense"
    assert sorted(host.blueprints) == ["lora", "lora_large", "mlp", "mlp_small", "norm"]


class AddsInPlace(Around):
    """A sum in place that changes what a later step reads."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        y = h
        y += 1
        return self.head((y + h).mean((2, 3)))


def test_a_module_that_tracing_changes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must do the same when torch.fx has traced it"):
        ModuleHost(AddsInPlace, ["first"], IMAGE)


def test_what_a_slot_gives_may_be_used_twice() -> None:
    assert ModuleHost(Around, ["first"], IMAGE).slot_channels == (4,)


def test_batch_norm_without_statistics_and_constant_buffers_are_welcome() -> None:
    layers = nn.BatchNorm2d(4, track_running_stats=False), nn.Dropout(0.0)
    assert ModuleHost(lambda: chain(*layers), ["1"], IMAGE).slot_channels == (4,)


@pytest.mark.parametrize(
    ("factory", "says"),
    [
        (
            lambda channels: nn.Conv2d(channels, 5, 1),
            r"'mine' .* \[1, 4, 8, 8\], got \[1, 5, 8, 8\]",
        ),
        (lambda channels: nn.Conv2d(7, 7, 1), "'mine' must give .* got an error: "),
    ],
)
def test_modules_that_cannot_be_seeds_are_refused(factory, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ModuleHost(chain, ["0"], IMAGE, {"mine": factory})


def test_a_factory_makes_a_module() -> None:
    with pytest.raises(TypeError, match=r"factory must make a torch.nn.Module, got int"):
        ModuleHost(lambda: 3, [], IMAGE)


@pytest.mark.parametrize("inputs", [torch.zeros(2, 1, 8, 9), torch.zeros(2, 1, 8, 8).long()])
def test_inputs_of_another_kind_are_named(inputs: Tensor) -> None:
    with pytest.raises(ValueError, match=r"inputs must be floats, .* shape \['M', 1, 8, 8\]"):
        conv_host().prepare(inputs)
