"""Programs: layers one after the other, which many networks share.

A host's segment and a blueprint are each a :class:`Program`. A layer (:mod:`envs.batched.layers`)
says which parameters it has and computes its function of n networks at once in PyTorch, on any
device and with gradients by autograd. Where it can also ``emit`` instructions, programs that
consist of such layers only run compiled on CPUs (:mod:`envs.batched.compiled`).

Features are ``[n, C, H, W, B]``, or ``[n, C, B]`` without pixels: n networks, and the B examples
of a minibatch **innermost**. Weights have a leading n. No operation mixes networks, so a NaN in
one never reaches another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from envs.batched.instructions import Assembler, Buffer, Opcode
from envs.batched.parameters import Parameter, ParameterLayout, zeros

Params = dict[str, Tensor]
"""Parameters of n networks by name, each ``[n, *shape]``."""


class Layer(Protocol):
    """A step of a program.

    A layer may have a method ``emit(code, x)`` too, which writes the instructions that do the
    same to an :class:`~envs.batched.instructions.Assembler` and returns where the result is. It
    takes columns for its parameters in the order in which it lists them.
    """

    @property
    def parameters(self) -> Sequence[Parameter]:
        """Its parameters, with names that are unique in the program."""
        ...

    def __call__(self, params: Params, x: Tensor) -> Tensor:
        """Its function of n networks."""
        ...


class Program:
    """Layers one after the other.

    Args:
        *layers: in order.

    Attributes:
        layers: as given.
        layout: all their parameters.

    Examples:
        >>> import torch
        >>> from envs.batched.layers import Conv3x3, Norm
        >>> program = Program(Conv3x3("conv", 8, 4), Norm("norm", 4, relu=True))
        >>> params = program.layout.unflatten(program.layout.draw(torch.arange(5)))
        >>> program(params, torch.randn(5, 8, 4, 4, 64)).shape
        torch.Size([5, 4, 4, 4, 64])
    """

    def __init__(self, *layers: Layer) -> None:
        self.layers = layers
        self.layout = ParameterLayout(self.parameters)

    @property
    def parameters(self) -> list[Parameter]:
        return [entry for layer in self.layers for entry in layer.parameters]

    def __call__(self, params: Params, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(params, x)
        return x

    def emit(self, code: Assembler, x: Buffer) -> Buffer:
        """Write the instructions of all layers.

        Raises:
            NotCompiledError: if a layer has no compiled form.
        """
        for layer in self.layers:
            x = emit(layer, code, x)
        return x


class NotCompiledError(Exception):
    """A layer has no compiled form."""


def emit(layer: object, code: Assembler, x: Buffer) -> Buffer:
    """Write a layer's instructions.

    Raises:
        NotCompiledError: if it has none.
    """
    if not hasattr(layer, "emit"):
        raise NotCompiledError(f"{type(layer).__name__} has no compiled form, a method emit")
    return layer.emit(code, x)


class Residual(Program):
    """x + layers(x)."""

    def __call__(self, params: Params, x: Tensor) -> Tensor:
        return x + super().__call__(params, x)

    def emit(self, code: Assembler, x: Buffer) -> Buffer:
        inner = super().emit(code, x)
        out = code.buffer(x.channels, x.height, x.width)
        return code.line(Opcode.ADD, x, out, other=inner, flag=1)


class ScaleChannels(Program):
    """x · layers(x), where the layers give one factor ``[n, C, B]`` a channel."""

    def __call__(self, params: Params, x: Tensor) -> Tensor:
        return x * super().__call__(params, x)[:, :, None, None, :]

    def emit(self, code: Assembler, x: Buffer) -> Buffer:
        factor = super().emit(code, x)
        out = code.buffer(x.channels, x.height, x.width)
        return code.line(Opcode.SCALE, x, out, other=factor, size=x.height * x.width)


class Mix(Program):
    """x + tanh(m) · (layers(x) − x) with a learned m for each channel, 0 at the start.

    Args:
        name: of m ``[channels]``.
        channels: of input and output.
        *layers: in order.
    """

    def __init__(self, name: str, channels: int, *layers: Layer) -> None:
        self.mix = zeros(name, channels)
        super().__init__(*layers)

    @property
    def parameters(self) -> list[Parameter]:
        return [self.mix, *super().parameters]

    def __call__(self, params: Params, x: Tensor) -> Tensor:
        mix = params[self.mix.name].tanh()[:, :, None, None, None]
        return x + mix * (super().__call__(params, x) - x)

    def emit(self, code: Assembler, x: Buffer) -> Buffer:
        start = code.columns([self.mix])
        inner = super().emit(code, x)
        out = code.buffer(x.channels, x.height, x.width)
        return code.line(Opcode.MIX, x, out, other=inner, parameters=start)
