"""Plans of rows that run together at every slot, worked out once for an epoch.

Rows are sorted so that those with the same module at a slot stand side by side; then it runs
once for all of them. One forward pass of a chunk of rows follows one plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor


class Mode(IntEnum):
    """Effects of a module on the features at its slot; incubating rows come first in a group."""

    INCUBATE = 0
    ADD = 1
    MULTIPLY = 2
    GATE = 3


PASS = 0
"""The code of a slot that leaves the features alone."""


@dataclass(frozen=True)
class Group:
    """Neighbouring lanes with the same module at a slot.

    Attributes:
        kind: which module.
        rows: int64 ``[n]``, the row of every lane.
        modes: how many lanes of each mode follow each other.
    """

    kind: int
    rows: Tensor
    modes: list[tuple[Mode, int]]


@dataclass(frozen=True)
class SlotPlan:
    """The part of a plan that is about one slot.

    Attributes:
        order: the permutation of lanes that groups them, or None if they stand right already.
        num_passing: lanes, all in front, that leave the features alone.
        groups: the others.
        ablated: lanes (after ``order``) whose features also go on **without** the seed, as new
            lanes behind all others; None if there are none.
    """

    order: Tensor | None
    num_passing: int
    groups: list[Group]
    ablated: Tensor | None


@dataclass(frozen=True)
class Plan:
    """A forward pass of some rows through all segments.

    Attributes:
        slots: one entry a slot.
        lane_rows: for every segment, int64 ``[lanes]``: the row of every lane.
        lane_ablated: int64 ``[lanes]`` at the end: which slots' seeds are left out, bit s for
            slot s.
    """

    slots: list[SlotPlan]
    lane_rows: list[Tensor]
    lane_ablated: Tensor


def slot_codes(kind: Tensor, mode: Tensor, runs: Tensor) -> Tensor:
    """Encode the work of each slot as a number to sort by: int64 ``[N, S]``.

    Args:
        kind: int64 ``[N, S]``, which module it is.
        mode: int64 ``[N, S]``, a :class:`Mode`.
        runs: bool ``[N, S]``; the others leave the features alone.
    """
    return torch.where(runs, 1 + kind * len(Mode) + mode, PASS)


def by_likeness(codes: Tensor) -> Tensor:
    """An order of the rows of ``codes [N, S]`` in which like rows are neighbours: ``[N]``."""
    order = torch.arange(len(codes), device=codes.device)
    for code in codes.flip(1).unbind(1):
        order = order[code[order].argsort(stable=True)]
    return order


def make_plan(rows: Tensor, codes: Tensor, *, ablate: int) -> Plan:
    """The plan of one forward pass.

    Args:
        rows: int64 ``[n]``, the rows that run.
        codes: of all rows, from :func:`slot_codes`.
        ablate: add lanes that run without up to so many of the modules, in all combinations;
            lanes share everything before the first slot in which they differ.
    """
    slots: list[SlotPlan] = []
    lane_rows = [rows]
    left_out, number = torch.zeros_like(rows), torch.zeros_like(rows)
    for slot in range(codes.shape[1]):
        order: Tensor | None = None
        lane_codes = codes[rows, slot]
        if (lane_codes.diff() < 0).any():
            lane_codes, order = lane_codes.sort(stable=True)
            rows, left_out, number = rows[order], left_out[order], number[order]
        num_passing, groups = _groups(lane_codes, rows)
        ablated = None
        if ablate:
            ablated = ((number < ablate) & (lane_codes != PASS)).nonzero().squeeze(1)
            if len(ablated) == 0:
                ablated = None
            else:
                rows = torch.cat([rows, rows[ablated]])
                left_out = torch.cat([left_out, left_out[ablated] + (1 << slot)])
                number = torch.cat([number, number[ablated] + 1])
        slots.append(SlotPlan(order, num_passing, groups, ablated))
        lane_rows.append(rows)
    return Plan(slots, lane_rows, left_out)


def _groups(lane_codes: Tensor, rows: Tensor) -> tuple[int, list[Group]]:
    """Runs of equal modules in sorted codes."""
    values, counts = lane_codes.unique_consecutive(return_counts=True)
    num_passing = 0
    spans: dict[int, list[tuple[Mode, int]]] = {}
    for code, count in torch.stack([values, counts], 1).tolist():
        if code == PASS:
            num_passing = count
        else:
            kind, mode = divmod(code - 1, len(Mode))
            spans.setdefault(kind, []).append((Mode(mode), count))
    groups = []
    start = num_passing
    for kind, modes in spans.items():
        stop = start + sum(count for _, count in modes)
        groups.append(Group(kind, rows[start:stop], modes))
        start = stop
    return num_passing, groups
