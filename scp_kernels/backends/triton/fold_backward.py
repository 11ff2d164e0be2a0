"""The last two kernels of the parameters' gradients: what active units of layer 1 have in w₂, w₁ and b₁.

The adjoint of ``fold.scp_fold_fwd_kernel``, for all tiles at once: two small products of matrices in place of a loop
over units on every tile. They add to partial sums that the kernel before them began.
"""

import triton
import triton.language as tl

from scp_kernels.backends.triton.backward import add_moments, add_to


@triton.jit(do_not_specialize=("rows", "rows_per_part", "partials_stride"))
def scp_fold_bwd_w2_kernel(
    # Read: the active units' lines [rows, h₁], and the gradients of the affine rows [rows, h₂]
    active, grad_folded,
    # Added to: partial gradients of w₂ᵀ [parts, h₁, h₂]
    partials,
    # Sizes
    rows, rows_per_part, partials_stride, h1, h2,
    BLOCK_ROWS: tl.constexpr, BLOCK_H1: tl.constexpr, BLOCK_H2: tl.constexpr,
):  # fmt: skip
    """``gw₂[k, u] += Σ_rows grad_folded[row, k]·(c, a, b)[row, u]``; a row is a tile and one of its three components.

    Grid: (blocks of layer 1, of layer 2, parts of the rows). A part adds to one slab's partial sums.
    """
    dtype: tl.constexpr = active.dtype.element_ty
    u = tl.program_id(0) * BLOCK_H1 + tl.arange(0, BLOCK_H1)
    k = tl.program_id(1) * BLOCK_H2 + tl.arange(0, BLOCK_H2)
    part = tl.program_id(2)
    first = part * rows_per_part
    last = tl.minimum(first + rows_per_part, rows)
    total = tl.zeros([BLOCK_H1, BLOCK_H2], dtype)
    for start in tl.range(first, last, BLOCK_ROWS, num_stages=3):
        r = start + tl.arange(0, BLOCK_ROWS)
        r_ok = (r < last)[:, None]
        line = tl.load(active + r[:, None] * h1 + u[None, :], mask=r_ok & (u < h1)[None, :], other=0.0)
        g = tl.load(grad_folded + r[:, None] * h2 + k[None, :], mask=r_ok & (k < h2)[None, :], other=0.0)
        total = tl.dot(tl.trans(line), g, total, input_precision="ieee", out_dtype=dtype)
    target = partials + part.to(tl.int64) * partials_stride + u[:, None] * h2 + k[None, :]
    add_to(target, total, (u < h1)[:, None] & (k < h2)[None, :])


@triton.jit(do_not_specialize=("first_tile", "tiles", "tiles_per_map", "tiles_h", "tiles_w", "matrix_stride"))
def scp_fold_bwd_w1_kernel(
    # Read: the active units' lines [tiles, 3, h₁], and the gradients of the affine rows [tiles, 3, h₂]
    active, grad_folded,
    # Layer 2 [h₂, h₁], and the position matrices
    w2, matrix,
    # Added to: float64 [blocks of tiles, h₁, 2K + 1]
    moments,
    # Sizes
    first_tile, tiles, tiles_per_map, tiles_h, tiles_w, matrix_stride, h1, h2,
    DIMS: tl.constexpr, POSITION_DIMS: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr,
    BLOCK_TILES: tl.constexpr, BLOCK_H1: tl.constexpr, BLOCK_H2: tl.constexpr,
):  # fmt: skip
    """Gradients of w₁ and b₁: those of a unit's line, ``Σ_k w₂[k, u]·grad_folded[tile, :, k]`` where it is active.

    Grid: (blocks of tiles, blocks of layer 1).
    """
    dtype: tl.constexpr = w2.dtype.element_ty
    local = tl.program_id(0) * BLOCK_TILES + tl.arange(0, BLOCK_TILES)
    u = tl.program_id(1) * BLOCK_H1 + tl.arange(0, BLOCK_H1)
    local_ok, u_ok = local < tiles, u < h1
    moment_0 = tl.zeros([BLOCK_TILES, BLOCK_H1], dtype)
    moment_i = tl.zeros([BLOCK_TILES, BLOCK_H1], dtype)
    moment_j = tl.zeros([BLOCK_TILES, BLOCK_H1], dtype)
    for start in range(0, h2, BLOCK_H2):
        k = start + tl.arange(0, BLOCK_H2)
        w = tl.load(w2 + k[:, None] * h1 + u[None, :], mask=(k < h2)[:, None] & u_ok[None, :], other=0.0)
        source = grad_folded + local[:, None] * (3 * h2) + k[None, :]
        mask = local_ok[:, None] & (k < h2)[None, :]
        g_0 = tl.load(source, mask=mask, other=0.0)
        moment_0 = tl.dot(g_0, w, moment_0, input_precision="ieee", out_dtype=dtype)
        g_i = tl.load(source + h2, mask=mask, other=0.0)
        moment_i = tl.dot(g_i, w, moment_i, input_precision="ieee", out_dtype=dtype)
        g_j = tl.load(source + 2 * h2, mask=mask, other=0.0)
        moment_j = tl.dot(g_j, w, moment_j, input_precision="ieee", out_dtype=dtype)
    mask = local_ok[:, None] & u_ok[None, :]
    is_active = tl.load(active + local[:, None] * (3 * h1) + u[None, :], mask=mask, other=0.0) > 0
    # Tiles past the last take the place of the last: their moments are 0, and a map to read must exist.
    tile = tl.minimum(local, tiles - 1).to(tl.int64)[:, None] + first_tile
    target = moments + (tl.program_id(0).to(tl.int64) * h1 + u) * (2 * POSITION_DIMS + 1)
    add_moments(
        target, tl.where(is_active, moment_0, 0.0), tl.where(is_active, moment_i, 0.0),
        tl.where(is_active, moment_j, 0.0), u_ok,
        matrix, tile, tiles_per_map, tiles_h, tiles_w, matrix_stride, DIMS, POSITION_DIMS, TILE_H, TILE_W, True,
    )  # fmt: skip
