"""The kernel before all others: a layer's weights transposed, and its bias made NaN where a weight is not finite."""

import triton
import triton.language as tl

from scp_kernels.backends.triton.rounding import rounded_product


@triton.jit(do_not_specialize=("rows", "columns"))
def scp_prepare_fwd_kernel(
    # A layer [rows, columns], [rows], and what else is added to its bias [rows]
    weight, bias, residual,
    # Written: the weight [columns, rows], and the bias
    transposed, checked_bias,
    # Sizes
    rows, columns,
    # The launch's configuration
    HAS_RESIDUAL: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Rows of a transposed weight are what the other kernels load. Grid: (blocks of rows,).

    Folding never reads the weights of an inactive unit, whose product with 0 is NaN if a weight is infinite or NaN. A
    bias that is NaN there hides none of them.
    """
    dtype: tl.constexpr = weight.dtype.element_ty
    r = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)  # [BLOCK_ROWS]
    r_ok = r < rows
    zero_or_nan = tl.zeros([BLOCK_ROWS], dtype)
    for start in range(0, columns, BLOCK_COLUMNS):
        c = start + tl.arange(0, BLOCK_COLUMNS)
        mask = r_ok[:, None] & (c < columns)[None, :]
        block = tl.load(weight + r[:, None].to(tl.int64) * columns + c[None, :], mask=mask, other=0.0)
        tl.store(transposed + c[None, :].to(tl.int64) * rows + r[:, None], block, mask=mask)
        zero_or_nan += tl.sum(rounded_product(block, 0.0), 1)
    total = tl.load(bias + r, mask=r_ok, other=0.0)
    if HAS_RESIDUAL:
        total += tl.load(residual + r, mask=r_ok, other=0.0)
    tl.store(checked_bias + r, total + zero_or_nan, mask=r_ok)
