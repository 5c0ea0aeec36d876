"""Table 1 of the ANN paper on this machine: non-local block against APNB, published and fused.

    python -m attnops.benchmarks apnb-table [--size 96x96] [--markdown FILE] [--json FILE] ...

Source: Zhu et al., Asymmetric Non-local Neural Networks for Semantic Segmentation (ICCV 2019),
table 1.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence

import torch

from ..arguments import DTYPES, first_device, positive_integer, size
from ..measure.timing import Budget
from ..report import goals
from ..report.document_markdown import as_markdown
from ..report.grid import show
from ..report.records import Document, write_whole
from .grid import grids, legend
from .run import TABLE, Options, run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", action="append", type=size, metavar="HxW", help="96x96, 256x128")
    parser.add_argument(
        "--batch", action="append", type=positive_integer, help="default: 1 (GPU: 1 and 8)"
    )
    parser.add_argument("--dtype", action="append", choices=DTYPES, help="default: float32 (CPU)")
    parser.add_argument("--layout", choices=("contiguous", "channels_last", "both"))
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    parser.add_argument("--threads", type=positive_integer, help="CPU threads")
    parser.add_argument("--backward", action="store_true", help="also forward and backward")
    parser.add_argument("--max-autotune", action="store_true", help="also torch.compile's mode")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory columns out")
    parser.add_argument("--quick", action="store_true", help="few repeats, a budget of 60 s")
    parser.add_argument("--budget", type=float, help="seconds altogether; long rows are left out")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--markdown", metavar="FILE")
    parser.add_argument("--plot", metavar="FILE", help="a bar chart (matplotlib)")


def options_from(arguments: argparse.Namespace, device: torch.device) -> Options:
    on_gpu = device.type == "cuda"
    dtypes = arguments.dtype or (["float32", "bfloat16"] if on_gpu else ["float32"])
    layouts = {"both": ("contiguous", "channels_last"), None: ("contiguous",)}
    modes = ("default", "max-autotune") if arguments.max_autotune else ("default",)
    seconds = 0.1 if on_gpu else 3.0
    return Options(
        device=device,
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
    if chosen.threads:
        torch.set_num_threads(chosen.threads)  # first: the environment records them
    options = options_from(chosen, first_device(chosen.device, parser))
    document = Document()
    run(document, options, Budget(chosen.budget or (60 if chosen.quick else None)))
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
    reached = goals.of(document.rows)
    if reached:
        show(goals.grid(reached))
    if json:
        document.save(json)
    if markdown_file:
        write_whole(markdown_file, as_markdown(document))
    if plot:
        from ..report.plots import plot_table

        plot_table([row for row in document.rows if row.table == TABLE], plot)
