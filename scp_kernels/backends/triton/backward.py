"""The backward kernels: one for the features' gradient, one for the parameters'. Both recompute the tile they need.

Sums over pixels are deterministic: every program adds up its tiles, in order, in a slab of its own, and the slabs are
summed in a fixed order afterwards. There are no atomics.
"""

import triton
import triton.language as tl

from scp_kernels.backends.triton.layers import (
    BATCH_STAGES,
    position,
    second_layer,
    tile_offsets,
    tile_pixels,
    weight_tile,
)

# Sizes whose value or alignment would not make better code: they must not cost a compilation each. The width is none of
# them: rows are masked by ``j < width``, and only a width of known alignment lets the accesses be vectors.
FEATURES_SIZES = (
    "first_tile", "tiles_per_map", "batch", "classes", "channels", "class_start", "h1", "height", "tiles_h", "tiles_w",
)  # fmt: skip
PARAMETERS_SIZES = (
    "first_tile", "tiles", "tiles_per_slab", "tiles_per_map", "batch", "classes", "channels", "h1", "height",
    "tiles_h", "tiles_w", "matrix_stride",
)  # fmt: skip


@triton.jit(do_not_specialize=FEATURES_SIZES)
def scp_bwd_features_kernel(
    # Gradient of the logits [B, N, (D,) H, W]
    grad_logits,
    # The tiles: affine rows [tiles, 3, h₂]; unstable units' (c, a, b) [tiles, 3, h₁], numbers [tiles, h₁], count
    folded, lines, units, counts,
    # Layers 2 and 3, and w_r
    w2t, w3, b3, residual,
    # Written: gradient of the features [B, C, (D,) H, W]
    grad_features,
    # Sizes, of the tiles and of the call
    first_tile, tiles_per_map, batch, classes, channels, class_start, h1, h2, height, width, tiles_h, tiles_w,
    # Strides of the gradients of logits and features
    g_stride_b, g_stride_n, g_stride_d, g_stride_h, g_stride_w,
    x_stride_b, x_stride_c, x_stride_d, x_stride_h, x_stride_w,
    # The launch's configuration
    TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_H2: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, ACCUMULATE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``gX[b, c] = Σ_n gY[b, n]·(W + w_r)[n, c]``. Grid: (tiles, blocks of channels).

    One launch covers ``BLOCK_N`` classes from ``class_start`` on; with ``ACCUMULATE`` it adds to those before it.
    """
    dtype: tl.constexpr = w2t.dtype.element_ty
    local = tl.program_id(0).to(tl.int64)
    group, d, i, j = tile_pixels(local + first_tile, tiles_per_map, tiles_h, tiles_w, TILE_H, TILE_W)
    # W of the tile: it stays in registers while the samples pass by.
    first_channel = tl.program_id(1) * BLOCK_C
    q = tl.arange(0, BLOCK_N * BLOCK_C)
    weight = weight_tile(
        folded + local * 3 * h2, lines + local * 3 * h1, units + local * h1, tl.load(counts + local), w2t, w3, b3,
        residual, class_start + q // BLOCK_C, first_channel + q % BLOCK_C, classes, channels, h1, h2,
        TILE_H, TILE_W, BLOCK_H2, BLOCK_N * BLOCK_C, PRECISION,
    )  # fmt: skip

    # Where the tile's pixels are, and which of them exist.
    inside = (i < height) & (j < width)  # [P]
    i, j = i.to(tl.int64), j.to(tl.int64)
    c = first_channel + tl.arange(0, BLOCK_C)
    x_offset = (d * x_stride_d + i * x_stride_h + j * x_stride_w)[:, None] + c.to(tl.int64)[None, :] * x_stride_c
    x_mask = inside[:, None] & (c < channels)[None, :]
    g_pixel = d * g_stride_d + i * g_stride_h + j * g_stride_w
    x_sample = grad_features + group * batch * x_stride_b
    g_sample = grad_logits + group * batch * g_stride_b
    # The samples, one after another.
    if BLOCK_N == 1:
        tl.static_assert(not ACCUMULATE, "a block of one class has all of them")
        for _ in tl.range(0, batch, num_stages=BATCH_STAGES):
            g = tl.load(g_sample + g_pixel, mask=inside, other=0.0).to(dtype)
            gradient = g[:, None] * weight
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
    # The first sample's gradient of the logits, and features; how many samples
    g_sample, x_sample, batch,
    # Classes [BLOCK_N] and channels [BLOCK_C], and which of them exist
    n, c, n_ok, c_ok,
    # The tile's pixels [P]: which of them exist, and their offsets
    inside, g_pixel, x_pixel,
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
def add_moments(
    # Where to add [2K + 1] per unit, the units' moments, and which units there are
    target, moment_0, moment_i, moment_j, mask,
    # The position matrices, and the tile
    matrix, tile, tiles_per_map, tiles_h, tiles_w, matrix_stride,
    DIMS: tl.constexpr, POSITION_DIMS: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr,
    SUM_TILES: tl.constexpr,
):  # fmt: skip
    """Adds the gradients of w₁ (2K columns of ``target``) and b₁ (one): Σ g·S and Σ g of the units' gradients g.

    Moments Σ g, Σ g·di, Σ g·dj are about the centre of the tile; absolute positions are float64. With a block
    of tiles ``[tiles, 1]`` the moments are ``[tiles, units]``, and are summed over tiles here.
    """
    moment_0 = moment_0.to(tl.float64)
    for m in tl.static_range(2 * POSITION_DIMS):
        s, s_i, s_j = position(matrix, m, tile, tiles_per_map, tiles_h, tiles_w, matrix_stride, DIMS, TILE_H, TILE_W)
        gradient = moment_0 * s + moment_i.to(tl.float64) * s_i + moment_j.to(tl.float64) * s_j
        add_to(target + m, tl.sum(gradient, 0) if SUM_TILES else gradient, mask)
    add_to(target + 2 * POSITION_DIMS, tl.sum(moment_0, 0) if SUM_TILES else moment_0, mask)


@triton.jit
def unstable_units_backward(
    # The gradient of z [P, BLOCK_H2] of the units k of layer 2
    gz, k,
    # The tile's unstable units: (c, a, b) [3, h₁], numbers, how many
    lines, units, count,
    # Layer 2 [h₁, h₂]; added to: its gradient, and that of layer 1 [h₁, 2K + 1]
    w2t, grad_w2t, moments,
    h1, h2,
    # The position matrices, and the tile
    matrix, tile, tiles_per_map, tiles_h, tiles_w, matrix_stride,
    DIMS: tl.constexpr, POSITION_DIMS: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr,
):  # fmt: skip
    """From ``gz`` ``[P, BLOCK_H2]`` to the gradients of w₂, w₁ and b₁ in a tile's unstable units, one by one.

    With the moments of gz where the unit is above 0, ``v = Σ_p 1[l_u > 0]·gz[p, k]·(1, di, dj)``, that of w₂ is
    ``gw₂[k, u] = c·v₀ + a·v₁ + b·v₂``, and the moments of the unit's own gradient are ``Σ_k w₂[k, u]·v``.
    """
    dtype: tl.constexpr = w2t.dtype.element_ty
    di, dj = tile_offsets(dtype, TILE_H, TILE_W)
    k_ok = k < h2
    # No products of matrices: with their operands in registers beside gz these would not suffice on every architecture.
    for m in tl.range(0, count, disable_licm=True):
        u = tl.load(units + m)
        c, a, b = tl.load(lines + m), tl.load(lines + h1 + m), tl.load(lines + 2 * h1 + m)
        above = tl.where((c + a * di + b * dj <= 0)[:, None], 0.0, gz)
        v_0 = tl.sum(above, 0)
        v_i = tl.sum(above * di[:, None], 0)
        v_j = tl.sum(above * dj[:, None], 0)
        add_to(grad_w2t + u * h2 + k, c * v_0 + a * v_i + b * v_j, k_ok)
        w = tl.load(w2t + u * h2 + k, mask=k_ok, other=0.0)
        add_moments(
            moments + u * (2 * POSITION_DIMS + 1), tl.sum(w * v_0, 0), tl.sum(w * v_i, 0), tl.sum(w * v_j, 0), True,
            matrix, tile, tiles_per_map, tiles_h, tiles_w, matrix_stride, DIMS, POSITION_DIMS, TILE_H, TILE_W, False,
        )  # fmt: skip


@triton.jit(do_not_specialize=PARAMETERS_SIZES)
def scp_bwd_parameters_kernel(
    # Gradient of the logits [B, N, (D,) H, W] and features [B, C, (D,) H, W]
    grad_logits, x,
    # The tiles: affine rows [tiles, 3, h₂]; unstable units' (c, a, b) [tiles, 3, h₁], numbers [tiles, h₁], count
    folded, lines, units, counts,
    # Layers 2 and 3, and the position matrices
    w2t, w3, matrix,
    # Added to: partial gradients of each slab; written: gradient of the affine rows [tiles, 3, h₂]
    partials, moments, grad_folded,
    # Sizes, of the tiles and of the call
    first_tile, tiles, tiles_per_slab, tiles_per_map, batch, classes, channels, h1, h2, height, width,
    tiles_h, tiles_w, matrix_stride,
    # Strides of the gradient of the logits and of the features
    g_stride_b, g_stride_n, g_stride_d, g_stride_h, g_stride_w,
    x_stride_b, x_stride_c, x_stride_d, x_stride_h, x_stride_w,
    # The launch's configuration
    DIMS: tl.constexpr, POSITION_DIMS: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr,
    BLOCK_H2: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Sums over each slab's tiles of all gradients but the part that active units of layer 1 have in w₂, w₁, b₁.

    For that part it leaves Σ gz, Σ gz·di, Σ gz·dj of each tile in ``grad_folded``, the gradient of ``folded``; the
    kernels of ``fold_backward`` go on from there. Grid: (slabs, blocks of layer 2).

    ``partials`` is ``[slabs, h₁·h₂ + h₂ + N·C·h₂ + N·C]``, of the gradients of w₂ᵀ, b₂, w₃, b₃: a program adds to the
    columns of its units k (and the first of a slab to b₃). ``moments`` is float64 ``[slabs, blocks, h₁, 2K + 1]``, of
    those of w₁ and b₁. Both come zeroed.
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
    moments += (slab.to(tl.int64) * tl.num_programs(1) + block) * h1 * (2 * POSITION_DIMS + 1)
    q = tl.arange(0, BLOCK_N * BLOCK_C)
    di, dj = tile_offsets(dtype, TILE_H, TILE_W)
    start = slab * tiles_per_slab
    for step in tl.range(0, tl.minimum(tiles_per_slab, tiles - start), disable_licm=True):
        local = (start + step).to(tl.int64)
        tile = local + first_tile
        group, d, i, j = tile_pixels(tile, tiles_per_map, tiles_h, tiles_w, TILE_H, TILE_W)
        # The tile's second layer, once more.
        count = tl.load(counts + local)
        z = second_layer(
            folded + local * 3 * h2, lines + local * 3 * h1, units + local * h1, count, w2t, k,
            h1, h2, TILE_H, TILE_W, BLOCK_H2,
        )  # fmt: skip
        hidden = tl.where(z <= 0, 0.0, z)

        inside = (i < height) & (j < width)
        i, j = i.to(tl.int64), j.to(tl.int64)
        g_pixel = d * g_stride_d + i * g_stride_h + j * g_stride_w
        x_pixel = d * x_stride_d + i * x_stride_h + j * x_stride_w
        # Layer 3: its gradients, and that of relu(z), a block of outputs at a time.
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

        # Layer 2: the affine rows' gradients, then unstable units'.
        gz = tl.where(z <= 0, 0.0, g_hidden)
        gz_0 = tl.sum(gz, 0)
        grad_rows = grad_folded + local * 3 * h2 + k
        tl.store(grad_rows, gz_0, mask=k_ok)
        tl.store(grad_rows + h2, tl.sum(gz * di[:, None], 0), mask=k_ok)
        tl.store(grad_rows + 2 * h2, tl.sum(gz * dj[:, None], 0), mask=k_ok)
        add_to(grad_b2 + k, gz_0, k_ok)
        unstable_units_backward(
            gz, k, lines + local * 3 * h1, units + local * h1, count, w2t, grad_w2t, moments, h1, h2,
            matrix, tile, tiles_per_map, tiles_h, tiles_w, matrix_stride, DIMS, POSITION_DIMS, TILE_H, TILE_W,
        )  # fmt: skip
        # A load need not have the layout of the store before it: the next tile may read what another thread wrote.
        tl.debug_barrier()
