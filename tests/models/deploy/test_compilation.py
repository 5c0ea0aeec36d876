"""What the compilation of a deployment changes of Inductor, and that nothing of it stays."""

from __future__ import annotations

import pytest
import sympy
from torch._inductor.codegen import cpp
from torch.utils._sympy.functions import FloorDiv, ModularIndexing

from attnops.models.deploy import compilation
from attnops.models.deploy.convolutions import packing

s, x, y, z = sympy.symbols("s x y z", integer=True, nonnegative=True)
half = FloorDiv(s - 1, 2) + 1
quarter = FloorDiv(half + 1, 2)
INDICES = (
    x + 64 * z + 64 * y * quarter,
    x * quarter * half + y * half + z,
    FloorDiv(x, 16) * quarter + ModularIndexing(x, 1, 16) + y * FloorDiv(3 * half, 4),
    FloorDiv(y, quarter) + x * ModularIndexing(y, 2, quarter),
    7 * quarter,
)


@pytest.mark.parametrize("index", INDICES)
@pytest.mark.parametrize("length", [(), (16,)])
def test_strides_are_those_of_inductor(index, length):
    wanted = [cpp.stride_at_vec_range(index, var, *length) for var in (x, y, z)]
    with compilation._opaque_sizes():
        found = [cpp.stride_at_vec_range(index, var, *length) for var in (x, y, z)]
    assert [sympy.simplify(a - b) for a, b in zip(found, wanted, strict=True)] == [0, 0, 0]
    known = set().union(*(stride.free_symbols for stride in wanted))
    assert set().union(*(stride.free_symbols for stride in found)) == known


def test_sizes_are_not_simplified(monkeypatch):
    """They are what takes the time: floors of floors."""
    seen, simplify = [], sympy.simplify
    monkeypatch.setattr(cpp.sympy, "simplify", lambda e: seen.append(e) or simplify(e))
    with compilation._opaque_sizes():
        stride = cpp.stride_at_vec_range(x + 48 * z + 48 * y * FloorDiv(quarter + 5, 3), y, 16)
    assert stride == 48 * FloorDiv(quarter + 5, 3)
    assert seen and not any(e.has(FloorDiv) for e in seen)


def test_inductor_is_left_as_it_was():
    before = cpp.stride_at_vec_range
    with pytest.raises(ZeroDivisionError), compilation._opaque_sizes():
        assert cpp.stride_at_vec_range is not before
        raise ZeroDivisionError
    assert cpp.stride_at_vec_range is before


@pytest.mark.parametrize("what", ["uses_tiles", "uses_vectors"])
def test_graphs_are_kept_by_what_the_library_multiplies_with(monkeypatch, what):
    """Code compiled for tiles is not taken where ATTNOPS_ISA leaves them out."""
    found = getattr(packing, what)()
    pack = packing.PackedConvolutions(True)
    key = pack.uuid()
    assert pack.uuid() == key != packing.PackedConvolutions(False).uuid()
    monkeypatch.setattr(packing, what, lambda: not found)
    assert pack.uuid() != key
