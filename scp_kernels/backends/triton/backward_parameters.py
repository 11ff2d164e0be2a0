"""The backward kernel of Φ's parameters on tiles: docs/tile_linear.md, "Leaf". Tiles are evaluated anew.

Sums over pixels are deterministic: every program adds up its tiles, in order, in a slab of its own, and the slabs are
summed in a fixed order afterwards. There are no atomics.
"""

import triton
import triton.language as tl

from scp_kernels.backends.triton.boxes import box_origin, tile_offsets
from scp_kernels.backends.triton.folding import GEOMETRY_SIZES
from scp_kernels.backends.triton.rounding import rounded_product
from scp_kernels.backends.triton.slabs import begin_rows
from scp_kernels.backends.triton.weights import BATCH_STAGES, second_layer

# See forward.GENERIC_SIZES.
PARAMETERS_SIZES = (
    *(name for name in GEOMETRY_SIZES if name != "width"), "boxes", "boxes_per_slab", "batch", "classes", "channels",
    "h1", "capacity",
)  # fmt: skip


@triton.jit
def weight_field_gradient(
    # The first sample's gradient of the logits, and features; how many samples
    g_sample, x_sample, batch,
    # Classes [BLOCK_N] and channels [BLOCK_C], and which of them exist
    n, c, n_ok, c_ok,
    # The tile's pixels [P]: which of them exist, and their offsets
    inside, g_pixel, x_pixel,
    # Strides
    g_stride_b, g_stride_n, x_stride_b, x_stride_c,
    # The dtype of sums, and the launch's configuration
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
def sums_over_pixels(value, di, dj):
    """Sums of ``value`` ``[P, n]`` against 1, di, dj."""
    sum_i = tl.sum(rounded_product(value, di[:, None]), 0)
    sum_j = tl.sum(rounded_product(value, dj[:, None]), 0)
    return tl.sum(value, 0), sum_i, sum_j


@triton.jit
def load_scalars(functions, place, stride):
    """An affine function on a tile, or moments: three numbers ``stride`` apart."""
    return tl.load(functions + place), tl.load(functions + stride + place), tl.load(functions + 2 * stride + place)


@triton.jit
def store_moments(moments, place, stride, m_0, m_i, m_j, weight, v_0, v_i, v_j):
    """One unit's moments Σ g, Σ g·di, Σ g·dj, with ``Σ weight·v`` added."""
    tl.store(moments + place, m_0 + tl.sum(rounded_product(weight, v_0), 0))
    tl.store(moments + stride + place, m_i + tl.sum(rounded_product(weight, v_i), 0))
    tl.store(moments + 2 * stride + place, m_j + tl.sum(rounded_product(weight, v_j), 0))


@triton.jit
def half_sums(line, value, di, dj):
    """Sums of ``value`` ``[P, n]`` against 1, di, dj over the pixels where the pre-activation ``line`` is above 0."""
    above = tl.where((line <= 0)[:, None], 0.0, value)
    return sums_over_pixels(above, di, dj)


@triton.jit
def outputs_backward(
    # gW of the tile [N·C, P], and gradients of the tile's outputs and of its units' pre-activations
    grad_weight, grad_outputs, moments,
    # The tile's lists and outputs
    lines, outputs, unstable1,
    # Sizes, and the launch's configuration
    h1, output_count, capacity,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """From gW to the gradients of the rows of unstable units of layer 1, and to what they have in the units' moments.

    Where a unit's pre-activation is above 0 it is affine. With the sums v of gW against 1, di, dj there, the gradient
    of its row is ``c·v₀ + a·v₁ + b·v₂``, and the moments of its own gradient are ``cf·v``.
    """
    dtype: tl.constexpr = lines.dtype.element_ty
    di, dj = tile_offsets(dtype, TILE_H, TILE_W)
    p = tl.arange(0, TILE_H * TILE_W)
    for start in range(0, output_count, BLOCK_Q):
        q = start + tl.arange(0, BLOCK_Q)
        q_ok = q < output_count
        g_weight = tl.load(grad_weight + q[None, :] * (TILE_H * TILE_W) + p[:, None], mask=q_ok[None, :], other=0.0)
        for m in range(0, tl.where(unstable1 <= capacity, unstable1, 0)):
            # All loads first, so that they are under way together.
            place = h1 - 1 - m
            row = (3 + m) * output_count + q
            c, a, b = load_scalars(lines, place, h1)
            m_0, m_i, m_j = load_scalars(moments, place, h1)
            y = tl.load(outputs + row, mask=q_ok, other=0.0)
            v_0, v_i, v_j = half_sums(c + a * di + b * dj, g_weight, di, dj)  # [BLOCK_Q]
            tl.store(grad_outputs + row, c * v_0 + a * v_i + b * v_j, mask=q_ok)
            store_moments(moments, place, h1, m_0, m_i, m_j, y, v_0, v_i, v_j)
        tl.debug_barrier()


@triton.jit
def hidden_backward(
    # gW of the tile [N·C, P]; gradients of the tile's rows and of its units' pre-activations
    grad_weight, grad_rows, moments,
    # The slab's gradients of w₂ᵀ and w₃ᵀ
    grad_w2t, grad_w3t,
    # The tile's lists
    unit1, lines, unit2, rows, unstable1, unstable2,
    # Layers 2 [h₁, h₂] and 3 [h₂, N·C]
    w2t, w3t,
    # Sizes, and the launch's configuration
    h1, h2, output_count,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_Q: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Unstable units of layer 2, pixel by pixel: ``gz = 1[z > 0]·Σ_q w₃[q, k]·gW[q]``, and what follows from it.

    The affine rows get gz's sums against 1, di, dj. An unstable unit of layer 1 gets, as from gW,
    ``c·v₀ + a·v₁ + b·v₂`` for its weights, and ``Σ_k w₂[k, u]·v`` for its moments.
    """
    dtype: tl.constexpr = w2t.dtype.element_ty
    di, dj = tile_offsets(dtype, TILE_H, TILE_W)
    p = tl.arange(0, TILE_H * TILE_W)
    for first in range(0, unstable2, BLOCK_K):
        index = first + tl.arange(0, BLOCK_K)
        ok = index < unstable2
        place = h2 - 1 - index
        k = tl.load(unit2 + place, mask=ok, other=0)
        z = second_layer(unit1, lines, rows, unstable1, w2t, place, k, ok, h1, h2, TILE_H, TILE_W)
        relu = tl.where(z <= 0, 0.0, z)  # [P, BLOCK_K]
        g_relu = tl.zeros([TILE_H * TILE_W, BLOCK_K], dtype)
        for start in range(0, output_count, BLOCK_Q):
            q = start + tl.arange(0, BLOCK_Q)
            q_ok = q < output_count
            g_weight = tl.load(grad_weight + q[None, :] * (TILE_H * TILE_W) + p[:, None], mask=q_ok[None, :], other=0.0)
            offset = k[None, :] * output_count + q[:, None]  # [BLOCK_Q, BLOCK_K]
            mask = q_ok[:, None] & ok[None, :]
            w = tl.load(w3t + offset, mask=mask, other=0.0)
            before = tl.load(grad_w3t + offset, mask=mask, other=0.0)
            g_w3 = tl.dot(tl.trans(g_weight), relu, input_precision=PRECISION, out_dtype=dtype)
            tl.store(grad_w3t + offset, before + g_w3, mask=mask)
            g_relu = tl.dot(g_weight, w, g_relu, input_precision=PRECISION, out_dtype=dtype)
        gz = tl.where(z <= 0, 0.0, g_relu)
        gz_0, gz_i, gz_j = sums_over_pixels(gz, di, dj)
        tl.store(grad_rows + k, gz_0, mask=ok)
        tl.store(grad_rows + h2 + k, gz_i, mask=ok)
        tl.store(grad_rows + 2 * h2 + k, gz_j, mask=ok)
        for m in range(0, unstable1):
            place1 = h1 - 1 - m
            u = tl.load(unit1 + place1)
            c, a, b = load_scalars(lines, place1, h1)
            m_0, m_i, m_j = load_scalars(moments, place1, h1)
            w = tl.load(w2t + u * h2 + k, mask=ok, other=0.0)
            before = tl.load(grad_w2t + u * h2 + k, mask=ok, other=0.0)
            v_0, v_i, v_j = half_sums(c + a * di + b * dj, gz, di, dj)  # [BLOCK_K]
            tl.store(grad_w2t + u * h2 + k, before + (c * v_0 + a * v_i + b * v_j), mask=ok)
            store_moments(moments, place1, h1, m_0, m_i, m_j, w, v_0, v_i, v_j)
        tl.debug_barrier()


@triton.jit(do_not_specialize=PARAMETERS_SIZES)
def scp_bwd_parameters_kernel(
    # Gradient of the logits [B, N, (D,) H, W] and features [B, C, (D,) H, W]
    grad_logits, x,
    # The tiles' lists and outputs (``folding``)
    unit1, lines, unit2, rows, outputs, counts,
    # Layers 2 [h₁, h₂] and 3 [h₂, N·C]
    w2t, w3t,
    # Written, per tile: gradients of its outputs [tiles, 3 + capacity, N·C], of its rows [tiles, 3, h₂] by unit (0
    # where inactive), moments of the gradients of unstable units' pre-activations [tiles, 3, h₁] by place in the list
    grad_outputs, grad_rows, moments,
    # Per slab: partial gradients, added to, with those of layer 1 [slabs, h₁, 2K + 1], and marks of their rows
    # (``slabs``); room for gW of a tile [slabs, N·C, P]
    partials, first_layer, begun, grad_weight,
    # Sizes, of the tiles and of the call
    first_supertile, supertiles_per_map, supertiles_h, supertiles_w, height, width, boxes, boxes_per_slab,
    batch, classes, channels, h1, h2, capacity, partials_stride,
    # Strides of the gradient of the logits and of the features
    g_stride_b, g_stride_n, g_stride_d, g_stride_h, g_stride_w,
    x_stride_b, x_stride_c, x_stride_d, x_stride_h, x_stride_w,
    # The launch's configuration
    SUPER_H: tl.constexpr, SUPER_W: tl.constexpr, BOX_H: tl.constexpr, BOX_W: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, POSITION_DIMS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What the pixels of a tile give to the gradients of Φ as it is folded there. Grid: (slabs,).

    ``partials`` is ``[slabs, h₁·h₂ + h₂·N·C + h₂ + N·C]``, of the gradients of w₂ᵀ, w₃ᵀ, b₂, b₃. The kernels of
    ``fold_backward`` go on from here.
    """
    dtype: tl.constexpr = w2t.dtype.element_ty
    PIXELS: tl.constexpr = BOX_H * BOX_W
    slab = tl.program_id(0).to(tl.int64)
    output_count = classes * channels
    grad_w2t = partials + slab * partials_stride
    grad_w3t = grad_w2t + h1 * h2
    first_layer += slab * h1 * (2 * POSITION_DIMS + 1)
    begun += slab * (h1 + h2 + 1)
    grad_weight += slab * output_count * PIXELS
    di, dj = tile_offsets(dtype, BOX_H, BOX_W)
    p = tl.arange(0, PIXELS)
    q = tl.arange(0, BLOCK_N * BLOCK_C)
    start = slab * boxes_per_slab
    for step in tl.range(0, tl.minimum(boxes_per_slab, boxes - start).to(tl.int32), disable_licm=True):
        local = start + step
        group, depth, row, column = box_origin(
            local, first_supertile, supertiles_per_map, supertiles_h, supertiles_w, SUPER_H, SUPER_W, BOX_H, BOX_W
        )
        if (row < height) & (column < width):
            active1 = tl.load(counts + local * 4)
            unstable1 = tl.load(counts + local * 4 + 1)
            active2 = tl.load(counts + local * 4 + 2)
            unstable2 = tl.load(counts + local * 4 + 3)
            begin_rows(
                begun, grad_w2t, grad_w3t, grad_w3t + h2 * output_count, first_layer,
                unit1 + local * h1, unit2 + local * h2, active1, unstable1, active2, unstable2,
                h1, h2, output_count, POSITION_DIMS,
            )  # fmt: skip
            # What is added to, or may keep no value of its own.
            for first in range(0, h2, PIXELS):
                k = first + p
                for part in tl.static_range(3):
                    tl.store(grad_rows + (local * 3 + part) * h2 + k, tl.zeros([PIXELS], dtype), mask=k < h2)
            for first in range(0, unstable1, PIXELS):
                m = first + p
                for part in tl.static_range(3):
                    target = moments + (local * 3 + part) * h1 + (h1 - 1 - m)
                    tl.store(target, tl.zeros([PIXELS], dtype), mask=m < unstable1)

            # gW of the tile, read from the samples once and kept in memory; and the affine rows' gradients.
            i, j = row + p // BOX_W, column + p % BOX_W
            inside = (i < height) & (j < width)  # [P]
            d, i, j = depth.to(tl.int64), i.to(tl.int64), j.to(tl.int64)
            g_pixel = d * g_stride_d + i * g_stride_h + j * g_stride_w
            x_pixel = d * x_stride_d + i * x_stride_h + j * x_stride_w
            for n_start in range(0, classes, BLOCK_N):
                for c_start in range(0, channels, BLOCK_C):
                    n = n_start + tl.arange(0, BLOCK_N)
                    c = c_start + tl.arange(0, BLOCK_C)
                    g_weight = weight_field_gradient(
                        grad_logits + group * batch * g_stride_b, x + group * batch * x_stride_b, batch, n, c,
                        n < classes, c < channels, inside, g_pixel, x_pixel,
                        g_stride_b, g_stride_n, x_stride_b, x_stride_c, dtype, PIXELS, BLOCK_N, BLOCK_C,
                    )  # fmt: skip
                    n_q, c_q = n_start + q // BLOCK_C, c_start + q % BLOCK_C
                    valid = (n_q < classes) & (c_q < channels)
                    output = n_q * channels + c_q  # [BLOCK_Q]
                    tl.store(grad_weight + output[None, :] * PIXELS + p[:, None], g_weight, mask=valid[None, :])
                    target = grad_outputs + local * (3 + capacity) * output_count + output
                    g_0, g_i, g_j = sums_over_pixels(g_weight, di, dj)
                    tl.store(target, g_0, mask=valid)
                    tl.store(target + output_count, g_i, mask=valid)
                    tl.store(target + 2 * output_count, g_j, mask=valid)
            # A load need not have the layout of the store before it: other threads' stores are read from here on.
            tl.debug_barrier()
            outputs_backward(
                grad_weight, grad_outputs + local * (3 + capacity) * output_count, moments + local * 3 * h1,
                lines + local * 3 * h1, outputs + local * (3 + capacity) * output_count, unstable1,
                h1, output_count, capacity, BOX_H, BOX_W, BLOCK_N * BLOCK_C,
            )  # fmt: skip
            hidden_backward(
                grad_weight, grad_rows + local * 3 * h2, moments + local * 3 * h1, grad_w2t, grad_w3t,
                unit1 + local * h1, lines + local * 3 * h1, unit2 + local * h2, rows + local * 3 * h2,
                unstable1, unstable2, w2t, w3t, h1, h2, output_count,
                BOX_H, BOX_W, BLOCK_K, BLOCK_N * BLOCK_C, PRECISION,
            )  # fmt: skip
            tl.debug_barrier()
