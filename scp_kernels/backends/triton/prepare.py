"""The kernel before all others: layers' weights transposed, and their biases made NaN where a weight is not finite."""

import triton
import triton.language as tl

from scp_kernels.backends.triton.rounding import rounded_product


@triton.jit
def prepare_rows(
    # A layer [rows, columns], [rows], and what else is added to its bias [rows]
    weight, bias, residual,
    # Written: the weight [columns, rows], and the bias
    transposed, checked_bias,
    # Sizes, and the launch's configuration
    rows, columns, HAS_RESIDUAL: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """This program's block of a layer's rows, if there is one."""
    dtype: tl.constexpr = weight.dtype.element_ty
    r = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)  # [BLOCK_ROWS]
    r_ok = r < rows
    total = tl.load(bias + r, mask=r_ok, other=0.0)
    if HAS_RESIDUAL:
        total += tl.load(residual + r, mask=r_ok, other=0.0)
    zero_or_nan = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], dtype)
    for start in range(0, columns, BLOCK_COLUMNS):
        c = start + tl.arange(0, BLOCK_COLUMNS)
        mask = r_ok[:, None] & (c < columns)[None, :]
        block = tl.load(weight + r[:, None].to(tl.int64) * columns + c[None, :], mask=mask, other=0.0)
        tl.store(transposed + c[None, :].to(tl.int64) * rows + r[:, None], block, mask=mask)
        zero_or_nan += rounded_product(block, 0.0)
    tl.store(checked_bias + r, total + tl.sum(zero_or_nan, 1), mask=r_ok)


@triton.jit(do_not_specialize=("h1", "output_count"))
def scp_prepare_fwd_kernel(
    # Layers 2 [h₂, h₁], [h₂] and 3 [N·C, h₂], [N·C], and w_r [N·C]
    w2, b2, w3, b3, residual,
    # Written: the weights transposed, and the biases, with w_r that of layer 3
    w2t, checked_b2, w3t, checked_b3,
    # Sizes
    h1, h2, output_count,
    # The launch's configuration
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Rows of a transposed weight are what the other kernels load. Grid: (blocks of rows, 2 layers).

    Folding never reads the weights of an inactive unit, whose product with 0 is NaN if a weight is infinite or NaN. A
    bias that is NaN there hides none of them.
    """
    if tl.program_id(1) == 0:
        prepare_rows(w2, b2, b2, w2t, checked_b2, h2, h1, False, BLOCK_ROWS, BLOCK_COLUMNS)
    else:
        prepare_rows(w3, b3, residual, w3t, checked_b3, output_count, h2, True, BLOCK_ROWS, BLOCK_COLUMNS)
