"""Device functions that fix a rounding which the compiler may choose otherwise for every layout, or every lane."""

import triton
import triton.language as tl


@triton.jit
def one_value(flags, BLOCK: tl.constexpr):
    """``flags`` (0 or 1, ``[BLOCK]``) as one value for the whole program, by way of words of bits.

    The compiler may work a comparison out anew for every layout that it is wanted in, with other roundings.
    """
    lane = tl.arange(0, 32)
    words = tl.sum(tl.reshape(flags, [BLOCK // 32, 32]) << lane[None, :], 1)
    return tl.reshape((words[:, None] >> lane[None, :]) & 1, [BLOCK])


@triton.jit
def rounded_product(a, b):
    """``a·b`` for a sum over lanes, the same bits in each of them.

    The compiler fuses a product with the add that follows. If that is the first add of two lanes, each of them rounds
    the other's product and not its own; both then store their sum, and of the two last bits a GPU keeps either. Here
    the add of 0 is what is fused.
    """
    return a * b + 0.0
