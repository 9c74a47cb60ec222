"""N networks in training: their parameters, one epoch of it, validation.

Everything with a leading N lies in matrices with one row a network (see
:mod:`envs.batched.parameters`). Work is done in chunks of rows whose activations fit the
processor's cache; within a chunk all rows run through the host together, and rows with the same
blueprint in a slot run through that seed together.
"""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor

from envs.actions import Algorithm, Stage
from envs.batched.blending import blend, detach_first
from envs.batched.layers import linear, permute_rows
from envs.batched.optimizers import Optimizer
from envs.batched.parameters import ParameterLayout, zeros
from envs.batched.parts import Part
from envs.batched.plan import PASS, Group, Mode, Plan, SlotPlan, by_likeness, make_plan, slot_codes
from envs.batched.workers import keep_freed_memory, run_chunks
from envs.hosts.base import Host
from envs.populations.base import (
    SlotInputs,
    Validation,
    ablations,
    blueprint_choices,
    most_ablated,
)
from envs.populations.data import Data

_CACHE_BYTES = {"cpu": 2**21}
"""Size that the largest activation of a chunk should have; other devices: no limit to speak of."""

_DEVICE_BYTES = 2**29


class TrainedPopulation:
    """Hosts and seeds of N rows, trained on one set of data.

    Args:
        host: the network being grown.
        data: what it is trained and validated on.
        optimizer: how parameters follow their gradients.
        num_rows: N.
        num_slots: slots of the host that are used, S, from the input on.
        device: where everything lives.

    Attributes:
        host_params: float32 ``[N, host_size]``.
        host_buffers: the optimizer's, each shaped like ``host_params``.
        seed_params: for every slot float32 ``[N, columns]``; a slot holds one seed at a time, in
            as many columns as the largest blueprint needs.
        seed_buffers: for every slot the optimizer's, each shaped like its ``seed_params``.
    """

    def __init__(
        self,
        host: Host,
        data: Data,
        optimizer: Optimizer,
        num_rows: int,
        num_slots: int,
        device: torch.device,
    ) -> None:
        self.host = host
        self.data = data
        self.optimizer = optimizer
        self.num_rows = num_rows
        self.num_slots = num_slots
        self.device = device
        keep_freed_memory()

        self.host_size = sum(segment.layout.size for segment in host.segments)
        self.blueprints = blueprint_choices(tuple(host.blueprints))
        self._blueprints = {self.blueprints.index(k): b for k, b in host.blueprints.items()}
        self.offered = torch.zeros(len(self.blueprints), dtype=torch.bool, device=device)
        self.offered[list(self._blueprints)] = True
        channels = host.slot_channels[:num_slots]
        # Every seed has a gate, its first parameters; it counts only while the seed is gated.
        self._seed_layouts = [
            {
                index: ParameterLayout(
                    [zeros("gate_weight", 1, c), zeros("gate_bias", 1), *b.layout(c).entries]
                )
                for index, b in self._blueprints.items()
            }
            for c in channels
        ]
        self._gate_sizes = [c + 1 for c in channels]
        sizes = torch.zeros(num_slots, len(self.blueprints), dtype=torch.float32)
        for slot, layouts in enumerate(self._seed_layouts):
            for blueprint, layout in layouts.items():
                sizes[slot, blueprint] = layout.size - self._gate_sizes[slot]
        self._module_sizes = sizes.to(device)

        self._ablations = ablations(num_slots).to(device)
        self._place = torch.zeros(1 << num_slots, dtype=torch.int64, device=device)
        self._place[self._ablations] = torch.arange(len(self._ablations), device=device)
        self.host_params, *self.host_buffers = self._matrices(self.host_size)
        self.seed_params, self.seed_buffers = [], []
        for layouts in self._seed_layouts:
            params, *buffers = self._matrices(max(layout.size for layout in layouts.values()))
            self.seed_params.append(params)
            self.seed_buffers.append(buffers)

    def _matrices(self, columns: int) -> list[Tensor]:
        """Parameters and the optimizer's buffers."""
        count = 1 + self.optimizer.num_buffers
        shape = (self.num_rows, columns)
        return [torch.zeros(shape, dtype=torch.float32, device=self.device) for _ in range(count)]

    def _chunks(self, rows: Tensor, batch: int) -> tuple[Tensor, ...]:
        """Rows with ``batch`` examples each, split into those that go through together."""
        if len(rows) == 0:
            return ()
        limit = _CACHE_BYTES.get(self.device.type, _DEVICE_BYTES)
        at_once = max(1, limit // (4 * self.host.activation_size * batch))
        if self.device.type == "cpu":
            at_once = min(at_once, -(-len(rows) // torch.get_num_threads()))
        return rows.split(at_once)

    def to(self, device: torch.device) -> None:
        self.device = device
        self.data.to(device)
        for name in ("offered", "_module_sizes", "_ablations", "_place"):
            setattr(self, name, getattr(self, name).to(device))
        self.host_params = self.host_params.to(device)
        self.host_buffers = [buffer.to(device) for buffer in self.host_buffers]
        self.seed_params = [params.to(device) for params in self.seed_params]
        self.seed_buffers = [
            [buffer.to(device) for buffer in buffers] for buffers in self.seed_buffers
        ]

    def count_seed_params(self, blueprint: Tensor, algorithm: Tensor) -> Tensor:
        slots = torch.arange(self.num_slots, device=self.device)
        size = self._module_sizes[slots, blueprint.clamp(min=0)]
        gate = torch.tensor(self._gate_sizes, device=self.device)
        size = size + torch.where(algorithm == Algorithm.GATE, gate, 0)
        return torch.where(blueprint >= 0, size, 0.0)

    # -- creation and removal ---------------------------------------------------------------

    def reset_hosts(self, rows: Tensor, keys: Tensor) -> None:
        drawn = [s.layout.draw(keys + i) for i, s in enumerate(self.host.segments)]
        self.host_params[rows] = torch.cat(drawn, dim=1)
        for matrix in (*self.host_buffers, *self.seed_params, *chain(*self.seed_buffers)):
            matrix[rows] = 0.0

    def plant(self, where: Tensor, blueprint: Tensor, keys: Tensor) -> None:
        for slot in where.any(0).nonzero().squeeze(1).tolist():
            for kind in blueprint[where[:, slot], slot].unique().tolist():
                here = where[:, slot] & (blueprint[:, slot] == kind)
                rows = here.nonzero().squeeze(1)
                self.plant_at(rows, slot, kind, keys[rows, slot])

    def plant_at(self, rows: Tensor, slot: int, blueprint: int, keys: Tensor) -> None:
        """Put a fresh seed with fresh optimizer state at ``slot`` of ``rows [n]``."""
        layout = self._seed_layouts[slot][blueprint]
        self.seed_params[slot][rows, : layout.size] = layout.draw(keys)
        for buffer in self.seed_buffers[slot]:
            buffer[rows] = 0.0

    def reset_gates(self, where: Tensor) -> None:
        for slot in where.any(0).nonzero().squeeze(1).tolist():
            rows = where[:, slot].nonzero().squeeze(1)
            for matrix in (self.seed_params[slot], *self.seed_buffers[slot]):
                matrix[rows, : self._gate_sizes[slot]] = 0.0

    # -- forward ----------------------------------------------------------------------------

    def _forward(
        self, plan: Plan, parts: list[dict[str, Tensor]], x: Tensor, alpha: Tensor
    ) -> Tensor:
        """Logits ``[lanes, C, B]``.

        Args:
            plan: of the rows.
            parts: parameters by name of the plan's parts (see :meth:`_parts`), in their order.
            x: inputs of the first segment.
            alpha: of all rows, ``[N, S]``.
        """
        remaining = iter(parts)
        for i, segment in enumerate(self.host.segments):
            x = segment(next(remaining), x)
            if i < len(plan.slots):
                seeds = [next(remaining) for _ in plan.slots[i].groups]
                x = self._at_slot(i, plan.slots[i], seeds, x, alpha[:, i])
        return x

    def _at_slot(
        self,
        slot: int,
        plan: SlotPlan,
        seeds: list[dict[str, Tensor]],
        h: Tensor,
        alpha: Tensor,
    ) -> Tensor:
        """Features after one slot."""
        if plan.order is not None:
            h = permute_rows(h, plan.order)
        if not plan.groups:
            return h
        counts = [plan.num_passing, *(len(group.rows) for group in plan.groups)]
        parts = (h,) if counts[0] == 0 and len(counts) == 2 else h.split(counts)[1:]
        grown = [
            self._grow(group, params, part, alpha[group.rows])
            for group, params, part in zip(plan.groups, seeds, parts, strict=True)
        ]
        modes = [group.modes for group in plan.groups]
        return blend(h, [seed for seed, _ in grown], [w for _, w in grown], modes, plan.ablated)

    def _grow(
        self, group: Group, params: dict[str, Tensor], h: Tensor, alpha: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run a group's seeds on the features ``h`` of its lanes: their outputs and weights."""
        (first, incubating), (last, gated) = group.modes[0], group.modes[-1]
        seen = detach_first(h, incubating if first is Mode.INCUBATE else 0)
        seed = self._blueprints[group.kind](params, seen)
        weight = alpha.view(-1, *[1] * (h.dim() - 1))
        if last is Mode.GATE:
            start = len(h) - gated
            features, score_weight, score_bias = (
                x if start == 0 else x[start:]
                for x in (h, params["gate_weight"], params["gate_bias"])
            )
            score = linear(self.host.pool(features), score_weight, score_bias)
            openness = torch.sigmoid(score).view(gated, *weight.shape[1:-1], -1)
            closed = weight[:start].expand(-1, *openness.shape[1:])
            weight = torch.cat([closed, weight[start:] * openness])
        return seed, weight

    def _parts(self, plan: Plan) -> list[Part]:
        """The pieces of the plan's networks in the order in which a forward pass meets them."""
        parts = []
        start = 0
        for i, segment in enumerate(self.host.segments):
            lanes = plan.lane_rows[min(i, len(plan.slots))]
            stop = start + segment.layout.size
            matrices = [m[:, start:stop] for m in (self.host_params, *self.host_buffers)]
            parts.append(Part(matrices, lanes, segment.layout, slot=None))
            start = stop
            if i < len(plan.slots):
                matrices = [self.seed_params[i], *self.seed_buffers[i]]
                for group in plan.slots[i].groups:
                    layout = self._seed_layouts[i][group.kind]
                    parts.append(Part(matrices, group.rows, layout, slot=i))
        return parts

    # -- training ---------------------------------------------------------------------------

    def train_epoch(self, inputs: SlotInputs, keys: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self.train_on(inputs, self.data.draw(keys), rows)

    @torch.enable_grad()  # collectors step environments without gradients
    def train_on(
        self, inputs: SlotInputs, examples: Tensor, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Train rows for one epoch on minibatches that are given.

        Args:
            inputs: what the slots do.
            examples: int64 ``[N, batches, B]``: the training examples of every minibatch.
            rows: int64 ``[n]``, without repetition; default: all.

        Returns:
            Gradient norms, means over the minibatches: of the hosts ``[N]`` and of the seeds
            ``[N, S]`` (0 where nothing trained).
        """
        if rows is None:
            rows = torch.arange(self.num_rows, device=self.device)
        codes = _codes(inputs, training=True)
        host_norm = self.host_params.new_zeros(self.num_rows)
        seed_norm = self.host_params.new_zeros(self.num_rows, self.num_slots)

        def train(chunk: Tensor) -> None:
            plan = make_plan(chunk, codes, ablate=0)
            self._train_chunk(plan, inputs, examples[chunk], host_norm, seed_norm)

        order = rows[by_likeness(codes[rows])]
        run_chunks(train, self._chunks(order, examples.shape[2]))
        return host_norm, seed_norm

    def _train_chunk(
        self, plan: Plan, inputs: SlotInputs, examples: Tensor, host_norm: Tensor, seed_norm: Tensor
    ) -> None:
        parts = self._parts(plan)
        # All parameters of the chunk in one vector, tensor by tensor, so that an optimizer step
        # is a few kernels; the leaves are views of it.
        params, *buffers = (
            torch.cat([piece for part in parts for piece in part.pieces(part.matrices[i])])
            for i in range(1 + self.optimizer.num_buffers)
        )
        rate = torch.cat([part.spread(_rates(part, inputs)) for part in parts])
        owner = torch.cat([part.spread(self._owners(part)) for part in parts])
        sizes = [part.size for part in parts]
        named = [
            part.leaves(vector) for part, vector in zip(parts, params.split(sizes), strict=True)
        ]
        leaves = [leaf for tensors in named for leaf in tensors.values()]

        norms = params.new_zeros(self.num_rows * (1 + self.num_slots))
        final_order = _compose([slot.order for slot in plan.slots])
        for chosen in examples.unbind(1):
            x = self.data.train_inputs(chosen)
            targets = self.data.train_targets(
                chosen if final_order is None else chosen[final_order]
            )
            outputs = self._forward(plan, named, x, inputs.alpha)
            loss = self.data.loss(outputs, targets).sum()
            gradients = torch.autograd.grad(loss, leaves, materialize_grads=True)
            with torch.no_grad():
                gradient = torch.cat([part.flatten() for part in gradients])
                self.optimizer.step(params, buffers, gradient, rate)
                squares = torch.zeros_like(norms).index_add_(0, owner, gradient.square_())
                norms += squares.sqrt_() / examples.shape[1]

        rows = plan.lane_rows[0]
        norms = norms.view(self.num_rows, 1 + self.num_slots)[rows]
        host_norm[rows], seed_norm[rows] = norms[:, 0], norms[:, 1:]
        changed = zip(*(vector.split(sizes) for vector in (params, *buffers)), strict=True)
        for part, vectors in zip(parts, changed, strict=True):
            part.write(vectors)

    def _owners(self, part: Part) -> Tensor:
        """A number for each lane of a part: one a row for hosts, one a row and slot for seeds."""
        return part.rows * (1 + self.num_slots) + (0 if part.slot is None else 1 + part.slot)

    # -- validation -------------------------------------------------------------------------

    @torch.no_grad()
    def validate(self, inputs: SlotInputs, rows: Tensor, *, ablate: bool) -> Validation:
        codes = _codes(inputs, training=False)
        loss = self.host_params.new_zeros(self.num_rows)
        correct = self.host_params.new_zeros(self.num_rows, len(self._ablations))
        shared = self.data.validation_targets()

        def measure(chunk: Tensor) -> None:
            plan = make_plan(chunk, codes, ablate=most_ablated(self.num_slots) if ablate else 0)
            outputs = self._validate_chunk(plan, inputs)
            lanes, left_out = plan.lane_rows[-1], plan.lane_ablated
            targets = shared.expand(len(outputs), *shared.shape[1:])
            correct[lanes, self._place[left_out]] = self.data.correct(outputs, targets)
            whole = left_out == 0
            loss[lanes[whole]] = self.data.loss(outputs[whole], targets[whole])

        order = rows[by_likeness(codes[rows])]
        run_chunks(measure, self._chunks(order, self.data.validation_size))
        ablated = (codes[rows] != PASS) & ablate
        # Leaving out a slot that gives nothing is leaving out the others of the set.
        mixed = (ablated << torch.arange(self.num_slots, device=self.device)).sum(1, keepdim=True)
        answered = correct[rows].gather(1, self._place[self._ablations & mixed])
        lost = answered[:, :1] - answered
        answers = shared.numel()
        return Validation(loss[rows], answered[:, 0] * 100 / answers, lost * 100 / answers, ablated)

    def _validate_chunk(self, plan: Plan, inputs: SlotInputs) -> Tensor:
        named = [part.params() for part in self._parts(plan)]
        x = self.data.validation_inputs()
        x = x.expand(len(plan.lane_rows[0]), *x.shape[1:])
        return self._forward(plan, named, x, inputs.alpha)


def _codes(inputs: SlotInputs, *, training: bool) -> Tensor:
    """Encode the work of each slot; while validating, an incubated seed need not run."""
    stage = inputs.stage
    mixed = inputs.mixed
    mode = torch.where(mixed, inputs.algorithm - Algorithm.ADD + Mode.ADD, Mode.INCUBATE)
    runs = mixed | (stage == Stage.TRAINING) if training else mixed
    return slot_codes(inputs.blueprint, mode, runs)


def _rates(part: Part, inputs: SlotInputs) -> Tensor:
    """Learning rate of each lane of a part."""
    if part.slot is None:
        return inputs.host_lr[part.rows]
    return inputs.seed_lr[part.rows, part.slot]


def _compose(orders: list[Tensor | None]) -> Tensor | None:
    """One permutation that does what permuting by each of ``orders`` in turn does."""
    composed: Tensor | None = None
    for order in orders:
        if order is not None:
            composed = order if composed is None else composed[order]
    return composed
