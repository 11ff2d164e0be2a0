"""How many multiply-adds a launch executes for Φ.

A launch's sizes fix all of it but one thing: the mixed units of layer 1, which the kernels find tile by tile. Here the
same device function finds them, in a kernel of its own, so that counting changes nothing in what is counted.
"""

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from scp_kernels.backends.triton.backward import scp_backward_parameters_kernel
from scp_kernels.backends.triton.launch import Launch
from scp_kernels.backends.triton.layers import first_layer, tile_pixels


@triton.jit(do_not_specialize=("h1", "tiles_h", "tiles_w"))
def scp_mixed_units_kernel(
    coefficients, w2t, mixed_units, h1, tiles_h, tiles_w,
    DIMS: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_H1: tl.constexpr,
):  # fmt: skip
    """The number of mixed units of layer 1 on each tile, ``[groups, tiles]``. Grid: (tiles, groups)."""
    dtype: tl.constexpr = w2t.dtype.element_ty
    depth_index, first_row, first_column, _i, _j = tile_pixels(tl.program_id(0), tiles_h, tiles_w, TILE_H, TILE_W)
    group = tl.program_id(1).to(tl.int64)
    total = 0
    for start in range(0, h1, BLOCK_H1):
        u = start + tl.arange(0, BLOCK_H1)
        _c, _a, _b, bends = first_layer(
            coefficients + group * h1 * (DIMS + 1), u, h1, depth_index, first_row, first_column, dtype,
            DIMS, TILE_H, TILE_W,
        )  # fmt: skip
        total += tl.sum(tl.where(bends, 1, 0))
    tl.store(mixed_units + group * tl.num_programs(0) + tl.program_id(0), total)


@dataclass(frozen=True)
class TileWork:
    """Multiply-adds of one launch on one tile: at least, and for each mixed unit of layer 1 more. Padding counts."""

    fixed: int
    a_mixed_unit: int

    @classmethod
    def of(cls, item: Launch) -> "TileWork":
        sizes = item.arguments
        pixels, blocks = sizes["TILE_H"] * sizes["TILE_W"], triton.cdiv(sizes["h2"], sizes["BLOCK_H2"])
        h1, h2 = triton.cdiv(sizes["h1"], sizes["BLOCK_H1"]) * sizes["BLOCK_H1"], blocks * sizes["BLOCK_H2"]
        outputs = sizes["BLOCK_N"] * sizes["BLOCK_C"]
        line = 2 * pixels * blocks  # l_u at every pixel, once for each block of layer 2
        # layers.second_layer: three sums over units that are on, their affine function, one product a mixed unit.
        second_layer = cls(3 * h1 * h2 + 2 * pixels * h2, pixels * h2 + line)
        if item.kernel is not scp_backward_parameters_kernel:
            programs = item.grid[2]
            product = pixels * h2 * outputs
            return cls(programs * (second_layer.fixed + product), programs * second_layer.a_mixed_unit)
        parts = triton.cdiv(sizes["classes"], sizes["BLOCK_N"]) * triton.cdiv(sizes["channels"], sizes["BLOCK_C"])
        products = parts * 2 * pixels * h2 * outputs  # the gradients of w₃ and of relu(z)
        # backward.first_layer_gradient: moments of gz, then those of layer 1 and the update of w₂; of a mixed unit its
        # row of w₂, its gradient at every pixel, and two moments of that.
        first_layer_gradient = cls(2 * pixels * h2 + 6 * h1 * h2, 2 * pixels * h2 + 2 * line)
        return cls(
            second_layer.fixed + products + first_layer_gradient.fixed,
            second_layer.a_mixed_unit + first_layer_gradient.a_mixed_unit,
        )


def counting(item: Launch) -> tuple[Launch, Tensor]:
    """The launch that counts another's mixed units, and the tensor ``[groups, tiles]`` (int32) that it fills."""
    sizes = item.arguments
    groups = sizes["coefficients"].shape[0]
    tiles = sizes["tiles"] if item.kernel is scp_backward_parameters_kernel else item.grid[0]
    found = torch.empty(groups, tiles, dtype=torch.int32, device=sizes["coefficients"].device)
    names = ("coefficients", "w2t", "h1", "tiles_h", "tiles_w", "DIMS", "TILE_H", "TILE_W", "BLOCK_H1")
    own = {name: sizes[name] for name in names} | {"mixed_units": found}
    return Launch(scp_mixed_units_kernel, (tiles, groups, 1), own, {"num_warps": 1}), found


def mixed_units(item: Launch) -> Tensor:
    """Mixed units of layer 1 on each tile of each position map, ``[groups, tiles]``."""
    launch, found = counting(item)
    launch.run()
    return found


def macs(item: Launch) -> Tensor:
    """Multiply-adds of Φ that a launch executes, a float64 on its device."""
    work, found = TileWork.of(item), mixed_units(item)
    return found.sum(dtype=torch.float64) * work.a_mixed_unit + math.prod(found.shape) * work.fixed
