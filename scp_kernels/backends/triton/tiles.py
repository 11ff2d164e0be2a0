"""The tiles of all position maps, and the launches of the kernels that classify units and fold them on each."""

from collections.abc import Callable

import torch
import triton
from torch import Tensor

from scp_kernels.backends.triton import tables
from scp_kernels.backends.triton.classify import scp_classify_fwd_kernel
from scp_kernels.backends.triton.fold import scp_fold_fwd_kernel
from scp_kernels.backends.triton.sequence import Launch
from scp_kernels.problem import Problem


class FoldedTiles:
    """The tiles of all position maps, one after another, and Φ folded on a chunk of them."""

    def __init__(
        self, tile: tuple[int, int], phi: tuple[Tensor, ...], w2t: Tensor, matrix: Tensor, problem: Problem
    ) -> None:
        h1, h2 = problem.hidden
        *depth, height, width = problem.spatial_shape
        rows, columns = triton.cdiv(height, tile[0]), triton.cdiv(width, tile[1])
        tiles_per_map = rows * columns * (depth[0] if depth else 1)
        self.total = problem.groups * tiles_per_map
        # Lines of active units and of unstable ones, whose numbers and count; the affine rows, and their gradient.
        bytes_per_tile = problem.compute_dtype.itemsize * (6 * h1 + 6 * h2) + 4 * (h1 + 1)
        self.chunk = min(self.total, max(1, tables.FOLDED_BYTES // bytes_per_tile))
        self.matrix = matrix.contiguous()
        self.geometry = {
            "tiles_per_map": tiles_per_map,
            "tiles_h": rows,
            "tiles_w": columns,
            "TILE_H": tile[0],
            "TILE_W": tile[1],
        }
        self.positions = {
            "matrix": self.matrix,
            "matrix_stride": 0 if matrix.ndim == 2 else 2 * problem.position_dims * (problem.spatial_dims + 1),
            "DIMS": problem.spatial_dims,
            "POSITION_DIMS": problem.position_dims,
        }
        self._phi, self.w2t, self._hidden = phi, w2t, problem.hidden
        device, dtype = matrix.device, problem.compute_dtype
        self.active = torch.empty(self.chunk, 3, h1, dtype=dtype, device=device)
        self.unstable = {
            "lines": torch.empty(self.chunk, 3, h1, dtype=dtype, device=device),
            "units": torch.empty(self.chunk, h1, dtype=torch.int32, device=device),
            "counts": torch.empty(self.chunk, dtype=torch.int32, device=device),
        }
        self.folded = torch.empty(self.chunk, 3, h2, dtype=dtype, device=device)

    def launches(self, passes: list[Callable[[int, int], list[Launch]]]) -> list[Launch]:
        """For each chunk the folding, then what every pass launches for ``first_tile, tiles``."""
        result = []
        for first in range(0, self.total, self.chunk):
            count = min(self.chunk, self.total - first)
            result += self._fold(first, count)
            for launches_of in passes:
                result += launches_of(first, count)
        return result

    def _fold(self, first: int, count: int) -> list[Launch]:
        h1, h2 = self._hidden
        classify = {
            "w1": self._phi[0], "b1": self._phi[1], "active": self.active, "first_tile": first, "h1": h1,
            "BLOCK": tables.BLOCK_CLASSIFIED, **self.unstable, **self.geometry, **self.positions,
        }  # fmt: skip
        fold = {
            "active": self.active, "w2t": self.w2t, "b2": self._phi[3], "folded": self.folded, "rows": 3 * count,
            "h1": h1, "h2": h2, **tables.FOLD,
        }  # fmt: skip
        blocks = triton.cdiv(3 * count, tables.FOLD["BLOCK_ROWS"]), triton.cdiv(h2, tables.FOLD["BLOCK_H2"])
        return [
            Launch(scp_classify_fwd_kernel, (count, 1, 1), classify, tables.options(1)),
            Launch(scp_fold_fwd_kernel, (*blocks, 1), fold, tables.options(4)),
        ]
