"""Hypothesis strategies for heads and maps of any size."""

from hypothesis import strategies as st


def shapes(plane: tuple[int, int], volume: tuple[int, int, int]) -> st.SearchStrategy[tuple[int, ...]]:
    """Maps of two or three axes, up to these sizes."""
    return st.one_of(*(st.tuples(*(st.integers(1, most) for most in sizes)) for sizes in (plane, volume)))


def widths(most: int) -> st.SearchStrategy[tuple[int, int]]:
    """Φ's two hidden widths."""
    return st.tuples(st.integers(1, most), st.integers(1, most))
