"""A network that is taken home: an ordinary module that does what the row did."""

from __future__ import annotations

import copy
import io
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from envs import ConvHost, ModuleHost, MorphogenesisEnv, TextHost, make_task
from envs.actions import Algorithm, Op, Stage
from envs.batched.modes import Mode
from envs.batched.optimizers import SGD
from envs.batched.randomness import fold
from envs.networks.growing import Blend, GrowingNetwork
from envs.populations import SlotInputs
from envs.populations.data import LabelledData
from envs.populations.left_out import SetsLeftOut
from envs.populations.trained import TrainedPopulation

CPU = torch.device("cpu")
ROWS = 14
IMAGES = torch.randn(30, 1, 8, 8, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(0, 7, (30, 5), generator=torch.Generator().manual_seed(0))


class Chain(nn.Sequential):
    def __init__(self) -> None:
        stem = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.GELU())
        body = nn.Sequential(nn.Conv2d(8, 6, 1), nn.GroupNorm(2, 6), nn.SiLU())
        super().__init__(stem, body, nn.Flatten(), nn.Linear(96, 4))


def own_host() -> ModuleHost:
    seeds = {"mine": lambda c: nn.Conv2d(c, c, 3, padding=1), "tanh": lambda c: nn.Tanh()}
    return ModuleHost(Chain, ["0", "1"], IMAGES[:1], seeds)


HOSTS = {
    "1x1": lambda: ConvHost(classes=4),
    "3x3": lambda: ConvHost(3, classes=4),
    "drawn": lambda: ConvHost([None, 1, None], classes=4),
    "text": lambda: TextHost(7, (6, 8, 4)),
    "own": own_host,
}


def grown(host: ModuleHost) -> tuple[TrainedPopulation, SlotInputs, Tensor, Tensor]:
    """A trained population in which every seed grows somewhere; its inputs and targets."""
    text = isinstance(host, TextHost)
    inputs = TOKENS if text else IMAGES
    targets = TOKENS.roll(1, 1) if text else torch.arange(30) % 4
    examples = inputs, targets
    data = LabelledData(
        examples, examples, host.prepare, batches_per_epoch=2, minibatch_size=8, device=CPU
    )
    slots = len(host.slot_channels)
    made = TrainedPopulation(host, data, SGD(), ROWS, slots, CPU)
    rows = torch.arange(ROWS)
    made.reset_hosts(rows, fold(rows, 1))
    place = rows[:, None] + torch.arange(slots) * 2
    stage = torch.tensor([Stage.TRAINING, Stage.BLENDING, Stage.DORMANT, Stage.FOSSILIZED])
    stage = stage[(place // 2) % 4]
    offered = made.offered.nonzero().squeeze(1)
    growth = SlotInputs(
        stage,
        torch.where(stage == Stage.DORMANT, -1, offered[place % len(offered)]),
        (place // 3) % len(Algorithm),
        torch.where(stage == Stage.BLENDING, 0.6, torch.where(stage > Stage.BLENDING, 1.0, 0.0)),
        torch.full((ROWS,), 0.05),
        torch.full((ROWS, slots), 0.05),
    )
    made.plant(growth.blueprint >= 0, growth.blueprint, fold(place, 2))
    for epoch in range(2):
        made.train_epoch(growth, fold(rows, epoch), rows)
    return made, growth, inputs, targets


@pytest.mark.parametrize("name", HOSTS)
def test_a_network_gives_what_its_row_gives(name: str) -> None:
    made, growth, inputs, targets = grown(HOSTS[name]())
    rows = torch.arange(ROWS)
    seen = made.validate(growth, rows, ablate=True)
    for row in range(ROWS):
        network = made.network(row, growth)
        assert not network.training
        with torch.no_grad():
            logits = network(inputs)
        torch.testing.assert_close(F.cross_entropy(logits, targets), seen.loss[row])
        correct = (logits.argmax(1) == targets).double().mean() * 100
        assert correct == pytest.approx(float(seen.accuracy[row]), abs=1e-4)
        planted = [slot for slot, each in enumerate(network.slots) if isinstance(each, Blend)]
        assert planted == (growth.blueprint[row] >= 0).nonzero().squeeze(1).tolist()
        for slot in planted:
            with torch.no_grad():
                without = network(inputs, left_out=[slot])
            correct = (without.argmax(1) == targets).double().mean() * 100
            lost = float(seen.lost[row, SetsLeftOut(made.num_slots).singles[slot]])
            assert float(seen.accuracy[row]) - lost == pytest.approx(float(correct), abs=1e-4)
        torch.testing.assert_close(network.freeze()(inputs), logits, rtol=0, atol=0)


@pytest.mark.parametrize("name", HOSTS)
def test_a_network_trains_as_its_row_does(name: str) -> None:
    """One minibatch of SGD, seeds that incubate included."""
    made, growth, inputs, targets = grown(HOSTS[name]())
    chosen = torch.arange(8).expand(ROWS, 1, 8)
    networks = [made.network(row, growth).train() for row in range(ROWS)]
    made.buffers.zero_()
    made.train_on(growth, chosen)
    for row, network in enumerate(networks):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
        F.cross_entropy(network(inputs[:8]), targets[:8]).backward()
        optimizer.step()
        expected = made.network(row, growth).state_dict()
        for key, values in network.state_dict().items():
            torch.testing.assert_close(values, expected[key], rtol=1e-4, atol=1e-5)


def test_it_is_saved_copied_and_exported(tmp_path: Path) -> None:
    made, growth, inputs, _ = grown(own_host())
    network = next(
        each
        for each in (made.network(row, growth) for row in range(ROWS))
        if any(isinstance(slot, Blend) and slot.mode is Mode.GATE for slot in each.slots)
    )
    logits = network(inputs)
    assert copy.deepcopy(network)(inputs).equal(logits)
    torch.save(network, file := io.BytesIO())
    file.seek(0)
    assert torch.load(file, weights_only=False)(inputs).equal(logits)
    other = made.network(0, growth)
    other.pieces, other.slots = copy.deepcopy(network.pieces), copy.deepcopy(network.slots)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(network.state_dict())
    assert other(inputs).equal(logits)
    batch = {0: torch.export.Dim("examples", min=1)}
    program = torch.export.export(network, (inputs,), dynamic_shapes=(batch,))
    torch.export.save(program, tmp_path / "network.pt2")
    loaded = torch.export.load(tmp_path / "network.pt2").module()
    torch.testing.assert_close(loaded(inputs[:3]), logits[:3])


@pytest.mark.parametrize("name", HOSTS)
def test_a_network_is_taken_out_and_put_in_again(name: str) -> None:
    """Into the same row of another population, in which the same has grown."""
    made, growth, inputs, _ = grown(HOSTS[name]())
    other, *_ = grown(HOSTS[name]())
    other.params += 0.3
    for row in range(ROWS):
        other.load_network(row, made.network(row, growth), growth)
        with torch.no_grad():
            given = other.network(row, growth)(inputs)
            assert given.equal(made.network(row, growth)(inputs))
    assert (other.buffers == 0).all()


def test_another_network_is_refused_and_changes_nothing() -> None:
    made, growth, *_ = grown(own_host())
    empty = int((growth.blueprint[:, 0] < 0).nonzero()[0])
    full = int((growth.blueprint[:, 0] >= 0).nonzero()[0])
    before = made.params.clone()
    kind = made.blueprints[int(growth.blueprint[full, 0])]
    for row, network, says in (
        (empty, made.network(full, growth), f"must have nothing in slot 0, as row {empty} has"),
        (full, made.network(empty, growth), f"must have {kind} in slot 0, as row {full} has"),
        (0, GrowingNetwork([nn.Linear(2, 2)]), "must have 3 pieces, as the host has, got 1"),
        (ROWS, made.network(0, growth), "row must be an integer from 0 to 13"),
    ):
        with pytest.raises(ValueError, match=says):
            made.load_network(row, network, growth)
    network = made.network(full, growth)
    network.pieces[2] = nn.Sequential(nn.Flatten(), nn.Linear(96, 5))
    with pytest.raises(ValueError, match=r"network must have '.*' of shape \[4, 96\], got"):
        made.load_network(full, network, growth)
    assert made.params.equal(before)


@pytest.mark.parametrize("name", HOSTS)
def test_it_is_an_onnx_model(name: str) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    made, growth, inputs, _ = grown(HOSTS[name]())
    row = int((growth.blueprint >= 0).sum(1).argmax())
    network = made.network(row, growth).freeze().eval()
    batch = {0: torch.export.Dim("examples", min=1)}
    program = torch.onnx.export(network, (inputs,), dynamo=True, dynamic_shapes=(batch,))
    session = runtime.InferenceSession(program.model_proto.SerializeToString())
    names = [each.name for each in session.get_inputs()]
    (given,) = session.run(None, dict(zip(names, [inputs[:7].numpy()], strict=True)))
    torch.testing.assert_close(torch.from_numpy(given), network(inputs[:7]), rtol=1e-4, atol=1e-5)


def test_an_environment_gives_its_networks_as_they_are() -> None:
    env = MorphogenesisEnv("digits", num_envs=2, max_epochs=6, batches_per_epoch=2, seed=0)
    state = env.reset()
    for op in (Op.GERMINATE, Op.ADVANCE, Op.ADVANCE, Op.WAIT):
        action = env.action_spec.zero()
        action["action", "op"][:] = int(op)
        action["action", "blueprint"][:] = env.population.blueprints.index("conv_heavy")
        state = env.step(state.update(action))["next"]
    validation = make_task("digits").validation
    for row in range(2):
        network = env.network(row)
        assert isinstance(network.slots[0], Blend)
        correct = (network(validation.inputs).argmax(1) == validation.targets).double().mean()
        assert 100 * correct == pytest.approx(float(state["metrics", "val_accuracy"][row]))
    network = env.network(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    env.load_network(0, network)
    assert all((p == 0).all() for p in env.network(0).parameters())
    assert any((p != 0).any() for p in env.network(1).parameters())
    with pytest.raises(ValueError, match="row must be an integer from 0 to 1, the last row, got 2"):
        env.network(2)


def test_worlds_without_networks_say_so() -> None:
    env = MorphogenesisEnv("scaffold", num_envs=1)
    env.reset()
    with pytest.raises(TypeError, match="its rows are formulas"):
        env.network(0)
    with pytest.raises(TypeError, match="its rows are formulas"):
        env.load_network(0, GrowingNetwork([nn.Linear(2, 2)]))


def test_slots_take_modules_only() -> None:
    network = GrowingNetwork([nn.Linear(4, 4), nn.Linear(4, 2)])
    with pytest.raises(ValueError, match="slot must be an integer"):
        network.plant(1, nn.Linear(4, 4), Mode.ADD)
    with pytest.raises(TypeError, match=r"seed must be a torch.nn.Module, got str"):
        network.plant(0, "relu", Mode.ADD)  # type: ignore[arg-type]
    for mode, gate in ((Mode.GATE, None), (Mode.ADD, nn.Linear(4, 1))):
        with pytest.raises(ValueError, match="gate must be given for mode GATE and no other"):
            network.plant(0, nn.Linear(4, 4), mode, gate=gate)
    network.plant(0, nn.Linear(4, 4), Mode.ADD, alpha=1.0)
    assert [type(part) for part in network.freeze()] == [nn.Linear] * 3
    network.remove(0)
    assert len(network.freeze()) == 2


class Masked(nn.Module):
    """Takes more than an input, as many modules of other libraries do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, scale: float = 2.0, twice: bool = False
    ) -> Tensor:
        h = self.first(x if mask is None else x * mask) * scale
        return self.last(h + h if twice else h)


def test_what_else_a_module_takes_is_its_default() -> None:
    torch.manual_seed(0)
    module, x = Masked(), torch.randn(5, 4)
    network = GrowingNetwork(module, slots=["first"], example=x[:1])
    torch.testing.assert_close(network(x), module(x))
    host = ModuleHost(Masked, ["first"], x[:1])
    assert (host.topology, host.slot_channels, host.num_classes) == ("dense", (6,), 3)


def test_modules_that_take_several_inputs_are_refused() -> None:
    class Two(Masked):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return super().forward(x, mask)

    with pytest.raises(ValueError, match=r"must take one input, got forward\(x, mask\)"):
        GrowingNetwork(Two(), slots=["first"], example=torch.zeros(1, 4))
    with pytest.raises(TypeError, match=r"slots must be names, such as \['first'\], got the text"):
        GrowingNetwork(Masked(), slots="first", example=torch.zeros(1, 4))
    with pytest.raises(TypeError, match="slots and example must be given with a module"):
        GrowingNetwork(Masked())


def test_slots_inside_a_module_of_pytorch_are_named() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    inside = (
        r"; '0.linear1' is inside '0', a TransformerEncoderLayer of PyTorch, which isn't looked"
    )
    with pytest.raises(ValueError, match=inside):
        GrowingNetwork(nn.Sequential(layer, nn.Linear(8, 2)), ["0.linear1"], torch.zeros(1, 4, 8))


def test_an_example_without_its_batch_dimension_is_refused() -> None:
    with pytest.raises(ValueError, match=r"an example is \[1, …\], with its batch dimension"):
        GrowingNetwork(Chain(), slots=["0", "1"], example=IMAGES[0])


def test_a_network_shares_its_parameters_with_the_module_it_is_made_of() -> None:
    module = Chain()
    module.eval()
    network = GrowingNetwork(module, slots=["0", "1"], example=IMAGES[:1])
    assert {id(p) for p in network.parameters()} == {id(p) for p in module.parameters()}
    assert not module.training
    assert not network.training
    torch.testing.assert_close(network(IMAGES), module(IMAGES))


@pytest.mark.parametrize(
    ("slot", "outcome"),
    [("0.0", nullcontext()), ("no such submodule", pytest.raises(ValueError, match="no such"))],
)
def test_submodules_stay_in_training_or_evaluation_as_they_are(
    slot: str, outcome: AbstractContextManager[object]
) -> None:
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)),
        nn.Dropout(),
        nn.Flatten(),
        nn.Linear(256, 3),
    )
    model[0][1].eval()  # frozen statistics
    before = {name: module.training for name, module in model.named_modules()}
    with outcome:
        GrowingNetwork(model, [slot], IMAGES[:1])
    assert {name: module.training for name, module in model.named_modules()} == before
    assert model.training
    assert not model[0][1].training


def test_slots_without_effect_for_a_while() -> None:
    network = GrowingNetwork(Chain(), slots=["0", "1"], example=IMAGES[:1]).eval()
    network.plant(0, nn.Conv2d(8, 8, 3, padding=1), Mode.ADD, alpha=0.5)
    network.plant(1, nn.Tanh(), Mode.MULTIPLY, alpha=1.0)
    with torch.no_grad():
        before = network(IMAGES)
        with network.without([0]):
            torch.testing.assert_close(network(IMAGES), network(IMAGES, left_out=[0]))
            with network.without([0, 1]):
                torch.testing.assert_close(network(IMAGES), network(IMAGES, left_out=[0, 1]))
            torch.testing.assert_close(network(IMAGES), network(IMAGES, left_out=[0]))
        assert network(IMAGES).equal(before)


def test_a_module_that_is_another_one_in_pieces_is_refused() -> None:
    class AddsInPlace(Masked):
        def forward(self, x: Tensor) -> Tensor:
            h = kept = self.first(x)
            h += 1
            return self.last(h * kept)

    with pytest.raises(ValueError, match=r"must do the same when torch\.fx has traced it"):
        GrowingNetwork(AddsInPlace(), slots=["first"], example=torch.zeros(1, 4))


def test_a_module_may_give_more_than_a_tensor() -> None:
    class Several(Masked):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            h = self.first(x)
            return {"logits": self.last(h), "features": h}

    module, x = Several(), torch.randn(3, 4)
    network = GrowingNetwork(module, slots=["first"], example=x[:1])
    for name, values in module(x).items():
        torch.testing.assert_close(network(x)[name], values)
