"""Microbenchmarks of one op: pytest-benchmark on the CPU, events and graph replay on a GPU.

python -m attnops.benchmarks pyramid_pool [--device cuda] [--json FILE] [pytest's options]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from ..apnb.run import rates_of, say
from ..arguments import DTYPES, first_device, positive_integer
from ..measure.backends_that_ran import in_words, recorded_backends
from ..measure.floor import exact_float32, measure_copy, size_class
from ..measure.memory import Case, MemoryUnknown, measure_cpu, measure_cuda
from ..measure.timing import Timing, time_cuda, time_cuda_graph, time_host
from ..report.children import add_malloc_argument, measured
from ..report.grid import Grid, markdown, number, show
from ..report.records import Document, Row, put_ratios, why, write_whole
from . import cases as op_cases
from .cases import (
    EAGER,
    FUNCTIONS,
    OURS,
    REFERENCES,
    OpCase,
    case_of,
    checked_step,
    facts,
)

EAGER_BETTER = f"{EAGER}, better layout"
MEMORY_ONCE = (
    "MiB beyond in: with glibc as it is; keeping freed memory changes when maps go back to the "
    "system, not how many bytes a call asks for."
)


def row_of(document: Document, case: OpCase, contender: str, device: torch.device) -> Row:
    return document.new_row(case.op, contender, device.type, **facts(case))


def put_limits(document: Document, case: OpCase, row: Row, device: torch.device) -> None:
    """Floor and share of the copy bandwidth of a timed row.

    On a CPU the bandwidth is that of a copy of the op's own size, which its caches may hold.
    """
    if row.p50 is None:
        return
    rates = rates_of(document, device, DTYPES[case.dtype])
    if device.type == "cpu":
        rates = replace(rates, copy_gb_s=_copy_rate(document, case))
    row.put_floor(rates.floor_ms(case.moved_bytes(), case.macs()))
    row.bandwidth_percent = 100 * case.moved_bytes() / (1e6 * row.p50) / rates.copy_gb_s


def _copy_rate(document: Document, case: OpCase) -> float:
    """Measured once a document and size."""
    moved = size_class(case.largest_pass_bytes())
    known = document.parts.setdefault("copies", {})
    if str(moved) not in known:
        known[str(moved)] = measure_copy(torch.device("cpu"), moved)
    return known[str(moved)]


def run_cuda(document: Document, cases: Iterable[OpCase], backends: Sequence[str]) -> None:
    """Time every contender on the GPU. `backends` beside "auto" give rows "attnops (backend)"."""
    device = torch.device("cuda")
    exact_float32()
    for case in cases:
        say(f"  {case.op} {case}")
        inputs = case.inputs(device)
        for contender in FUNCTIONS[case.op]:
            for backend in backends if contender == OURS else ("auto",):
                time_on_cuda(document, case, contender, inputs, backend)
        put_ratios(document.rows, REFERENCES)


def time_on_cuda(
    document: Document,
    case: OpCase,
    contender: str,
    inputs: list[torch.Tensor],
    backend: str = "auto",
    name: str = "",
    milliseconds: float = 100,
) -> Row:
    """A row of one contender: times with events, of launches and of graph replay, and memory.

    Args:
        backend: that attnops is to run on.
        name: of the row; "": the contender's, with the backend unless that is "auto".
        milliseconds: to repeat the call for.

    Raises:
        RuntimeError: the device is lost.
    """
    import attnops

    device = torch.device("cuda")
    row = row_of(document, case, contender, device)
    row.name = name or (contender if backend == "auto" else f"{contender} ({backend})")
    with attnops.use_backend(backend):
        try:
            with recorded_backends() as used:
                step, row.relative_error = checked_step(case, contender, inputs)
            row.backend = in_words(used) or (backend if backend != "auto" else "")
            row.checked_against = "" if row.relative_error is None else EAGER
            row.put_timing(time_cuda(step, milliseconds))
            row.host_p50 = time_host(step).p50
            row.put_memory(measure_cuda(Case(step, step)))
            row.put_timing(time_cuda_graph(step, milliseconds), prefix="graph_")
        except Exception as error:  # of compilers too
            row.add_note(f"no CUDA graph: {why(error)}" if row.p50 else why(error))
            torch.cuda.synchronize()
    put_limits(document, case, row, device)
    return row


def rows_from_pytest(document: Document, data: dict) -> list[Row]:
    """Rows from the JSON that pytest-benchmark writes."""
    rows = []
    for entry in data["benchmarks"]:
        info = entry["extra_info"]
        case = case_of(info["op"], info)
        row = row_of(document, case, info["contender"], torch.device("cpu"))
        row.put_timing(Timing.of([1e3 * seconds for seconds in entry["stats"]["data"]]))
        row.backend = info["backend"]
        row.relative_error = info["relative_error"]
        row.checked_against = EAGER
        put_limits(document, case, row, torch.device("cpu"))
        rows.append(row)
    put_ratios(rows, REFERENCES)
    return rows


def put_cpu_memory(
    rows: Iterable[Row], start: str = "forkserver", threads: int | None = None
) -> None:
    """Peaks in fresh processes; `start` and `threads` are those of `measure_cpu`."""
    how = {"timeout": 300, "compiles": True, "start": start, "threads": threads}
    for row in rows:
        case = case_of(row.table, vars(row))
        try:
            use = measure_cpu(op_cases.memory_case, **how, case=case, contender=row.name)
            row.put_memory(use)
        except MemoryUnknown as error:
            row.add_note(f"memory unknown: {error}")


def grids(rows: Iterable[Row]) -> Iterable[Grid]:
    """One grid per op, dtype and device, one input after the other."""
    header = (
        "input, layout, pass",
        "contender",
        "on",
        "ms p50 [p20, p80]",
        "graph ms",
        "launch ms",
        "static ms",
        "MiB beyond in",
        "x eager",
        "x compiled",
        "x sdpa",
        "x natten",
        "x cudnn",
        "x eager, better layout",
        "% of floor",
        "% of copy",
        "note",
    )
    places: dict[tuple[Any, ...], int] = {}

    def place(row: Row) -> tuple[int, int]:
        """Where its table and its input occurred first."""
        keys = ((row.table, row.dtype, row.device), row.input)
        return tuple(places.setdefault(key, len(places)) for key in keys)

    chosen = sorted((row for row in rows if row.table in FUNCTIONS), key=place)
    for (op, dtype, device), group in groupby(chosen, lambda r: (r.table, r.dtype, r.device)):
        group = list(group)
        grid = Grid(f"{op}, {dtype}: {device}", header)
        for row in group:
            time = "-"
            if row.p50 is not None:
                time = f"{number(row.p50)} [{number(row.p20)}, {number(row.p80)}]"
            grid.cells.append(
                (
                    _input_of(row),
                    row.name,
                    row.backend,
                    time,
                    number(row.graph_p50),
                    number(row.host_p50),
                    _estimate(row),
                    number(row.memory_above_inputs),
                    *(number(row.ratios.get(name)) for name in (*REFERENCES, EAGER_BETTER)),
                    number(row.floor_percent),
                    number(row.bandwidth_percent),
                    row.note,
                )
            )
        if any(row.malloc for row in group) and any(row.memory_method for row in group):
            grid.notes.append(MEMORY_ONCE)
        yield grid.without_empty_columns()


def _estimate(row: Row) -> str:
    bounds = [number(x) for x in (row.estimate_low, row.estimate_high) if x is not None]
    return " to ".join(dict.fromkeys(bounds))


def _input_of(row: Row) -> str:
    words = case_of(row.table, vars(row)).words()
    facts = ["x".join(map(str, row.shape)), *words, row.layout, row.direction]
    return ", ".join([*facts, f"memory {row.malloc}"] if row.malloc else facts)


def as_markdown(rows: Iterable[Row]) -> str:
    return "\n".join(markdown(grid, level=3) for grid in grids(rows))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="an op's first input or two only")
    parser.add_argument(
        "--memory",
        action="store_true",
        help="also peak memory (fresh processes; with --malloc under its first setting)",
    )


def main(arguments: Sequence[str]) -> int:
    """`arguments`: the op, then options; what is not known here goes to pytest."""
    op, *rest = arguments
    parser = argparse.ArgumentParser(f"attnops bench {op}", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--threads", type=positive_integer, help="CPU threads")
    add_arguments(parser)
    add_malloc_argument(parser)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--markdown", metavar="FILE")
    chosen, for_pytest = parser.parse_known_args(rest)
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    device = first_device(chosen.device, parser)
    document = Document()
    status = 0
    if chosen.malloc:
        document, status = measured(arguments, chosen.malloc, once=("--memory",))
    elif device.type == "cuda":
        cases = op_cases.all_cases(op, (chosen.dtype,), chosen.quick)
        run_cuda(document, cases, backends=("auto", "triton", "cuda"))
    else:
        status = run_pytest(document, op, chosen.dtype, chosen.quick, for_pytest)
        if chosen.memory:
            put_cpu_memory(document.rows)
    for grid in grids(document.rows):
        show(grid)
    if chosen.json:
        document.save(chosen.json)
    if chosen.markdown:
        write_whole(chosen.markdown, as_markdown(document.rows))
    return status


def run_pytest(
    document: Document, op: str, dtype: str, quick: bool, for_pytest: Sequence[str] = ()
) -> int:
    """Time every contender on the CPU through pytest-benchmark; returns its exit status."""
    import pytest
    import pytest_benchmark  # noqa: F401  (its absence is to be named, not to fail as an option)

    file = Path(__file__).with_name("bench_op.py")
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "benchmark.json"
        options = [
            str(file),
            "-q",
            "--benchmark-only",
            "--benchmark-disable-gc",
            "--benchmark-columns=min,median,iqr,rounds",
            f"--benchmark-json={result}",
            f"--bench-op={op}",
            f"--bench-dtype={dtype}",
            "-p",
            "no:cacheprovider",
        ]
        status = pytest.main([*options, *(["--bench-quick"] if quick else []), *for_pytest])
        if not result.is_file() or not result.stat().st_size:
            return int(status) or 1
        rows_from_pytest(document, json.loads(result.read_text()))
    return int(status)
