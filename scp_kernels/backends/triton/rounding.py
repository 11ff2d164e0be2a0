"""Device functions that fix a rounding which the compiler may choose otherwise for every layout, or every lane."""

import triton
import triton.language as tl


@triton.jit
def bit_words(flags, others, BLOCK: tl.constexpr):
    """``flags`` and ``others`` (booleans, ``[BLOCK]``) as words of 32 bits, ``[BLOCK // 32]`` each, by one sum.

    The compiler may work a comparison out anew for every layout that it is wanted in, with other roundings. A word is
    one value for the whole program.
    """
    both = flags.to(tl.uint64) | (others.to(tl.uint64) << 32)
    words = tl.sum(tl.reshape(both, [BLOCK // 32, 32]) << tl.arange(0, 32).to(tl.uint64)[None, :], 1)
    return (words & 0xFFFFFFFF).to(tl.uint32), (words >> 32).to(tl.uint32)


@triton.jit
def bit_count(words):
    """How many bits of each word are 1, as ``int32``: the compiler makes one instruction of this."""
    pairs = words - ((words >> 1) & 0x55555555)
    fours = (pairs & 0x33333333) + ((pairs >> 2) & 0x33333333)
    return ((((fours + (fours >> 4)) & 0x0F0F0F0F) * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def rounded_product(a, b):
    """``a·b`` for a sum over lanes, the same bits in each of them.

    The compiler fuses a product with the add that follows. If that is the first add of two lanes, each of them rounds
    the other's product and not its own; both then store their sum, and of the two last bits a GPU keeps either. Here
    the add of 0 is what is fused.
    """
    return a * b + 0.0
