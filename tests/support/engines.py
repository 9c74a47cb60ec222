"""Networks of ordinary modules on both engines, compiled and in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from envs import ModuleHost
from envs.actions import Algorithm, Stage
from envs.batched.optimizers import SGD, Optimizer
from envs.batched.randomness import fold
from envs.populations import SlotInputs
from envs.populations.compiled import CompiledPasses
from envs.populations.data import LabelledData
from envs.populations.plain import PlainPasses
from envs.populations.trained import TrainedPopulation

CPU = torch.device("cpu")
ROWS = 6


def images(size: int = 8) -> Tensor:
    return torch.randn(40, 2, size, size, generator=torch.Generator().manual_seed(3)).double()


def population(
    host: ModuleHost,
    inputs: Tensor,
    targets: Tensor | None = None,
    optimizer: Optimizer | None = None,
    loss: nn.Module | None = None,
) -> TrainedPopulation:
    if targets is None:
        targets = torch.arange(len(inputs)) % host.num_classes
    examples = inputs, targets
    data = LabelledData(
        examples,
        examples,
        host.prepare,
        batches_per_epoch=2,
        minibatch_size=8,
        device=CPU,
        loss=loss,
    )
    made = TrainedPopulation(host, data, optimizer or SGD(), ROWS, len(host.slot_channels), CPU)
    made.params, made.buffers = made.params.double(), made.buffers.double()
    return made


def growth(population: TrainedPopulation) -> SlotInputs:
    """Every offered blueprint somewhere, idle, in training, or mixed in each way."""
    slots = population.num_slots
    stages = [Stage.TRAINING, Stage.BLENDING, Stage.DORMANT, Stage.HOLDING]
    place = torch.arange(ROWS)[:, None] + torch.arange(slots) * 3
    stage = torch.tensor([int(each) for each in stages])[place % 4]
    offered = population.offered.nonzero().squeeze(1)
    blueprint = torch.where(stage == Stage.DORMANT, -1, offered[place % len(offered)])
    return SlotInputs(
        stage,
        blueprint,
        (place // 2) % len(Algorithm),
        torch.where(stage >= Stage.BLENDING, 0.6, 0.0).double(),
        torch.full((ROWS,), 0.05).double(),
        torch.full((ROWS, slots), 0.03).double(),
    )


def assert_engines_agree(host: ModuleHost, inputs: Tensor, **options: object) -> None:
    """Two epochs and a validation with sets left out, each from the same weights."""
    compiled, plain = (population(host, inputs, **options) for _ in range(2))
    assert isinstance(compiled.passes, CompiledPasses)
    plain.passes = PlainPasses(plain.networks, plain.data, plain.optimizer)
    rows = torch.arange(ROWS)
    compiled.reset_hosts(rows, fold(rows, 1))
    slots = growth(compiled)
    keys = fold(rows[:, None] * 10 + torch.arange(compiled.num_slots), 2)
    compiled.plant(slots.blueprint >= 0, slots.blueprint, keys)
    noise = torch.randn(compiled.params.shape, generator=torch.Generator().manual_seed(1))
    compiled.params += 0.1 * noise * (compiled.params != 0)  # not where columns are unused
    plain.params[:] = compiled.params
    for epoch in range(2):
        norms = [made.train_epoch(slots, fold(rows, epoch), rows) for made in (compiled, plain)]
        for mine, theirs in zip(*norms, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9)
        for mine, theirs in ((compiled.params, plain.params), (compiled.buffers, plain.buffers)):
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9)
            theirs[:] = mine  # a network whose gradients explode makes much of the last digit
    for ablate in (False, True):
        mine, theirs = (made.validate(slots, rows, ablate=ablate) for made in (compiled, plain))
        torch.testing.assert_close(mine.loss, theirs.loss, rtol=1e-6, atol=1e-9)
        assert mine.accuracy.equal(theirs.accuracy)
        torch.testing.assert_close(mine.lost, theirs.lost, rtol=1e-9, atol=1e-9)
