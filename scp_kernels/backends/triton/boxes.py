"""Device functions of geometry: boxes of pixels, their pixels, and positions about their centres.

A map is cut into supertiles, and each of these into tiles; a tile belongs to one supertile, a supertile to one position
map. Supertiles of all maps are numbered one after another; the tiles of a supertile follow each other. A *box* is one
or the other: a supertile is a box of its own size. Boxes at the border of a map may lie outside of it in part, and
tiles altogether: those are left out by every kernel.
"""

import triton
import triton.language as tl


@triton.jit
def box_origin(
    # The box, counted from the chunk's first supertile
    local,
    # Sizes of the map, in supertiles
    first_supertile, supertiles_per_map, supertiles_h, supertiles_w,
    # The launch's configuration
    SUPER_H: tl.constexpr, SUPER_W: tl.constexpr, BOX_H: tl.constexpr, BOX_W: tl.constexpr,
):  # fmt: skip
    """A box's position map and slice (3-D; 0 in 2-D), first row and first column; the map is 64-bit."""
    PER_ROW: tl.constexpr = SUPER_W // BOX_W
    PER_SUPERTILE: tl.constexpr = SUPER_H // BOX_H * PER_ROW
    supertile = local // PER_SUPERTILE + first_supertile
    inner = (local % PER_SUPERTILE).to(tl.int32)
    place = (supertile % supertiles_per_map).to(tl.int32)
    row = (place // supertiles_w) % supertiles_h * SUPER_H + inner // PER_ROW * BOX_H
    column = place % supertiles_w * SUPER_W + inner % PER_ROW * BOX_W
    return supertile // supertiles_per_map, place // (supertiles_w * supertiles_h), row, column


@triton.jit
def shift_in_supertile(
    # The tile, counted from the chunk's first supertile, and the dtype that is wanted
    local, dtype: tl.constexpr,
    # The launch's configuration
    SUPER_H: tl.constexpr, SUPER_W: tl.constexpr, BOX_H: tl.constexpr, BOX_W: tl.constexpr,
):  # fmt: skip
    """How far a tile's centre is from its supertile's, in rows and columns: halves of integers, exact in any float."""
    PER_ROW: tl.constexpr = SUPER_W // BOX_W
    PER_SUPERTILE: tl.constexpr = SUPER_H // BOX_H * PER_ROW
    inner = local % PER_SUPERTILE
    di = (inner // PER_ROW * BOX_H).to(dtype) + ((BOX_H - 1) * 0.5 - (SUPER_H - 1) * 0.5)
    dj = (inner % PER_ROW * BOX_W).to(dtype) + ((BOX_W - 1) * 0.5 - (SUPER_W - 1) * 0.5)
    return di, dj


@triton.jit
def tile_offsets(dtype: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr):
    """Rows and columns of a tile's pixels relative to its centre, ``[P]``: halves of integers, exact in any float."""
    p = tl.arange(0, TILE_H * TILE_W)
    di = (p // TILE_W).to(dtype) - (TILE_H - 1) * 0.5
    dj = (p % TILE_W).to(dtype) - (TILE_W - 1) * 0.5
    return di, dj


@triton.jit
def position(
    # The position matrices [G, 2K, d + 1]; which row of them, or rows [M], and whether there is such a row
    position_matrix, m, ok,
    # The box: its map, slice, first row and first column
    group, depth, row, column,
    # From one map's matrix to the next (0: one serves all), and the launch's configuration
    position_stride,
    DIMS: tl.constexpr, BOX_H: tl.constexpr, BOX_W: tl.constexpr,
):  # fmt: skip
    """Entries ``m`` of the position S at a box's centre, and their slopes along rows and columns: float64.

    It is the only place where absolute coordinates enter; float32 would lose the kinks' positions on large maps.
    """
    entries = position_matrix + group * position_stride + m * (DIMS + 1)
    slope_i = tl.load(entries + (DIMS - 2), mask=ok, other=0.0)
    slope_j = tl.load(entries + (DIMS - 1), mask=ok, other=0.0)
    centre = tl.load(entries + DIMS, mask=ok, other=0.0) + slope_i * (row.to(tl.float64) + (BOX_H - 1) * 0.5)
    centre += slope_j * (column.to(tl.float64) + (BOX_W - 1) * 0.5)
    if DIMS == 3:
        centre += tl.load(entries, mask=ok, other=0.0) * depth.to(tl.float64)
    return centre, slope_i, slope_j


@triton.jit
def load_affine(
    # Three rows of numbers, places in them [BLOCK], how far apart the rows are, and which places exist
    functions, place, stride, mask,
):  # fmt: skip
    """Affine functions on a box: values at its centre, slopes along rows and columns ``[BLOCK]``; 0 where masked."""
    return (
        tl.load(functions + place, mask=mask, other=0.0),
        tl.load(functions + stride + place, mask=mask, other=0.0),
        tl.load(functions + 2 * stride + place, mask=mask, other=0.0),
    )
