"""Device functions shared by the kernels: a tile of pixels, and the weight field on it.

Φ is evaluated tile by tile in exact arithmetic, without a dense first layer. On a small tile most units of layer 1 are
either off (≤ 0 on the whole tile) or on (> 0 on the whole tile); only a few bend inside it. With l_u the affine
pre-activation of unit u about the tile's centre, the pre-activations of layer 2 are on that tile

    z = b₂ + Σ_{u on} w₂[:, u]·l_u + Σ_{u mixed} w₂[:, u]·relu(l_u)

The first sum is affine in the pixel: three vectors of length h₂ for the whole tile. The second costs one rank-one
update of z for each mixed unit. Units that are off are never touched.
"""

import triton
import triton.language as tl

# Samples on their way from memory while one is worked on.
BATCH_STAGES = tl.constexpr(4)


@triton.jit
def tile_pixels(tile, tiles_h, tiles_w, TILE_H: tl.constexpr, TILE_W: tl.constexpr):
    """Where a tile lies: its slice (3-D; 0 in 2-D), first row and column, and its pixels' rows and columns ``[P]``."""
    p = tl.arange(0, TILE_H * TILE_W)
    first_row = (tile // tiles_w) % tiles_h * TILE_H
    first_column = tile % tiles_w * TILE_W
    return tile // (tiles_w * tiles_h), first_row, first_column, first_row + p // TILE_W, first_column + p % TILE_W


@triton.jit
def tile_offsets(dtype: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr):
    """Rows and columns of a tile's pixels relative to its centre, ``[P]``: halves of integers, exact in any float."""
    p = tl.arange(0, TILE_H * TILE_W)
    di = (p // TILE_W).to(dtype) - (TILE_H - 1) * 0.5
    dj = (p % TILE_W).to(dtype) - (TILE_W - 1) * 0.5
    return di, dj


@triton.jit
def first_layer(
    coefficients, u, h1, depth_index, first_row, first_column,
    dtype: tl.constexpr, DIMS: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr,
):  # fmt: skip
    """Units ``u`` of layer 1 on a tile: value at its centre, slopes along rows and columns, and which may bend there.

    The value at the centre is folded in float64: it is the only place where absolute coordinates enter, and float32
    would lose the kinks' positions on large maps. A unit whose bounds are within rounding of 0 counts as mixed, which
    is always right; so do NaNs.
    """
    inside = u < h1
    row = coefficients + u * (DIMS + 1)
    slope_i = tl.load(row + (DIMS - 2), mask=inside, other=0.0)
    slope_j = tl.load(row + (DIMS - 1), mask=inside, other=0.0)
    centre = tl.load(row + DIMS, mask=inside, other=0.0)
    centre += slope_i * (first_row.to(tl.float64) + (TILE_H - 1) * 0.5)
    centre += slope_j * (first_column.to(tl.float64) + (TILE_W - 1) * 0.5)
    if DIMS == 3:
        centre += tl.load(row, mask=inside, other=0.0) * depth_index.to(tl.float64)
    c = centre.to(dtype)
    a = slope_i.to(dtype)
    b = slope_j.to(dtype)
    radius = tl.abs(a) * ((TILE_H - 1) * 0.5) + tl.abs(b) * ((TILE_W - 1) * 0.5)
    radius += 1e-6 * (tl.abs(c) + radius)
    on = c - radius > 0
    off = c + radius <= 0
    return c, a, b, (on | off) == 0


@triton.jit
def on_and_mixed(c, bends, lane):
    """Which units are on ``[BLOCK_H1]``, and the bits of those that are mixed.

    The compiler may work out ``bends`` anew for every layout it is wanted in, with other roundings. Only the bits are
    one value for the whole program: a unit is mixed by them or by nobody, and is on or off only if it is not mixed.
    """
    bits = tl.sum(tl.where(bends, 1 << lane, 0))
    return (c > 0) & ((bits >> lane) & 1 == 0), bits


@triton.jit
def second_layer(
    coefficients, w2t, b2, k, h1, h2, depth_index, first_row, first_column,
    DIMS: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_H1: tl.constexpr, BLOCK_H2: tl.constexpr,
):  # fmt: skip
    """Pre-activations of the units ``k`` ``[BLOCK_H2]`` of layer 2 at a tile's pixels, ``[P, BLOCK_H2]``."""
    dtype: tl.constexpr = w2t.dtype.element_ty
    di, dj = tile_offsets(dtype, TILE_H, TILE_W)
    lane = tl.arange(0, BLOCK_H1)
    z = tl.zeros([TILE_H * TILE_W, BLOCK_H2], dtype)
    # Summed over units only after the loop: inside it there is no reduction but that of the mask.
    on_c = tl.zeros([BLOCK_H1, BLOCK_H2], dtype)
    on_a = tl.zeros([BLOCK_H1, BLOCK_H2], dtype)
    on_b = tl.zeros([BLOCK_H1, BLOCK_H2], dtype)
    for start in range(0, h1, BLOCK_H1):
        u = start + lane
        c, a, b, bends = first_layer(
            coefficients, u, h1, depth_index, first_row, first_column, dtype, DIMS, TILE_H, TILE_W
        )
        on, bits = on_and_mixed(c, bends, lane)
        w = tl.load(w2t + u[:, None] * h2 + k[None, :], mask=on[:, None] & (k < h2)[None, :], other=0.0)
        on_c += tl.where(on, c, 0.0)[:, None] * w
        on_a += tl.where(on, a, 0.0)[:, None] * w
        on_b += tl.where(on, b, 0.0)[:, None] * w
        while bits != 0:
            lowest = bits & -bits
            chosen = (1 << lane) == lowest
            unit = tl.sum(tl.where(chosen, u, 0))
            c_u = tl.sum(tl.where(chosen, c, 0.0))
            a_u = tl.sum(tl.where(chosen, a, 0.0))
            b_u = tl.sum(tl.where(chosen, b, 0.0))
            w_u = tl.load(w2t + unit * h2 + k, mask=k < h2, other=0.0)
            l = c_u + a_u * di + b_u * dj  # noqa: E741 — the name of the mathematics
            z += tl.where(l <= 0, 0.0, l)[:, None] * w_u[None, :]
            bits ^= lowest
    constant = tl.load(b2 + k, mask=k < h2, other=0.0) + tl.sum(on_c, 0)
    return z + (constant[None, :] + di[:, None] * tl.sum(on_a, 0)[None, :] + dj[:, None] * tl.sum(on_b, 0)[None, :])


@triton.jit
def weight_tile(
    coefficients, w2t, b2, w3, b3, residual, n, c, classes, channels, h1, h2, depth_index, first_row, first_column,
    DIMS: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_H1: tl.constexpr, BLOCK_H2: tl.constexpr,
    BLOCK_Q: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``W + w_r`` at a tile's pixels, for the class and channel pairs ``n, c`` ``[BLOCK_Q]``: ``[P, BLOCK_Q]``."""
    dtype: tl.constexpr = w2t.dtype.element_ty
    valid = (n < classes) & (c < channels)
    output = n * channels + c
    base = tl.load(b3 + output, mask=valid, other=0.0) + tl.load(residual + output, mask=valid, other=0.0)
    weight = tl.zeros([TILE_H * TILE_W, BLOCK_Q], dtype)
    for start in range(0, h2, BLOCK_H2):
        k = start + tl.arange(0, BLOCK_H2)
        z = second_layer(
            coefficients, w2t, b2, k, h1, h2, depth_index, first_row, first_column,
            DIMS, TILE_H, TILE_W, BLOCK_H1, BLOCK_H2,
        )  # fmt: skip
        hidden = tl.where(z <= 0, 0.0, z)
        w = tl.load(w3 + output[None, :] * h2 + k[:, None], mask=valid[None, :] & (k < h2)[:, None], other=0.0)
        weight = tl.dot(hidden, w, weight, input_precision=PRECISION, out_dtype=dtype)
    return weight + base[None, :]
