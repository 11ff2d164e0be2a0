"""Multiply-adds of Φ that launches execute.

A launch's sizes fix a part of it; the rest are the units that the kernels of ``folding`` list and count on every box.
"""

import torch
import triton
from torch import Tensor

from scp_kernels.backends.triton.backward_features import scp_bwd_features_kernel
from scp_kernels.backends.triton.backward_parameters import scp_bwd_parameters_kernel
from scp_kernels.backends.triton.fold_backward import scp_collect_bwd_kernel, scp_fold_bwd_kernel
from scp_kernels.backends.triton.folding import (
    OUTSIDE,
    UNITS_AT_ONCE,
    scp_classify_fwd_kernel,
    scp_fold_hidden_fwd_kernel,
    scp_fold_outputs_fwd_kernel,
)
from scp_kernels.backends.triton.forward import scp_fwd_kernel
from scp_kernels.backends.triton.sequence import Launch


def _blocks(n: int, block: int) -> int:
    return triton.cdiv(n, block)


def _padded(n: Tensor, block: int) -> Tensor:
    return (n + block - 1) // block * block


class _Boxes:
    """What a launch on boxes knows of them: how many units are listed on each, 0 on boxes outside of their map."""

    def __init__(self, item: Launch) -> None:
        sizes = item.arguments
        self.per_supertile = sizes["SUPER_H"] // sizes["BOX_H"] * (sizes["SUPER_W"] // sizes["BOX_W"])
        boxes = sizes.get("boxes", item.grid[0])
        if item.kernel is scp_collect_bwd_kernel:
            boxes *= self.per_supertile
        counts = sizes["counts"][:boxes]
        self.inside = counts[:, 0] != OUTSIDE.value
        listed = torch.where(self.inside[:, None], counts, 0).long()
        self.active1, self.unstable1, self.active2, self.unstable2 = listed.T
        # Rows of unstable units in the outputs: none in an overflow box.
        self.rows = torch.where(self.unstable1 <= sizes.get("capacity", sizes["h1"]), self.unstable1, 0)

    def of_parents(self, item: Launch) -> Tensor:
        """Counts ``[4, boxes]`` of each box's parent; zero outside."""
        counts = item.arguments["parent_counts"].long()
        parents = counts[torch.arange(len(self.inside), device=counts.device) // self.per_supertile]
        return torch.where(self.inside[:, None], parents, 0).T


def unstable_units(item: Launch) -> Tensor:
    """Unstable units of layers 1 and 2, ``[2, tiles]``, on each tile of a launch on tiles, once it is folded."""
    boxes = _Boxes(item)
    return torch.stack([boxes.unstable1, boxes.unstable2])[:, boxes.inside]


def macs(item: Launch) -> int | Tensor:
    """Multiply-adds of Φ that a launch executes, padding and masked lanes too; to be asked right after it.

    A number, or a tensor on the launch's device.
    """
    return _COUNTS[item.kernel](item).sum() if item.kernel in _COUNTS else 0


def _classify(item: Launch) -> Tensor:
    """The centre and two slopes, from the position's 2K entries."""
    sizes, boxes = item.arguments, _Boxes(item)
    candidates = sizes["h1"] * boxes.inside.long() if sizes["ROOT"] else boxes.of_parents(item)[1]
    return _padded(candidates, sizes["BLOCK"]) * 3 * 2 * sizes["POSITION_DIMS"]


def _fold_hidden(item: Launch) -> Tensor:
    """Three affine rows of active units; a centre, two slopes and the slack of unstable ones; recentring."""
    sizes, boxes = item.arguments, _Boxes(item)
    candidates = sizes["h2"] * boxes.inside.long() if sizes["ROOT"] else boxes.of_parents(item)[3]
    units = 3 * _padded(boxes.active1, sizes["BLOCK_U"]) + 4 * _padded(boxes.rows, sizes["BLOCK_U"])
    return _padded(candidates, sizes["BLOCK_K"]) * (units + (0 if sizes["ROOT"] else 2))


def _fold_outputs(item: Launch) -> Tensor:
    """Three affine rows of active units of both layers; of layer 2, the rows of unstable units; recentring."""
    sizes, boxes = item.arguments, _Boxes(item)
    outputs = item.grid[2] * sizes["BLOCK_Q"]
    affine = 3 * _padded(boxes.active2, sizes["BLOCK_R"])
    if not sizes["ROOT"]:
        folded = boxes.of_parents(item)[1] <= sizes["capacity"]
        affine += 3 * _padded(torch.where(folded, boxes.active1, 0), sizes["BLOCK_R"]) + 2 * boxes.inside
    rows = _padded(boxes.rows, sizes["BLOCK_R"]) * _padded(boxes.active2, UNITS_AT_ONCE.value)
    return outputs * (affine + rows)


def _second_layer(boxes: _Boxes, pixels: int, block_k: int) -> Tensor:
    """``weights.second_layer``: the affine rows, a product per unstable unit of layer 1, its line once per block."""
    columns = _padded(boxes.unstable2, block_k)
    return pixels * columns * (2 + boxes.unstable1) + columns // block_k * 2 * pixels * boxes.unstable1


def _weights(item: Launch) -> Tensor:
    """``weights.weight_tile``."""
    sizes, boxes = item.arguments, _Boxes(item)
    pixels, outputs = sizes["BOX_H"] * sizes["BOX_W"], sizes["BLOCK_N"] * sizes["BLOCK_C"]
    of_outputs = pixels * outputs * (2 * boxes.inside + boxes.rows) + 2 * pixels * boxes.rows
    third_layer = pixels * _padded(boxes.unstable2, sizes["BLOCK_K"]) * outputs
    return item.grid[1] * (of_outputs + _second_layer(boxes, pixels, sizes["BLOCK_K"]) + third_layer)


def _parameters(item: Launch) -> Tensor:
    """``backward_parameters``: sums of gW, the outputs' and the hidden layers' gradients."""
    sizes, boxes = item.arguments, _Boxes(item)
    pixels, block_k, block_q = sizes["BOX_H"] * sizes["BOX_W"], sizes["BLOCK_K"], sizes["BLOCK_N"] * sizes["BLOCK_C"]
    columns = _padded(boxes.unstable2, block_k)
    parts = _blocks(sizes["classes"], sizes["BLOCK_N"]) * _blocks(sizes["channels"], sizes["BLOCK_C"])
    blocks = _blocks(sizes["classes"] * sizes["channels"], block_q)
    line = 2 * pixels
    # Per unstable unit: its line, two moments by pixels, the gradient from three sums, three products with its weights.
    of_outputs = 2 * pixels * parts * block_q * boxes.inside
    of_outputs = of_outputs + boxes.rows * blocks * (line + (2 * pixels + 6) * block_q)
    third_layer = 2 * pixels * columns * blocks * block_q + 2 * pixels * columns
    of_hidden = boxes.unstable1 * (columns // block_k) * (line + (2 * pixels + 6) * block_k)
    return of_outputs + _second_layer(boxes, pixels, block_k) + third_layer + of_hidden


def _fold_backward(item: Launch) -> Tensor:
    sizes, boxes = item.arguments, _Boxes(item)
    block_u, block_k = sizes["BLOCK_U"], sizes["BLOCK_K"]
    outputs = _blocks(sizes["output_count"], sizes["BLOCK_Q"]) * sizes["BLOCK_Q"]
    active1, columns = _padded(boxes.active1, block_u), boxes.active2 + boxes.unstable2
    # Both factors' gradients: of three affine rows and of every unit's row; of every active unit's affine rows.
    of_outputs = 2 * _padded(boxes.active2, block_k) * outputs * (3 + boxes.rows)
    of_hidden = active1 * _padded(columns, block_k) * 6
    listed = active1
    if not sizes["ROOT"]:
        of_hidden += active1 * 3 * outputs
        listed = active1 + _padded(boxes.unstable1, block_u)
    return of_outputs + of_hidden + listed * 3 * sizes["POSITION_BLOCK"]


def _collect(item: Launch) -> Tensor:
    """Recentring of rows and outputs, of all tiles of a supertile at once, and the outputs of listed units."""
    sizes, boxes = item.arguments, _Boxes(item)
    _, unstable1, _, _ = boxes.of_parents(item)
    unstable2 = sizes["parent_counts"][: item.grid[0], 3].long().repeat_interleave(boxes.per_supertile)
    outputs = (item.grid[1] - 1) * sizes["BLOCK_Q"]
    listed = torch.where(unstable1 <= sizes["capacity"], boxes.active1 + boxes.unstable1, 0)
    of_outputs = outputs * (2 + 3 * _padded(listed, sizes["BLOCK_U"]))
    return 2 * _padded(unstable2, sizes["BLOCK_K"]) + of_outputs


_COUNTS = {
    scp_classify_fwd_kernel: _classify,
    scp_fold_hidden_fwd_kernel: _fold_hidden,
    scp_fold_outputs_fwd_kernel: _fold_outputs,
    scp_fwd_kernel: _weights,
    scp_bwd_features_kernel: _weights,
    scp_bwd_parameters_kernel: _parameters,
    scp_fold_bwd_kernel: _fold_backward,
    scp_collect_bwd_kernel: _collect,
}
