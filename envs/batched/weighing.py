"""Parameters times a small network's features, or added to them, on CPUs, compiled by Numba.

Features are ``[C·H·W, B]``, B examples innermost.
"""

from __future__ import annotations

from envs.batched.instructions import Field
from envs.batched.products import Array, kernel

_HEIGHT, _WIDTH, _SIGN = int(Field.HEIGHT), int(Field.WIDTH), int(Field.FLAG)
_BY_CHANNEL, _BY_PIXEL = int(Field.STRIDE), int(Field.PADDING)


@kernel
def weigh(wanted: bool | None, line: Array, own: Array, x: Array, out: Array) -> None:
    """Run a line that is WEIGH.

    Args:
        wanted: None where there is none, so that it isn't compiled.
        line: the instruction.
        own: parameters from the layer's first on.
        x: features, all that it reads.
        out: features from the first that it writes on.
    """
    if wanted is not None:
        pixels, sign = line[_HEIGHT] * line[_WIDTH], x.dtype.type(line[_SIGN])
        for m in range(len(x)):
            value = own[m // pixels * line[_BY_CHANNEL] + m % pixels * line[_BY_PIXEL]]
            for b in range(x.shape[1]):
                out[m, b] = x[m, b] * value if sign == 0 else x[m, b] + sign * value


@kernel
def weigh_backward(
    wanted: bool | None,
    line: Array,
    own: Array,
    x: Array,
    grad: Array,
    grad_x: Array,
    grad_own: Array,
) -> None:
    """Gradients of :func:`weigh`, added."""
    if wanted is not None:
        pixels, sign = line[_HEIGHT] * line[_WIDTH], x.dtype.type(line[_SIGN])
        for m in range(len(x)):
            place = m // pixels * line[_BY_CHANNEL] + m % pixels * line[_BY_PIXEL]
            value, dot = own[place], x.dtype.type(0)
            for b in range(x.shape[1]):
                dot += grad[m, b] * (x[m, b] if sign == 0 else sign)
                grad_x[m, b] += grad[m, b] * value if sign == 0 else grad[m, b]
            grad_own[place] += dot
