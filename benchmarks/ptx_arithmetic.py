"""What PTX's arithmetic instructions compute, on NumPy arrays; registers hold bits, as unsigned integers."""

from collections.abc import Callable

import numpy as np

Array = np.ndarray
CONTAINERS = {"p": "?", "rs": "u2", "r": "u4", "rd": "u8", "f": "u4", "fd": "u8"}
"""What registers of each class hold, by the letters of their names."""


def dtype_of(kind: str) -> np.dtype:
    """Of a type such as ``f32``, ``s64``, ``b8``, ``pred``."""
    if kind == "pred":
        return np.dtype("?")
    letter = {"f": "f", "s": "i", "u": "u", "b": "u"}[kind[0]]
    return np.dtype(f"{letter}{int(kind[1:]) // 8}")


def constant(text: str, dtype: np.dtype) -> Array:
    """A number as PTX writes it, such as ``-8``, ``0x3340U``, ``0f3F800000``."""
    if text.startswith(("0f", "0d")):
        return np.array([[int(text[2:], 16)]], "u4" if text[1] == "f" else "u8").view(dtype)
    number = int(text.rstrip("U"), 0)
    if dtype == np.dtype("?"):
        return np.array([[number != 0]])
    bits = number & ((1 << 8 * dtype.itemsize) - 1)
    return np.array([[bits]], f"u{dtype.itemsize}").view(dtype)


def _fused(a: Array, b: Array, c: Array) -> Array:
    """Rounded once in float32, but for the rare ties of the float64 sum."""
    if a.dtype == np.float32:
        return (a.astype(np.float64) * b + c).astype(np.float32)
    return a * b + c


def _quotient(a: Array, b: Array) -> Array:
    """Integers are rounded towards 0."""
    return a / b if a.dtype.kind == "f" else (a - np.fmod(a, b)) // b


def _bit_field(a: Array, start: Array, length: Array) -> Array:
    """Bits of a 32-bit integer; of a signed one with the sign of the highest."""
    up = np.uint32(32) - start - length
    return (a << up.astype(a.dtype)) >> (up + start).astype(a.dtype)


def _bytes_of_two(a: Array, b: Array, selector: Array) -> Array:
    """Four of the eight bytes of two 32-bit integers."""
    both = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
    result = np.zeros_like(both)
    for place in range(4):
        byte = (selector >> np.uint32(4 * place)) & np.uint32(15)
        if (byte > 7).any():
            raise NotImplementedError("prmt with signs")
        picked = (both >> (8 * byte).astype(np.uint64)) & np.uint64(255)
        result |= picked << np.uint64(8 * place)
    return result.astype(np.uint32)


def _selected(a: Array, b: Array, condition: Array) -> Array:
    return np.where(condition, a, b)


ARITHMETIC: dict[str, Callable[..., Array]] = {
    "mov": lambda a: a,
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "mad": lambda a, b, c: a * b + c,
    "fma": _fused,
    "div": _quotient,
    "rem": np.fmod,
    "min": np.fmin,
    "max": np.fmax,
    "neg": np.negative,
    "abs": np.abs,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.invert,
    "shl": lambda a, by: a << by.astype(a.dtype),
    "shr": lambda a, by: a >> by.astype(a.dtype),
    "selp": _selected,
    "bfe": _bit_field,
    "prmt": _bytes_of_two,
    "popc": lambda a: np.bitwise_count(a).astype(np.uint32),
    "cvt": lambda a: a,
}
COMPARISONS: dict[str, Callable[[Array, Array], Array]] = {
    "eq": np.equal,
    "ne": lambda a, b: (a < b) | (a > b),
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    # Of floats, true also where one is NaN.
    "equ": lambda a, b: ~((a < b) | (a > b)),
    "neu": np.not_equal,
    "ltu": lambda a, b: ~(a >= b),
    "leu": lambda a, b: ~(a > b),
    "gtu": lambda a, b: ~(a <= b),
    "geu": lambda a, b: ~(a < b),
}


def source_kinds(name: str, modifiers: list[str], count: int) -> list[str]:
    """Types of the ``count`` sources of an arithmetic instruction."""
    kind = modifiers[-1]
    if name == "selp":
        return [kind, kind, "pred"]
    if name in ("shl", "shr"):
        return [kind, "u32"]
    if name == "bfe":
        return [kind, "u32", "u32"]
    if name == "mad" and "wide" in modifiers:
        return [kind, kind, wide(kind)]
    return [kind] * count


def wide(kind: str) -> str:
    return f"{kind[0]}{2 * int(kind[1:])}"


def evaluator(name: str, modifiers: list[str]) -> Callable[..., Array]:
    """The function of an arithmetic instruction or a comparison, on sources of :func:`source_kinds`.

    Raises:
        NotImplementedError: the kernels that this was written for have no such instruction.
    """
    if name == "setp" and len(modifiers) == 2:
        return COMPARISONS[modifiers[0]]
    if name not in ARITHMETIC or (name == "mul" and "hi" in modifiers):
        raise NotImplementedError(".".join([name, *modifiers]))
    function = ARITHMETIC[name]
    if "wide" in modifiers:
        to = dtype_of(wide(modifiers[-1]))
        return lambda a, b, *more: function(a.astype(to), b.astype(to), *more)
    if name == "cvt":
        to, source = dtype_of(modifiers[-2]), dtype_of(modifiers[-1])
        if (to.kind == "f") < (source.kind == "f"):
            raise NotImplementedError(".".join([name, *modifiers]))
        return lambda a: a.astype(to)
    return function
