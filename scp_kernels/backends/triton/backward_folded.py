"""The last two kernels of the parameters' gradients: what units of layer 1 that are on have in w₂, w₁ and b₁.

The adjoint of ``plan.scp_fold_kernel``, for all sites at once: two small products of matrices in place of a loop over
units on every tile. They add to partial sums that the kernel before them began.
"""

import triton
import triton.language as tl

from scp_kernels.backends.triton.backward import add_moments, add_to


@triton.jit(do_not_specialize=("rows", "rows_per_part", "partials_stride"))
def scp_backward_second_weight_kernel(
    on, grad_folded, partials, rows, rows_per_part, partials_stride, h1, h2,
    BLOCK_ROWS: tl.constexpr, BLOCK_H1: tl.constexpr, BLOCK_H2: tl.constexpr,
):  # fmt: skip
    """``gw₂[k, u] += Σ_rows grad_folded[row, k]·(c, a, b)[row, u]``; a row is a site and one of its three components.

    Grid: (blocks of layer 1, of layer 2, parts of the rows). A part adds to one slab's partial sums.
    """
    dtype: tl.constexpr = on.dtype.element_ty
    u = tl.program_id(0) * BLOCK_H1 + tl.arange(0, BLOCK_H1)
    k = tl.program_id(1) * BLOCK_H2 + tl.arange(0, BLOCK_H2)
    part = tl.program_id(2)
    first = part * rows_per_part
    last = tl.minimum(first + rows_per_part, rows)
    total = tl.zeros([BLOCK_H1, BLOCK_H2], dtype)
    for start in tl.range(first, last, BLOCK_ROWS, num_stages=3):
        r = start + tl.arange(0, BLOCK_ROWS)
        r_ok = (r < last)[:, None]
        line = tl.load(on + r[:, None] * h1 + u[None, :], mask=r_ok & (u < h1)[None, :], other=0.0)
        g = tl.load(grad_folded + r[:, None] * h2 + k[None, :], mask=r_ok & (k < h2)[None, :], other=0.0)
        total = tl.dot(tl.trans(line), g, total, input_precision="ieee", out_dtype=dtype)
    target = partials + part.to(tl.int64) * partials_stride + u[:, None] * h2 + k[None, :]
    add_to(target, total, (u < h1)[:, None] & (k < h2)[None, :])


@triton.jit(do_not_specialize=("first_site", "sites", "tiles", "tiles_h", "tiles_w", "matrix_stride"))
def scp_backward_first_weight_kernel(
    on, grad_folded, w2, matrix, moments, first_site, sites, tiles, tiles_h, tiles_w, matrix_stride, h1, h2,
    DIMS: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr,
    BLOCK_SITES: tl.constexpr, BLOCK_H1: tl.constexpr, BLOCK_H2: tl.constexpr,
):  # fmt: skip
    """Gradients of w₁ and b₁: those of a unit's line, ``Σ_k w₂[k, u]·grad_folded[site, :, k]`` where it is on.

    Grid: (blocks of sites, blocks of layer 1). ``moments`` is float64 ``[blocks of sites, h₁, 2d + 1]``, added to.
    """
    dtype: tl.constexpr = w2.dtype.element_ty
    local = tl.program_id(0) * BLOCK_SITES + tl.arange(0, BLOCK_SITES)
    u = tl.program_id(1) * BLOCK_H1 + tl.arange(0, BLOCK_H1)
    local_ok, u_ok = local < sites, u < h1
    moment_0 = tl.zeros([BLOCK_SITES, BLOCK_H1], dtype)
    moment_i = tl.zeros([BLOCK_SITES, BLOCK_H1], dtype)
    moment_j = tl.zeros([BLOCK_SITES, BLOCK_H1], dtype)
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
    is_on = tl.load(on + local[:, None] * (3 * h1) + u[None, :], mask=mask, other=0.0) > 0
    # Sites past the last take the place of the last: their moments are 0, and a map to read must exist.
    site = tl.minimum(local, sites - 1).to(tl.int64)[:, None] + first_site
    target = moments + (tl.program_id(0).to(tl.int64) * h1 + u) * (2 * DIMS + 1)
    add_moments(
        target, tl.where(is_on, moment_0, 0.0), tl.where(is_on, moment_i, 0.0), tl.where(is_on, moment_j, 0.0), u_ok,
        matrix, site, tiles, tiles_h, tiles_w, matrix_stride, DIMS, TILE_H, TILE_W, True,
    )  # fmt: skip
