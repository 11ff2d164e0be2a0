"""How many multiply-adds a launch executes for Φ.

A launch's sizes fix all of it but one thing: the unstable units of layer 1, which the first kernel counts on
every tile.
"""

import triton
from torch import Tensor

from scp_kernels.backends.triton.backward import scp_bwd_parameters_kernel
from scp_kernels.backends.triton.classify import scp_classify_fwd_kernel
from scp_kernels.backends.triton.fold import scp_fold_fwd_kernel
from scp_kernels.backends.triton.fold_backward import scp_fold_bwd_w1_kernel, scp_fold_bwd_w2_kernel
from scp_kernels.backends.triton.sequence import Launch


def _padded(n: int, block: int) -> int:
    return triton.cdiv(n, block) * block


def _tiles(item: Launch) -> int:
    return item.arguments["tiles"] if "tiles" in item.arguments else item.grid[0]


def unstable_units(item: Launch) -> Tensor:
    """Unstable units of layer 1 on each tile of a launch on pixels, once the classification before it has run."""
    return item.arguments["counts"][: _tiles(item)]


def macs(item: Launch) -> int | Tensor:
    """Multiply-adds of Φ that a launch executes, padding and masked lanes too; to be asked right after it.

    A number, or a tensor on the launch's device where unstable units matter.
    """
    sizes = item.arguments
    h1 = sizes["h1"]
    if item.kernel is scp_classify_fwd_kernel:  # the centre and two slopes, from the position's 2K entries
        return item.grid[0] * _padded(h1, sizes["BLOCK"]) * 3 * 2 * sizes["POSITION_DIMS"]
    if item.kernel is scp_fold_fwd_kernel:
        rows, columns = item.grid[0] * sizes["BLOCK_ROWS"], item.grid[1] * sizes["BLOCK_H2"]
        return rows * columns * _padded(h1, sizes["BLOCK_H1"])
    if item.kernel is scp_fold_bwd_w2_kernel:
        units = item.grid[0] * sizes["BLOCK_H1"] * item.grid[1] * sizes["BLOCK_H2"]
        blocks, in_a_part = (triton.cdiv(sizes[name], sizes["BLOCK_ROWS"]) for name in ("rows", "rows_per_part"))
        assert blocks <= item.grid[2] * in_a_part, "parts are whole blocks of rows"
        return units * blocks * sizes["BLOCK_ROWS"]
    if item.kernel is scp_fold_bwd_w1_kernel:
        lines = item.grid[0] * sizes["BLOCK_TILES"] * item.grid[1] * sizes["BLOCK_H1"]
        return lines * 3 * (_padded(sizes["h2"], sizes["BLOCK_H2"]) + 2 * sizes["POSITION_DIMS"])
    return _on_pixels(item)


def _on_pixels(item: Launch) -> Tensor:
    """Of the kernels that have a program for a tile of pixels."""
    sizes = item.arguments
    pixels, blocks = sizes["TILE_H"] * sizes["TILE_W"], triton.cdiv(sizes["h2"], sizes["BLOCK_H2"])
    h2, outputs = blocks * sizes["BLOCK_H2"], sizes["BLOCK_N"] * sizes["BLOCK_C"]
    tiles, unstable = _tiles(item), unstable_units(item).sum()
    line = 2 * pixels * blocks  # l_u at every pixel, once for each block of layer 2
    # layers.second_layer: the affine part, and one product for each unstable unit.
    second_layer = tiles * 2 * pixels * h2 + unstable * (pixels * h2 + line)
    if item.kernel is not scp_bwd_parameters_kernel:
        return item.grid[1] * (second_layer + tiles * pixels * h2 * outputs)
    parts = triton.cdiv(sizes["classes"], sizes["BLOCK_N"]) * triton.cdiv(sizes["channels"], sizes["BLOCK_C"])
    products = parts * 2 * pixels * h2 * outputs  # the gradients of w₃ and of relu(z)
    # backward.unstable_units_backward: two moments, the row of w₂, three sums, and absolute moments.
    gradient = unstable * (2 * pixels * h2 + 3 * h2 + 3 * h2 + line + 3 * 2 * sizes["POSITION_DIMS"] * blocks)
    return second_layer + tiles * (products + 2 * pixels * h2) + gradient
