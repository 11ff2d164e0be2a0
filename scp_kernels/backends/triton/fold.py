"""Folding: the active units of layer 1 leave three affine rows of layer 2 on every tile."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=("rows",))
def scp_fold_fwd_kernel(
    # Read: the active units' lines [rows, h₁], of which three rows are a tile; layer 2 [h₁, h₂], [h₂]
    active, w2t, b2,
    # Written: the affine rows of layer 2 [rows, h₂]
    folded,
    # Sizes
    rows, h1, h2,
    BLOCK_ROWS: tl.constexpr, BLOCK_H1: tl.constexpr, BLOCK_H2: tl.constexpr,
):  # fmt: skip
    """``b₂ + Σ_{u active} w₂[:, u]·(c, a, b)_u`` of every tile. Grid: (blocks of rows, blocks of layer 2).

    Exact products always: TensorFloat-32, where it is allowed, is for the products with w₃.
    """
    r = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    k = tl.program_id(1) * BLOCK_H2 + tl.arange(0, BLOCK_H2)
    r_ok, k_ok = r < rows, k < h2
    # A product of matrices, summed over layer 1 block by block.
    total = tl.zeros([BLOCK_ROWS, BLOCK_H2], w2t.dtype.element_ty)
    for start in tl.range(0, h1, BLOCK_H1, num_stages=3):
        u = start + tl.arange(0, BLOCK_H1)
        line = tl.load(active + r[:, None] * h1 + u[None, :], mask=r_ok[:, None] & (u < h1)[None, :], other=0.0)
        w = tl.load(w2t + u[:, None] * h2 + k[None, :], mask=(u < h1)[:, None] & k_ok[None, :], other=0.0)
        total = tl.dot(line, w, total, input_precision="ieee", out_dtype=w2t.dtype.element_ty)
    # The bias belongs to a tile's first row, the constant one.
    constant = tl.load(b2 + k, mask=k_ok, other=0.0)
    total += tl.where((r % 3 == 0)[:, None], constant[None, :], 0.0)
    tl.store(folded + r[:, None] * h2 + k[None, :], total, mask=r_ok[:, None] & k_ok[None, :])
