"""Microbenchmarks of several ops, one after the other, each in a process of its own.

    python -m attnops.benchmarks ops [OP...] --out DIR [--quick] [--memory] [--malloc default,kept]

Writes DIR/OP.json and DIR/OP.md. The processes are forks of one that has imported PyTorch and its
compiler and done nothing else: an op is timed as if it were alone, and what takes half a minute to
get ready is got ready once for each setting of glibc.
"""

from __future__ import annotations

import argparse
import multiprocessing
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import torch

from ..apnb.run import say
from ..arguments import DTYPES, positive_integer
from ..measure.glibc import environment
from ..report.children import add_malloc_argument, without
from ..report.grid import show
from ..report.records import Document, write_whole
from ..report.running import running
from . import microbench
from .definitions import DEFINITIONS


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("attnops bench ops", description=__doc__.splitlines()[0])
    parser.add_argument("ops", nargs="*", metavar="OP", help="default: every one")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--threads", type=positive_integer, help="CPU threads")
    microbench.add_arguments(parser)
    add_malloc_argument(parser)
    chosen = parser.parse_args(arguments)
    unknown = [op for op in chosen.ops if op not in DEFINITIONS]
    if unknown:
        parser.error(f"no op {unknown[0]!r}; expected some of {', '.join(DEFINITIONS)}")
    ops = chosen.ops or list(DEFINITIONS)
    options = [word for word in without(arguments, ("--out",)) if word not in DEFINITIONS]

    def write(op: str, document: Document) -> None:
        document.save(chosen.out / f"{op}.json")
        write_whole(chosen.out / f"{op}.md", microbench.as_markdown(document.rows))
        for grid in microbench.grids(document.rows):
            show(grid)

    if chosen.malloc:
        return _under_settings(ops, options, chosen.malloc, write)
    return _in_forks(ops, options, chosen, write)


Write = Callable[[str, Document], None]


def _under_settings(
    ops: list[str], options: list[str], settings: Sequence[str], write: Write
) -> int:
    """A process of this command for each setting of glibc; memory under the first."""
    whole: dict[str, Document] = {}
    status, given = 0, without(options, ("--malloc",))
    for setting in settings:
        with tempfile.TemporaryDirectory() as folder:
            line = [sys.executable, "-m", "attnops.benchmarks", "ops", *ops, *given]
            done = subprocess.run([*line, "--out", folder], env=environment(setting))
            status = max(status, abs(done.returncode))
            found = {op: Path(folder) / f"{op}.json" for op in ops}
            found = {op: Document.load(file) for op, file in found.items() if file.is_file()}
        for op, document in found.items():
            for row in document.rows:
                row.malloc = setting
            if op in whole:
                whole[op].absorb(document)
                whole[op].seconds += document.seconds
            else:
                whole[op] = document
                document.command = ["ops", op, *options]
        given = [word for word in given if word != "--memory"]
    for op, document in whole.items():
        write(op, document)
    return status


def _in_forks(ops: list[str], options: list[str], chosen: argparse.Namespace, write: Write) -> int:
    for name in ("pytest", "pytest_benchmark"):  # what is missing is named here
        import_module(name)
    with suppress(ImportError):  # it relies on how PyTorch is made; without it each fork prepares
        import_module("attnops.benchmarks.measure.compiler")
    status = 0
    for op in ops:
        say(op)
        with running(["ops", op, *options]), tempfile.TemporaryDirectory() as folder:
            document, file = Document(), Path(folder) / "rows.json"
            arguments = (op, chosen.dtype, chosen.quick, chosen.threads, file)
            process = multiprocessing.get_context("fork").Process(target=_time, args=arguments)
            process.start()
            process.join()
            status = max(status, abs(process.exitcode))
            if not file.is_file():
                continue
            document.absorb(Document.load(file))
            if chosen.memory:
                microbench.put_cpu_memory(document.rows, start="fork", threads=chosen.threads)
            write(op, document)
    return status


def _time(op: str, dtype: str, quick: bool, threads: int | None, file: Path) -> None:
    """In a process that goes on to nothing else."""
    if threads:
        torch.set_num_threads(threads)
    document = Document()
    status = microbench.run_pytest(document, op, dtype, quick)
    if document.rows:
        document.save(file)
    raise SystemExit(status)
