"""Device functions of a folded tile: its unstable units at every pixel, and the weight field W.

On a tile Φ is (docs/tile_linear.md, "Node")

    z_k = x_k · (1, di, dj) + Σ_{u unstable} w₂[k, u]·relu(l_u)                        of unstable units k of layer 2
    W   = cf · (1, di, dj) + Σ_{u unstable} cf_u·relu(l_u) + Σ_{k unstable} w₃[:, k]·relu(z_k)

with everything that is active in the affine rows x and the outputs cf that the kernels of ``folding`` leave in memory.
"""

import triton
import triton.language as tl

from scp_kernels.backends.triton.boxes import load_affine, tile_offsets

# Samples on their way from memory while one is worked on.
BATCH_STAGES = tl.constexpr(4)


@triton.jit
def line_at(lines, place, h1, di, dj):
    """Pre-activation l of one unit of layer 1 at a tile's pixels, ``[P]``."""
    return tl.load(lines + place) + tl.load(lines + h1 + place) * di + tl.load(lines + 2 * h1 + place) * dj


@triton.jit
def second_layer(
    # The tile's lists, and how many units of layer 1 are unstable
    unit1, lines, rows, unstable1,
    # Layer 2 [h₁, h₂]
    w2t,
    # The units k of layer 2 that are asked for: places in the list, numbers, which there are, all [BLOCK_K]
    place, k, ok,
    # Sizes, and the launch's configuration
    h1, h2, TILE_H: tl.constexpr, TILE_W: tl.constexpr,
):  # fmt: skip
    """Pre-activations z of unstable units of layer 2 at a tile's pixels, ``[P, BLOCK_K]``; 0 where there is no unit."""
    dtype: tl.constexpr = w2t.dtype.element_ty
    di, dj = tile_offsets(dtype, TILE_H, TILE_W)
    z_0, z_i, z_j = load_affine(rows, place, h2, ok)
    z = z_0[None, :] + di[:, None] * z_i[None, :] + dj[:, None] * z_j[None, :]
    # One rank-one update per unstable unit of layer 1.
    for m in range(0, unstable1):
        l = line_at(lines, h1 - 1 - m, h1, di, dj)  # noqa: E741
        w = tl.load(w2t + tl.load(unit1 + (h1 - 1 - m)) * h2 + k, mask=ok, other=0.0)
        z += tl.where(l <= 0, 0.0, l)[:, None] * w[None, :]
    return z


@triton.jit
def weight_tile(
    # The tile's lists and outputs
    unit1, lines, unit2, rows, outputs, counts,
    # Layers 2 [h₁, h₂] and 3 [h₂, N·C]
    w2t, w3t,
    # The pairs of class and channel that are asked for [BLOCK_Q]
    n, c,
    # Sizes, and the launch's configuration
    classes, channels, h1, h2, capacity,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``W + w_r`` at a tile's pixels, for the class and channel pairs ``n, c``: ``[P, BLOCK_Q]``."""
    dtype: tl.constexpr = w2t.dtype.element_ty
    di, dj = tile_offsets(dtype, TILE_H, TILE_W)
    valid = (n < classes) & (c < channels)
    output = n * channels + c  # [BLOCK_Q]
    output_count = classes * channels
    unstable1 = tl.load(counts + 1)
    unstable2 = tl.load(counts + 3)
    # The affine rows.
    y_0, y_i, y_j = load_affine(outputs, output, output_count, valid)
    weight = y_0[None, :] + di[:, None] * y_i[None, :] + dj[:, None] * y_j[None, :]
    # Unstable units of layer 1, as far as they act through active units of layer 2.
    for m in range(0, tl.where(unstable1 <= capacity, unstable1, 0)):
        l = line_at(lines, h1 - 1 - m, h1, di, dj)  # noqa: E741
        y = tl.load(outputs + (3 + m) * output_count + output, mask=valid, other=0.0)
        weight += tl.where(l <= 0, 0.0, l)[:, None] * y[None, :]
    # Unstable units of layer 2.
    for start in range(0, unstable2, BLOCK_K):
        index = start + tl.arange(0, BLOCK_K)
        ok = index < unstable2
        place = h2 - 1 - index
        k = tl.load(unit2 + place, mask=ok, other=0)
        z = second_layer(unit1, lines, rows, unstable1, w2t, place, k, ok, h1, h2, TILE_H, TILE_W)
        relu = tl.where(z <= 0, 0.0, z)
        source = w3t + k[:, None] * output_count + output[None, :]
        w = tl.load(source, mask=ok[:, None] & valid[None, :], other=0.0)  # [BLOCK_K, BLOCK_Q]
        weight = tl.dot(relu, w, weight, input_precision=PRECISION, out_dtype=dtype)
    # Where there is no such pair: an infinite hidden unit times a masked 0 would be NaN, and meet the sum over pairs.
    return tl.where(valid[None, :], weight, 0.0)
