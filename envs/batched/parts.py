"""Parameters that run together, between the matrices of all networks and one flat vector."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from envs.batched.parameters import ParameterLayout


@dataclass(frozen=True)
class Part:
    """Parameters that run together: one segment or one kind of seed, for some lanes.

    Attributes:
        matrices: of all rows, parameters first, then the optimizer's buffers; the first
            ``layout.size`` columns count.
        rows: int64 ``[n]``, the row of every lane.
        layout: names and shapes.
        slot: of the seeds, None for a host's segment.
    """

    matrices: Sequence[Tensor]
    rows: Tensor
    layout: ParameterLayout
    slot: int | None

    @property
    def size(self) -> int:
        """Numbers in one matrix that belong to the part."""
        return len(self.rows) * self.layout.size

    def params(self) -> dict[str, Tensor]:
        """Copies of the lanes' parameters by name, ``[n, *shape]``."""
        return self.layout.unflatten(self._flat(self.matrices[0]))

    def pieces(self, matrix: Tensor) -> list[Tensor]:
        """Copies of the lanes' rows of a matrix, one vector for each named tensor."""
        return [piece.flatten() for piece in self.layout.unflatten(self._flat(matrix)).values()]

    def spread(self, lanes: Tensor) -> Tensor:
        """A number a lane repeated for each of its parameters, in the order of the pieces."""
        return torch.cat([lanes.repeat_interleave(count) for count in self._counts])

    def leaves(self, vector: Tensor) -> dict[str, Tensor]:
        """Views of a vector of pieces by name, ``[n, *shape]``, each a leaf for autograd."""
        n = len(self.rows)
        return {
            entry.name: piece.view(n, *entry.shape).detach().requires_grad_()
            for entry, piece in zip(self.layout.entries, self._split(vector), strict=True)
        }

    def write(self, vectors: Sequence[Tensor]) -> None:
        """Put vectors of pieces back, one for each matrix."""
        n = len(self.rows)
        for matrix, vector in zip(self.matrices, vectors, strict=True):
            columns = [piece.view(n, -1) for piece in self._split(vector)]
            matrix[self.rows, : self.layout.size] = torch.cat(columns, dim=1)

    @property
    def _counts(self) -> list[int]:
        return [math.prod(entry.shape) for entry in self.layout.entries]

    def _split(self, vector: Tensor) -> tuple[Tensor, ...]:
        """Views of a vector of pieces, one for each named tensor of all lanes."""
        return vector.split([len(self.rows) * count for count in self._counts])

    def _flat(self, matrix: Tensor) -> Tensor:
        return matrix[self.rows, : self.layout.size]
