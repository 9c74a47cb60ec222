"""Fresh parameters of many networks at once, as their module's own factory would draw them.

To make a module for every network is slow. So a factory is watched once: where it fills a parameter
by :meth:`torch.Tensor.uniform_` or :meth:`~torch.Tensor.normal_`, as PyTorch's layers and
:mod:`torch.nn.init` do, or always with the same values, many are drawn from the same distribution
in one go. A module with a parameter that comes about in another way is made anew for each network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode

from envs.batched.randomness import normal, uniform

ModuleFactory = Callable[[], nn.Module]

_SEEDS = 2**63 - 1


@dataclass(frozen=True)
class Law:
    """Distribution of a parameter's numbers: ``centre + width · U(−1, 1)``, or ``· N(0, 1)``."""

    centre: Tensor
    width: float = 0.0
    is_normal: bool = False


class _Watch(TorchDispatchMode):
    """Notes how the storage of each tensor was filled last."""

    def __init__(self) -> None:
        super().__init__()
        self.laws: dict[int, tuple[float, float, bool] | None] = {}
        self._kept: list[Any] = []  # so that no storage is freed, and its place taken by another

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # the name and signature that PyTorch calls
        given = func(*args, **(kwargs or {}))
        self._kept.append(given)
        if func._schema.is_mutable:
            for argument, value in zip(func._schema.arguments, args, strict=False):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    self._note(func, args, kwargs or {}, value)
        return given

    def _note(self, func: Any, args: Any, kwargs: Mapping[str, Any], target: Any) -> None:
        if not isinstance(target, Tensor):
            return
        options: dict[str, Any] = {"from": 0.0, "to": 1.0, "mean": 0.0, "std": 1.0}
        names = [argument.name for argument in func._schema.arguments]
        options |= {**dict(zip(names, args, strict=False)), **kwargs}
        law = None
        if _is_whole(target) and func is torch.ops.aten.uniform_.default:
            low, high = float(options["from"]), float(options["to"])
            law = (low + high) / 2, (high - low) / 2, False
        elif _is_whole(target) and func is torch.ops.aten.normal_.default:
            law = float(options["mean"]), float(options["std"]), True
        self.laws[target.untyped_storage().data_ptr()] = law


class Initialisation:
    """A factory's module as it starts.

    Args:
        factory: makes the module; random only by torch's own generator.
        example: an input ``[1, …]``, from which lazy modules take their shape.

    Attributes:
        module: one that was made, in float32 as all are.
        varies: names of the parameters and buffers that aren't always the same.
        laws: of the parameters and buffers by name; None where there is one that can't be drawn
            but by the factory.

    Raises:
        TypeError: if the factory makes something else.
        ValueError: if it isn't the same again with torch's generator in the same state, or has no
            numbers, as on the meta device.
    """

    def __init__(self, factory: ModuleFactory, example: Tensor | None = None) -> None:
        self._factory, self._example = factory, example
        watch = _Watch()
        with watch:
            self.module = self._make(0)
        mine, same, other = (tensors_of(m) for m in (self.module, self._make(0), self._make(1)))
        changed = [name for name, values in mine.items() if not _equal(values, same[name])]
        if changed:
            raise ValueError(
                f"factory must draw from torch's random numbers alone, but {changed[0]!r} differs "
                "between two modules made with the same torch.manual_seed"
            )
        self.varies = {name for name, values in mine.items() if not _equal(values, other[name])}
        laws: dict[str, Law] = {}
        for name, values in mine.items():
            seen = watch.laws.get(values.untyped_storage().data_ptr())
            if name not in self.varies:
                laws[name] = Law(values.detach())
            elif seen is not None and _is_whole(values):
                centre, width, is_normal = seen
                laws[name] = Law(torch.full_like(values.detach(), centre), width, is_normal)
        self.laws = laws if len(laws) == len(mine) else None

    def draw(self, names: Mapping[str, int], keys: Tensor, skip: int = 0) -> Tensor:
        """Some of the tensors of a fresh module, one after the other, for every key.

        Args:
            names: of the tensors, each with its number of numbers.
            keys: int64 ``[n]``.
            skip: numbers at the front of a key's stream that are something else's.

        Returns:
            float32 ``[n, numbers]``, on the device of ``keys``.
        """
        if self.laws is None:
            return self._draw_by_factory(names, keys)
        laws = [self.laws[name] for name in names]
        if not laws:
            return torch.zeros(len(keys), 0, device=keys.device)
        device, sizes = keys.device, torch.tensor([*names.values()])
        centre = torch.cat([law.centre.flatten().float() for law in laws]).to(device)
        width = torch.tensor([law.width for law in laws], dtype=torch.float32)
        width = width.repeat_interleave(sizes).to(device)
        drawn = uniform(keys, skip + len(centre))[:, skip:]
        is_normal = torch.tensor([law.is_normal for law in laws]).repeat_interleave(sizes)
        if is_normal.any():
            bell = is_normal.nonzero().squeeze(1).to(device)
            drawn[:, bell] = normal(keys, len(bell))
        return drawn * width + centre

    def _draw_by_factory(self, names: Mapping[str, int], keys: Tensor) -> Tensor:
        rows = []
        for seed in keys.tolist():
            made = tensors_of(self._make(seed & _SEEDS))
            rows.append(torch.cat([made[name].detach().flatten().float() for name in names]))
        return torch.stack(rows).to(keys.device)

    def _make(self, seed: int) -> nn.Module:
        state, dtype = torch.get_rng_state(), torch.get_default_dtype()
        try:
            torch.set_default_dtype(torch.float32)
            torch.default_generator.manual_seed(seed)  # torch.manual_seed looks at all devices
            module = self._factory()
            if not isinstance(module, nn.Module):
                raise TypeError(f"factory must make a torch.nn.Module, got {type(module).__name__}")
            module = module.float()
            if self._example is not None and any(map(is_lazy, tensors_of(module).values())):
                with torch.no_grad():  # some layers want more than one example
                    module.eval()(torch.cat([self._example, self._example]))
                module.train()
            for name, tensor in tensors_of(module).items():
                if tensor.is_meta or is_lazy(tensor):
                    raise ValueError(
                        f"factory must make a module with its numbers, got none for {name!r}; "
                        "leave out the meta device, or modules that nothing runs"
                    )
            return module
        finally:
            torch.set_rng_state(state)
            torch.set_default_dtype(dtype)


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """A module's own parameters and buffers, by name."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _is_whole(tensor: Tensor) -> bool:
    """Is it all of its storage?"""
    return tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()


def _equal(a: Tensor, b: Tensor) -> bool:
    return torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))
