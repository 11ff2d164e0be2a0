"""The tiles of all position maps, and the launches of the plan kernels on them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from scp_kernels.backends.triton import tables
from scp_kernels.backends.triton.plan import scp_classify_kernel, scp_fold_kernel
from scp_kernels.problem import Problem


@dataclass(frozen=True)
class Launch:
    """One kernel launch: everything that the JIT compiler specialises on, and the grid."""

    kernel: Any
    grid: tuple[int, int, int]
    arguments: dict[str, Any]
    options: dict[str, Any]

    def run(self) -> None:
        """Launch on the current stream of the current device."""
        self.kernel[self.grid](**self.arguments, **self.options)


class Sites:
    """The tiles of all position maps, one after another, and the plan kernels' tensors for a chunk of them."""

    def __init__(
        self, tile: tuple[int, int], phi: tuple[Tensor, ...], w2t: Tensor, matrix: Tensor, problem: Problem
    ) -> None:
        h1, h2 = problem.hidden
        *depth, height, width = problem.spatial_shape
        rows, columns = triton.cdiv(height, tile[0]), triton.cdiv(width, tile[1])
        tiles = rows * columns * (depth[0] if depth else 1)
        self.total = problem.groups * tiles
        # (c, a, b) of units that are on, and of mixed ones, with their numbers and count; folded, and its gradient.
        site_bytes = problem.compute_dtype.itemsize * (6 * h1 + 6 * h2) + 4 * (h1 + 1)
        self.chunk = min(self.total, max(1, tables.PLAN_BYTES // site_bytes))
        self.tile = tile
        self.matrix = matrix.contiguous()
        self.geometry = {"tiles": tiles, "tiles_h": rows, "tiles_w": columns, "TILE_H": tile[0], "TILE_W": tile[1]}
        self.positions = {
            "matrix": self.matrix,
            "matrix_stride": 0 if matrix.ndim == 2 else 2 * problem.spatial_dims * (problem.spatial_dims + 1),
            "DIMS": problem.spatial_dims,
        }
        self._phi, self.w2t, self._hidden = phi, w2t, problem.hidden
        device = matrix.device
        self.on, lines = (torch.empty(self.chunk, 3, h1, dtype=problem.compute_dtype, device=device) for _ in range(2))
        self.mixed = {
            "lines": lines,
            "units": torch.empty(self.chunk, h1, dtype=torch.int32, device=device),
            "counts": torch.empty(self.chunk, dtype=torch.int32, device=device),
        }
        self.folded = torch.empty(self.chunk, 3, h2, dtype=problem.compute_dtype, device=device)

    def launches(self, passes: list[Callable[[int, int], list[Launch]]]) -> list[Launch]:
        """For each chunk the plan, then what every pass launches for ``first_site, sites``."""
        found = []
        for first in range(0, self.total, self.chunk):
            count = min(self.chunk, self.total - first)
            found += self._plan(first, count)
            for launches_of in passes:
                found += launches_of(first, count)
        return found

    def _plan(self, first: int, count: int) -> list[Launch]:
        h1, h2 = self._hidden
        classify = {
            "w1": self._phi[0], "b1": self._phi[1], "on": self.on, "first_site": first, "h1": h1,
            "BLOCK": tables.BLOCK_CLASSIFIED, **self.mixed, **self.geometry, **self.positions,
        }  # fmt: skip
        fold = {
            "on": self.on, "w2t": self.w2t, "b2": self._phi[3], "folded": self.folded, "rows": 3 * count,
            "h1": h1, "h2": h2, **tables.FOLD,
        }  # fmt: skip
        blocks = triton.cdiv(3 * count, tables.FOLD["BLOCK_ROWS"]), triton.cdiv(h2, tables.FOLD["BLOCK_H2"])
        return [
            Launch(scp_classify_kernel, (count, 1, 1), classify, tables.options(1)),
            Launch(scp_fold_kernel, (*blocks, 1), fold, tables.options(4)),
        ]
