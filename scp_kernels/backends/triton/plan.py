"""The kernels that come first: layer 1 of Φ on every tile, and the affine part of layer 2.

They run once for a pass, whatever kernels follow, and they are the only place where units are told apart: what they
write is what all others go by, so no unit can be on for one kernel and mixed for another.
"""

import triton
import triton.language as tl

from scp_kernels.backends.triton.layers import position

CLASSIFY_SIZES = ("first_site", "tiles", "h1", "tiles_h", "tiles_w", "matrix_stride")


@triton.jit(do_not_specialize=CLASSIFY_SIZES)
def scp_classify_kernel(
    w1, b1, matrix, on, lines, units, counts, first_site, tiles, h1, tiles_h, tiles_w, matrix_stride,
    DIMS: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Which units of layer 1 are on, and which are mixed, on a site. Grid: (sites,).

    A unit is ``l = c + a·di + b·dj`` about the tile's centre. Writes ``on`` ``[sites, 3, h₁]``: (c, a, b) of units that
    are on, 0 for the others; ``lines`` ``[sites, 3, h₁]``, ``units`` ``[sites, h₁]``, ``counts``: (c, a, b), number and
    count of the mixed ones, in ascending order and without gaps. A unit whose bounds are within rounding of 0 counts as
    mixed, which is always right; so do NaNs.
    """
    dtype: tl.constexpr = w1.dtype.element_ty
    local = tl.program_id(0).to(tl.int64)
    site = local + first_site
    on += local * 3 * h1
    lines += local * 3 * h1
    units += local * h1
    lane = tl.arange(0, BLOCK)
    count = 0
    for start in range(0, h1, BLOCK):
        u = start + lane
        inside = u < h1
        centre = tl.load(b1 + u, mask=inside, other=0.0).to(tl.float64)
        slope_i = tl.zeros([BLOCK], tl.float64)
        slope_j = tl.zeros([BLOCK], tl.float64)
        for m in tl.static_range(2 * DIMS):
            w = tl.load(w1 + u * (2 * DIMS) + m, mask=inside, other=0.0).to(tl.float64)
            s, s_i, s_j = position(matrix, m, site, tiles, tiles_h, tiles_w, matrix_stride, DIMS, TILE_H, TILE_W)
            centre += w * s
            slope_i += w * s_i
            slope_j += w * s_j
        c = centre.to(dtype)
        a = slope_i.to(dtype)
        b = slope_j.to(dtype)
        radius = tl.abs(a) * ((TILE_H - 1) * 0.5) + tl.abs(b) * ((TILE_W - 1) * 0.5)
        radius += 1e-6 * (tl.abs(c) + radius)
        bends = ((c - radius > 0) | (c + radius <= 0)) == 0
        # One value for the whole program: the compiler may work ``bends`` out anew for every layout it is wanted in,
        # with other roundings, and a unit must not be both on and mixed.
        bits = tl.sum(tl.where(bends, 1 << lane, 0))
        mixed = (bits >> lane) & 1
        is_on = (mixed == 0) & (c > 0)
        tl.store(on + u, tl.where(is_on, c, 0.0), mask=inside)
        tl.store(on + h1 + u, tl.where(is_on, a, 0.0), mask=inside)
        tl.store(on + 2 * h1 + u, tl.where(is_on, b, 0.0), mask=inside)
        place = count + tl.cumsum(mixed, 0) - 1
        listed = mixed == 1
        tl.store(units + place, u, mask=listed)
        tl.store(lines + place, c, mask=listed)
        tl.store(lines + h1 + place, a, mask=listed)
        tl.store(lines + 2 * h1 + place, b, mask=listed)
        count += tl.sum(mixed, 0)
    tl.store(counts + local, count)


@triton.jit(do_not_specialize=("rows",))
def scp_fold_kernel(
    on, w2t, b2, folded, rows, h1, h2,
    BLOCK_ROWS: tl.constexpr, BLOCK_H1: tl.constexpr, BLOCK_H2: tl.constexpr,
):  # fmt: skip
    """``b₂ + Σ_{u on} w₂[:, u]·(c, a, b)_u``: ``folded`` ``[sites, 3, h₂]``. Grid: (blocks of rows, of layer 2).

    Exact products always: TensorFloat-32, where it is allowed, is for the products with w₃.
    """
    r = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    k = tl.program_id(1) * BLOCK_H2 + tl.arange(0, BLOCK_H2)
    r_ok, k_ok = r < rows, k < h2
    total = tl.zeros([BLOCK_ROWS, BLOCK_H2], w2t.dtype.element_ty)
    for start in tl.range(0, h1, BLOCK_H1, num_stages=3):
        u = start + tl.arange(0, BLOCK_H1)
        line = tl.load(on + r[:, None] * h1 + u[None, :], mask=r_ok[:, None] & (u < h1)[None, :], other=0.0)
        w = tl.load(w2t + u[:, None] * h2 + k[None, :], mask=(u < h1)[:, None] & k_ok[None, :], other=0.0)
        total = tl.dot(line, w, total, input_precision="ieee", out_dtype=w2t.dtype.element_ty)
    constant = tl.load(b2 + k, mask=k_ok, other=0.0)
    total += tl.where((r % 3 == 0)[:, None], constant[None, :], 0.0)
    tl.store(folded + r[:, None] * h2 + k[None, :], total, mask=r_ok[:, None] & k_ok[None, :])
