"""The forward kernel: logits of a tile of pixels for all samples that share a position map."""

import triton
import triton.language as tl

from scp_kernels.backends.triton.layers import BATCH_STAGES, tile_pixels, weight_tile

# Sizes whose value or alignment would not make better code: they must not cost a compilation each. The width is none of
# them: rows are masked by ``j < width``, and only a width of known alignment lets the accesses be vectors.
GENERIC_SIZES = (
    "first_tile", "tiles_per_map", "batch", "classes", "channels", "channel_start", "h1", "height",
    "tiles_h", "tiles_w",
)  # fmt: skip


@triton.jit(do_not_specialize=GENERIC_SIZES)
def scp_fwd_kernel(
    # Features [B, C, (D,) H, W]
    x,
    # The tiles: affine rows [tiles, 3, h₂]; unstable units' (c, a, b) [tiles, 3, h₁], numbers [tiles, h₁], count
    folded, lines, units, counts,
    # Layers 2 and 3, w_r and β
    w2t, w3, b3, residual, bias,
    # Written: logits [B, N, (D,) H, W], rows without gaps
    y,
    # Sizes, of the tiles and of the call
    first_tile, tiles_per_map, batch, classes, channels, channel_start, h1, h2, height, width, tiles_h, tiles_w,
    # Strides
    x_stride_b, x_stride_c, x_stride_d, x_stride_h, x_stride_w, y_stride_b, y_stride_n, y_stride_d,
    # The launch's configuration
    TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_H2: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, HAS_BIAS: tl.constexpr, ACCUMULATE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """``Y[b, n] = Σ_c (W + w_r)[n, c]·X[b, c] + β[n]``. Grid: (tiles, blocks of classes).

    One launch covers the channels from ``channel_start`` on. ``batch`` is the number of samples per position map.
    With ``ACCUMULATE`` the logits of earlier channels are added to (a second launch, so the order is fixed).
    """
    dtype: tl.constexpr = w2t.dtype.element_ty
    local = tl.program_id(0).to(tl.int64)
    group, d, i, j = tile_pixels(local + first_tile, tiles_per_map, tiles_h, tiles_w, TILE_H, TILE_W)
    # W of the tile: it stays in registers while the samples pass by.
    q = tl.arange(0, BLOCK_N * BLOCK_C)
    first_class = tl.program_id(1) * BLOCK_N
    weight = weight_tile(
        folded + local * 3 * h2, lines + local * 3 * h1, units + local * h1, tl.load(counts + local), w2t, w3, b3,
        residual, first_class + q // BLOCK_C, channel_start + q % BLOCK_C, classes, channels, h1, h2,
        TILE_H, TILE_W, BLOCK_H2, BLOCK_N * BLOCK_C, PRECISION,
    )  # fmt: skip

    # Where the tile's pixels are: offsets of the features, of the logits, and which of them exist.
    inside = (i < height) & (j < width)  # [P]
    c = channel_start + tl.arange(0, BLOCK_C)
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
            logits = tl.sum(weight * features, 1) + shift
            if ACCUMULATE:
                logits += tl.load(y_sample + y_offset, mask=inside, other=0.0)
            tl.store(y_sample + y_offset, logits.to(y.dtype.element_ty), mask=inside)
            x_sample += x_stride_b
            y_sample += y_stride_b
    else:
        tl.static_assert(not ACCUMULATE, "several blocks of channels leave room for one class")
        weights = tl.reshape(weight, [TILE_H * TILE_W, BLOCK_N, BLOCK_C])
        n = first_class + tl.arange(0, BLOCK_N)
        shifts = tl.zeros([BLOCK_N], dtype)
        if HAS_BIAS:
            shifts += tl.load(bias + n, mask=n < classes, other=0.0)
        y_offsets = y_pixel[:, None] + n.to(tl.int64)[None, :] * y_stride_n  # [P, BLOCK_N]
        y_mask = inside[:, None] & (n < classes)[None, :]
        for _ in tl.range(0, batch, num_stages=BATCH_STAGES):
            features = tl.load(x_sample + x_offset, mask=x_mask, other=0.0).to(dtype)
            logits = tl.sum(weights * features[:, None, :], 2) + shifts[None, :]
            tl.store(y_sample + y_offsets, logits.to(y.dtype.element_ty), mask=y_mask)
            x_sample += x_stride_b
            y_sample += y_stride_b
