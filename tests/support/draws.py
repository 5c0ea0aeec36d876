"""What hypothesis draws for the tests of every op."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

booleans, integers = st.booleans, st.integers
one_of = st.sampled_from
layouts = one_of(["contiguous", "channels_last"])
kernels = st.tuples(*[one_of([1, 3, 5, 7])] * 2)


def shapes(*largest: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Tuples of sizes from 1 to each of `largest`."""
    return st.tuples(*(st.integers(1, size) for size in largest))


def lists(values: st.SearchStrategy, smallest: int, largest: int) -> st.SearchStrategy[list]:
    """Lists of `smallest` to `largest` values."""
    return st.lists(values, min_size=smallest, max_size=largest)


def drawn(examples: int, **arguments: st.SearchStrategy) -> Callable[[Callable], Callable]:
    """Run a test with so many draws of these arguments, the same in every run."""
    options = settings(max_examples=examples, deadline=None, derandomize=True)
    return lambda test: options(given(**arguments)(test))
