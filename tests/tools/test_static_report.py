"""The static report: trips of loops, loops of machine code, costs, and what is made of them."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import attnops

pytest.importorskip("triton")

from attnops.benchmarks.ops.cases import OpCase
from attnops.benchmarks.report.load import load
from attnops.benchmarks.report.records import RESULTS
from attnops.benchmarks.static import compare, costs, estimate, first_call, measure, rows, table
from attnops.benchmarks.static.inputs import VARIANTS, representative
from attnops.benchmarks.static.loops import Piece, pieces
from attnops.benchmarks.static.sass import Function, Instruction
from attnops.benchmarks.static.stand_in import on_triton
from attnops.kernels._launch import generation_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Triton's Linux tools")


def instruction(name: str, operands: str = "", line: int = 0, predicate: str = "") -> Instruction:
    return Instruction(0, predicate, name, operands, "op/forward.py", line)


def nested() -> Function:
    """for i (line 10): LDG; for j (line 12): FFMA FFMA. Labels as nvdisasm writes them."""
    code = [
        instruction("MOV"),
        instruction("LDG.E.128", line=11),
        instruction("FFMA", line=13),
        instruction("FFMA", line=13),
        instruction("BRA", "`(.L_inner)", 12, "@P0"),
        instruction("IADD3", line=14),
        instruction("BRA", "`(.L_outer)", 10, "@!P1"),
        instruction("EXIT"),
    ]
    return Function("kernel", code, {".L_outer": 1, ".L_inner": 2})


def test_loops_are_nested_and_named_by_their_source() -> None:
    around, outer, inner = pieces(nested())
    assert [i.name for i in around.instructions] == ["MOV", "EXIT"]
    assert (outer.line, outer.depth, inner.line, inner.depth) == (10, 1, 12, 2)
    assert [i.name for i in outer.instructions] == ["LDG.E.128", "IADD3", "BRA"]
    assert [i.name for i in inner.instructions] == ["FFMA", "FFMA", "BRA"]


def part(line: int, size: int) -> estimate.PieceCost:
    piece = Piece((instruction("FFMA"),) * size, "op/forward.py", line, 1 if line else 0)
    pipes = {"issue": float(size), "fma": float(size)}
    return estimate.PieceCost(piece, pipes, 2.0 * size, 3.0 * size)


def test_the_busier_of_pipe_and_latency_counts() -> None:
    code = estimate.Code([part(0, 0), part(10, 100)], 32, warps=4, shared=0, resident=16, limit="")
    alone = estimate.estimate(code, 1, [1, 35])
    assert alone.bound_by == "latency"
    assert alone.low == pytest.approx(35 * 200 / 1750)
    full = estimate.estimate(code, 132 * 16, [1, 35])
    assert full.bound_by in ("issue", "fma")
    assert full.low == pytest.approx(16 * 35 * 100 / 1750)  # a warp of each program a scheduler
    conflicts = estimate.estimate(code, 132 * 16, [1, 35], conflicts=35 * 100)
    assert (conflicts.bound_by, conflicts.low) == ("memory", pytest.approx(4 * full.low))
    more = estimate.estimate(code, 132 * 16, [1, 35], last=[1, 42])  # latency of a single program
    assert more.low == pytest.approx(full.low + 7 * 200 / 1750)
    assert more.high == pytest.approx(full.high + 7 * 300 / 1750)


def test_occupancy() -> None:
    assert estimate.occupancy(64, 4, 0) == (8, "registers")
    assert estimate.occupancy(255, 8, 0) == (1, "registers")
    assert estimate.occupancy(32, 4, 98 * 1024) == (2, "shared memory")
    assert estimate.occupancy(16, 8, 0) == (8, "warps")


def test_costs_of_instructions() -> None:
    wide, narrow = instruction("LDG.E.128"), instruction("LDG.E.U16")
    assert (costs.width(wide), costs.width(narrow)) == (128, 16)
    assert costs.pipes([wide])["memory"] == 4 * costs.pipes([narrow])["memory"]
    assert costs.pipes([instruction("MUFU.EX2")])["special"] == 8
    # 64 x 128 x 16 multiply-adds on four tensor cores of 512 a cycle in bfloat16, half in TF32
    assert costs.tensor_cycles(instruction("HGMMA.64x128x16.F32.BF16")) == 64
    assert costs.tensor_cycles(instruction("HGMMA.64x128x8.F32.TF32")) == 64
    # one of 16 x 8 x 16 at five eighths of 512 a cycle; TF32 at half of that
    expected = {"16816.F32": 6.4, "16816.F32.BF16": 6.4, "16816.F16": 6.4, "1688.F32.BF16": 3.2}
    expected |= {"1688.F32": 3.2, "1688.F32.TF32": 6.4, "1684.F32.TF32": 3.2}
    for name, cycles in expected.items():
        assert costs.tensor_cycles(instruction(f"HMMA.{name}")) == pytest.approx(cycles), name
    dense = 132 * 4 * costs.HALF_RATE * 2 * 1.83e9
    assert dense == pytest.approx(989.4e12, rel=1e-3)
    stalled = Instruction(0, "", "LDG.E", "", "", 0, (1, 0, 7, 0))
    waiting = Instruction(1, "", "FADD", "", "", 0, (1, 7, 7, 1))
    assert costs.latency([stalled, waiting], 270, 1) == 271


def test_the_floor_is_bytes_or_multiply_adds() -> None:
    pool = OpCase("pyramid_pool", (1, 2048, 256, 128), "bfloat16", "contiguous", "forward+backward")
    moved = 2 * 2048 * 256 * 128
    assert rows.floor_us(pool, "forward") == pytest.approx(moved / 4.3e6, rel=0.01)
    quick = {"low_us": 0.1, "high_us": 0.2, "warp_instructions": 1, "programs": 1, "threads": 32}
    row = rows.row_of(pool, "forward", "triton", [quick], [])
    assert row["floor_us"] == row["low_us"] == row["high_us"] > 31
    attention = OpCase("anchor_attention", (1, 2048, 256, 128), "float32")
    products = 2 * 2048 * 110 * 256 * 128
    assert rows.floor_us(attention, "forward") == pytest.approx(products / (165e6 / 2), rel=0.01)


def recorded(folder: Path, op: str) -> list[dict[str, Any]]:
    """What a process of its own records of an op, of one small input."""
    program = (
        "import sys; from pathlib import Path; from attnops.benchmarks.static import inputs, "
        "launches; from attnops.benchmarks.ops.cases import OpCase; "
        f"launches.representative = lambda op: [OpCase(op, {(1, 64, 16, 16)}, 'bfloat16', "
        "'channels_last', 'forward+backward', (('kernel', 3), ('dilation', 2)))]; "
        "sys.exit(launches.main(sys.argv[1:]))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(folder / "cache")
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, "-c", program, str(folder), op]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "rows.json").read_text())


def test_real_launches_are_recorded_and_followed(tmp_path: Path) -> None:
    """A kernel compiled for sm_90, whose branch for infinities is not taken."""
    forward, backward = recorded(tmp_path, "local_attention")
    assert (forward["pass"], backward["pass"]) == ("forward", "backward")
    (kernel,) = forward["kernels"]
    assert kernel["kernel"] == "local_attention_kernel"
    # The code around the loops takes longest; what only infinities need is in it, and not run.
    assert 0.4 < kernel["hottest_trips"] < 0.8
    assert kernel["spills"] == 0 and 16 < kernel["registers"] <= 255
    assert kernel["sectors"] >= 1 and kernel["conflicts"] >= 1
    assert 0 < forward["floor_us"] <= forward["low_us"] <= forward["high_us"] < 1000
    document = {"kind": measure.KIND, "arch": "sm_90", "triton": "0", "rows": [forward]}
    assert "| 1x64x16x16, kernel 3 dilation 2 | triton | bfloat16 |" in table.as_markdown(document)


def test_regressions_are_named() -> None:
    row = {"op": "nmf", "shape": [1, 8, 8], "options": [], "dtype": "float32"}
    row |= {"layout": "contiguous", "pass": "forward", "launches": 3, "high_us": 10.0}
    before, after = {"rows": [row]}, {"rows": [copy.deepcopy(row)]}
    assert compare.regressions(before, after) == []
    after["rows"][0] |= {"launches": 4, "high_us": 10.9}
    assert len(compare.regressions(before, after)) == 1
    after["rows"][0]["high_us"] = 11.1
    assert len(compare.regressions(before, after)) == 2


def test_every_op_has_representative_inputs() -> None:
    assert set(VARIANTS) == set(attnops.backends())
    for op in VARIANTS:
        assert {case.dtype for case in representative(op)} >= {"bfloat16", "float16", "float32"}


@pytest.mark.parametrize("arch, generation", [(80, 8), (90, 9), (100, 10)])
def test_launchers_choose_for_the_architecture_that_is_compiled(arch, generation):
    """local_attention takes more warps where there is no wgmma; afterwards all is as it was."""
    launches = []

    def note(kernel, programs, *args, launch):
        launches.append(launch)

    x = torch.empty(1, 64, 16, 16, dtype=torch.bfloat16)
    x = x.contiguous(memory_format=torch.channels_last)
    with on_triton(note, arch):
        assert generation_of(x) == generation
        attnops.local_attention(x, x, x, 5, 3)
    assert generation_of(x) == 9
    (launch,) = launches
    assert launch.warps == (4 if generation == 9 else 8)


def test_first_calls_list_what_they_compile_once(tmp_path: Path) -> None:
    launch = SimpleNamespace(constants={"TILE": 8}, warps=4, stages=2, options=dict)
    compiler = first_call.Compiler()
    for code in ("a", "b", "a"):
        kernel = SimpleNamespace(
            __name__=f"{code}_kernel",
            warmup=lambda *args, code=code, **_: SimpleNamespace(hash=code),
        )
        compiler(kernel, 7, 1.0, launch=launch)
    facts = {"op": "nmf", "dtype": "bfloat16", "layout": "contiguous", "pass": "forward"}
    rows = [facts | found | {"seconds": 1.5} for found in compiler.found]
    assert [row["kernel"] for row in rows] == ["a_kernel", "b_kernel"]
    assert first_call.totals(rows).cells == [["nmf", "contiguous", "forward", "2", "3"]]
    assert first_call.variants(rows).cells[1] == [
        *("nmf", "b_kernel", "contiguous", "forward", "TILE=8", "4", "2", "1.5")
    ]
    assert table._show_first_calls(rows, tmp_path) == 0
    written = tmp_path / table.FIRST_CALLS
    assert json.loads(written.read_text())["rows"] == rows
    text = written.with_suffix(".md").read_text()
    assert "| nmf | contiguous | forward | 2 | 3 |" in text and "| nmf | b_kernel |" in text
    results = load(tmp_path)
    assert not results.static and not results.left_out


def test_committed_first_calls_are_of_every_op() -> None:
    found = json.loads((RESULTS / "static-sm90" / table.FIRST_CALLS).read_text())["rows"]
    assert {row["op"] for row in found} == set(VARIANTS)
    assert all(row["seconds"] > 0 for row in found)
