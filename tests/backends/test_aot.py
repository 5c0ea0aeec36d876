"""The ahead-of-time check of the kernels: what it compiles, what it reads, what it refuses."""

from __future__ import annotations

import types
from dataclasses import replace
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

from attnops.kernels import _launch  # noqa: E402
from attnops.kernels.aot import cuda as aot_cuda  # noqa: E402
from attnops.kernels.aot import main as aot  # noqa: E402
from attnops.kernels.aot import triton as aot_triton  # noqa: E402
from attnops.kernels.aot.ptxas import parse_report  # noqa: E402

pytestmark = pytest.mark.skipif(
    _launch.INTERPRETED, reason="nothing is compiled under the interpreter"
)

REPORT = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'spilling' for 'sm_90a'
ptxas info    : Function properties for spilling
    16 bytes stack frame, 12 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 16 bytes cumulative stack size
ptxas info    : Compiling entry function '_ZN1a4goodIfEEvPf' for 'sm_90a'
ptxas info    : Function properties for _ZN1a4goodIfEEvPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, 2048 bytes smem, 380 bytes cmem[0]
"""


def case_of(kernel: str, *words: str) -> _launch.AotCase:
    return next(
        case
        for case in aot_triton.all_cases()
        if case.kernel.__name__ == kernel and set(words) <= set(aot_triton.label(case).split())
    )


def row(**changes: object) -> aot.Row:
    values = {"kind": "triton", "kernel": "k", "arch": "sm_90", "variant": "v", "registers": 40}
    values |= {"spill_stores": 0, "spill_loads": 0, "shared": 1024, "threads": 128}
    return aot.Row(**(values | changes))


def test_report_of_ptxas_is_read():
    spilling, good = parse_report(REPORT)
    assert (spilling.name, spilling.arch, spilling.registers) == ("spilling", "sm_90a", 255)
    assert (spilling.spill_stores, spilling.spill_loads, spilling.shared) == (12, 20, 0)
    assert (good.registers, good.spill_stores, good.shared) == (32, 0, 2048)
    assert parse_report("ptxas info    : 0 bytes gmem") == []
    with pytest.raises(ValueError, match="not a ptxas -v report"):
        parse_report("ptxas info    : Compiling entry function 'k' for 'sm_90'\n")


@pytest.mark.parametrize(
    "changes, word",
    [
        ({"spill_stores": 4}, "spills"),
        ({"spill_loads": 4}, "spills"),
        ({"shared": 200 * 1024}, "shared memory"),
        ({"registers": 200, "threads": 512}, "do not fit"),
    ],
    ids=str,
)
def test_faults(changes, word):
    assert row().fault() == ""
    assert word in row(**changes).fault()
    (fault,) = aot.verify([row(**changes)], ["k"], [])
    assert word in fault


def test_kernels_without_a_row_are_noticed():
    assert aot.verify([row()], ["k"], []) == []
    (fault,) = aot.verify([row()], ["k", "other"], [])
    assert fault.startswith("other:")
    (fault,) = aot.verify([row(kind="cuda", kernel="c")], [], ["c", "k"])
    assert fault.startswith("k:")


def test_every_triton_kernel_is_listed():
    names = aot_triton.kernel_names()
    assert {"anchor_attention_forward_kernel", "cells_kernel"} <= names
    assert "accumulate_scores" not in names  # a helper of kernels
    assert names == {case.kernel.__name__ for case in aot_triton.all_cases()}


def test_an_unlisted_kernel_is_found_by_introspection():
    module = types.ModuleType(__name__)
    module.helper, module.caller = helper, caller
    assert aot_triton.kernel_names([module]) == {"caller"}


@triton.jit
def helper(x):
    return x + 1


@triton.jit
def caller(p_out):
    triton.language.store(p_out, helper(1))


def test_global_functions_are_found(tmp_path: Path):
    (tmp_path / "a.cuh").write_text(
        "template <typename T>\n__global__ void __launch_bounds__(THREADS, 3)\n    one(T* p) {}\n"
        "__global__ void two(int n);\n__device__ void three();\n"
    )
    assert aot_cuda.global_names(tmp_path) == {"one", "two"}


@pytest.mark.parametrize(
    "signature",
    [
        "void attnops::cuda::pool<float, (bool)1>(float const*, attnops::Plan)",
        "attnops::cuda::(anonymous namespace)::pool(int)",
        "void pool<attnops::Max<__half> >(void (*)(int))",
    ],
)
def test_names_of_instances(signature):
    assert aot_cuda.base_name(signature) == "pool"


@pytest.mark.parametrize(
    "kernel, words",
    [
        ("scatter_maxima_kernel", ("bf16", "INNER=True")),
        ("anchor_attention_forward_kernel", ("bf16", "ANCHORS=128", "INNER=True", "MULTIPLE=8")),
    ],
    ids=["scatter", "forward"],
)
def test_compiles_without_a_gpu(kernel, words):
    found, threads = aot_triton.compile_case(case_of(kernel, *words), 90)
    assert (found.name, found.arch) == (kernel, "sm_90")
    assert found.spill_stores == found.spill_loads == 0
    assert 16 <= found.registers <= 255 and 0 < found.shared <= aot.SHARED_LIMIT
    assert threads in (128, 256)


def test_a_real_spill_is_seen():
    """A bound of 32 registers on a kernel that needs over 50; twice, so from the cache as well."""
    case = case_of("cells_kernel", "bf16", "COLUMNS=128", "INNER=True", "MULTIPLE=8")
    case = replace(case, launch=replace(case.launch, registers=32))
    first, _ = aot_triton.compile_case(case, 90)
    assert first.registers <= 32 and first.spill_stores > 0 and first.spill_loads > 0
    assert aot_triton.compile_case(case, 90)[0] == first


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_whole_check(tmp_path: Path):
    assert aot.main(["--out", str(tmp_path)]) == 0
    assert "cells_kernel" in (tmp_path / "resources.md").read_text()
