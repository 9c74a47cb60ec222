"""Networks that a loop of someone's own trains: ordinary modules, and their optimizers.

What grows in such a network joins its optimizer, and what leaves it leaves the optimizer too; how
large gradients are is seen by a hook.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import LBFGS, Optimizer, SparseAdam

from envs.actions import Stage
from envs.batched.modes import Mode
from envs.batched_state import cloned
from envs.networks.growing import Blend, Gate, GrowingNetwork
from envs.networks.offers import Offer
from envs.populations.base import SlotInputs
from envs.populations.measuring import Measure, measure, seeded


class LiveNetwork:
    """A growing network, the optimizer that trains it, and all that has been planted.

    The optimizer is given a group for every slot, empty at first, which has the options of the
    host's parameters before the slot. Its learning rate follows theirs, whatever changes that.

    Args:
        network: made of a module, with an offer of blueprints.
        optimizer: has all parameters of the network that are trained.
        shared: where :mod:`torch.distributed` runs in several processes, each trains the same
            network: all have the same seeds, the mean of their gradients, and of what validation
            gives.

    Raises:
        TypeError: for something else than these.
        ValueError: if the optimizer lacks parameters, can't have groups, or has a learning rate
            schedule already.

    Attributes:
        network, optimizer: as given.
        offer: what can be planted.
        steps: of the optimizer in this epoch.
    """

    def __init__(
        self, network: GrowingNetwork, optimizer: Optimizer, *, shared: bool = False
    ) -> None:
        _check(network, optimizer)
        self.network, self.optimizer = network, optimizer
        self.offer: Offer = cast(Offer, network.offer)
        num_slots = len(network.slots)
        self.host_groups = [_group_of(network.pieces[slot], optimizer) for slot in range(num_slots)]
        self.first_group = len(optimizer.param_groups)
        for host in self.host_groups:
            options = {k: v for k, v in optimizer.param_groups[host].items() if k != "params"}
            optimizer.add_param_group({**options, "params": []})
        # Of every slot: blueprint and seed, which is in the network as soon as it runs.
        self.planted: list[tuple[str, Blend] | None] = [None] * num_slots
        self.stages = [Stage.DORMANT] * num_slots
        self.factors = [1.0] * num_slots
        self._norms = torch.zeros(1 + num_slots, dtype=torch.float32, device=self.device)
        self.steps = 0
        self._saved = self._kept()
        optimizer.register_step_pre_hook(self._before_step)
        several = shared and dist.is_available() and dist.is_initialized()
        self.processes = dist.get_world_size() if several else 1
        self._processes = dist.new_group() if self.processes > 1 else None

    @property
    def device(self) -> torch.device:
        """Of the network."""
        return next(self.network.parameters()).device

    # -- growth -----------------------------------------------------------------------------

    def plant(self, slot: int, blueprint: str, key: int) -> None:
        """Make a seed, drawn from ``key``; it runs as soon as :meth:`settle` says so."""
        self.remove(slot)
        blend = self._make(slot, blueprint, key)
        if self._processes is not None:
            for tensor in (*blend.parameters(), *blend.buffers()):
                dist.broadcast(tensor.data, 0, self._processes)
        self.planted[slot] = blueprint, blend

    def remove(self, slot: int) -> None:
        """Take what is in a slot out of network and optimizer."""
        self.planted[slot] = None
        if isinstance(self.network.slots[slot], Blend):
            self.network.remove(slot)
        self._optimize(slot, [])

    def settle(self, inputs: SlotInputs, row: int) -> None:
        """Make the network what the world says of it: seeds, their effect and learning rates."""
        stages, trains = inputs.stage[row].tolist(), inputs.trains[row].tolist()
        modes, alphas = inputs.mode[row].tolist(), inputs.alpha[row].tolist()
        rates = (inputs.seed_lr[row] / inputs.host_lr[row]).tolist()
        for slot, planted in enumerate(self.planted):
            self.stages[slot], self.factors[slot] = Stage(stages[slot]), rates[slot]
            if planted is not None and inputs.blueprint[row, slot] < 0:
                self.remove(slot)
            elif planted is not None and trains[slot]:
                _, blend = planted
                mode = Mode(modes[slot])
                gate = blend.gate or self._gate(slot) if mode is Mode.GATE else None
                blend.become(mode, gate)
                blend.alpha.fill_(alphas[slot])
                self._run(slot, blend)

    def _make(self, slot: int, blueprint: str, key: int, mode: Mode = Mode.INCUBATE) -> Blend:
        """A fresh seed for a slot."""
        with seeded(key, self.device):
            seed = self.offer.blueprints[blueprint](self.offer.channels[slot])
        gate = self._gate(slot) if mode is Mode.GATE else None
        return Blend(seed, mode, gate=gate).to(self._like(slot))

    def _run(self, slot: int, blend: Blend) -> None:
        """Let a seed run in the network, and be optimized."""
        if self.network.slots[slot] is not blend:
            self.network.slots[slot] = blend.train(self.network.training)
        self._optimize(slot, list(blend.parameters()))

    def _like(self, slot: int) -> Any:
        """A tensor of the device and dtype that a slot's seed should have."""
        everything = chain(self.network.pieces[slot].parameters(), self.network.parameters())
        return next(each for each in everything if each.is_floating_point())

    def _gate(self, slot: int) -> Gate:
        dims = 1 + len(self.offer.shapes[slot])
        gate = Gate(self.offer.channels[slot], dims, self.offer.channel_dim)
        return gate.to(self._like(slot))

    def _optimize(self, slot: int, params: Sequence[nn.Parameter]) -> None:
        """Let the optimizer have these parameters of a slot, and no others."""
        group, new = self.optimizer.param_groups[self.first_group + slot], set(params)
        for parameter in group["params"]:
            if parameter not in new:
                self.optimizer.state.pop(parameter, None)
        for parameter in new - set(group["params"]):
            if self._processes is not None:
                parameter.register_post_accumulate_grad_hook(self._share)
        group["params"] = list(params)
        self._follow()

    def _share(self, parameter: nn.Parameter) -> None:
        """Give all processes the mean of a seed's gradients: data-parallel wrappers don't know it.

        As they accumulate, not before the optimizer's step: a scaler that finds an overflow must
        find it in all processes.
        """
        dist.all_reduce(parameter.grad, group=self._processes)
        cast(Tensor, parameter.grad).div_(self.processes)

    # -- training ---------------------------------------------------------------------------

    def _follow(self) -> None:
        """Let the slots' learning rates follow those of the host."""
        groups = self.optimizer.param_groups
        for slot, host in enumerate(self.host_groups):
            groups[self.first_group + slot]["lr"] = groups[host]["lr"] * self.factors[slot]

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._follow()
        of_slots = optimizer.param_groups[self.first_group :][: len(self.planted)]
        parts = [list(self.network.pieces.parameters()), *(each["params"] for each in of_slots)]
        scale = getattr(optimizer, "grad_scale", None)  # a fused optimizer takes it out itself
        for place, params in enumerate(parts):
            gradients = [p.grad for p in params if p.grad is not None]
            if gradients:
                norm = get_total_norm(gradients).to(self._norms.device).float()
                self._norms[place] += norm if scale is None else norm / scale
        self.steps += 1

    def begin_epoch(self) -> None:
        """Forget the gradients of the epoch before."""
        self._norms.zero_()
        self.steps = 0

    def mean_norms(self) -> Tensor:
        """Mean gradient norms of the optimizer's steps in this epoch: host, then slots."""
        return self._norms.cpu() / max(1, self.steps)

    # -- validation -------------------------------------------------------------------------

    def measure(
        self, validate: Measure, compare: Measure | None, sets: Sequence[Sequence[int]]
    ) -> tuple[float, float, list[float]]:
        """Validate it, also with seeds left out: :func:`~envs.populations.measuring.measure`.

        In several processes, the mean of what their validations give.
        """
        return measure(self.network, self._mean, validate, compare, sets)

    def _mean(self, numbers: list[float]) -> list[float]:
        """Means of these numbers over all processes."""
        if self._processes is None:
            return numbers
        summed = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(summed, group=self._processes)
        return (summed / self.processes).tolist()

    def agree(self, index: Tensor) -> Tensor:
        """Take what the first process has, in all of them."""
        if self._processes is None:
            return index
        shared = index.to(self.device)
        dist.broadcast(shared, 0, self._processes)
        return shared.to(index.device)

    # -- going back, and on -----------------------------------------------------------------

    def finite(self) -> bool:
        """Are all parameters and buffers numbers?"""
        with torch.no_grad():
            sums = [tensor.sum() for tensor in self.network.state_dict().values()]
            return bool(torch.stack([each.float() for each in sums]).isfinite().all())

    def save(self) -> None:
        """Keep what host and fossilized seeds are now."""
        self._saved = self._kept()

    def restore(self) -> None:
        """Take host and fossilized seeds back to what was kept; the optimizer forgets all."""
        own = self.network.state_dict()
        with torch.no_grad():
            for name, values in self._saved.items():
                own[name].copy_(values)
        self.optimizer.state.clear()

    def _kept(self) -> dict[str, Tensor]:
        fossil = Stage.FOSSILIZED
        slots = [f"slots.{slot}." for slot, stage in enumerate(self.stages) if stage is fossil]
        state = self.network.state_dict()
        return {k: v.clone() for k, v in state.items() if k.startswith(("pieces.", *slots))}

    def state_dict(self) -> dict[str, Any]:
        """Copies of all that decides how it goes on, in nested dicts."""
        planted: dict[str, Any] = {}
        for slot, each in enumerate(self.planted):
            if each is not None:
                blueprint, blend = each
                planted[str(slot)] = {
                    "blueprint": blueprint,
                    "mode": int(blend.mode),
                    "runs": self.network.slots[slot] is blend,
                    "weights": cloned(blend.state_dict()),
                }
        pieces = cloned(self.network.pieces.state_dict())
        return {
            "planted": planted,
            "pieces": pieces,
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "saved": cloned(self._saved),
            "stages": [int(stage) for stage in self.stages],
            "factors": list(self.factors),
            "norms": self._norms.clone(),
            "steps": self.steps,
        }

    def ready(self, state: Mapping[str, Any]) -> Callable[[], None]:
        """Check what :meth:`state_dict` gave; nothing is changed before what is returned is called.

        Returns:
            Goes on from there.

        Raises:
            ValueError: if the network or its optimizer differs from the one that was saved.
        """
        pieces, own = state["pieces"], self.network.pieces.state_dict()
        shapes, theirs = ({k: v.shape for k, v in each.items()} for each in (own, pieces))
        if shapes != theirs:
            odd = sorted(k for k in {*shapes, *theirs} if shapes.get(k) != theirs.get(k))
            raise ValueError(f"state must be of a network like this one, but {odd[0]!r} differs")
        planted: list[tuple[str, Blend] | None] = [None] * len(self.planted)
        for name, seed in state["planted"].items():
            slot, blueprint = int(name), seed["blueprint"]
            if slot >= len(planted) or blueprint not in self.offer.blueprints:
                raise ValueError(
                    f"state must be of a network that offers {blueprint!r} in slot {slot}, as it "
                    "was saved"
                )
            blend = self._make(slot, blueprint, 0, Mode(seed["mode"]))
            try:
                blend.load_state_dict(seed["weights"])
            except RuntimeError as error:
                raise ValueError(f"state must be of seeds like those here: {error}") from None
            planted[slot] = blueprint, blend
        runs = {int(slot) for slot, seed in state["planted"].items() if seed["runs"]}
        sizes = [len(group["params"]) for group in self.optimizer.param_groups]
        for slot, each in enumerate(planted):
            seed = list(each[1].parameters()) if each is not None and slot in runs else []
            sizes[self.first_group + slot] = len(seed)
        saved = [len(group["params"]) for group in state["optimizer"]["param_groups"]]
        if saved != sizes:
            raise ValueError(
                f"state must be of an optimizer like this one, whose groups have {sizes} "
                f"parameters, got one with {saved}"
            )
        return partial(self._go_on, state, planted, runs)

    def _go_on(
        self, state: Mapping[str, Any], planted: list[tuple[str, Blend] | None], runs: set[int]
    ) -> None:
        for slot, each in enumerate(planted):
            self.remove(slot)
            if each is not None and slot in runs:
                self._run(slot, each[1])
        self.planted = planted
        self.network.pieces.load_state_dict(state["pieces"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self._saved = cloned(dict(state["saved"]))
        self.stages = [Stage(stage) for stage in state["stages"]]
        self.factors = list(state["factors"])
        self._norms.copy_(state["norms"])
        self.steps = state["steps"]


def _check(network: object, optimizer: object) -> None:
    if not isinstance(network, GrowingNetwork):
        raise TypeError(
            f"network must be a GrowingNetwork, got {type(network).__name__}; give the network "
            "itself: what is compiled or wrapped around it shares its parameters"
        )
    if network.offer is None:
        raise ValueError(
            "network must know what can be planted; make it of a module: "
            "GrowingNetwork(model, slots=[...], example=x)"
        )
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {optimizer!r}")
    if isinstance(optimizer, LBFGS | SparseAdam):
        raise ValueError(
            f"optimizer must take groups of dense parameters, got {type(optimizer).__name__}"
        )
    if hasattr(optimizer.step, "_wrapped_by_lr_sched"):
        raise ValueError(
            "optimizer must have no learning rate schedule yet: it has to know the groups of the "
            "slots, so make the schedule afterwards"
        )
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad and id(parameter) not in known:
            raise ValueError(
                f"optimizer must have all parameters of the network, got none for {name!r}; make "
                "it of network.parameters(), or set requires_grad_(False) on what isn't trained"
            )


def _group_of(piece: nn.Module, optimizer: Optimizer) -> int:
    """The optimizer's group that has most of a piece's numbers; the first one if none has any."""
    own = {id(parameter) for parameter in piece.parameters()}
    numbers = [
        sum(p.numel() for p in group["params"] if id(p) in own) for group in optimizer.param_groups
    ]
    return numbers.index(max(numbers))
