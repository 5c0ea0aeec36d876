"""Time and memory against positions, channels, kernel and dilation, with fitted exponents.

    python -m attnops.benchmarks curves [SWEEP...] [--budget SECONDS] [--malloc default,kept]
        [--json FILE] [--markdown FILE] [--plot FILE]

On the CPU, float32, forward: the non-local block, eager APNB and attnops' against the positions
and channels of the map; local attention against its kernel, dilation and channels.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from ..arguments import positive_integer
from ..measure.timing import Budget
from ..report.children import add_malloc_argument, measured
from ..report.deliver import add_output_arguments
from ..report.grid import markdown, show
from ..report.records import Document, write_whole
from . import sweeps
from .table import grids


def main(arguments: Sequence[str]) -> int:
    names = [sweep.name for sweep in sweeps.SWEEPS]
    parser = argparse.ArgumentParser("attnops bench curves", description=__doc__.splitlines()[0])
    parser.add_argument("sweeps", nargs="*", metavar="SWEEP", help=", ".join(map(repr, names)))
    parser.add_argument("--threads", type=positive_integer, help="CPU threads")
    parser.add_argument("--budget", type=float, help="seconds altogether; long points are left out")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory out")
    parser.add_argument("--plot", metavar="FILE", help="a picture of the curves (matplotlib)")
    add_malloc_argument(parser)
    add_output_arguments(parser)
    chosen = parser.parse_args(arguments)
    unknown = [name for name in chosen.sweeps if name not in names]
    if unknown:
        parser.error(f"no sweep {unknown[0]!r}; expected some of {', '.join(map(repr, names))}")
    wanted = [s for s in sweeps.SWEEPS if s.name in chosen.sweeps or not chosen.sweeps]
    status = 0
    if chosen.malloc:
        document, status = measured(["curves", *arguments], chosen.malloc)
    else:
        if chosen.threads:
            torch.set_num_threads(chosen.threads)
        document = Document()
        sweeps.measure(document, Budget(chosen.budget), wanted, memory=not chosen.no_memory)
    for grid in grids(document.rows):
        show(grid)
    if chosen.json:
        document.save(chosen.json)
    if chosen.markdown:
        write_whole(chosen.markdown, "\n".join(map(markdown, grids(document.rows))))
    if chosen.plot:
        from .picture import draw

        draw(document.rows, chosen.plot)
    return status
