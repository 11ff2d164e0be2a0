"""The backward kernels: one for the features' gradient, one for the parameters'. Both recompute the tile they need.

Sums over pixels are deterministic: every program adds up its tiles, in order, in a slab of its own, and the slabs are
summed in a fixed order afterwards. There are no atomics.
"""

import triton
import triton.language as tl

from scp_kernels.backends.triton.layers import (
    BATCH_STAGES,
    first_layer,
    on_and_mixed,
    second_layer,
    tile_offsets,
    tile_pixels,
    weight_tile,
)

# Sizes whose value or alignment would not make better code: they must not cost a compilation each. The width is none of
# them: rows are masked by ``j < width``, and only a width of known alignment lets the accesses be vectors.
FEATURES_SIZES = ("batch", "classes", "channels", "class_start", "h1", "height", "tiles_h", "tiles_w")
PARAMETERS_SIZES = (
    "batch", "groups", "classes", "channels", "h1", "height", "tiles", "tiles_h", "tiles_w",
    "tiles_per_slab", "slabs_per_group", "groups_per_slab",
)  # fmt: skip


@triton.jit(do_not_specialize=FEATURES_SIZES)
def scp_backward_features_kernel(
    grad_logits, coefficients, w2t, b2, w3, b3, residual, grad_features,
    batch, classes, channels, class_start, h1, h2, height, width, tiles_h, tiles_w,
    g_stride_b, g_stride_n, g_stride_d, g_stride_h, g_stride_w,
    x_stride_b, x_stride_c, x_stride_d, x_stride_h, x_stride_w,
    DIMS: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_H1: tl.constexpr, BLOCK_H2: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, ACCUMULATE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``gX[b, c] = Σ_n gY[b, n]·(W + w_r)[n, c]``. Grid: (tiles, groups, blocks of channels).

    One launch covers ``BLOCK_N`` classes from ``class_start`` on; with ``ACCUMULATE`` it adds to those before it.
    """
    dtype: tl.constexpr = w2t.dtype.element_ty
    depth_index, first_row, first_column, i, j = tile_pixels(tl.program_id(0), tiles_h, tiles_w, TILE_H, TILE_W)
    group = tl.program_id(1).to(tl.int64)
    first_channel = tl.program_id(2) * BLOCK_C
    q = tl.arange(0, BLOCK_N * BLOCK_C)
    weight = weight_tile(
        coefficients + group * h1 * (DIMS + 1), w2t, b2, w3, b3, residual,
        class_start + q // BLOCK_C, first_channel + q % BLOCK_C, classes, channels, h1, h2,
        depth_index, first_row, first_column, DIMS, TILE_H, TILE_W, BLOCK_H1, BLOCK_H2, BLOCK_N * BLOCK_C, PRECISION,
    )  # fmt: skip

    inside = (i < height) & (j < width)
    d, i, j = depth_index.to(tl.int64), i.to(tl.int64), j.to(tl.int64)
    c = first_channel + tl.arange(0, BLOCK_C)
    x_offset = (d * x_stride_d + i * x_stride_h + j * x_stride_w)[:, None] + c.to(tl.int64)[None, :] * x_stride_c
    x_mask = inside[:, None] & (c < channels)[None, :]
    g_pixel = d * g_stride_d + i * g_stride_h + j * g_stride_w
    x_sample = grad_features + group * batch * x_stride_b
    g_sample = grad_logits + group * batch * g_stride_b
    if BLOCK_N == 1:
        g_offset = g_pixel + tl.cast(class_start, tl.int64) * g_stride_n
        for _ in tl.range(0, batch, num_stages=BATCH_STAGES):
            g = tl.load(g_sample + g_offset, mask=inside, other=0.0).to(dtype)
            gradient = g[:, None] * weight
            if ACCUMULATE:
                gradient += tl.load(x_sample + x_offset, mask=x_mask, other=0.0)
            tl.store(x_sample + x_offset, gradient.to(grad_features.dtype.element_ty), mask=x_mask)
            x_sample += x_stride_b
            g_sample += g_stride_b
    else:
        weights = tl.reshape(weight, [TILE_H * TILE_W, BLOCK_N, BLOCK_C])
        n = class_start + tl.arange(0, BLOCK_N)
        g_offsets = g_pixel[:, None] + n.to(tl.int64)[None, :] * g_stride_n
        g_mask = inside[:, None] & (n < classes)[None, :]
        for _ in tl.range(0, batch, num_stages=BATCH_STAGES):
            g = tl.load(g_sample + g_offsets, mask=g_mask, other=0.0).to(dtype)
            gradient = tl.sum(weights * g[:, :, None], 1)
            if ACCUMULATE:
                gradient += tl.load(x_sample + x_offset, mask=x_mask, other=0.0)
            tl.store(x_sample + x_offset, gradient.to(grad_features.dtype.element_ty), mask=x_mask)
            x_sample += x_stride_b
            g_sample += g_stride_b


@triton.jit
def weight_field_gradient(
    g_sample, x_sample, batch, n, c, n_ok, c_ok, inside, g_pixel, x_pixel,
    g_stride_b, g_stride_n, x_stride_b, x_stride_c,
    dtype: tl.constexpr, PIXELS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """``gW[n, c] = Σ_b gY[b, n]·X[b, c]`` at a tile's pixels, ``[P, BLOCK_N·BLOCK_C]``; zero at masked ones."""
    x_offset = x_pixel[:, None] + c.to(tl.int64)[None, :] * x_stride_c
    x_mask = inside[:, None] & c_ok[None, :]
    g_offset = g_pixel[:, None] + n.to(tl.int64)[None, :] * g_stride_n
    g_mask = inside[:, None] & n_ok[None, :]
    if BLOCK_N == 1:
        total = tl.zeros([PIXELS, BLOCK_C], dtype)
        for _ in tl.range(0, batch, num_stages=BATCH_STAGES):
            features = tl.load(x_sample + x_offset, mask=x_mask, other=0.0).to(dtype)
            g = tl.load(g_sample + g_offset, mask=g_mask, other=0.0).to(dtype)
            total += g * features
            x_sample += x_stride_b
            g_sample += g_stride_b
        return total
    else:
        totals = tl.zeros([PIXELS, BLOCK_N, BLOCK_C], dtype)
        for _ in tl.range(0, batch, num_stages=BATCH_STAGES):
            features = tl.load(x_sample + x_offset, mask=x_mask, other=0.0).to(dtype)
            g = tl.load(g_sample + g_offset, mask=g_mask, other=0.0).to(dtype)
            totals += g[:, :, None] * features[:, None, :]
            x_sample += x_stride_b
            g_sample += g_stride_b
        return tl.reshape(totals, [PIXELS, BLOCK_N * BLOCK_C])


@triton.jit
def add_to(pointer, value, mask):
    """Adds to memory that only this program writes; at most once between barriers at any one place."""
    tl.store(pointer, tl.load(pointer, mask=mask, other=0.0) + value, mask=mask)


@triton.jit
def first_layer_gradient(
    gz, coefficients, w2t, grad_w2t, moments, k, h1, h2, depth_index, first_row, first_column,
    DIMS: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_H1: tl.constexpr, BLOCK_H2: tl.constexpr,
):  # fmt: skip
    """From ``gz`` ``[P, BLOCK_H2]`` to the gradients of w₂ (units ``k``) and, by its moments, of the coefficients.

    The adjoint of :func:`second_layer`: a unit that is on needs only the moments Σ gz, Σ gz·di, Σ gz·dj of the tile; a
    mixed one its own sums over the pixels. Moments about the tile's centre become absolute in float64.
    """
    dtype: tl.constexpr = w2t.dtype.element_ty
    di, dj = tile_offsets(dtype, TILE_H, TILE_W)
    lane = tl.arange(0, BLOCK_H1)
    gz_0 = tl.sum(gz, 0)  # [BLOCK_H2]
    gz_i = tl.sum(gz * di[:, None], 0)
    gz_j = tl.sum(gz * dj[:, None], 0)
    for start in range(0, h1, BLOCK_H1):
        u = start + lane
        c, a, b, bends = first_layer(
            coefficients, u, h1, depth_index, first_row, first_column, dtype, DIMS, TILE_H, TILE_W
        )
        on, bits = on_and_mixed(c, bends, lane)
        active = on | ((bits >> lane) & 1 == 1)
        block = u[:, None] * h2 + k[None, :]
        w = tl.load(w2t + block, mask=on[:, None] & (k < h2)[None, :], other=0.0)
        moment_0 = tl.sum(w * gz_0[None, :], 1)  # [BLOCK_H1]
        moment_i = tl.sum(w * gz_i[None, :], 1)
        moment_j = tl.sum(w * gz_j[None, :], 1)
        update = c[:, None] * gz_0[None, :] + a[:, None] * gz_i[None, :] + b[:, None] * gz_j[None, :]
        while bits != 0:
            lowest = bits & -bits
            chosen = (1 << lane) == lowest
            unit = tl.sum(tl.where(chosen, u, 0))
            c_u = tl.sum(tl.where(chosen, c, 0.0))
            a_u = tl.sum(tl.where(chosen, a, 0.0))
            b_u = tl.sum(tl.where(chosen, b, 0.0))
            w_u = tl.load(w2t + unit * h2 + k, mask=k < h2, other=0.0)
            l = c_u + a_u * di + b_u * dj  # noqa: E741 — the name of the mathematics
            row = tl.sum(tl.where(l <= 0, 0.0, l)[:, None] * gz, 0)
            gl = tl.where(l <= 0, 0.0, tl.sum(gz * w_u[None, :], 1))
            moment_0 = tl.where(chosen, tl.sum(gl), moment_0)
            moment_i = tl.where(chosen, tl.sum(gl * di), moment_i)
            moment_j = tl.where(chosen, tl.sum(gl * dj), moment_j)
            update = tl.where(chosen[:, None], row[None, :], update)
            bits ^= lowest
        add_to(grad_w2t + block, update, active[:, None] & (k < h2)[None, :])
        total = moment_0.to(tl.float64)
        row_centre = first_row.to(tl.float64) + (TILE_H - 1) * 0.5
        column_centre = first_column.to(tl.float64) + (TILE_W - 1) * 0.5
        target = moments + u * (DIMS + 1)
        if DIMS == 3:
            add_to(target, total * depth_index.to(tl.float64), active)
        add_to(target + (DIMS - 2), moment_i.to(tl.float64) + total * row_centre, active)
        add_to(target + (DIMS - 1), moment_j.to(tl.float64) + total * column_centre, active)
        add_to(target + DIMS, total, active)


@triton.jit(do_not_specialize=PARAMETERS_SIZES)
def scp_backward_parameters_kernel(
    grad_logits, x, coefficients, w2t, b2, w3, partials, moments,
    batch, groups, classes, channels, h1, h2, height, width, tiles, tiles_h, tiles_w,
    tiles_per_slab, slabs_per_group, groups_per_slab,
    g_stride_b, g_stride_n, g_stride_d, g_stride_h, g_stride_w,
    x_stride_b, x_stride_c, x_stride_d, x_stride_h, x_stride_w,
    DIMS: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_H1: tl.constexpr, BLOCK_H2: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Sums over each slab's tiles of the gradients of w₂ᵀ, b₂, w₃, b₃ and the coefficients.

    Grid: (slabs, blocks of layer 2). A slab is a part of one group's tiles, or all tiles of several groups.
    ``partials`` is ``[slabs, h₁·h₂ + h₂ + N·C·h₂ + N·C]``, of which a program writes the columns of its units k (and
    the first of a slab those of b₃); ``moments`` is float64 ``[slabs, blocks, groups_per_slab, h₁, d + 1]``. Both
    come zeroed.
    """
    dtype: tl.constexpr = w2t.dtype.element_ty
    slab = tl.program_id(0)
    block = tl.program_id(1)
    outputs = classes * channels
    k = block * BLOCK_H2 + tl.arange(0, BLOCK_H2)
    k_ok = k < h2
    grad_w2t = partials + slab.to(tl.int64) * (h1 * h2 + h2 + outputs * h2 + outputs)
    grad_b2 = grad_w2t + h1 * h2
    grad_w3 = grad_b2 + h2
    grad_b3 = grad_w3 + outputs * h2
    coefficients_size = h1 * (DIMS + 1)
    moments += (slab.to(tl.int64) * tl.num_programs(1) + block) * groups_per_slab * coefficients_size
    q = tl.arange(0, BLOCK_N * BLOCK_C)
    first_group = slab // slabs_per_group * groups_per_slab
    first_tile = slab % slabs_per_group * tiles_per_slab
    for group_step in tl.range(0, tl.minimum(groups_per_slab, groups - first_group), disable_licm=True):
        group = (first_group + group_step).to(tl.int64)
        for step in tl.range(0, tl.minimum(tiles_per_slab, tiles - first_tile), disable_licm=True):
            depth_index, first_row, first_column, i, j = tile_pixels(
                first_tile + step, tiles_h, tiles_w, TILE_H, TILE_W
            )
            z = second_layer(
                coefficients + group * coefficients_size, w2t, b2, k, h1, h2, depth_index, first_row, first_column,
                DIMS, TILE_H, TILE_W, BLOCK_H1, BLOCK_H2,
            )  # fmt: skip
            hidden = tl.where(z <= 0, 0.0, z)

            inside = (i < height) & (j < width)
            d, i, j = depth_index.to(tl.int64), i.to(tl.int64), j.to(tl.int64)
            g_pixel = d * g_stride_d + i * g_stride_h + j * g_stride_w
            x_pixel = d * x_stride_d + i * x_stride_h + j * x_stride_w
            g_hidden = tl.zeros([TILE_H * TILE_W, BLOCK_H2], dtype)
            for n_start in range(0, classes, BLOCK_N):
                for c_start in range(0, channels, BLOCK_C):
                    n = n_start + tl.arange(0, BLOCK_N)
                    c = c_start + tl.arange(0, BLOCK_C)
                    g_weight = weight_field_gradient(
                        grad_logits + group * batch * g_stride_b, x + group * batch * x_stride_b, batch, n, c,
                        n < classes, c < channels, inside, g_pixel, x_pixel,
                        g_stride_b, g_stride_n, x_stride_b, x_stride_c, dtype, TILE_H * TILE_W, BLOCK_N, BLOCK_C,
                    )  # fmt: skip
                    n_q, c_q = n_start + q // BLOCK_C, c_start + q % BLOCK_C
                    valid = (n_q < classes) & (c_q < channels)
                    output = n_q * channels + c_q
                    offset = output[:, None] * h2 + k[None, :]  # [BLOCK_Q, BLOCK_H2]
                    mask = valid[:, None] & k_ok[None, :]
                    w = tl.load(w3 + offset, mask=mask, other=0.0)
                    g_w3 = tl.dot(tl.trans(g_weight), hidden, input_precision=PRECISION, out_dtype=dtype)
                    add_to(grad_w3 + offset, g_w3, mask)
                    # After the other product, not before it: the compiler then needs a third fewer registers.
                    g_hidden = tl.dot(g_weight, w, g_hidden, input_precision=PRECISION, out_dtype=dtype)
                    if block == 0:
                        add_to(grad_b3 + output, tl.sum(g_weight, 0), valid)

            gz = tl.where(z <= 0, 0.0, g_hidden)
            add_to(grad_b2 + k, tl.sum(gz, 0), k_ok)
            first_layer_gradient(
                gz, coefficients + group * coefficients_size, w2t, grad_w2t, moments + group_step * coefficients_size,
                k, h1, h2, depth_index, first_row, first_column, DIMS, TILE_H, TILE_W, BLOCK_H1, BLOCK_H2,
            )  # fmt: skip
            # A load need not have the layout of the store before it: the next tile may read what another thread wrote.
            tl.debug_barrier()
