"""N growing networks: their parameters, one epoch of training, validation.

Everything with a leading N lies in matrices with one row a network (see envs.parameters).
Work is done in chunks of rows whose activations fit the processor's cache; within a chunk all
rows run through the host together, and rows with the same blueprint in a slot run through that
seed together.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from envs.actions import BLUEPRINTS, Algorithm
from envs.layers import incubate, linear, permute_rows
from envs.parameters import ParameterLayout, zeros
from envs.plan import Group, Mode, Plan, SlotPlan, by_likeness, make_plan, slot_codes
from envs.tasks import Task

_CACHE_BYTES = {"cpu": 2**22}
"""Size that the largest activation of a chunk should have; other devices: no limit to speak of."""

_DEVICE_BYTES = 2**29


@dataclass
class Growth:
    """What the slots of all rows do in an epoch.

    Attributes:
        stage, blueprint, algorithm: int64 ``[N, S]``.
        alpha: float32 ``[N, S]``.
        seed_lr: float32 ``[N, S]``, learning rate of each slot's seed.
    """

    stage: Tensor
    blueprint: Tensor
    algorithm: Tensor
    alpha: Tensor
    seed_lr: Tensor


@dataclass
class Validation:
    """Result of a validation pass over n rows.

    Attributes:
        loss: mean cross-entropy in nats, float32 ``[n]``; may be non-finite.
        accuracy: percent, ``[n]``.
        accuracy_without: percent with a slot's α forced to 0, ``[n, S]``; where the slot's α is
            0 anyway, the same as ``accuracy``.
        ablated: bool ``[n, S]``: was ``accuracy_without`` measured?
    """

    loss: Tensor
    accuracy: Tensor
    accuracy_without: Tensor
    ablated: Tensor


class Population:
    """Hosts and seeds of N rows on one task.

    Args:
        task: data and host.
        num_rows: N.
        num_slots: how many of the host's slots are used, from the input on.
        validation_size: how many validation examples are used.
        device: where everything lives.
    """

    def __init__(
        self,
        task: Task,
        num_rows: int,
        num_slots: int,
        validation_size: int,
        device: torch.device,
    ) -> None:
        self.host = task.host
        self.num_rows = num_rows
        self.num_slots = num_slots
        self.device = device
        self.host_lr = task.host_lr
        self.momentum = task.momentum
        self._inputs = self.host.prepare(task.train_inputs).to(device)
        self._targets = task.train_targets.to(device)
        validation_inputs = self.host.prepare(task.validation_inputs[:validation_size])
        self._validation_inputs = validation_inputs.T.contiguous()[None].to(device)
        self._validation_targets = task.validation_targets[:validation_size].to(device)

        self._segment_sizes = [segment.layout.size for segment in self.host.segments]
        self.host_size = sum(self._segment_sizes)
        self._channels = self.host.slot_channels[:num_slots]
        self._gates = [
            ParameterLayout([zeros("weight", 1, c), zeros("bias", 1)]) for c in self._channels
        ]
        self._seed_layouts = [
            {BLUEPRINTS.index(name): b.layout(c) for name, b in self.host.blueprints.items()}
            for c in self._channels
        ]
        self._seed_blueprints = {BLUEPRINTS.index(k): b for k, b in self.host.blueprints.items()}
        self.offered = torch.zeros(len(BLUEPRINTS), dtype=torch.bool, device=device)
        self.offered[list(self._seed_blueprints)] = True
        self._seed_sizes = torch.zeros(num_slots, len(BLUEPRINTS), device=device)
        for slot, layouts in enumerate(self._seed_layouts):
            for blueprint, layout in layouts.items():
                self._seed_sizes[slot, blueprint] = layout.size
        self._gate_sizes = torch.tensor([float(gate.size) for gate in self._gates], device=device)

        self.host_params = torch.zeros(num_rows, self.host_size, device=device)
        self.host_velocity = torch.zeros_like(self.host_params)
        # A slot holds one seed at a time: gate first, then the module, in as many columns as
        # the largest blueprint needs.
        self.seed_params = [
            torch.zeros(num_rows, gate.size + max(k.size for k in layouts.values()), device=device)
            for gate, layouts in zip(self._gates, self._seed_layouts, strict=True)
        ]
        self.seed_velocity = [torch.zeros_like(params) for params in self.seed_params]

    def rows_at_once(self, batch: int) -> int:
        """How many rows with that many examples each go through the host together."""
        limit = _CACHE_BYTES.get(self.device.type, _DEVICE_BYTES)
        return max(1, limit // (4 * self.host.activation_size * batch))

    def count_seed_params(self, blueprint: Tensor, algorithm: Tensor) -> Tensor:
        """Parameters of the seed in every slot, its gate included: float32 ``[N, S]``.

        Args:
            blueprint: int64 ``[N, S]``, −1 for none.
            algorithm: int64 ``[N, S]``.
        """
        slots = torch.arange(self.num_slots, device=self.device)
        size = self._seed_sizes[slots, blueprint.clamp(min=0)]
        size = size + torch.where(algorithm == Algorithm.GATE, self._gate_sizes, 0.0)
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

    def plant(self, rows: Tensor, slot: int, blueprint: int, keys: Tensor) -> None:
        """A fresh seed with fresh optimizer state at ``slot`` of ``rows [n]``."""
        layout = self._seed_layouts[slot][blueprint]
        start = self._gates[slot].size
        self.seed_params[slot][rows] = 0.0
        self.seed_params[slot][rows, start : start + layout.size] = layout.draw(keys)
        self.seed_velocity[slot][rows] = 0.0

    def reset_gates(self, rows: Tensor, slot: int) -> None:
        """A fresh gate (½ everywhere) at ``slot`` of ``rows [n]``."""
        self.seed_params[slot][rows, : self._gates[slot].size] = 0.0
        self.seed_velocity[slot][rows, : self._gates[slot].size] = 0.0

    # -- forward ----------------------------------------------------------------------------

    def _forward(
        self, plan: Plan, hosts: list[Tensor], seeds: list[list[Tensor]], x: Tensor, alpha: Tensor
    ) -> Tensor:
        """Logits ``[lanes, C, B]``.

        Args:
            plan: of the rows.
            hosts: for every segment, flat parameters of its lanes.
            seeds: for every slot and group, flat parameters (gate, module) of its lanes.
            x: inputs of the first segment.
            alpha: of all rows, ``[N, S]``.
        """
        segments = self.host.segments
        x = segments[0](segments[0].layout.unflatten(hosts[0]), x)
        for i, segment in enumerate(segments[1:]):
            if i < len(plan.slots):
                x = self._at_slot(i, plan.slots[i], seeds[i], x, alpha[:, i])
            x = segment(segment.layout.unflatten(hosts[i + 1]), x)
        return x

    def _at_slot(
        self, slot: int, plan: SlotPlan, seeds: list[Tensor], h: Tensor, alpha: Tensor
    ) -> Tensor:
        """Features after one slot."""
        if plan.order is not None:
            h = permute_rows(h, plan.order)
        if not plan.groups:
            return h
        parts = h.split([plan.num_passing, *(len(group.rows) for group in plan.groups)])
        grown = [parts[0]] if plan.num_passing else []
        for group, flat, part in zip(plan.groups, seeds, parts[1:], strict=True):
            grown += self._grow(slot, group, flat, part, alpha[group.rows])
        if plan.ablated is not None:
            grown.append(h.index_select(0, plan.ablated))
        return torch.cat(grown) if len(grown) > 1 else grown[0]

    def _grow(
        self, slot: int, group: Group, flat: Tensor, h: Tensor, alpha: Tensor
    ) -> list[Tensor]:
        """Features ``h`` of a group's lanes with its seeds mixed in, one tensor a mode."""
        gate_layout, layout = self._gates[slot], self._seed_layouts[slot][group.blueprint]
        gate_flat, module_flat = flat.split([gate_layout.size, layout.size], dim=1)
        seed_input = h
        if group.modes[0][0] is Mode.INCUBATE:
            incubating = group.modes[0][1]
            seed_input = torch.cat([h[:incubating].detach(), h[incubating:]])
        params = layout.unflatten(module_flat)
        seed = self._seed_blueprints[group.blueprint](params, seed_input)
        alpha = alpha.view(-1, *[1] * (h.dim() - 1))
        grown, start = [], 0
        for mode, count in group.modes:
            lanes = slice(start, start + count)
            start += count
            if mode is Mode.INCUBATE:
                out = incubate(h[lanes], seed[lanes])
            elif mode is Mode.ADD:
                out = torch.lerp(h[lanes], seed[lanes], alpha[lanes])
            elif mode is Mode.MULTIPLY:
                change = torch.tanh(seed[lanes] - h[lanes])
                out = torch.addcmul(h[lanes], h[lanes] * alpha[lanes], change)
            else:
                gate = gate_layout.unflatten(gate_flat[lanes])
                score = linear(self.host.pool(h[lanes]), gate["weight"], gate["bias"])
                openness = torch.sigmoid(score).view(count, *[1] * (h.dim() - 2), -1)
                out = torch.lerp(h[lanes], seed[lanes], alpha[lanes] * openness)
            grown.append(out)
        return grown

    def _seed_leaves(self, plan: Plan) -> list[list[Tensor]]:
        """Copies of the parameters (gate, module) of every slot's groups."""
        return [
            [self._seed_columns(self.seed_params, slot, group) for group in slot_plan.groups]
            for slot, slot_plan in enumerate(plan.slots)
        ]

    def _seed_columns(self, stores: list[Tensor], slot: int, group: Group) -> Tensor:
        return stores[slot][group.rows, : self._seed_width(slot, group)]

    def _seed_width(self, slot: int, group: Group) -> int:
        return self._gates[slot].size + self._seed_layouts[slot][group.blueprint].size

    # -- training ---------------------------------------------------------------------------

    @torch.enable_grad()  # collectors step environments without gradients
    def train_epoch(self, growth: Growth, indices: Tensor) -> tuple[Tensor, Tensor]:
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
        order = by_likeness(codes)
        for rows in order.split(self.rows_at_once(indices.shape[2])):
            plan = make_plan(rows, codes, ablate=False)
            self._train_chunk(plan, growth, indices[rows], host_norm, seed_norm)
        return host_norm, seed_norm

    def _train_chunk(
        self, plan: Plan, growth: Growth, indices: Tensor, host_norm: Tensor, seed_norm: Tensor
    ) -> None:
        rows = plan.lane_rows[0]
        batches = indices.shape[1]
        host = self.host_params[rows].requires_grad_()
        seeds = self._seed_leaves(plan)
        leaves = [host, *(leaf.requires_grad_() for slot in seeds for leaf in slot)]
        places = [(i, g) for i, slot in enumerate(plan.slots) for g in slot.groups]
        velocities = [
            self.host_velocity[rows],
            *(self._seed_columns(self.seed_velocity, i, group) for i, group in places),
        ]
        rates = [
            torch.full_like(host[:, :1], self.host_lr),
            *(growth.seed_lr[group.rows, i, None] for i, group in places),
        ]
        norms = [leaf.new_zeros(len(leaf)) for leaf in leaves]
        final_order = _compose([slot.order for slot in plan.slots])
        for batch in range(batches):
            chosen = indices[:, batch]
            x = self._inputs[chosen].transpose(1, 2).contiguous()
            targets = self._targets[chosen if final_order is None else chosen[final_order]]
            logits = self._forward(plan, self._split_host(host, plan), seeds, x, growth.alpha)
            loss = F.cross_entropy(logits, targets, reduction="none").mean(1).sum()
            gradients = torch.autograd.grad(loss, leaves)
            with torch.no_grad():
                for leaf, velocity, rate, norm, gradient in zip(
                    leaves, velocities, rates, norms, gradients, strict=True
                ):
                    velocity.mul_(self.momentum).add_(gradient)
                    leaf.addcmul_(velocity, rate, value=-1)
                    norm += torch.linalg.vector_norm(gradient, dim=1) / batches
        self.host_params[rows] = host.detach()
        self.host_velocity[rows] = velocities[0]
        host_norm[rows] = norms[0]
        for (slot, group), leaf, velocity, norm in zip(
            places, leaves[1:], velocities[1:], norms[1:], strict=True
        ):
            width = self._seed_width(slot, group)
            self.seed_params[slot][group.rows, :width] = leaf.detach()
            self.seed_velocity[slot][group.rows, :width] = velocity
            seed_norm[group.rows, slot] = norm

    def _split_host(self, host: Tensor, plan: Plan) -> list[Tensor]:
        """Each segment's parameters in the order of its lanes, from those of the first's."""
        parts = list(host.split(self._segment_sizes, dim=1))
        order: Tensor | None = None
        for i, slot in enumerate(plan.slots):
            order = _compose([order, slot.order])
            if order is not None:
                parts[i + 1] = permute_rows(parts[i + 1], order)
        if order is not None:
            for i in range(len(plan.slots) + 1, len(parts)):
                parts[i] = permute_rows(parts[i], order)
        return parts

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
        order = rows[by_likeness(codes[rows])]
        for chunk in order.split(self.rows_at_once(len(self._validation_targets))):
            plan = make_plan(chunk, codes, ablate=ablate)
            logits = self._validate_chunk(plan, growth)
            lanes, slots = plan.lane_rows[-1], plan.lane_ablated
            targets = self._validation_targets.expand(len(logits), -1)
            lane_accuracy = (logits.argmax(1) == targets).to(loss.dtype).mean(1) * 100
            whole = slots == -1
            loss[lanes[whole]] = F.cross_entropy(
                logits[whole], targets[whole], reduction="none"
            ).mean(1)
            accuracy[lanes[whole]] = lane_accuracy[whole]
            without[lanes[~whole], slots[~whole]] = lane_accuracy[~whole]
            ablated[lanes[~whole], slots[~whole]] = True
        accuracy, ablated = accuracy[rows], ablated[rows]
        without = torch.where(ablated, without[rows], accuracy[:, None])
        return Validation(loss[rows], accuracy, without, ablated)

    def _validate_chunk(self, plan: Plan, growth: Growth) -> Tensor:
        starts = [0, *torch.tensor(self._segment_sizes).cumsum(0).tolist()]
        hosts = [
            self.host_params[:, start:stop][lanes]
            for (start, stop), lanes in zip(
                pairwise(starts), self._lanes_of_segments(plan), strict=True
            )
        ]
        x = self._validation_inputs.expand(len(hosts[0]), -1, -1)
        return self._forward(plan, hosts, self._seed_leaves(plan), x, growth.alpha)

    def _lanes_of_segments(self, plan: Plan) -> list[Tensor]:
        """Rows of the lanes of every segment; those behind the last slot share its lanes."""
        missing = len(self._segment_sizes) - len(plan.lane_rows)
        return plan.lane_rows + [plan.lane_rows[-1]] * missing


def _compose(orders: list[Tensor | None]) -> Tensor | None:
    """One permutation that does what permuting by each of ``orders`` in turn does."""
    composed: Tensor | None = None
    for order in orders:
        if order is not None:
            composed = order if composed is None else composed[order]
    return composed
