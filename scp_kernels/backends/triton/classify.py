"""The kernel that comes first: it classifies the units of layer 1 of Φ on every tile.

It runs once per pass, whatever kernels follow, and it is the only place where units are classified: what it writes is
what all others go by, so no unit can be active for one kernel and unstable for another.
"""

import triton
import triton.language as tl

from scp_kernels.backends.triton.layers import position

CLASSIFY_SIZES = ("first_tile", "tiles_per_map", "h1", "tiles_h", "tiles_w", "matrix_stride")


@triton.jit(do_not_specialize=CLASSIFY_SIZES)
def scp_classify_fwd_kernel(
    # Layer 1 [h₁, 2K], [h₁], and the position matrices [G, 2K, d + 1]
    w1, b1, matrix,
    # Written, per tile: active units' (c, a, b) [tiles, 3, h₁]; unstable units' [tiles, 3, h₁], numbers, count
    active, lines, units, counts,
    # Sizes
    first_tile, tiles_per_map, h1, tiles_h, tiles_w, matrix_stride,
    DIMS: tl.constexpr, POSITION_DIMS: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Which units of layer 1 are active, and which are unstable, on a tile. Grid: (tiles,).

    A unit is ``l = c + a·di + b·dj`` about the tile's centre. ``active`` is 0 for units that are not active; the lists
    of unstable units are in ascending order and without gaps. A unit whose bounds are within rounding of 0 counts as
    unstable, which is always right; so do NaNs.
    """
    dtype: tl.constexpr = w1.dtype.element_ty
    local = tl.program_id(0).to(tl.int64)
    tile = local + first_tile
    active += local * 3 * h1
    lines += local * 3 * h1
    units += local * h1
    lane = tl.arange(0, BLOCK)
    count = 0
    for start in range(0, h1, BLOCK):
        u = start + lane  # [BLOCK]
        inside = u < h1
        # The pre-activation about the tile's centre, from absolute positions: float64, then rounded once.
        centre = tl.load(b1 + u, mask=inside, other=0.0).to(tl.float64)
        slope_i = tl.zeros([BLOCK], tl.float64)
        slope_j = tl.zeros([BLOCK], tl.float64)
        for m in tl.static_range(2 * POSITION_DIMS):
            w = tl.load(w1 + u * (2 * POSITION_DIMS) + m, mask=inside, other=0.0).to(tl.float64)
            s, s_i, s_j = position(
                matrix, m, tile, tiles_per_map, tiles_h, tiles_w, matrix_stride, DIMS, TILE_H, TILE_W
            )
            centre += w * s
            slope_i += w * s_i
            slope_j += w * s_j
        c = centre.to(dtype)
        a = slope_i.to(dtype)
        b = slope_j.to(dtype)
        # Its bounds on the tile, widened against their own rounding.
        radius = tl.abs(a) * ((TILE_H - 1) * 0.5) + tl.abs(b) * ((TILE_W - 1) * 0.5)
        radius += 1e-6 * (tl.abs(c) + radius)
        bends = ((c - radius > 0) | (c + radius <= 0)) == 0
        # One value for the whole program: the compiler may work ``bends`` out anew for every layout it is wanted in,
        # with other roundings, and a unit must not be both active and unstable.
        bits = tl.sum(tl.where(bends, 1 << lane, 0))
        unstable = (bits >> lane) & 1
        is_active = (unstable == 0) & (c > 0)
        tl.store(active + u, tl.where(is_active, c, 0.0), mask=inside)
        tl.store(active + h1 + u, tl.where(is_active, a, 0.0), mask=inside)
        tl.store(active + 2 * h1 + u, tl.where(is_active, b, 0.0), mask=inside)
        # Compaction: an unstable unit's place in the list is the number of those before it.
        place = count + tl.cumsum(unstable, 0) - 1
        listed = unstable == 1
        tl.store(units + place, u, mask=listed)
        tl.store(lines + place, c, mask=listed)
        tl.store(lines + h1 + place, a, mask=listed)
        tl.store(lines + 2 * h1 + place, b, mask=listed)
        count += tl.sum(unstable, 0)
    tl.store(counts + local, count)
