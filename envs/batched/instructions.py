"""Instructions of the compiled interpreter, and the assembler that programs are written with.

A layer that has a compiled form writes one or a few lines of a table of integers; the interpreter
(:mod:`envs.batched.compiled`) goes through the lines. Features have a place in the arena, counted
in numbers an example; parameters have a place in a row of the parameter matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np


class Opcode(IntEnum):
    """Work of a line: a layer, or a step around a seed."""

    CONV = 0  # also 1×1, and fully connected
    DEPTHWISE = 1
    NORM = 2
    NORM_POOL = 3
    STEM = 4  # convolution of one channel to one pixel, norm, ReLU and pooling, in closed form
    AVERAGE = 5
    ACTIVATE = 6
    ADD = 7
    SCALE = 8
    MIX = 9
    SHOW = 10  # a seed sees a copy of the features
    BLEND = 11  # and changes them by what it gives, in its mode
    EMBED = 12
    ATTEND = 13
    ALTER = 14  # features times a number, and another one added
    SPLIT = 15  # for stride 2
    MAX_POOL = 16
    AVERAGE_POOL = 17
    BATCH_NORM = 18
    WEIGH = 19  # parameters times features, or added to them
    RMS_NORM = 20


class Activation(IntEnum):
    """Functions of a number, as PyTorch has them."""

    RELU = 0
    SIGMOID = 1
    TANH = 2
    SILU = 3
    GELU = 4
    GELU_TANH = 5  # its approximation by tanh (Hendrycks & Gimpel 2016)


class Field(IntEnum):
    """Columns of the table."""

    OPCODE = 0
    X = 1  # places of features: what is read, a second one, what is written
    OTHER = 2
    OUT = 3
    SCRATCH = 4  # statistics of the examples and the like, kept for the backward pass
    PARAMETERS = 5  # place of the layer's first parameter; the others follow
    INPUTS = 6  # channels of what is read
    OUTPUTS = 7
    HEIGHT = 8  # of what is read
    WIDTH = 9
    SIZE = 10  # of a convolution's kernel, or DRAWN; see the layers for others
    FLAG = 11  # an option; number of the slot for a seed's steps
    STRIDE = 12
    PADDING = 13
    OUT_HEIGHT = 14  # of what is written
    OUT_WIDTH = 15
    REAL = 16  # numbers that aren't whole, as the bits of a float64
    SECOND_REAL = 17
    FLAT = 18  # 1 for kernels and windows of one row, of signals


DRAWN = 0
"""Size of a kernel that each network decides: its first parameter is above 0 for 3×3; then come a
1×1 and a 3×3 kernel."""


MOST_DISTANCES = 32
"""Distances between positions that ATTEND tells apart without a window; those beyond are one."""

FIRST_BIAS = 3.0
"""Term of the scores of ATTEND that a head of a window starts with at its own distance: with it, it
looks there 20 times as much as at any other one."""


@dataclass(frozen=True)
class Buffer:
    """Features in the arena.

    Attributes:
        start: place of the first, in numbers an example.
        channels, height, width: their shape.
    """

    start: int
    channels: int
    height: int = 1
    width: int = 1

    @property
    def size(self) -> int:
        """Numbers an example."""
        return self.channels * self.height * self.width


class Assembler:
    """Collects lines, and hands out places for features and parameters.

    Attributes:
        lines: of all programs so far.
        place: the next free place for features.
        inputs: the examples.
        takes_extremes: at their place come the extremes of their windows, as STEM takes them.
    """

    def __init__(self, channels: int, height: int = 1, width: int = 1) -> None:
        self.lines: list[list[int]] = []
        self.place = 0
        self.inputs = self.buffer(channels, height, width)
        self.takes_extremes = False

    def buffer(self, channels: int, height: int = 1, width: int = 1) -> Buffer:
        """Room for features."""
        buffer = Buffer(self.place, channels, height, width)
        self.place += buffer.size
        return buffer

    def line(
        self,
        opcode: Opcode,
        x: Buffer,
        out: Buffer,
        *,
        other: Buffer | None = None,
        scratch: Buffer | None = None,
        parameters: int = 0,
        size: int = 1,
        flag: int = 0,
        stride: int = 1,
        padding: int = 0,
        statistics: int = 0,
        flat: bool = False,
        reals: tuple[float, float] = (0.0, 0.0),
    ) -> Buffer:
        """Write one line and return ``out``.

        Args:
            opcode: what to do.
            x: what is read.
            out: what is written.
            other: what is read too.
            scratch: what the layer keeps for the backward pass.
            parameters: first column of the layer's parameters.
            size: see :class:`Field`; NORM: pixels that are normalised each by itself, or 1 for
                all together; BLEND: pixels for each of which the gate opens by itself, or 1;
                ATTEND: heads; EMBED: 1 for a weight [channels, tokens], 0 for [tokens, channels];
                ACTIVATE: an :class:`Activation`; SCALE: pixels that a
                factor is for.
            flag: CONV, DEPTHWISE: is there a bias; NORM: ReLU of it; EMBED: tokens; ATTEND: the
                window, or 0; ADD: 1, or −1 to subtract; WEIGH: 0 to multiply, 1
                to add, −1 to subtract.
            stride, padding: of convolutions and pooling; NORM: columns from the scale to the shift.
                ATTEND: 1 for learned terms of the scores, else 0; 1 for full attention, 0 for
                causal. WEIGH: numbers from one channel's parameter to the next one's, and from
                one pixel's.
            statistics: BATCH_NORM: first column of the running ones; ``flag`` is 1 for ReLU of it.
            flat: convolutions and pooling: kernels and windows are one row high, and no zeros are
                above or below.
            reals: norms: ε, added to the variance; BATCH_NORM: and the momentum; ALTER: a factor
                and a term.
        """
        values: dict[Field, Any] = {
            Field.OPCODE: opcode,
            Field.X: x.start,
            Field.OTHER: statistics if other is None else other.start,
            Field.OUT: out.start,
            Field.SCRATCH: 0 if scratch is None else scratch.start,
            Field.PARAMETERS: parameters,
            Field.INPUTS: x.channels,
            Field.OUTPUTS: out.channels,
            Field.HEIGHT: x.height,
            Field.WIDTH: x.width,
            Field.SIZE: size,
            Field.FLAG: flag,
            Field.STRIDE: stride,
            Field.PADDING: padding,
            Field.OUT_HEIGHT: out.height,
            Field.OUT_WIDTH: out.width,
            Field.REAL: np.float64(reals[0]).view(np.int64),
            Field.SECOND_REAL: np.float64(reals[1]).view(np.int64),
            Field.FLAT: flat,
        }
        self.lines.append([int(values[field]) for field in Field])
        return out

    @property
    def further(self) -> bool:
        """Is a line of a kind that the hosts of this package don't have?"""
        return any(
            line[Field.OPCODE] >= Opcode.SPLIT
            or (line[Field.OPCODE] == Opcode.ACTIVATE and line[Field.SIZE] > Activation.SIGMOID)
            for line in self.lines
        )

    def table(self) -> np.ndarray:
        """The lines: int64 ``[lines, fields]``."""
        return np.array(self.lines, np.int64).reshape(-1, len(Field))
