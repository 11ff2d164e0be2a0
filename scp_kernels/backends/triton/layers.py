"""Device functions shared by the kernels: a tile of pixels, and the weight field on it.

Φ is evaluated tile by tile in exact arithmetic, without a dense first layer. On a small tile most units of layer 1 are
either inactive (≤ 0 on the whole tile) or active (> 0 on the whole tile); only a few bend inside it: they are unstable.
With l_u the affine pre-activation of unit u about the tile's centre, the pre-activations of layer 2 are on that tile

    z = b₂ + Σ_{u active} w₂[:, u]·l_u + Σ_{u unstable} w₂[:, u]·relu(l_u)

With b₂ the first sum is affine in the pixel: three vectors of length h₂ for the whole tile, which the kernels of
``classify`` and ``fold`` leave in memory beside the list of unstable units. The second costs one rank-one update of z
per unstable unit.

A tile belongs to one position map; the tiles of all maps are numbered one after another.
"""

import triton
import triton.language as tl

# Samples on their way from memory while one is worked on.
BATCH_STAGES = tl.constexpr(4)


@triton.jit
def tile_origin(tile, tiles_h, tiles_w, TILE_H: tl.constexpr, TILE_W: tl.constexpr):
    """Where a tile lies: its slice (3-D; 0 in 2-D), first row and first column."""
    return tile // (tiles_w * tiles_h), (tile // tiles_w) % tiles_h * TILE_H, tile % tiles_w * TILE_W


@triton.jit
def tile_pixels(tile, tiles_per_map, tiles_h, tiles_w, TILE_H: tl.constexpr, TILE_W: tl.constexpr):
    """A tile's position map and slice, and its pixels' rows and columns ``[P]``; all 64-bit but rows and columns."""
    p = tl.arange(0, TILE_H * TILE_W)
    depth, row, column = tile_origin((tile % tiles_per_map).to(tl.int32), tiles_h, tiles_w, TILE_H, TILE_W)
    return tile // tiles_per_map, depth.to(tl.int64), row + p // TILE_W, column + p % TILE_W


@triton.jit
def tile_offsets(dtype: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr):
    """Rows and columns of a tile's pixels relative to its centre, ``[P]``: halves of integers, exact in any float."""
    p = tl.arange(0, TILE_H * TILE_W)
    di = (p // TILE_W).to(dtype) - (TILE_H - 1) * 0.5
    dj = (p % TILE_W).to(dtype) - (TILE_W - 1) * 0.5
    return di, dj


@triton.jit
def position(
    matrix, m: tl.constexpr, tile, tiles_per_map, tiles_h, tiles_w, matrix_stride,
    DIMS: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr,
):  # fmt: skip
    """Entry ``m`` of the position S at a tile's centre, and its slopes along rows and columns: float64.

    It is the only place where absolute coordinates enter; float32 would lose the kinks' positions on large maps.
    """
    depth, row, column = tile_origin((tile % tiles_per_map).to(tl.int32), tiles_h, tiles_w, TILE_H, TILE_W)
    entries = matrix + tile // tiles_per_map * matrix_stride + m * (DIMS + 1)
    slope_i = tl.load(entries + (DIMS - 2))
    slope_j = tl.load(entries + (DIMS - 1))
    centre = tl.load(entries + DIMS) + slope_i * (row.to(tl.float64) + (TILE_H - 1) * 0.5)
    centre += slope_j * (column.to(tl.float64) + (TILE_W - 1) * 0.5)
    if DIMS == 3:
        centre += tl.load(entries) * depth.to(tl.float64)
    return centre, slope_i, slope_j


@triton.jit
def second_layer(
    # The tile's affine rows [3, h₂], and its unstable units: (c, a, b) [3, h₁], numbers, how many
    folded, lines, units, count,
    # Layer 2 [h₁, h₂]; the units of it that are asked for [BLOCK_H2]
    w2t, k,
    h1, h2, TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_H2: tl.constexpr,
):  # fmt: skip
    """Pre-activations z of the units ``k`` of layer 2 at a tile's pixels, ``[P, BLOCK_H2]``."""
    dtype: tl.constexpr = w2t.dtype.element_ty
    di, dj = tile_offsets(dtype, TILE_H, TILE_W)
    k_ok = k < h2
    z_0 = tl.load(folded + k, mask=k_ok, other=0.0)
    z_i = tl.load(folded + h2 + k, mask=k_ok, other=0.0)
    z_j = tl.load(folded + 2 * h2 + k, mask=k_ok, other=0.0)
    z = z_0[None, :] + di[:, None] * z_i[None, :] + dj[:, None] * z_j[None, :]
    # One rank-one update per unstable unit.
    for m in range(0, count):
        w_u = tl.load(w2t + tl.load(units + m) * h2 + k, mask=k_ok, other=0.0)
        l = tl.load(lines + m) + tl.load(lines + h1 + m) * di + tl.load(lines + 2 * h1 + m) * dj  # noqa: E741
        z += tl.where(l <= 0, 0.0, l)[:, None] * w_u[None, :]
    return z


@triton.jit
def weight_tile(
    # The tile's affine rows [3, h₂], and its unstable units: (c, a, b) [3, h₁], numbers, how many
    folded, lines, units, count,
    # Layers 2 and 3, and w_r
    w2t, w3, b3, residual,
    # The pairs of class and channel that are asked for [BLOCK_Q]
    n, c,
    classes, channels, h1, h2,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_H2: tl.constexpr, BLOCK_Q: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """``W + w_r`` at a tile's pixels, for the class and channel pairs ``n, c`` ``[BLOCK_Q]``: ``[P, BLOCK_Q]``."""
    dtype: tl.constexpr = w2t.dtype.element_ty
    valid = (n < classes) & (c < channels)
    output = n * channels + c
    base = tl.load(b3 + output, mask=valid, other=0.0) + tl.load(residual + output, mask=valid, other=0.0)
    weight = tl.zeros([TILE_H * TILE_W, BLOCK_Q], dtype)
    for start in range(0, h2, BLOCK_H2):
        k = start + tl.arange(0, BLOCK_H2)
        z = second_layer(folded, lines, units, count, w2t, k, h1, h2, TILE_H, TILE_W, BLOCK_H2)
        hidden = tl.where(z <= 0, 0.0, z)
        w = tl.load(w3 + output[None, :] * h2 + k[:, None], mask=valid[None, :] & (k < h2)[:, None], other=0.0)
        weight = tl.dot(hidden, w, weight, input_precision=PRECISION, out_dtype=dtype)
    # Where there is no such pair: an infinite hidden unit times a masked 0 would be NaN, and meet the sum over pairs.
    return tl.where(valid[None, :], weight + base[None, :], 0.0)
