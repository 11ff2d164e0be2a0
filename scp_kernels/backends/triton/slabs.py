"""Partial gradients of Φ in slabs, and the last kernel of a backward pass, which sums them.

A slab belongs to one program of a launch, which adds up a run of boxes in it. Most rows of most slabs are never added
to: a box lists a part of the units only. So slabs are not zeroed as a whole. A *row* is what a slab has of one unit: of
u of layer 1 the gradients of w₂ᵀ[u], w₁[u] and b₁[u]; of k of layer 2 those of w₃ᵀ[k] and b₂[k]; the last row is that
of b₃. It is zeroed before it is first added to, and marked in ``begun`` ``[slabs, h₁ + h₂ + 1]``. A row without a mark
holds anything, and is left out of the sums.
"""

import triton
import triton.language as tl

# Rows that are begun together, and their columns that are zeroed together.
BEGUN_ROWS, ZEROED_COLUMNS = tl.constexpr(16), tl.constexpr(64)


@triton.jit
def add_to(pointer, value, mask):
    """Adds to memory that only this program writes; at most once between barriers at any one place."""
    tl.store(pointer, tl.load(pointer, mask=mask, other=0.0) + value, mask=mask)


@triton.jit
def zero_rows(rows, unit, fresh, width, BLOCK: tl.constexpr):
    """Zeroes of ``rows`` ``[·, width]`` those of the units that are ``fresh``."""
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        mask = fresh[:, None] & (column < width)[None, :]
        tl.store(rows + unit[:, None] * width + column[None, :], 0.0, mask=mask)


@triton.jit
def listed_unit(units, index, active, count, length):
    """The ``index``-th unit of a box's list of ``length``, active ones first, and whether there are so many."""
    ok = index < count
    return tl.load(units + tl.where(index < active, index, length - 1 - (index - active)), mask=ok, other=0), ok


@triton.jit
def begin_rows(
    # The slab's marks, and gradients of w₂ᵀ, w₃ᵀ, b₂ and of layer 1 [h₁, 2K + 1]
    begun, grad_w2t, grad_w3t, grad_b2, first_layer,
    # A box's lists of both layers, and how many units are active and unstable in them
    unit1, unit2, active1, unstable1, active2, unstable2,
    # Sizes
    h1, h2, output_count, POSITION_DIMS: tl.constexpr,
):  # fmt: skip
    """Begins the rows of all units that a box lists. A barrier has to follow before they are added to."""
    lane = tl.arange(0, BEGUN_ROWS)
    for start in range(0, tl.maximum(active1 + unstable1, active2 + unstable2), BEGUN_ROWS):
        u, u_ok = listed_unit(unit1, start + lane, active1, active1 + unstable1, h1)
        k, k_ok = listed_unit(unit2, start + lane, active2, active2 + unstable2, h2)
        u_fresh = tl.load(begun + u, mask=u_ok, other=1) == 0
        k_fresh = tl.load(begun + h1 + k, mask=k_ok, other=1) == 0
        zero_rows(grad_w2t, u, u_fresh, h2, ZEROED_COLUMNS)
        zero_rows(first_layer, u, u_fresh, 2 * POSITION_DIMS + 1, 8)
        zero_rows(grad_w3t, k, k_fresh, output_count, ZEROED_COLUMNS)
        tl.store(grad_b2 + k, 0.0, mask=k_fresh)
        tl.debug_barrier()  # every warp has to have seen that there was no mark
        tl.store(begun + u, 1, mask=u_fresh)
        tl.store(begun + h1 + k, 1, mask=k_fresh)


@triton.jit
def begin_last_row(begun, grad_b3, output_count, BLOCK: tl.constexpr):
    """Begins the row of b₃, by its mark. A barrier has to follow before it is added to."""
    width = tl.where(tl.load(begun) == 0, output_count, 0)
    for start in range(0, width, BLOCK):
        q = start + tl.arange(0, BLOCK)
        tl.store(grad_b3 + q, tl.zeros([BLOCK], grad_b3.dtype.element_ty), mask=q < width)
    tl.debug_barrier()
    tl.store(begun, 1)


@triton.jit
def sum_over_slabs(
    # Marks of a row in all slabs, and how far apart they are; the same of the row's gradients; how many slabs
    begun, begun_stride, gradients, stride, slabs,
    # Columns [BLOCK] of the row, and which of them exist
    column, ok,
    # The launch's configuration
    BLOCK_S: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums of a row's gradients over the slabs that have begun it, always in the same order: ``[BLOCK]``."""
    total = tl.zeros([BLOCK_S, BLOCK], gradients.dtype.element_ty)
    for first in range(0, slabs, BLOCK_S):
        slab = (first + tl.arange(0, BLOCK_S)).to(tl.int64)
        has_row = tl.load(begun + slab * begun_stride, mask=slab < slabs, other=0) != 0
        source = gradients + slab[:, None] * stride + column[None, :]
        total += tl.load(source, mask=has_row[:, None] & ok[None, :], other=0.0)
    return tl.sum(total, 0)


@triton.jit(do_not_specialize=("slabs", "h1", "h2", "output_count"))
def scp_sum_slabs_bwd_kernel(
    # Per slab: marks of rows, partial gradients of w₂ᵀ, w₃ᵀ, b₂ and b₃, and those of layer 1
    begun, partials, first_layer,
    # Written: gradients of w₁ [h₁, 2K], b₁ [h₁], w₂ [h₂, h₁], b₂ [h₂], w₃ [N·C, h₂], b₃ [N·C]
    grad_w1, grad_b1, grad_w2, grad_b2, grad_w3, grad_b3,
    # Sizes
    slabs, h1, h2, output_count, partials_stride,
    # The launch's configuration
    POSITION_DIMS: tl.constexpr, POSITION_BLOCK: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums the slabs. Grid: (rows, 1 + blocks of columns).

    A row's first program has what is short: gradients of w₁, b₁ and b₂.
    """
    dtype: tl.constexpr = grad_w2.dtype.element_ty
    row = tl.program_id(0)
    k = row - h1
    begun += row
    begun_stride = h1 + h2 + 1
    partial_w3t = partials + h1 * h2
    partial_b2 = partial_w3t + h2 * output_count
    if tl.program_id(1) > 0:
        # Of w₂ᵀ, of w₃ᵀ, or b₃.
        source, target, stride, width = partials + row * h2, grad_w2 + row, h1, h2
        if row >= h1:
            source, target, stride, width = partial_w3t + k * output_count, grad_w3 + k, h2, output_count
        if k == h2:
            source, target, stride = partial_b2 + h2, grad_b3, 1
        start = (tl.program_id(1) - 1) * BLOCK
        if start < width:
            column = start + tl.arange(0, BLOCK)
            ok = column < width
            total = sum_over_slabs(begun, begun_stride, source, partials_stride, slabs, column, ok, BLOCK_S, BLOCK)
            tl.store(target + column * stride, total, mask=ok)
    else:
        column = tl.arange(0, POSITION_BLOCK)
        if row < h1:
            COLUMNS: tl.constexpr = 2 * POSITION_DIMS + 1
            source, stride, ok = first_layer + row * COLUMNS, h1 * COLUMNS, column < COLUMNS
            total = sum_over_slabs(begun, begun_stride, source, stride, slabs, column, ok, BLOCK_S, POSITION_BLOCK)
            tl.store(grad_w1 + row * (COLUMNS - 1) + column, total.to(dtype), mask=column < COLUMNS - 1)
            tl.store(grad_b1 + row + 0 * column, total.to(dtype), mask=column == COLUMNS - 1)
        elif k < h2:
            ok = column < 1
            total = sum_over_slabs(
                begun, begun_stride, partial_b2 + k, partials_stride, slabs, column, ok, BLOCK_S, POSITION_BLOCK
            )
            tl.store(grad_b2 + k + column, total, mask=ok)
