"""N growing networks: their parameters, one epoch of training, validation.

Everything with a leading N lies in matrices with one row a network (see envs.parameters).
Work is done in chunks of rows whose activations fit the processor's cache; within a chunk all
rows run through the host together, and rows with the same blueprint in a slot run through that
seed together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from envs.actions import BLUEPRINTS, Algorithm
from envs.blending import blend, detach_first
from envs.growth import Growth, Validation
from envs.layers import linear, permute_rows
from envs.parameters import ParameterLayout, zeros
from envs.plan import Group, Mode, Plan, SlotPlan, by_likeness, make_plan, slot_codes
from envs.randomness import shuffled
from envs.workers import keep_freed_memory, run_chunks

if TYPE_CHECKING:  # a task makes its population
    from envs.tasks import DataTask

_CACHE_BYTES = {"cpu": 2**21}
"""Size that the largest activation of a chunk should have; other devices: no limit to speak of."""

_DEVICE_BYTES = 2**29


@dataclass(frozen=True)
class Part:
    """Parameters that run together: a segment of some rows' hosts, or a group's seeds.

    Attributes:
        params, velocity: matrices of all rows; the first ``layout.size`` columns count.
        rows: int64 ``[n]``, the row of every lane.
        layout: names and shapes.
        slot: of the seeds, None for a host's segment.
    """

    params: Tensor
    velocity: Tensor
    rows: Tensor
    layout: ParameterLayout
    slot: int | None

    @property
    def size(self) -> int:
        return len(self.rows) * self.layout.size

    def flat(self, matrix: Tensor) -> Tensor:
        """Copies of the lanes' rows of ``params`` or ``velocity``: ``[n, layout.size]``."""
        return matrix[self.rows, : self.layout.size]

    def pieces(self, matrix: Tensor) -> list[Tensor]:
        """The same as one vector for each named tensor."""
        return [piece.flatten() for piece in self.layout.unflatten(self.flat(matrix)).values()]

    def spread(self, lanes: Tensor) -> Tensor:
        """A number a lane repeated for each of its parameters, in the order of the pieces."""
        counts = [math.prod(entry.shape) for entry in self.layout.entries]
        return torch.cat([lanes.repeat_interleave(count) for count in counts])

    def write(self, params: Tensor, velocity: Tensor) -> None:
        """Put vectors of pieces back into the matrices."""
        n = len(self.rows)
        sizes = [n * math.prod(entry.shape) for entry in self.layout.entries]
        for matrix, vector in ((self.params, params), (self.velocity, velocity)):
            columns = [piece.view(n, -1) for piece in vector.split(sizes)]
            matrix[self.rows, : self.layout.size] = torch.cat(columns, dim=1)


class Population:
    """Hosts and seeds of N rows on one task.

    Args:
        task: data and host.
        num_rows: N.
        num_slots: how many of the host's slots are used, from the input on.
        batches_per_epoch, minibatch_size: minibatches of an epoch, examples of a minibatch.
        validation_size: how many validation examples are used.
        device: where everything lives.
    """

    def __init__(
        self,
        task: DataTask,
        num_rows: int,
        num_slots: int,
        batches_per_epoch: int,
        minibatch_size: int,
        validation_size: int,
        device: torch.device,
    ) -> None:
        self.host = task.host
        self.num_rows = num_rows
        self.num_slots = num_slots
        self.batches_per_epoch = batches_per_epoch
        self.minibatch_size = minibatch_size
        self.validation_size = validation_size
        self.device = device
        self.host_lr = task.host_lr
        self.momentum = task.momentum
        keep_freed_memory()
        self._inputs = self.host.prepare(task.train_inputs).to(device)
        self._targets = task.train_targets.to(device)
        validation_inputs = self.host.prepare(task.validation_inputs[:validation_size])
        self._validation_inputs = validation_inputs.T.contiguous()[None].to(device)
        self._validation_targets = task.validation_targets[:validation_size].to(device)

        self._segment_sizes = [segment.layout.size for segment in self.host.segments]
        self.host_size = sum(self._segment_sizes)
        self._channels = self.host.slot_channels[:num_slots]
        self._blueprints = {BLUEPRINTS.index(k): b for k, b in self.host.blueprints.items()}
        self.offered = torch.zeros(len(BLUEPRINTS), dtype=torch.bool, device=device)
        self.offered[list(self._blueprints)] = True
        # Every seed has a gate, its first parameters; it counts only while the seed is gated.
        self._seed_layouts = [
            {
                index: ParameterLayout(
                    [zeros("gate_weight", 1, c), zeros("gate_bias", 1), *b.layout(c).entries]
                )
                for index, b in self._blueprints.items()
            }
            for c in self._channels
        ]
        self._gate_sizes = [c + 1 for c in self._channels]
        self._module_sizes = torch.zeros(num_slots, len(BLUEPRINTS), device=device)
        for slot, layouts in enumerate(self._seed_layouts):
            for blueprint, layout in layouts.items():
                self._module_sizes[slot, blueprint] = layout.size - self._gate_sizes[slot]

        self.host_params = torch.zeros(num_rows, self.host_size, device=device)
        self.host_velocity = torch.zeros_like(self.host_params)
        # A slot holds one seed at a time, in as many columns as the largest blueprint needs.
        self.seed_params = [
            torch.zeros(num_rows, max(layout.size for layout in layouts.values()), device=device)
            for layouts in self._seed_layouts
        ]
        self.seed_velocity = [torch.zeros_like(params) for params in self.seed_params]

    def _chunks(self, rows: Tensor, batch: int) -> tuple[Tensor, ...]:
        """Rows with ``batch`` examples each, split into those that go through together."""
        if len(rows) == 0:
            return ()
        limit = _CACHE_BYTES.get(self.device.type, _DEVICE_BYTES)
        at_once = max(1, limit // (4 * self.host.activation_size * batch))
        if self.device.type == "cpu":
            at_once = min(at_once, -(-len(rows) // torch.get_num_threads()))
        return rows.split(at_once)

    def count_seed_params(self, blueprint: Tensor, algorithm: Tensor) -> Tensor:
        """Parameters of the seed in every slot, its gate included: float32 ``[N, S]``.

        Args:
            blueprint: int64 ``[N, S]``, −1 for none.
            algorithm: int64 ``[N, S]``.
        """
        slots = torch.arange(self.num_slots, device=self.device)
        size = self._module_sizes[slots, blueprint.clamp(min=0)]
        gate = torch.tensor(self._gate_sizes, device=self.device)
        size = size + torch.where(algorithm == Algorithm.GATE, gate, 0)
        return torch.where(blueprint >= 0, size, 0.0)

    # -- creation and removal ---------------------------------------------------------------

    def reset_hosts(self, rows: Tensor, keys: Tensor) -> None:
        """Fresh hosts, without seeds, in ``rows [n]`` from int64 ``keys [n]``."""
        drawn = []
        for i, segment in enumerate(self.host.segments):
            drawn.append(segment.layout.draw(keys + i))
        self.host_params[rows] = torch.cat(drawn, dim=1)
        self.host_velocity[rows] = 0.0
        for params, velocity in zip(self.seed_params, self.seed_velocity, strict=True):
            params[rows] = 0.0
            velocity[rows] = 0.0

    def plant(self, where: Tensor, blueprint: Tensor, keys: Tensor) -> None:
        """Fresh seeds in the slots ``where [N, S]``, of ``blueprint`` and from int64 ``keys``."""
        for slot in where.any(0).nonzero().squeeze(1).tolist():
            for kind in blueprint[where[:, slot], slot].unique().tolist():
                here = where[:, slot] & (blueprint[:, slot] == kind)
                rows = here.nonzero().squeeze(1)
                self.plant_at(rows, slot, kind, keys[rows, slot])

    def plant_at(self, rows: Tensor, slot: int, blueprint: int, keys: Tensor) -> None:
        """A fresh seed with fresh optimizer state at ``slot`` of ``rows [n]``."""
        layout = self._seed_layouts[slot][blueprint]
        self.seed_params[slot][rows, : layout.size] = layout.draw(keys)
        self.seed_velocity[slot][rows] = 0.0

    def reset_gates(self, where: Tensor) -> None:
        """Fresh gates (½ everywhere) for the seeds in the slots ``where [N, S]``."""
        for slot in where.any(0).nonzero().squeeze(1).tolist():
            rows = where[:, slot].nonzero().squeeze(1)
            self.seed_params[slot][rows, : self._gate_sizes[slot]] = 0.0
            self.seed_velocity[slot][rows, : self._gate_sizes[slot]] = 0.0

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
        """What a group's seeds make of the features ``h`` of its lanes, and their weights."""
        (first, incubating), (last, gated) = group.modes[0], group.modes[-1]
        seen = detach_first(h, incubating if first is Mode.INCUBATE else 0)
        seed = self._blueprints[group.blueprint](params, seen)
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
            store, velocity = self.host_params[:, start:stop], self.host_velocity[:, start:stop]
            parts.append(Part(store, velocity, lanes, segment.layout, slot=None))
            start = stop
            if i < len(plan.slots):
                for group in plan.slots[i].groups:
                    layout = self._seed_layouts[i][group.blueprint]
                    store, velocity = self.seed_params[i], self.seed_velocity[i]
                    parts.append(Part(store, velocity, group.rows, layout, slot=i))
        return parts

    # -- training ---------------------------------------------------------------------------

    def train_epoch(self, growth: Growth, keys: Tensor) -> tuple[Tensor, Tensor]:
        """One host epoch of every row, on minibatches drawn from int64 ``keys [N]``.

        Returns:
            See :meth:`train_on`.
        """
        shape = self.batches_per_epoch, self.minibatch_size
        chosen = shuffled(keys, len(self._targets), math.prod(shape))
        return self.train_on(growth, chosen.unflatten(1, shape))

    @torch.enable_grad()  # collectors step environments without gradients
    def train_on(self, growth: Growth, indices: Tensor) -> tuple[Tensor, Tensor]:
        """One host epoch of SGD with momentum for every row.

        Args:
            growth: what the slots do.
            indices: int64 ``[N, batches, B]``: the training examples of every minibatch.

        Returns:
            Gradient norms, means over the minibatches: of the hosts ``[N]`` and of the seeds
            ``[N, S]`` (0 where no seed trained).
        """
        codes = slot_codes(growth.stage, growth.blueprint, growth.algorithm, training=True)
        host_norm = self.host_params.new_zeros(self.num_rows)
        seed_norm = self.host_params.new_zeros(self.num_rows, self.num_slots)

        def train(rows: Tensor) -> None:
            plan = make_plan(rows, codes, ablate=False)
            self._train_chunk(plan, growth, indices[rows], host_norm, seed_norm)

        run_chunks(train, self._chunks(by_likeness(codes), indices.shape[2]))
        return host_norm, seed_norm

    def _train_chunk(
        self, plan: Plan, growth: Growth, indices: Tensor, host_norm: Tensor, seed_norm: Tensor
    ) -> None:
        parts = self._parts(plan)
        # All parameters of the chunk in one vector, tensor by tensor, so that an optimizer step
        # is three kernels; the leaves are views of it.
        params = torch.cat([piece for part in parts for piece in part.pieces(part.params)])
        velocity = torch.cat([piece for part in parts for piece in part.pieces(part.velocity)])
        rate = torch.cat([part.spread(self._rates(part, growth)) for part in parts])
        owner = torch.cat([part.spread(self._owners(part)) for part in parts])
        named: list[dict[str, Tensor]] = []
        leaves: list[Tensor] = []
        start = 0
        for part in parts:
            tensors = {}
            for entry in part.layout.entries:
                shape = (len(part.rows), *entry.shape)
                stop = start + math.prod(shape)
                tensors[entry.name] = params[start:stop].view(shape).detach().requires_grad_()
                start = stop
            named.append(tensors)
            leaves += tensors.values()

        norms = params.new_zeros(self.num_rows * (1 + self.num_slots))
        final_order = _compose([slot.order for slot in plan.slots])
        for chosen in indices.unbind(1):
            x = self._inputs[chosen].transpose(1, 2).contiguous()
            targets = self._targets[chosen if final_order is None else chosen[final_order]]
            logits = self._forward(plan, named, x, growth.alpha)
            loss = F.cross_entropy(logits, targets, reduction="none").mean(1).sum()
            gradients = torch.autograd.grad(loss, leaves, materialize_grads=True)
            with torch.no_grad():
                gradient = torch.cat([part.flatten() for part in gradients])
                velocity.mul_(self.momentum).add_(gradient)
                params.addcmul_(velocity, rate, value=-1)
                squares = torch.zeros_like(norms).index_add_(0, owner, gradient.square_())
                norms += squares.sqrt_() / indices.shape[1]

        rows = plan.lane_rows[0]
        norms = norms.view(self.num_rows, 1 + self.num_slots)[rows]
        host_norm[rows], seed_norm[rows] = norms[:, 0], norms[:, 1:]
        sizes = [part.size for part in parts]
        for part, new, moved in zip(parts, params.split(sizes), velocity.split(sizes), strict=True):
            part.write(new, moved)

    def _rates(self, part: Part, growth: Growth) -> Tensor:
        """Learning rate of each lane of a part."""
        if part.slot is None:
            return torch.full_like(part.rows, self.host_lr, dtype=growth.seed_lr.dtype)
        return growth.seed_lr[part.rows, part.slot]

    def _owners(self, part: Part) -> Tensor:
        """A number for each lane of a part: one a row for hosts, one a row and slot for seeds."""
        return part.rows * (1 + self.num_slots) + (0 if part.slot is None else 1 + part.slot)

    # -- validation -------------------------------------------------------------------------

    @torch.no_grad()
    def validate(self, growth: Growth, rows: Tensor, *, ablate: bool) -> Validation:
        """Loss and accuracy of ``rows [n]``, and accuracy with each seed left out.

        Args:
            growth: what the slots do.
            rows: int64 ``[n]``, without repetition.
            ablate: measure ``accuracy_without``.
        """
        codes = slot_codes(growth.stage, growth.blueprint, growth.algorithm, training=False)
        loss = self.host_params.new_zeros(self.num_rows)
        accuracy = torch.zeros_like(loss)
        without = self.host_params.new_zeros(self.num_rows, self.num_slots)
        ablated = torch.zeros(self.num_rows, self.num_slots, dtype=torch.bool, device=self.device)

        def measure(chunk: Tensor) -> None:
            plan = make_plan(chunk, codes, ablate=ablate)
            logits = self._validate_chunk(plan, growth)
            lanes, slots = plan.lane_rows[-1], plan.lane_ablated
            targets = self._validation_targets.expand(len(logits), -1)
            best = logits.max(1).indices  # several times as fast as argmax
            lane_accuracy = (best == targets).to(loss.dtype).mean(1) * 100
            whole = slots == -1
            loss[lanes[whole]] = F.cross_entropy(
                logits[whole], targets[whole], reduction="none"
            ).mean(1)
            accuracy[lanes[whole]] = lane_accuracy[whole]
            without[lanes[~whole], slots[~whole]] = lane_accuracy[~whole]
            ablated[lanes[~whole], slots[~whole]] = True

        order = rows[by_likeness(codes[rows])]
        run_chunks(measure, self._chunks(order, len(self._validation_targets)))
        accuracy, ablated = accuracy[rows], ablated[rows]
        without = torch.where(ablated, without[rows], accuracy[:, None])
        return Validation(loss[rows], accuracy, without, ablated)

    def _validate_chunk(self, plan: Plan, growth: Growth) -> Tensor:
        named = [part.layout.unflatten(part.flat(part.params)) for part in self._parts(plan)]
        x = self._validation_inputs.expand(len(plan.lane_rows[0]), -1, -1)
        return self._forward(plan, named, x, growth.alpha)


def _compose(orders: list[Tensor | None]) -> Tensor | None:
    """One permutation that does what permuting by each of ``orders`` in turn does."""
    composed: Tensor | None = None
    for order in orders:
        if order is not None:
            composed = order if composed is None else composed[order]
    return composed
