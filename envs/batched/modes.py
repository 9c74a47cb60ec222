"""Ways in which a seed acts on the features at its slot."""

from __future__ import annotations

from enum import IntEnum


class Mode(IntEnum):
    """Effects of a seed on the features h at its slot.

    ===========  ================================================================
    mode         features
    ===========  ================================================================
    INCUBATE     h, bitwise; the seed gets the gradient that it would get in place of h
    ADD          h + α · (seed − h)
    MULTIPLY     h · (1 + α · tanh(seed − h))
    GATE         h + α · g · (seed − h), with a learned g in [0, 1] for each example
    ===========  ================================================================
    """

    INCUBATE = 0
    ADD = 1
    MULTIPLY = 2
    GATE = 3
