"""Table 1 of the ANN paper on this machine: non-local block against APNB, published and fused.

    python -m attnops.benchmarks apnb-table [--size 96x96] [--markdown FILE] [--json FILE] ...

Source: Zhu et al., Asymmetric Non-local Neural Networks for Semantic Segmentation (ICCV 2019),
table 1.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby

import torch

from . import counts
from .apnb_cases import EAGER_LINEAR, EAGER_NON_LOCAL, EAGER_RELEASED
from .apnb_run import TABLE, Options, run
from .present import Grid, markdown, number, show
from .record import Document, Row, write_whole
from .timing import Budget

HEADER = (
    "block",
    "GMAC",
    "done",
    "paper",
    "MiB beyond i/o",
    "beyond in",
    "paper MB",
    "ms p50 [p20, p80]",
    "graph ms",
    "paper ms",
    "x eager NL",
    "x eager APNB",
    "% of floor",
    "note",
)
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def grids(rows: Sequence[Row]) -> Iterator[Grid]:
    """One grid per input."""
    for key, group in groupby((row for row in rows if row.table == TABLE), lambda row: row.input):
        yield _grid(list(group), key)


def _grid(rows: list[Row], key: tuple) -> Grid:
    _, shape, dtype, layout, direction, device = key
    where = device if rows[0].threads is None else f"{device}, {rows[0].threads} threads"
    title = f"APNB {list(shape)}, {dtype}, {layout}, {direction}: {where}"
    notes: list[str] = []
    grid = Grid(title, HEADER)
    for row in rows:
        mark = ""
        if row.note:
            if row.note not in notes:
                notes.append(row.note)
            mark = f"[{notes.index(row.note) + 1}]"
        paper = row.paper
        grid.cells.append(
            (
                row.name,
                number(row.gmac, 4),
                number(row.gmac_done, 4),
                number(paper.get("gflops"), 4),
                number(row.memory_above_inputs_and_output),
                number(row.memory_above_inputs),
                number(paper.get("mb"), 4),
                _time(row),
                number(row.graph_p50),
                number(paper.get("ms"), 4),
                _ratio(row, EAGER_NON_LOCAL),
                _ratio(row, _same_form(row)),
                number(row.floor_percent),
                mark,
            )
        )
    grid.notes = [f"[{i}] {note}" for i, note in enumerate(notes, 1)]
    return grid.without_empty_columns()


def _time(row: Row) -> str:
    if row.p50 is None:
        return "-"
    return f"{number(row.p50)} [{number(row.p20)}, {number(row.p80)}]"


def _same_form(row: Row) -> str:
    """The eager APNB that computes what this row computes; "" for a non-local block."""
    if "APNB" not in row.name:
        return ""
    return EAGER_RELEASED if "released" in row.name else EAGER_LINEAR


def _ratio(row: Row, reference: str) -> str:
    if row.name == reference:
        return "1"
    return number(row.ratios.get(reference))


def legend(document: Document) -> list[str]:
    rates = document.parts.get("rates", {}).values()
    measured = "; ".join(
        f"{r['dtype']}: copy {r['copy_gb_s']:.0f} GB/s, matrix product "
        f"{r['matmul_gflop_s']:.0f} GFLOP/s"
        for r in rates
    )
    return [
        *counts.NOTES,
        "Memory: peak beyond the input, with and without the output; weights count as input. The "
        "paper's MB and ms: Titan Xp.",
        "x: how many times faster than the eager non-local block, and than the eager APNB of the "
        "same form. linear: the paper's equations. released: BatchNorm and ReLU on key and query, "
        "which share a projection that the released code runs twice; once: run a single time. "
        "compiled: torch.compile of the eager form, which runs it once. SDPA: the non-local block "
        "through scaled_dot_product_attention.",
        "floor: the longer of moving input and output once at the measured copy bandwidth and of "
        "the fewest multiply-adds known at the measured matrix-product rate "
        f"({measured}).",
    ]


def as_markdown(document: Document) -> str:
    parts = [markdown(grid, level=3) for grid in grids(document.rows)]
    return "\n".join([*parts, *(f"- {line}" for line in legend(document))]) + "\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", action="append", type=_size, metavar="HxW", help="96x96, 256x128")
    parser.add_argument("--batch", action="append", type=int, help="default: 1 (GPU: 1 and 8)")
    parser.add_argument("--dtype", action="append", choices=DTYPES, help="default: float32 (CPU)")
    parser.add_argument("--layout", choices=("contiguous", "channels_last", "both"))
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--backward", action="store_true", help="also forward and backward")
    parser.add_argument("--max-autotune", action="store_true", help="also torch.compile's mode")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory columns out")
    parser.add_argument("--quick", action="store_true", help="few repeats, a budget of 60 s")
    parser.add_argument("--budget", type=float, help="seconds altogether; long rows are left out")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--markdown", metavar="FILE")
    parser.add_argument("--plot", metavar="FILE", help="a bar chart (matplotlib)")


def _size(text: str) -> tuple[int, int]:
    try:
        height, width = map(int, text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected HxW such as 96x96, got {text!r}") from None
    return height, width


def options_from(arguments: argparse.Namespace) -> Options:
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    on_gpu = device == "cuda"
    dtypes = arguments.dtype or (["float32", "bfloat16"] if on_gpu else ["float32"])
    layouts = {"both": ("contiguous", "channels_last"), None: ("contiguous",)}
    modes = ("default", "max-autotune") if arguments.max_autotune else ("default",)
    seconds = 0.1 if on_gpu else 3.0
    return Options(
        device=torch.device(device),
        sizes=tuple(arguments.size or ((96, 96), (256, 128))),
        dtypes=tuple(DTYPES[name] for name in dtypes),
        batches=tuple(arguments.batch or ((1, 8) if on_gpu else (1,))),
        layouts=layouts.get(arguments.layout, (arguments.layout,)),
        directions=("forward", "forward+backward") if arguments.backward else ("forward",),
        compile_modes=() if arguments.no_compile else modes,
        seconds=seconds / 4 if arguments.quick else seconds,
        memory=not arguments.no_memory,
    )


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        "attnops bench apnb-table", description=__doc__.splitlines()[0]
    )
    add_arguments(parser)
    chosen = parser.parse_args(arguments)
    options = options_from(chosen)  # first: the environment records the threads
    if options.device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no CUDA device found")
    budget = Budget(chosen.budget or (60 if chosen.quick else None))
    document = Document()
    run(document, options, budget)
    report(document, chosen.json, chosen.markdown, chosen.plot)
    return 0


def report(
    document: Document, json: str | None, markdown_file: str | None, plot: str | None
) -> None:
    """Print the table and write what was asked for."""
    for grid in grids(document.rows):
        show(grid)
    for line in legend(document):
        print(textwrap.fill(line, 110, initial_indent="  ", subsequent_indent="    "))
    if json:
        document.save(json)
    if markdown_file:
        write_whole(markdown_file, as_markdown(document))
    if plot:
        from .plots import plot_table

        plot_table([row for row in document.rows if row.table == TABLE], plot)
