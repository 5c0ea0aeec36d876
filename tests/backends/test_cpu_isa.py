"""The ops on every instruction set, and beside other arithmetic of PyTorch's and numpy's.

The rest of the suite runs on the newest instruction set of the processor. All of these are settled
once per process, so the tests of the ops run again in processes of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

import attnops._backends.library as native
from attnops._backends.isa import NAMES

OPS = Path(__file__).resolve().parents[1] / "ops"
FILES = sorted(path.name for path in OPS.glob("test_*.py"))
# What no instruction set changes is left out.
UNCHANGED = ("opcheck", "exports", "autocast", "bad_input", "refused", "published")

needs_library = pytest.mark.skipif(
    not native.library_path("cpu").is_file(), reason="the CPU library is not built"
)


def in_a_process(*arguments: str, **environment: str) -> str:
    """What a Python process with other environment variables prints, both streams."""
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "0", **environment},
        cwd=OPS.parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def run_op_tests(
    backend: str, files: list[str], choice: str, *options: str, **environment: str
) -> None:
    paths = [str(OPS / name) for name in files]
    options = ("-q", "-x", "-p", "no:cacheprovider", "--only-backend", backend, *options)
    options += ("-m", "not slow and not inductor", "-k", choice)
    assert " passed" in in_a_process("-m", "pytest", *options, *paths, **environment)


@cache
def running(isa: str) -> str:
    """The instruction set that runs where `isa` is asked for."""
    code = "import attnops._backends.library as n; print(n.build_info('cpu')['isa'])"
    return in_a_process("-W", "ignore", "-c", code, ATTNOPS_ISA=isa).split()[-1]


@needs_library
@pytest.mark.parametrize("sampled", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("isa", NAMES)
def test_every_op_on_every_instruction_set(isa: str, sampled: bool) -> None:
    """Every value of every parameter, and every pair of options; all of each grid if it is slow."""
    if isa == native.build_info("cpu")["isa"]:
        pytest.skip(f"the rest of this suite runs on {isa}")
    if running(isa) != isa:
        pytest.skip(f"this processor or build has no {isa}")
    choice = " and ".join(f"not {name}" for name in UNCHANGED)
    run_op_tests("cpu", FILES, choice, *["--sampled"] * sampled, ATTNOPS_ISA=isa)


@needs_library
@pytest.mark.parametrize("sampled", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("capability", ["default", pytest.param("avx2", marks=pytest.mark.slow)])
def test_budgets_do_not_depend_on_pytorchs_kernels(capability: str, sampled: bool) -> None:
    options = ["--sampled"] * sampled
    environment = {"ATEN_CPU_CAPABILITY": capability}
    run_op_tests("cpu", FILES, "agrees_with_float64", *options, **environment)


@pytest.mark.parametrize("core", ["Nehalem", pytest.param("Haswell", marks=pytest.mark.slow)])
def test_budgets_do_not_depend_on_numpys_blas(core: str) -> None:
    """Triton's interpreter multiplies matrices with numpy."""
    pytest.importorskip("triton")
    if core == "Haswell" and torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        pytest.skip("this processor has no AVX2")
    files = ["test_nmf.py", "test_anchor_attention.py"]
    choice = "triton and agrees_with_float64"
    environment = {"TRITON_INTERPRET": "1", "OPENBLAS_CORETYPE": core}
    run_op_tests("triton", files, choice, **environment)


@needs_library
@pytest.mark.parametrize("isa", ["AVX2", "Baseline"])
def test_names_are_taken_in_any_case(isa: str) -> None:
    assert running(isa) == running(isa.lower())


IMPORT = "import attnops; attnops.group_attention(*[__import__('torch').ones(1, 2, 3, 3)] * 3, 1)"


@needs_library
@pytest.mark.parametrize("isa", ["sse", "avx512f"])
def test_an_unknown_name_is_warned_of_once(isa: str) -> None:
    printed = in_a_process("-c", IMPORT, ATTNOPS_ISA=isa)
    assert printed.count(f"ATTNOPS_ISA={isa!r}") == 1
    assert "baseline, avx2 or avx512" in printed
    assert running(isa) == running("")


@needs_library
@pytest.mark.parametrize("isa", ["", "baseline"])
def test_what_is_obeyed_is_not_warned_of(isa: str) -> None:
    assert "ATTNOPS_ISA" not in in_a_process("-c", IMPORT, ATTNOPS_ISA=isa)


@needs_library
@pytest.mark.parametrize("isa", NAMES)
def test_long_sums_of_group_attention_stay_accurate(isa: str) -> None:
    """Positive terms, all of one group: chains of thousands of float32 additions would show."""
    code = """
import torch, attnops
torch.manual_seed(0)
phi, g = (torch.rand(1, 1, 128, 125).add(0.5) for _ in range(2))
wanted, eps = (phi.double() * g.double()).sum(), torch.finfo(phi.dtype).eps
for layout in (torch.contiguous_format, torch.channels_last):
    maps = [x.clone(memory_format=layout) for x in (torch.ones_like(phi), phi, g)]
    with attnops.use_backend("cpu"):
        found = attnops.group_attention(*maps, 1)[0, 0, 0, 0].double()
    print(abs(found / wanted - 1).item() / eps)
"""
    printed = in_a_process("-W", "ignore", "-c", code, ATTNOPS_ISA=isa)
    # One rounding of the result, and a little of the products and of short chains.
    assert max(map(float, printed.split()[-2:])) < 1.5
