"""The backward kernel of the features: W of a tile once more, then all samples of its position map."""

import triton
import triton.language as tl

from scp_kernels.backends.triton.boxes import box_origin
from scp_kernels.backends.triton.folding import GEOMETRY_SIZES
from scp_kernels.backends.triton.rounding import rounded_product
from scp_kernels.backends.triton.weights import BATCH_STAGES, weight_tile

# See forward.GENERIC_SIZES.
FEATURES_SIZES = (
    *(name for name in GEOMETRY_SIZES if name != "width"), "batch", "classes", "channels", "class_start", "h1",
    "capacity",
)  # fmt: skip


@triton.jit(do_not_specialize=FEATURES_SIZES)
def scp_bwd_features_kernel(
    # Gradient of the logits [B, N, (D,) H, W]
    grad_logits,
    # The tiles' lists and outputs (``folding``)
    unit1, lines, unit2, rows, outputs, counts,
    # Layers 2 [h₁, h₂] and 3 [h₂, N·C]
    w2t, w3t,
    # Written: gradient of the features [B, C, (D,) H, W]
    grad_features,
    # Sizes, of the tiles and of the call
    first_supertile, supertiles_per_map, supertiles_h, supertiles_w, height, width,
    batch, classes, channels, class_start, h1, h2, capacity,
    # Strides of the gradients of logits and features
    g_stride_b, g_stride_n, g_stride_d, g_stride_h, g_stride_w,
    x_stride_b, x_stride_c, x_stride_d, x_stride_h, x_stride_w,
    # The launch's configuration
    SUPER_H: tl.constexpr, SUPER_W: tl.constexpr, BOX_H: tl.constexpr, BOX_W: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, ACCUMULATE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``gX[b, c] = Σ_n gY[b, n]·(W + w_r)[n, c]``. Grid: (tiles, blocks of channels).

    One launch covers ``BLOCK_N`` classes from ``class_start`` on; with ``ACCUMULATE`` it adds to those before it.
    """
    dtype: tl.constexpr = w2t.dtype.element_ty
    local = tl.program_id(0).to(tl.int64)
    group, depth, row, column = box_origin(
        local, first_supertile, supertiles_per_map, supertiles_h, supertiles_w, SUPER_H, SUPER_W, BOX_H, BOX_W
    )
    if (row >= height) | (column >= width):
        return
    # W of the tile: it stays in registers for all samples.
    first_channel = tl.program_id(1) * BLOCK_C
    q = tl.arange(0, BLOCK_N * BLOCK_C)
    weight = weight_tile(
        unit1 + local * h1, lines + local * 3 * h1, unit2 + local * h2, rows + local * 3 * h2,
        outputs + local * (3 + capacity) * classes * channels, counts + local * 4, w2t, w3t,
        class_start + q // BLOCK_C, first_channel + q % BLOCK_C, classes, channels, h1, h2, capacity,
        BOX_H, BOX_W, BLOCK_K, PRECISION,
    )  # fmt: skip

    # Where the tile's pixels are, and which of them exist.
    p = tl.arange(0, BOX_H * BOX_W)
    i, j = row + p // BOX_W, column + p % BOX_W
    inside = (i < height) & (j < width)  # [P]
    d, i, j = depth.to(tl.int64), i.to(tl.int64), j.to(tl.int64)
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
        weights = tl.reshape(weight, [BOX_H * BOX_W, BLOCK_N, BLOCK_C])
        n = class_start + tl.arange(0, BLOCK_N)
        g_offsets = g_pixel[:, None] + n.to(tl.int64)[None, :] * g_stride_n
        g_mask = inside[:, None] & (n < classes)[None, :]
        for _ in tl.range(0, batch, num_stages=BATCH_STAGES):
            g = tl.load(g_sample + g_offsets, mask=g_mask, other=0.0).to(dtype)
            gradient = tl.sum(rounded_product(weights, g[:, :, None]), 1)
            if ACCUMULATE:
                gradient += tl.load(x_sample + x_offset, mask=x_mask, other=0.0)
            tl.store(x_sample + x_offset, gradient.to(grad_features.dtype.element_ty), mask=x_mask)
            x_sample += x_stride_b
            g_sample += g_stride_b
