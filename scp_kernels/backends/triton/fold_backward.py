"""The backward of folding: docs/tile_linear.md, "Fold, backward". It runs on tiles, then their sums on supertiles.

The exact adjoint of the kernels of ``folding``: from the gradients of a box's outputs and rows to those of the weights
of what was folded there, and to the gradients of the parent's outputs and rows.
"""

import triton
import triton.language as tl

from scp_kernels.backends.triton.boxes import box_origin, load_affine, position, shift_in_supertile
from scp_kernels.backends.triton.folding import GEOMETRY_SIZES, OUTSIDE
from scp_kernels.backends.triton.rounding import rounded_product
from scp_kernels.backends.triton.slabs import add_to, begin_last_row, begin_rows, listed_unit


@triton.jit
def add_first_layer(
    # The slab's gradients of layer 1 [h₁, 2K + 1]; units, which of them there are, and their moments, all [BLOCK_U]
    target, u, ok, moment_0, moment_i, moment_j,
    # The position at the box's centre and its slopes, and a constant 1 for b₁, [POSITION_BLOCK]
    s, s_i, s_j,
    # The launch's configuration
    POSITION_DIMS: tl.constexpr, POSITION_BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds the gradients of w₁ (2K columns) and b₁ (one): Σ g·S and Σ g of the pre-activations' gradients g.

    Moments Σ g, Σ g·di, Σ g·dj are about the box's centre; absolute positions are float64.
    """
    COLUMNS: tl.constexpr = 2 * POSITION_DIMS + 1
    column = tl.arange(0, POSITION_BLOCK)
    gradient = moment_0.to(tl.float64)[:, None] * s[None, :]
    gradient += moment_i.to(tl.float64)[:, None] * s_i[None, :]
    gradient += moment_j.to(tl.float64)[:, None] * s_j[None, :]
    add_to(target + u[:, None] * COLUMNS + column[None, :], gradient, ok[:, None] & (column < COLUMNS)[None, :])


@triton.jit
def fold_outputs_backward(
    # The box's gradients of outputs, and of rows (written, of active units)
    grad_outputs, grad_rows,
    # The slab's gradients of w₂ᵀ and w₃ᵀ
    grad_w2t, grad_w3t,
    # The box's lists
    unit1, unit2, rows, row_count, active2,
    # Layers 2 [h₁, h₂] and 3 [h₂, N·C]
    w2t, w3t,
    # Sizes, and the launch's configuration
    h1, h2, output_count,
    BLOCK_K: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """Active units k of layer 2, whose rows were folded into the outputs by ``w₃[:, k]``."""
    dtype: tl.constexpr = w2t.dtype.element_ty
    for first in range(0, active2, BLOCK_K):
        place = first + tl.arange(0, BLOCK_K)
        ok = place < active2
        k = tl.load(unit2 + place, mask=ok, other=0)  # [BLOCK_K]
        z_0, z_i, z_j = load_affine(rows, place, h2, ok)
        gz_0 = tl.zeros([BLOCK_K], dtype)
        gz_i = tl.zeros([BLOCK_K], dtype)
        gz_j = tl.zeros([BLOCK_K], dtype)
        for start in range(0, output_count, BLOCK_Q):
            q = start + tl.arange(0, BLOCK_Q)
            q_ok = q < output_count
            mask = ok[:, None] & q_ok[None, :]
            w3 = tl.load(w3t + k[:, None] * output_count + q[None, :], mask=mask, other=0.0)  # [BLOCK_K, BLOCK_Q]
            # The affine rows.
            g_0, g_i, g_j = load_affine(grad_outputs, q, output_count, q_ok)
            gz_0 += tl.sum(rounded_product(w3, g_0[None, :]), 1)
            gz_i += tl.sum(rounded_product(w3, g_i[None, :]), 1)
            gz_j += tl.sum(rounded_product(w3, g_j[None, :]), 1)
            g_w3 = z_0[:, None] * g_0[None, :] + z_i[:, None] * g_i[None, :] + z_j[:, None] * g_j[None, :]
            # The rows of unstable units of layer 1: of w₂.
            for m in range(0, row_count):
                u = tl.load(unit1 + (h1 - 1 - m))
                g = tl.load(grad_outputs + (3 + m) * output_count + q, mask=q_ok, other=0.0)
                w2 = tl.load(w2t + u * h2 + k, mask=ok, other=0.0)
                before = tl.load(grad_w2t + u * h2 + k, mask=ok, other=0.0)
                g_w3 += w2[:, None] * g[None, :]
                g_w2 = tl.sum(rounded_product(w3, g[None, :]), 1)
                tl.store(grad_w2t + u * h2 + k, before + g_w2, mask=ok)
            add_to(grad_w3t + k[:, None] * output_count + q[None, :], g_w3, mask)
            tl.debug_barrier()
        tl.store(grad_rows + k, gz_0, mask=ok)
        tl.store(grad_rows + h2 + k, gz_i, mask=ok)
        tl.store(grad_rows + 2 * h2 + k, gz_j, mask=ok)


@triton.jit(do_not_specialize=(*GEOMETRY_SIZES, "boxes", "boxes_per_slab", "h1", "capacity"))
def scp_fold_bwd_kernel(
    # The boxes' lists
    unit1, index_in_parent, lines, unit2, rows, counts,
    # The parents' outputs
    parent_outputs, parent_counts,
    # Layers 2 [h₁, h₂] and 3 [h₂, N·C], and the position matrices
    w2t, w3t, position_matrix,
    # Gradients of the boxes' outputs; of their rows, to which those of active units are added; unstable units' moments
    grad_outputs, grad_rows, moments,
    # Per slab, added to: partial gradients, and float64 of layer 1 [slabs, h₁, 2K + 1]; and marks of their rows
    partials, first_layer, begun,
    # Sizes, of the boxes and of the network
    first_supertile, supertiles_per_map, supertiles_h, supertiles_w, height, width, boxes, boxes_per_slab,
    h1, h2, output_count, capacity, partials_stride, position_stride,
    # The launch's configuration
    DIMS: tl.constexpr, POSITION_DIMS: tl.constexpr, POSITION_BLOCK: tl.constexpr,
    SUPER_H: tl.constexpr, SUPER_W: tl.constexpr, BOX_H: tl.constexpr, BOX_W: tl.constexpr,
    ROOT: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """Gradients of the weights of what boxes have folded. Grid: (slabs,).

    The moments of a supertile's unstable units are its tiles' work: there a unit is classified once more.
    """
    dtype: tl.constexpr = w2t.dtype.element_ty
    slab = tl.program_id(0).to(tl.int64)
    grad_w2t = partials + slab * partials_stride
    grad_w3t = grad_w2t + h1 * h2
    grad_b2 = grad_w3t + h2 * output_count
    grad_b3 = grad_b2 + h2
    first_layer += slab * h1 * (2 * POSITION_DIMS + 1)
    begun += slab * (h1 + h2 + 1)
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
            columns = active2 + unstable2
            box_unit1 = unit1 + local * h1
            box_index_in_parent = index_in_parent + local * h1
            box_lines = lines + local * 3 * h1
            box_unit2 = unit2 + local * h2
            g_outputs = grad_outputs + local * (3 + capacity) * output_count
            g_rows = grad_rows + local * 3 * h2
            entry = tl.arange(0, POSITION_BLOCK)
            s, s_i, s_j = position(
                position_matrix, entry, entry < 2 * POSITION_DIMS, group, depth, row, column, position_stride,
                DIMS, BOX_H, BOX_W,
            )  # fmt: skip
            s = tl.where(entry == 2 * POSITION_DIMS, 1.0, s)
            if ROOT:  # on tiles ``scp_bwd_parameters_kernel`` did so
                begin_rows(
                    begun, grad_w2t, grad_w3t, grad_b2, first_layer, box_unit1, box_unit2,
                    active1, unstable1, active2, unstable2, h1, h2, output_count, POSITION_DIMS,
                )  # fmt: skip
                begin_last_row(begun + h1 + h2, grad_b3, output_count, BLOCK_Q)
                tl.debug_barrier()
            fold_outputs_backward(
                g_outputs, g_rows, grad_w2t, grad_w3t, box_unit1, box_unit2, rows + local * 3 * h2,
                tl.where(unstable1 <= capacity, unstable1, 0), active2, w2t, w3t, h1, h2, output_count,
                BLOCK_K, BLOCK_Q,
            )  # fmt: skip
            tl.debug_barrier()

            # Active units of layer 1, which are part of the affine rows of z and of the outputs.
            parent = local // (SUPER_H // BOX_H * (SUPER_W // BOX_W))
            folded_rows = 0
            if not ROOT:
                parent_unstable = tl.load(parent_counts + parent * 4 + 1)
                folded_rows = tl.where(parent_unstable <= capacity, parent_unstable, 0)
            for first in range(0, active1, BLOCK_U):
                place = first + tl.arange(0, BLOCK_U)
                ok = place < active1
                u = tl.load(box_unit1 + place, mask=ok, other=0)  # [BLOCK_U]
                c, a, b = load_affine(box_lines, place, h1, ok)
                moment_0 = tl.zeros([BLOCK_U], dtype)
                moment_i = tl.zeros([BLOCK_U], dtype)
                moment_j = tl.zeros([BLOCK_U], dtype)
                for begin in range(0, columns, BLOCK_K):
                    k, k_ok = listed_unit(box_unit2, begin + tl.arange(0, BLOCK_K), active2, columns, h2)  # [BLOCK_K]
                    gz_0, gz_i, gz_j = load_affine(g_rows, k, h2, k_ok)
                    offset = u[:, None] * h2 + k[None, :]
                    mask = ok[:, None] & k_ok[None, :]
                    w = tl.load(w2t + offset, mask=mask, other=0.0)  # [BLOCK_U, BLOCK_K]
                    before = tl.load(grad_w2t + offset, mask=mask, other=0.0)
                    moment_0 += tl.sum(rounded_product(w, gz_0[None, :]), 1)
                    moment_i += tl.sum(rounded_product(w, gz_i[None, :]), 1)
                    moment_j += tl.sum(rounded_product(w, gz_j[None, :]), 1)
                    g_w2 = c[:, None] * gz_0[None, :] + a[:, None] * gz_i[None, :] + b[:, None] * gz_j[None, :]
                    tl.store(grad_w2t + offset, before + g_w2, mask=mask)
                if not ROOT:
                    index = tl.load(box_index_in_parent + place, mask=ok, other=0)
                    folded = ok & (index < folded_rows)
                    source = parent_outputs + parent * (3 + capacity) * output_count
                    for begin in range(0, output_count, BLOCK_Q):
                        q = begin + tl.arange(0, BLOCK_Q)
                        q_ok = q < output_count
                        offset = (3 + index)[:, None] * output_count + q[None, :]
                        y = tl.load(source + offset, mask=folded[:, None] & q_ok[None, :], other=0.0)
                        g_0, g_i, g_j = load_affine(g_outputs, q, output_count, q_ok)
                        moment_0 += tl.sum(rounded_product(y, g_0[None, :]), 1)
                        moment_i += tl.sum(rounded_product(y, g_i[None, :]), 1)
                        moment_j += tl.sum(rounded_product(y, g_j[None, :]), 1)
                add_first_layer(
                    first_layer, u, ok, moment_0, moment_i, moment_j, s, s_i, s_j, POSITION_DIMS, POSITION_BLOCK
                )
            if ROOT:
                # The biases are the constant rows of the root.
                for begin in range(0, columns, BLOCK_K):
                    k, k_ok = listed_unit(box_unit2, begin + tl.arange(0, BLOCK_K), active2, columns, h2)
                    add_to(grad_b2 + k, tl.load(g_rows + k, mask=k_ok, other=0.0), k_ok)
                for begin in range(0, output_count, BLOCK_Q):
                    q = begin + tl.arange(0, BLOCK_Q)
                    add_to(grad_b3 + q, tl.load(g_outputs + q, mask=q < output_count, other=0.0), q < output_count)
            else:
                # Unstable units of a tile: the pixels gave their moments.
                for first in range(0, unstable1, BLOCK_U):
                    m = first + tl.arange(0, BLOCK_U)
                    ok = m < unstable1
                    place = h1 - 1 - m
                    u = tl.load(box_unit1 + place, mask=ok, other=0)
                    moment_0, moment_i, moment_j = load_affine(moments + local * 3 * h1, place, h1, ok)
                    add_first_layer(
                        first_layer, u, ok, moment_0, moment_i, moment_j, s, s_i, s_j, POSITION_DIMS, POSITION_BLOCK
                    )
            tl.debug_barrier()


@triton.jit(do_not_specialize=("h1", "capacity"))
def scp_collect_bwd_kernel(
    # The tiles' lists, and gradients of their outputs and rows
    index_in_parent, lines, counts, grad_outputs, grad_rows,
    # The supertiles' lists
    parent_unit2, parent_counts,
    # Written: gradients of the supertiles' outputs and rows (of unstable units of layer 2)
    parent_grad_outputs, parent_grad_rows,
    # Sizes
    h1, h2, output_count, capacity,
    # The launch's configuration
    SUPER_H: tl.constexpr, SUPER_W: tl.constexpr, BOX_H: tl.constexpr, BOX_W: tl.constexpr,
    BLOCK_U: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """Gradients of a supertile: the sums of what its tiles give. Grid: (supertiles, 1 + blocks of outputs).

    A supertile's first program sums rows, the others outputs. A tile's affine row is the supertile's about another
    centre, (di, dj) away: a gradient of the value there is also one of the slopes, times di and dj.
    """
    PER_SUPERTILE: tl.constexpr = SUPER_H // BOX_H * (SUPER_W // BOX_W)
    dtype: tl.constexpr = lines.dtype.element_ty
    parent = tl.program_id(0).to(tl.int64)
    unstable2 = tl.load(parent_counts + parent * 4 + 3)
    parent_unstable = tl.load(parent_counts + parent * 4 + 1)
    folded_rows = tl.where(parent_unstable <= capacity, parent_unstable, 0)
    tiles = parent * PER_SUPERTILE + tl.arange(0, PER_SUPERTILE)
    inside = tl.load(counts + tiles * 4) != OUTSIDE
    di, dj = shift_in_supertile(tiles, dtype, SUPER_H, SUPER_W, BOX_H, BOX_W)
    if tl.program_id(1) == 0:
        # Rows of unstable units k of layer 2, a block of them at a time. A tile where one is inactive has left 0.
        for first in range(0, unstable2, BLOCK_K):
            index2 = first + tl.arange(0, BLOCK_K)
            k_ok = index2 < unstable2
            k = tl.load(parent_unit2 + parent * h2 + (h2 - 1 - index2), mask=k_ok, other=0)  # [BLOCK_K]
            place = tiles[:, None] * (3 * h2) + k[None, :]
            g_0, g_i, g_j = load_affine(grad_rows, place, h2, inside[:, None] & k_ok[None, :])  # [tiles, BLOCK_K]
            # By unit, as tiles have them.
            target = parent_grad_rows + parent * 3 * h2 + k
            tl.store(target, tl.sum(g_0, 0), mask=k_ok)
            tl.store(target + h2, tl.sum(g_i + di[:, None] * g_0, 0), mask=k_ok)
            tl.store(target + 2 * h2, tl.sum(g_j + dj[:, None] * g_0, 0), mask=k_ok)
    else:
        q = (tl.program_id(1) - 1) * BLOCK_Q + tl.arange(0, BLOCK_Q)  # [BLOCK_Q]
        q_ok = q < output_count
        # The outputs' affine rows.
        affine = tiles[:, None] * ((3 + capacity) * output_count) + q[None, :]
        y_0, y_i, y_j = load_affine(grad_outputs, affine, output_count, inside[:, None] & q_ok[None, :])
        target = parent_grad_outputs + parent * (3 + capacity) * output_count
        tl.store(target + q, tl.sum(y_0, 0), mask=q_ok)
        tl.store(target + output_count + q, tl.sum(y_i + di[:, None] * y_0, 0), mask=q_ok)
        tl.store(target + 2 * output_count + q, tl.sum(y_j + dj[:, None] * y_0, 0), mask=q_ok)
        # Those of unstable units of layer 1 are summed in memory, from 0 on, tile by tile.
        lane = tl.arange(0, BLOCK_U)
        for first in range(0, folded_rows, BLOCK_U):
            mask = (first + lane < folded_rows)[:, None] & q_ok[None, :]
            offset = (3 + first + lane)[:, None] * output_count + q[None, :]
            tl.store(target + offset, tl.zeros([BLOCK_U, BLOCK_Q], dtype), mask=mask)
        tl.debug_barrier()
        for tile in range(0, tl.where(folded_rows > 0, PER_SUPERTILE, 0)):
            local = parent * PER_SUPERTILE + tile
            active1 = tl.load(counts + local * 4)
            unstable1 = tl.load(counts + local * 4 + 1)
            source = grad_outputs + local * (3 + capacity) * output_count
            g_0, g_i, g_j = load_affine(source, q, output_count, q_ok)
            # A unit that is active on the tile had its row added to the affine ones; an unstable one kept it.
            for first in range(0, tl.where(active1 == OUTSIDE, 0, active1 + unstable1), BLOCK_U):
                listed = first + lane
                is_active = listed < active1
                ok = listed < active1 + unstable1
                place = tl.where(is_active, listed, h1 - 1 - (listed - active1))
                index = tl.load(index_in_parent + local * h1 + place, mask=ok, other=0)
                c, a, b = load_affine(lines + local * 3 * h1, place, h1, is_active)
                row = source + (3 + listed - active1)[:, None] * output_count + q[None, :]
                kept = tl.load(row, mask=(ok & (listed >= active1))[:, None] & q_ok[None, :], other=0.0)
                moved = c[:, None] * g_0[None, :] + a[:, None] * g_i[None, :] + b[:, None] * g_j[None, :]
                offset = (3 + index)[:, None] * output_count + q[None, :]
                gradient = tl.where(is_active[:, None], moved, kept)
                add_to(target + offset, gradient, ok[:, None] & q_ok[None, :])
            tl.debug_barrier()
