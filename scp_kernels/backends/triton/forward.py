"""The forward kernel: logits of a tile of pixels for all samples that share a position map."""

import triton
import triton.language as tl

from scp_kernels.backends.triton.boxes import box_origin
from scp_kernels.backends.triton.folding import GEOMETRY_SIZES
from scp_kernels.backends.triton.rounding import rounded_product
from scp_kernels.backends.triton.weights import BATCH_STAGES, weight_tile

# Sizes whose value or alignment would not make better code: they must not cost a compilation each. The width is none of
# them: rows are masked by ``j < width``, and only a width of known alignment lets the accesses be vectors.
GENERIC_SIZES = (
    *(name for name in GEOMETRY_SIZES if name != "width"), "batch", "classes", "channels", "channel_start", "h1",
    "capacity",
)  # fmt: skip


@triton.jit(do_not_specialize=GENERIC_SIZES)
def scp_fwd_kernel(
    # Features [B, C, (D,) H, W]
    x,
    # The tiles' lists and outputs (``folding``)
    unit1, lines, unit2, rows, outputs, counts,
    # Layers 2 [h₁, h₂] and 3 [h₂, N·C], and β
    w2t, w3t, bias,
    # Written: logits [B, N, (D,) H, W], rows without gaps
    y,
    # Sizes, of the tiles and of the call
    first_supertile, supertiles_per_map, supertiles_h, supertiles_w, height, width,
    batch, classes, channels, channel_start, h1, h2, capacity,
    # Strides
    x_stride_b, x_stride_c, x_stride_d, x_stride_h, x_stride_w, y_stride_b, y_stride_n, y_stride_d,
    # The launch's configuration
    SUPER_H: tl.constexpr, SUPER_W: tl.constexpr, BOX_H: tl.constexpr, BOX_W: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, HAS_BIAS: tl.constexpr, ACCUMULATE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """``Y[b, n] = Σ_c (W + w_r)[n, c]·X[b, c] + β[n]``. Grid: (tiles, blocks of classes).

    One launch covers the channels from ``channel_start`` on. ``batch`` is the number of samples per position map.
    With ``ACCUMULATE`` the logits of earlier channels are added to (a second launch, so the order is fixed).
    """
    dtype: tl.constexpr = w2t.dtype.element_ty
    local = tl.program_id(0).to(tl.int64)
    group, depth, row, column = box_origin(
        local, first_supertile, supertiles_per_map, supertiles_h, supertiles_w, SUPER_H, SUPER_W, BOX_H, BOX_W
    )
    if (row >= height) | (column >= width):
        return
    # W of the tile: it stays in registers for all samples.
    q = tl.arange(0, BLOCK_N * BLOCK_C)
    first_class = tl.program_id(1) * BLOCK_N
    weight = weight_tile(
        unit1 + local * h1, lines + local * 3 * h1, unit2 + local * h2, rows + local * 3 * h2,
        outputs + local * (3 + capacity) * classes * channels, counts + local * 4, w2t, w3t,
        first_class + q // BLOCK_C, channel_start + q % BLOCK_C, classes, channels, h1, h2, capacity,
        BOX_H, BOX_W, BLOCK_K, PRECISION,
    )  # fmt: skip

    # Where the tile's pixels are: offsets of the features, of the logits, and which of them exist.
    p = tl.arange(0, BOX_H * BOX_W)
    i, j = row + p // BOX_W, column + p % BOX_W
    inside = (i < height) & (j < width)  # [P]
    c = channel_start + tl.arange(0, BLOCK_C)
    d = depth.to(tl.int64)
    x_pixel = d * x_stride_d + i.to(tl.int64) * x_stride_h + j.to(tl.int64) * x_stride_w
    x_offset = x_pixel[:, None] + c.to(tl.int64)[None, :] * x_stride_c  # [P, BLOCK_C]
    x_mask = inside[:, None] & (c < channels)[None, :]
    y_pixel = d * y_stride_d + i.to(tl.int64) * width + j
    x_sample = x + group * batch * x_stride_b
    y_sample = y + group * batch * y_stride_b
    # The samples, one after another.
    if BLOCK_N == 1:
        shift = tl.zeros([1], dtype)
        if HAS_BIAS:
            shift += tl.load(bias + first_class)
        y_offset = y_pixel + first_class.to(tl.int64) * y_stride_n  # [P]
        for _ in tl.range(0, batch, num_stages=BATCH_STAGES):
            features = tl.load(x_sample + x_offset, mask=x_mask, other=0.0).to(dtype)
            logits = tl.sum(rounded_product(weight, features), 1) + shift
            if ACCUMULATE:
                logits += tl.load(y_sample + y_offset, mask=inside, other=0.0)
            tl.store(y_sample + y_offset, logits.to(y.dtype.element_ty), mask=inside)
            x_sample += x_stride_b
            y_sample += y_stride_b
    else:
        tl.static_assert(not ACCUMULATE, "several blocks of channels leave room for one class")
        weights = tl.reshape(weight, [BOX_H * BOX_W, BLOCK_N, BLOCK_C])
        n = first_class + tl.arange(0, BLOCK_N)
        shifts = tl.zeros([BLOCK_N], dtype)
        if HAS_BIAS:
            shifts += tl.load(bias + n, mask=n < classes, other=0.0)
        y_offsets = y_pixel[:, None] + n.to(tl.int64)[None, :] * y_stride_n  # [P, BLOCK_N]
        y_mask = inside[:, None] & (n < classes)[None, :]
        for _ in tl.range(0, batch, num_stages=BATCH_STAGES):
            features = tl.load(x_sample + x_offset, mask=x_mask, other=0.0).to(dtype)
            logits = tl.sum(rounded_product(weights, features[:, None, :]), 2) + shifts[None, :]
            tl.store(y_sample + y_offsets, logits.to(y.dtype.element_ty), mask=y_mask)
            x_sample += x_stride_b
            y_sample += y_stride_b
