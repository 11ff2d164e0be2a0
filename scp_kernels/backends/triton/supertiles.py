"""Φ folded on the supertiles and tiles of all position maps: memory, and the launches of the kernels that fold."""

import math
from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

from scp_kernels.backends.triton import tables
from scp_kernels.backends.triton.fold_backward import scp_collect_bwd_kernel, scp_fold_bwd_kernel
from scp_kernels.backends.triton.folding import (
    scp_classify_fwd_kernel,
    scp_fold_hidden_fwd_kernel,
    scp_fold_outputs_fwd_kernel,
)
from scp_kernels.backends.triton.prepare import scp_prepare_fwd_kernel
from scp_kernels.backends.triton.sequence import Launch
from scp_kernels.backends.triton.slabs import scp_sum_slabs_bwd_kernel
from scp_kernels.problem import Problem


def row_capacity(problem: Problem) -> int:
    """Unstable units of layer 1 that a box folds exactly; with more it is an overflow box.

    The larger a supertile is beside the map, the more kinks cross it: at PyTorch's initialisation the one with most of
    them has 0.6 of its extents' shares of the map's, summed, times h₁.
    """
    h1 = problem.hidden[0]
    shares = (n / size for n, size in zip(tables.SUPERTILE, problem.spatial_shape[-2:], strict=True))
    return min(h1, 8 + int(0.8 * max(1 / 6, sum(shares)) * h1))


class Slabs:
    """Partial gradients of Φ (``slabs``). A slab belongs to one program of a launch, which adds up a run of boxes."""

    def __init__(self, boxes: int, problem: Problem, device: torch.device) -> None:
        """As many slabs as fit the workspace (one at least), and no more than boxes are dealt out over."""
        h1, h2 = problem.hidden
        outputs, axes = problem.num_classes * problem.channels, problem.position_dims
        columns = 2 * axes + 1  # of w₁, and b₁
        dtype = problem.compute_dtype
        length = h1 * h2 + h2 * outputs + h2 + outputs  # of w₂ᵀ, w₃ᵀ, b₂, b₃
        rows = h1 + h2 + 1
        size = length * dtype.itemsize + h1 * columns * torch.float64.itemsize + rows * torch.int32.itemsize
        most = max(1, min(boxes, tables.PARTIALS_BYTES // size, tables.MOST_SLABS))
        self.count = triton.cdiv(boxes, triton.cdiv(boxes, most))  # none is without work where all boxes are dealt out
        self.partials = torch.empty(self.count, length, dtype=dtype, device=device)
        self.first_layer = torch.empty(self.count, h1, columns, dtype=torch.float64, device=device)
        self.begun = torch.zeros(self.count, rows, dtype=torch.int32, device=device)
        shapes = ((h1, 2 * axes), (h1,), (h2, h1), (h2,), (outputs, h2), (outputs,))
        self.gradients = tuple(torch.empty(shape, dtype=dtype, device=device) for shape in shapes)
        self._sizes = {"h1": h1, "h2": h2, "output_count": outputs}

    def memory(self) -> dict[str, Any]:
        """What every kernel that adds to slabs is told, and the one that sums them."""
        return {
            "partials": self.partials,
            "partials_stride": self.partials.stride(0),
            "first_layer": self.first_layer,
            "begun": self.begun,
        }

    def deal(self, boxes: int) -> tuple[int, dict[str, Any]]:
        """Over how many slabs so many boxes are dealt out, and what their kernels are told."""
        per_slab = triton.cdiv(boxes, min(boxes, self.count))
        return triton.cdiv(boxes, per_slab), {"boxes": boxes, "boxes_per_slab": per_slab, **self.memory()}

    def sums(self) -> Launch:
        """The launch that sums the slabs."""
        axes = (self.first_layer.shape[2] - 1) // 2
        of_parameters = zip(("w1", "b1", "w2", "b2", "w3", "b3"), self.gradients, strict=True)
        arguments = {
            **self.memory(), **{f"grad_{name}": gradient for name, gradient in of_parameters}, **self._sizes,
            "slabs": self.count, "POSITION_DIMS": axes, "POSITION_BLOCK": tables.position_block(axes),
            **tables.SUM_SLABS,
        }  # fmt: skip
        columns = max(self._sizes["h2"], self._sizes["output_count"])
        grid = (self.begun.shape[1], 1 + triton.cdiv(columns, tables.SUM_SLABS["BLOCK"]), 1)
        return Launch(scp_sum_slabs_bwd_kernel, grid, arguments, tables.compile_options(4))


class PreparedNetwork:
    """Φ as the kernels load it: w₂ᵀ, w₃ᵀ, and the biases of layers 2 and 3 with w_r, checked (``prepare``)."""

    def __init__(self, phi: tuple[Tensor, ...], residual: Tensor) -> None:
        self.w1, self.b1, w2, b2, w3, b3 = phi
        self._given = {"w2": w2, "b2": b2, "w3": w3, "b3": b3, "residual": residual}
        self.w2t, self.w3t = (torch.empty(w.shape[::-1], dtype=w.dtype, device=w.device) for w in (w2, w3))
        self.b2, self.b3 = torch.empty_like(b2), torch.empty_like(b3)

    def launches(self) -> list[Launch]:
        (h1, h2), outputs = self.w2t.shape, len(self.b3)
        arguments = self._given | {
            "w2t": self.w2t, "checked_b2": self.b2, "w3t": self.w3t, "checked_b3": self.b3,
            "h1": h1, "h2": h2, "output_count": outputs, **tables.PREPARE,
        }  # fmt: skip
        grid = (triton.cdiv(max(h2, outputs), tables.PREPARE["BLOCK_ROWS"]), 2, 1)
        return [Launch(scp_prepare_fwd_kernel, grid, arguments, tables.compile_options(4))]


class Boxes:
    """The lists of a chunk's boxes, supertiles or tiles (see ``folding``), and gradients of what is folded there."""

    def __init__(
        self, box: tuple[int, int], supertiles: int, problem: Problem, device: torch.device, *, gradients: bool
    ) -> None:
        height, width = tables.SUPERTILE
        self.box = box
        self.per_supertile = height // box[0] * (width // box[1])
        boxes = supertiles * self.per_supertile
        for name, shape, dtype in self._tensors(problem, gradients):
            setattr(self, name, torch.empty(boxes, *shape, dtype=dtype, device=device))

    @staticmethod
    def _tensors(problem: Problem, gradients: bool) -> list[tuple[str, tuple[int, ...], torch.dtype]]:
        """Name, shape per box and dtype of every tensor."""
        h1, h2 = problem.hidden
        outputs = 3 + row_capacity(problem), problem.num_classes * problem.channels
        dtype = problem.compute_dtype
        lists: list[tuple[str, tuple[int, ...], torch.dtype]] = [
            ("unit1", (h1,), torch.int32),
            ("index_in_parent", (h1,), torch.int32),
            ("lines", (3, h1), dtype),
            ("unit2", (h2,), torch.int32),
            ("rows", (3, h2), dtype),
            ("outputs", outputs, dtype),
            ("counts", (4,), torch.int32),
        ]
        if gradients:
            lists += [("grad_outputs", outputs, dtype), ("grad_rows", (3, h2), dtype), ("moments", (3, h1), dtype)]
        return lists

    @classmethod
    def bytes_per_box(cls, problem: Problem, gradients: bool) -> int:
        return sum(math.prod(shape) * dtype.itemsize for _, shape, dtype in cls._tensors(problem, gradients))

    def of(self, *names: str, prefix: str = "") -> dict[str, Tensor]:
        """Arguments by name; with a prefix for a kernel to which these boxes are parents."""
        return {prefix + name: getattr(self, name) for name in names}


class FoldedTiles:
    """The tiles of all position maps, supertile by supertile, and Φ folded on a chunk of them."""

    def __init__(
        self,
        tile: tuple[int, int],
        network: PreparedNetwork,
        position_matrix: Tensor,
        problem: Problem,
        *,
        gradients: bool,
    ) -> None:
        supertile = tables.SUPERTILE
        if any(n % of_tile for n, of_tile in zip(supertile, tile, strict=True)):
            raise ValueError(f"a supertile of {supertile} pixels cannot be cut into tiles of {tile}")
        *depth, height, width = problem.spatial_shape
        rows, columns = triton.cdiv(height, supertile[0]), triton.cdiv(width, supertile[1])
        per_map = rows * columns * (depth[0] if depth else 1)
        self.total = problem.groups * per_map
        per_supertile = supertile[0] // tile[0] * (supertile[1] // tile[1])
        size = (1 + per_supertile) * Boxes.bytes_per_box(problem, gradients)
        self.chunk = min(self.total, max(1, tables.FOLDED_BYTES // size))
        self.network, self.problem, self.capacity = network, problem, row_capacity(problem)
        self.supertiles = Boxes(supertile, self.chunk, problem, position_matrix.device, gradients=gradients)
        self.tiles = Boxes(tile, self.chunk, problem, position_matrix.device, gradients=gradients)
        self.geometry: dict[str, Any] = {
            "supertiles_per_map": per_map,
            "supertiles_h": rows,
            "supertiles_w": columns,
            "height": height,
            "width": width,
        }
        self.positions = {
            "position_matrix": position_matrix.contiguous(),
            "position_stride": 0 if position_matrix.ndim == 2 else math.prod(position_matrix.shape[1:]),
            "DIMS": problem.spatial_dims,
            "POSITION_DIMS": problem.position_dims,
        }

    def launches(self, passes: list[Callable[[int, int], list[Launch]]]) -> list[Launch]:
        """For each chunk the folding, then what every pass launches for ``first_supertile, supertiles``."""
        result = []
        for first in range(0, self.total, self.chunk):
            count = min(self.chunk, self.total - first)
            result += self._fold(self.supertiles, None, first, count)
            result += self._fold(self.tiles, self.supertiles, first, count)
            for launches_of in passes:
                result += launches_of(first, count)
        return result

    @staticmethod
    def shapes(boxes: Boxes) -> dict[str, int]:
        """Of supertiles, and of the boxes of a launch."""
        height, width = tables.SUPERTILE
        return {"SUPER_H": height, "SUPER_W": width, "BOX_H": boxes.box[0], "BOX_W": boxes.box[1]}

    def on_boxes(self, boxes: Boxes, first_supertile: int) -> dict[str, Any]:
        """Geometry of a launch on supertiles or tiles that asks where they are."""
        return {"first_supertile": first_supertile, **self.geometry, **self.shapes(boxes)}

    def _fold(self, boxes: Boxes, parents: Boxes | None, first: int, supertiles: int) -> list[Launch]:
        """The kernels of ``folding`` on the supertiles, from Φ itself, or on the tiles."""
        h1, h2 = self.problem.hidden
        outputs = self.problem.num_classes * self.problem.channels
        network, given = self.network, parents or boxes
        level = tables.SUPERTILE_FOLDING if parents is None else tables.TILE_FOLDING
        count = supertiles * boxes.per_supertile
        common = {"h1": h1, "ROOT": parents is None, **self.shapes(boxes)}
        lists1 = boxes.of("unit1", "index_in_parent", "lines", "counts")
        classify = common | self.positions | self.on_boxes(boxes, first) | lists1 | {
            "w1": network.w1, "b1": network.b1, **given.of("unit1", "counts", prefix="parent_"),
            "BLOCK": tables.BLOCK_CLASSIFIED,
        }  # fmt: skip
        fold_hidden = common | boxes.of("unit1", "lines", "counts", "unit2", "rows") | {
            **given.of("unit2", "rows", "counts", prefix="parent_"), "w2t": network.w2t, "b2": network.b2, "h2": h2,
            "capacity": self.capacity, "BLOCK_U": level.block_u, "BLOCK_K": level.block_k,
        }  # fmt: skip
        block_r, block_q = tables.FOLD_OUTPUTS_ROWS, tables.output_block(outputs)
        fold_outputs = common | boxes.of("unit1", "index_in_parent", "lines", "unit2", "rows", "counts", "outputs") | {
            **given.of("outputs", "counts", prefix="parent_"), "w2t": network.w2t, "w3t": network.w3t,
            "b3": network.b3, "h2": h2, "output_count": outputs, "capacity": self.capacity,
            "BLOCK_R": block_r, "BLOCK_Q": block_q,
        }  # fmt: skip
        row_programs = triton.cdiv(self.capacity, block_r)
        if parents is not None:  # a tile has few of the rows that there is room for
            row_programs = min(row_programs, tables.TILE_ROW_PROGRAMS)
        blocks = 1 + row_programs, triton.cdiv(outputs, block_q)
        return [
            Launch(scp_classify_fwd_kernel, (count, 1, 1), classify, tables.compile_options(1)),
            Launch(scp_fold_hidden_fwd_kernel, (count, 1, 1), fold_hidden, level.options),
            Launch(scp_fold_outputs_fwd_kernel, (count, *blocks), fold_outputs, tables.compile_options(1)),
        ]

    def fold_backward(self, slabs: Slabs, first: int, supertiles: int) -> list[Launch]:
        """The kernels of ``fold_backward``: on tiles, their sums, on supertiles."""
        return [
            self._fold_backward(self.tiles, self.supertiles, slabs, first, supertiles),
            self._collect(supertiles),
            self._fold_backward(self.supertiles, None, slabs, first, supertiles),
        ]

    def _fold_backward(self, boxes: Boxes, parents: Boxes | None, slabs: Slabs, first: int, supertiles: int) -> Launch:
        h1, h2 = self.problem.hidden
        outputs = self.problem.num_classes * self.problem.channels
        given, network = parents or boxes, self.network
        level = tables.SUPERTILE_FOLD_BACKWARD if parents is None else tables.TILE_FOLD_BACKWARD
        count, of_slabs = slabs.deal(supertiles * boxes.per_supertile)
        arguments = {
            **boxes.of("unit1", "index_in_parent", "lines", "unit2", "rows", "counts"),
            **boxes.of("grad_outputs", "grad_rows", "moments"),
            **given.of("outputs", "counts", prefix="parent_"), "w2t": network.w2t, "w3t": network.w3t,
            "h1": h1, "h2": h2, "output_count": outputs, "capacity": self.capacity,
            "ROOT": parents is None, "BLOCK_U": level.block_u, "BLOCK_K": level.block_k,
            "BLOCK_Q": tables.output_block(outputs),
            "POSITION_BLOCK": tables.position_block(self.problem.position_dims),
            **of_slabs, **self.positions, **self.on_boxes(boxes, first),
        }  # fmt: skip
        return Launch(scp_fold_bwd_kernel, (count, 1, 1), arguments, level.options)

    def _collect(self, supertiles: int) -> Launch:
        h1, h2 = self.problem.hidden
        outputs = self.problem.num_classes * self.problem.channels
        block_q = tables.output_block(outputs)
        arguments = {
            **self.tiles.of("index_in_parent", "lines", "counts", "grad_outputs", "grad_rows"),
            **self.supertiles.of("unit2", "counts", "grad_outputs", "grad_rows", prefix="parent_"),
            "h1": h1, "h2": h2, "output_count": outputs, "capacity": self.capacity, "BLOCK_Q": block_q,
            **tables.COLLECT, **self.shapes(self.tiles),
        }  # fmt: skip
        grid = (supertiles, 1 + triton.cdiv(outputs, block_q), 1)
        return Launch(scp_collect_bwd_kernel, grid, arguments, tables.compile_options(1))
