"""The kernels that fold Φ on boxes: docs/tile_linear.md, "Fold". They run on all supertiles, then on all tiles.

Every box has lists:

- ``unit1`` ``[boxes, h₁]``: of layer 1 the active units from the front, the unstable ones from the back; with them
  ``lines`` ``[boxes, 3, h₁]``, their pre-activations ``l = c + a·di + b·dj`` about the box's centre;
- ``unit2`` ``[boxes, h₂]``: of layer 2 in the same way; with them ``rows`` ``[boxes, 3, h₂]``, the affine rows of z;
- ``counts`` ``[boxes, 4]``: how many are active and unstable in layer 1, and in layer 2; ``OUTSIDE`` is the first one
  of a box outside of its map;
- ``outputs`` ``[boxes, 3 + capacity, N·C]``: the coefficients of the outputs, of 1, di, dj, and of relu(l) of the
  unstable units of layer 1.

A tile's parent is its supertile: only what is unstable there is looked at. A supertile's parent is Φ itself (``ROOT``).
A box with more unstable units of layer 1 than ``capacity`` is an overflow box: all units of layer 2 that its parent has
left count as unstable, so they are evaluated pixel by pixel, and no row of ``outputs`` but the first three is used. The
capacity is the same for tiles, so an overflow tile lies in an overflow supertile, which has no row that it would need.

A unit is classified once per box, by one program: what is written here is what all other kernels go by, so no unit can
be active for one kernel and unstable for another.
"""

import triton
import triton.language as tl

from scp_kernels.backends.triton.boxes import box_origin, load_affine, position, shift_in_supertile
from scp_kernels.backends.triton.rounding import bit_count, bit_words, rounded_product

# Sizes whose value or alignment would not make better code: they must not cost a compilation each.
GEOMETRY_SIZES = ("first_supertile", "supertiles_per_map", "supertiles_h", "supertiles_w", "height", "width")


# Active units of layer 1 on a box that lies outside of its map: there is nothing to fold.
OUTSIDE = tl.constexpr(-1)
# How far float32 may be off, as a part of c and of the radius: three products and their sums round by 2⁻²⁴ each.
BOUND_SLACK = tl.constexpr(1e-6)
# Active units of layer 2 whose weights are on their way from memory together.
UNITS_AT_ONCE = tl.constexpr(4)
# Factor on a radius that sums over units of layer 1: kBoundWidening of csrc/common/bound.h, for its reason.
BOUND_WIDENING = tl.constexpr(1.00001)


@triton.jit
def radius_of(a, b, BOX_H: tl.constexpr, BOX_W: tl.constexpr):
    """Largest deviation of ``c + a·di + b·dj`` from c on a box."""
    return tl.abs(a) * ((BOX_H - 1) * 0.5) + tl.abs(b) * ((BOX_W - 1) * 0.5)


@triton.jit
def bound_radius(c, a, b, BOX_H: tl.constexpr, BOX_W: tl.constexpr):
    """:func:`radius_of`, widened against the rounding of c and of itself."""
    radius = radius_of(a, b, BOX_H, BOX_W)
    return radius + BOUND_SLACK * (tl.abs(c) + radius)


@triton.jit
def listed_before(words, BLOCK: tl.constexpr):
    """How many bits are 1 before each bit of ``words``, ``[BLOCK // 32, 32]``, and in all of them."""
    counts = bit_count(words)
    lower = (tl.full([32], 1, tl.uint32) << tl.arange(0, 32).to(tl.uint32)) - 1
    before = bit_count(words[:, None] & lower[None, :])
    if BLOCK > 32:
        before += (tl.cumsum(counts, 0) - counts)[:, None]
    return before, tl.sum(counts, 0)


@triton.jit
def places(is_active, is_unstable, active_count, unstable_count, length, BLOCK: tl.constexpr):
    """Where a block's units go in their list of ``length``: active ones from its start, unstable ones from its end.

    Compaction: a unit's place is the number of those of its class before it. Returns places ``[BLOCK]``, which units
    are listed, and how many of the block are active and unstable.
    """
    active, unstable = bit_words(is_active, is_unstable, BLOCK)
    active_before, actives = listed_before(active, BLOCK)
    unstable_before, unstables = listed_before(unstable, BLOCK)
    bit = tl.arange(0, 32).to(tl.uint32)[None, :]
    place = tl.where(
        ((active[:, None] >> bit) & 1) == 1,
        active_count + active_before,
        length - 1 - unstable_count - unstable_before,
    )
    listed = (((active | unstable)[:, None] >> bit) & 1) == 1
    return tl.reshape(place, [BLOCK]), tl.reshape(listed, [BLOCK]), actives, unstables


@triton.jit(do_not_specialize=(*GEOMETRY_SIZES, "h1", "position_stride"))
def scp_classify_fwd_kernel(
    # Layer 1 [h₁, 2K], [h₁], and the position matrices [G, 2K, d + 1]
    w1, b1, position_matrix,
    # The parents' lists
    parent_unit1, parent_counts,
    # Written: lists of units, their index among the parent's unstable ones, their lines, and how many there are
    unit1, index_in_parent, lines, counts,
    # Sizes, of the boxes and of the network
    first_supertile, supertiles_per_map, supertiles_h, supertiles_w, height, width, h1, position_stride,
    # The launch's configuration
    DIMS: tl.constexpr, POSITION_DIMS: tl.constexpr,
    SUPER_H: tl.constexpr, SUPER_W: tl.constexpr, BOX_H: tl.constexpr, BOX_W: tl.constexpr,
    ROOT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Which units of layer 1 are active, and which are unstable. Grid: (boxes,).

    A unit whose bounds are within rounding of 0 counts as unstable, which is always right; so do NaNs.
    """
    dtype: tl.constexpr = w1.dtype.element_ty
    local = tl.program_id(0).to(tl.int64)
    group, depth, row, column = box_origin(
        local, first_supertile, supertiles_per_map, supertiles_h, supertiles_w, SUPER_H, SUPER_W, BOX_H, BOX_W
    )
    if (row >= height) | (column >= width):
        tl.store(counts + local * 4, OUTSIDE)
        return
    parent = local // (SUPER_H // BOX_H * (SUPER_W // BOX_W))
    parent_unit1 += parent * h1 + (h1 - 1)
    unit1 += local * h1
    index_in_parent += local * h1
    lines += local * 3 * h1
    lane = tl.arange(0, BLOCK)
    candidates = h1
    if not ROOT:
        candidates = tl.load(parent_counts + parent * 4 + 1)
    active_count = 0
    unstable_count = 0
    for start in range(0, candidates, BLOCK):
        candidate = start + lane  # [BLOCK]
        inside = candidate < candidates
        u = candidate
        if not ROOT:
            u = tl.load(parent_unit1 - candidate, mask=inside, other=0)
        # The pre-activation about the box's centre, from absolute positions: float64, then rounded once.
        centre = tl.load(b1 + u, mask=inside, other=0.0).to(tl.float64)
        slope_i = tl.zeros([BLOCK], tl.float64)
        slope_j = tl.zeros([BLOCK], tl.float64)
        for m in tl.static_range(2 * POSITION_DIMS):
            w = tl.load(w1 + u * (2 * POSITION_DIMS) + m, mask=inside, other=0.0).to(tl.float64)
            s, s_i, s_j = position(
                position_matrix, m, True, group, depth, row, column, position_stride, DIMS, BOX_H, BOX_W
            )
            centre += w * s
            slope_i += w * s_i
            slope_j += w * s_j
        c = centre.to(dtype)
        a = slope_i.to(dtype)
        b = slope_j.to(dtype)
        radius = bound_radius(c, a, b, BOX_H, BOX_W)
        is_active = c - radius > 0
        is_unstable = (is_active | (c + radius <= 0)) == 0
        place, listed, active, unstable = places(
            inside & is_active, inside & is_unstable, active_count, unstable_count, h1, BLOCK
        )
        tl.store(unit1 + place, u, mask=listed)
        tl.store(index_in_parent + place, candidate, mask=listed)
        tl.store(lines + place, c, mask=listed)
        tl.store(lines + h1 + place, a, mask=listed)
        tl.store(lines + 2 * h1 + place, b, mask=listed)
        active_count += active
        unstable_count += unstable
    tl.store(counts + local * 4, active_count)
    tl.store(counts + local * 4 + 1, unstable_count)


@triton.jit(do_not_specialize=("h1", "capacity"))
def scp_fold_hidden_fwd_kernel(
    # The boxes' lists of layer 1, and how many units are in them
    unit1, lines, counts,
    # The parents' lists of layer 2
    parent_unit2, parent_rows, parent_counts,
    # Layer 2 [h₁, h₂], [h₂]
    w2t, b2,
    # Written: the boxes' lists of layer 2 (and counts)
    unit2, rows,
    # Sizes
    h1, h2, capacity,
    # The launch's configuration
    SUPER_H: tl.constexpr, SUPER_W: tl.constexpr, BOX_H: tl.constexpr, BOX_W: tl.constexpr,
    ROOT: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Gives newly active units of layer 1 to the affine rows of z, bounds z, and classifies layer 2. Grid: (boxes,).

    On the box relu(l) of an unstable unit lies within ``slack`` of the line ``scale·l + slack``, its chord lowered by
    half the largest gap (the relaxation of DeepZ). So z lies within ``Σ |w₂|·slack`` of an affine function.
    """
    dtype: tl.constexpr = w2t.dtype.element_ty
    local = tl.program_id(0).to(tl.int64)
    parent = local // (SUPER_H // BOX_H * (SUPER_W // BOX_W))
    active1 = tl.load(counts + local * 4)
    unstable1 = tl.load(counts + local * 4 + 1)
    candidates = h2
    if not ROOT:
        candidates = tl.load(parent_counts + parent * 4 + 3)
    if active1 == OUTSIDE:
        return
    parent_unit2 += parent * h2 + (h2 - 1)
    parent_rows += parent * 3 * h2 + (h2 - 1)
    unit1 += local * h1
    lines += local * 3 * h1
    unit2 += local * h2
    rows += local * 3 * h2
    bounded = unstable1 <= capacity
    lane = tl.arange(0, BLOCK_K)
    active_count = 0
    unstable_count = 0
    for start in range(0, candidates, BLOCK_K):
        candidate = start + lane  # [BLOCK_K]
        inside = candidate < candidates
        if ROOT:
            k = candidate
            z_0 = tl.load(b2 + k, mask=inside, other=0.0)
            z_i = tl.zeros([BLOCK_K], dtype)
            z_j = tl.zeros([BLOCK_K], dtype)
        else:
            k = tl.load(parent_unit2 - candidate, mask=inside, other=0)
            di, dj = shift_in_supertile(local, dtype, SUPER_H, SUPER_W, BOX_H, BOX_W)
            z_0 = tl.load(parent_rows - candidate, mask=inside, other=0.0)
            z_i = tl.load(parent_rows + h2 - candidate, mask=inside, other=0.0)
            z_j = tl.load(parent_rows + 2 * h2 - candidate, mask=inside, other=0.0)
            z_0 += di * z_i + dj * z_j
        # Active units of layer 1 are part of the affine rows from here on.
        for q in range(0, active1, BLOCK_U):
            place = q + tl.arange(0, BLOCK_U)  # [BLOCK_U]
            ok = place < active1
            u = tl.load(unit1 + place, mask=ok, other=0)
            c, a, b = load_affine(lines, place, h1, ok)
            w = tl.load(w2t + u[:, None] * h2 + k[None, :], mask=ok[:, None] & inside[None, :], other=0.0)
            z_0 += tl.sum(w * c[:, None], 0)
            z_i += tl.sum(w * a[:, None], 0)
            z_j += tl.sum(w * b[:, None], 0)
        # Unstable ones widen the bounds.
        centre, slope_i, slope_j = z_0, z_i, z_j
        slack = tl.zeros([BLOCK_K], dtype)
        for q in range(0, tl.where(bounded, unstable1, 0), BLOCK_U):
            m = q + tl.arange(0, BLOCK_U)  # [BLOCK_U]
            ok = m < unstable1
            place = h1 - 1 - m
            u = tl.load(unit1 + place, mask=ok, other=0)
            c, a, b = load_affine(lines, place, h1, ok)
            w = tl.load(w2t + u[:, None] * h2 + k[None, :], mask=ok[:, None] & inside[None, :], other=0.0)
            radius = bound_radius(c, a, b, BOX_H, BOX_W)
            scale = (c + radius) / tl.where(ok, 2 * radius, 1.0)
            gap = scale * (radius - c) * 0.5
            centre += tl.sum(w * (scale * c + gap)[:, None], 0)
            slope_i += tl.sum(w * (scale * a)[:, None], 0)
            slope_j += tl.sum(w * (scale * b)[:, None], 0)
            slack += tl.sum(tl.abs(w) * gap[:, None], 0)
        deviation = (radius_of(slope_i, slope_j, BOX_H, BOX_W) + slack) * BOUND_WIDENING
        is_active = (centre - deviation > 0) & bounded
        is_unstable = ((is_active | (centre + deviation <= 0)) == 0) | (bounded == 0)
        place, listed, active, unstable = places(
            inside & is_active, inside & is_unstable, active_count, unstable_count, h2, BLOCK_K
        )
        tl.store(unit2 + place, k, mask=listed)
        tl.store(rows + place, z_0, mask=listed)
        tl.store(rows + h2 + place, z_i, mask=listed)
        tl.store(rows + 2 * h2 + place, z_j, mask=listed)
        active_count += active
        unstable_count += unstable
    tl.store(counts + local * 4 + 2, active_count)
    tl.store(counts + local * 4 + 3, unstable_count)


@triton.jit(do_not_specialize=("h1", "capacity"))
def scp_fold_outputs_fwd_kernel(
    # The boxes' lists
    unit1, index_in_parent, lines, unit2, rows, counts,
    # The parents' outputs
    parent_outputs, parent_counts,
    # Layers 2 [h₁, h₂] and 3 [h₂, N·C], [N·C]
    w2t, w3t, b3,
    # Written: the boxes' outputs
    outputs,
    # Sizes
    h1, h2, output_count, capacity,
    # The launch's configuration
    SUPER_H: tl.constexpr, SUPER_W: tl.constexpr, BOX_H: tl.constexpr, BOX_W: tl.constexpr,
    ROOT: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """Folds newly active units of both layers into the outputs. Grid: (boxes, 1 + blocks of rows, blocks of outputs).

    A box's first program has the affine rows; the others take turns at rows of unstable units of layer 1, ``BLOCK_R``
    at a time.
    """
    dtype: tl.constexpr = w2t.dtype.element_ty
    local = tl.program_id(0).to(tl.int64)
    parent = local // (SUPER_H // BOX_H * (SUPER_W // BOX_W))
    active1 = tl.load(counts + local * 4)
    unstable1 = tl.load(counts + local * 4 + 1)
    active2 = tl.load(counts + local * 4 + 2)
    folded_rows = 0  # of unstable units, in the outputs of the parent
    if not ROOT:
        parent_unstable = tl.load(parent_counts + parent * 4 + 1)
        folded_rows = tl.where(parent_unstable <= capacity, parent_unstable, 0)
    row_count = tl.where(unstable1 <= capacity, unstable1, 0)
    first_row = (tl.program_id(1) - 1) * BLOCK_R
    if (active1 == OUTSIDE) | (first_row >= row_count):
        return
    parent_outputs += parent * (3 + capacity) * output_count
    unit1 += local * h1
    index_in_parent += local * h1
    lines += local * 3 * h1
    unit2 += local * h2
    rows += local * 3 * h2
    outputs += local * (3 + capacity) * output_count
    q = tl.program_id(2) * BLOCK_Q + tl.arange(0, BLOCK_Q)  # [BLOCK_Q]
    q_ok = q < output_count
    lane = tl.arange(0, BLOCK_R)

    if first_row < 0:
        if ROOT:
            y_0 = tl.load(b3 + q, mask=q_ok, other=0.0)
            y_i = tl.zeros([BLOCK_Q], dtype)
            y_j = tl.zeros([BLOCK_Q], dtype)
        else:
            di, dj = shift_in_supertile(local, dtype, SUPER_H, SUPER_W, BOX_H, BOX_W)
            y_0, y_i, y_j = load_affine(parent_outputs, q, output_count, q_ok)
            y_0 += di * y_i + dj * y_j
            # Active units of layer 1: of what the parent has folded for them.
            for start in range(0, tl.where(folded_rows > 0, active1, 0), BLOCK_R):
                place = start + lane  # [BLOCK_R]
                ok = place < active1
                index = tl.load(index_in_parent + place, mask=ok, other=0)
                c, a, b = load_affine(lines, place, h1, ok)
                source = parent_outputs + (3 + index)[:, None] * output_count + q[None, :]
                value = tl.load(source, mask=ok[:, None] & q_ok[None, :], other=0.0)  # [BLOCK_R, BLOCK_Q]
                y_0 += tl.sum(rounded_product(value, c[:, None]), 0)
                y_i += tl.sum(rounded_product(value, a[:, None]), 0)
                y_j += tl.sum(rounded_product(value, b[:, None]), 0)
        # Active units of layer 2: of their affine rows.
        for start in range(0, active2, BLOCK_R):
            place = start + lane  # [BLOCK_R]
            ok = place < active2
            k = tl.load(unit2 + place, mask=ok, other=0)
            z_0, z_i, z_j = load_affine(rows, place, h2, ok)
            source = w3t + k[:, None] * output_count + q[None, :]
            w = tl.load(source, mask=ok[:, None] & q_ok[None, :], other=0.0)  # [BLOCK_R, BLOCK_Q]
            y_0 += tl.sum(rounded_product(w, z_0[:, None]), 0)
            y_i += tl.sum(rounded_product(w, z_i[:, None]), 0)
            y_j += tl.sum(rounded_product(w, z_j[:, None]), 0)
        tl.store(outputs + q, y_0, mask=q_ok)
        tl.store(outputs + output_count + q, y_i, mask=q_ok)
        tl.store(outputs + 2 * output_count + q, y_j, mask=q_ok)
    else:
        for first in range(first_row, row_count, (tl.num_programs(1) - 1) * BLOCK_R):
            m = first + lane  # [BLOCK_R]
            ok = m < row_count
            mask = ok[:, None] & q_ok[None, :]
            u = tl.load(unit1 + (h1 - 1 - m), mask=ok, other=0)
            total = tl.zeros([BLOCK_R, BLOCK_Q], dtype)
            if not ROOT:
                index = tl.load(index_in_parent + (h1 - 1 - m), mask=ok, other=0)
                source = parent_outputs + (3 + index)[:, None] * output_count + q[None, :]
                total += tl.load(source, mask=mask & (index < folded_rows)[:, None], other=0.0)
            # One rank-one update per active unit of layer 2; several of them wait for their weights together.
            for start in range(0, active2, UNITS_AT_ONCE):
                left = active2 - start
                units = ()
                for i in tl.static_range(UNITS_AT_ONCE):
                    units += (tl.load(unit2 + start + i, mask=left > i, other=0),)  # type: ignore[assignment]
                factors = ()
                for i in tl.static_range(UNITS_AT_ONCE):
                    w2 = tl.load(w2t + u * h2 + units[i], mask=m < tl.where(left > i, row_count, 0), other=0.0)
                    w3 = tl.load(w3t + units[i] * output_count + q, mask=q_ok, other=0.0)
                    factors += ((w2, w3),)  # type: ignore[assignment]
                for i in tl.static_range(UNITS_AT_ONCE):
                    total += factors[i][0][:, None] * factors[i][1][None, :]
            tl.store(outputs + (3 + m)[:, None] * output_count + q[None, :], total, mask=mask)
