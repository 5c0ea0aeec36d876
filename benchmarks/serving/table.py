"""Labels of whole networks on a CPU, against OpenVINO, onnxruntime and torch.compile.

    python -m attnops.benchmarks serving [--networks NAME,...] [--sizes HxW] [--dtypes ...]
        [--malloc default,kept] [--contenders NAME ...] [--memory | --peaks] [--compiled DIR]
        [--json FILE] [--markdown FILE]

Everything about one network and precision takes turns in one process, first with glibc as it is,
then keeping freed memory. The process compiles everything anew, or takes what it finds in
--compiled and leaves the rest there: where it found some, it is not said how long it takes to be
ready. --peaks measures memory alone, beside the times that are in --json. Rows where attnops loses
are printed as they are.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import attnops
from attnops._console import positive_integer
from attnops.models import create_model, list_models

from ..arguments import size
from ..costs.multiply_adds import count
from ..measure.floor import measure_rates
from ..measure.glibc import SETTINGS, environment
from ..report.deliver import add_output_arguments
from ..report.grid import markdown, show
from ..report.records import Document, Row, write_whole
from .contenders import CONTENDERS
from .grids import TABLE, grids
from .measure import CLASSES

NETWORKS = "segnext_t,segnext_s,segnext_b,ann_r50,galdv2_r50,sanet_r50,deeplab_attention"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("attnops bench serving", description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default=NETWORKS, help="names, separated by commas")
    parser.add_argument("--size", type=size, default=(512, 512), metavar="HxW")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--malloc", default="default,kept", help="settings of glibc")
    parser.add_argument(
        "--contenders", nargs="+", default=list(CONTENDERS), metavar="NAME", help="as in the table"
    )
    parser.add_argument("--threads", type=positive_integer, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=4.0, help="time for each row")
    peaks = parser.add_mutually_exclusive_group()
    peaks.add_argument("--memory", action="store_true", help="also peaks, a process a contender")
    peaks.add_argument("--peaks", action="store_true", help="peaks of what is in --json, no times")
    parser.add_argument("--compiled", type=Path, metavar="DIR", help="keeps compiled code")
    add_output_arguments(parser)
    chosen = parser.parse_args(arguments)
    networks = chosen.networks.split(",")
    for given, known in (
        (networks, list_models()),
        (chosen.malloc.split(","), list(SETTINGS)),
        (chosen.contenders, list(CONTENDERS)),
    ):
        unknown = [name for name in given if name not in known]
        if unknown:
            parser.error(f"no {unknown[0]!r}; expected some of {', '.join(known)}")
    torch.set_num_threads(chosen.threads)
    document = Document()
    if chosen.json and os.path.exists(chosen.json):
        document.rows = Document.load(chosen.json).rows
    if chosen.peaks:
        _add_peaks(document.rows, networks, chosen)
    else:
        _add_times(document, networks, chosen)
    if chosen.json:
        document.save(chosen.json)
    for table in grids(document.rows):
        show(table)
    if chosen.markdown:
        write_whole(chosen.markdown, "\n".join(map(markdown, grids(document.rows))))
    return 0


def _add_times(document: Document, networks: Sequence[str], chosen: argparse.Namespace) -> None:
    for dtype in chosen.dtypes.split(","):
        rates = measure_rates(torch.device("cpu"), getattr(torch, dtype))
        for network in networks:
            gmac = _gmac(network, chosen.size)
            for malloc, rows in _measure(network, dtype, chosen).items():
                document.rows = [r for r in document.rows if _of(r) != (network, dtype, malloc)]
                for found in rows:
                    row = document.new_row(
                        TABLE,
                        found.pop("name"),
                        "cpu",
                        shape=[1, 3, *chosen.size],
                        dtype=dtype,
                        layout="channels_last",
                        options=[["network", network], ["malloc", malloc]],
                    )
                    row.checked_against, row.gmac = "attnops predict, float32", gmac
                    row.threads = chosen.threads
                    for name, value in found.items():
                        setattr(row, name, value)
                    row.put_floor(rates.floor_ms(0, 1e9 * gmac))
            _put_ratios(document.rows)
            if chosen.json:
                document.save(chosen.json)


def _add_peaks(rows: list[Row], networks: Sequence[str], chosen: argparse.Namespace) -> None:
    """Peaks of what was timed in the default setting of glibc, for which alone they are asked."""
    for row in rows:
        network, dtype, malloc = _of(row)
        wanted = network in networks and dtype in chosen.dtypes.split(",") and malloc == "default"
        if row.table == TABLE and wanted and row.p50 and row.shape[2:] == [*chosen.size]:
            found = _run(network, dtype, chosen, [row.name])
            row.peak_mib = found["peak_mib"]


def _of(row: Row) -> tuple[str | None, str, str | None]:
    """What the rows that stand beside each other have in common."""
    options = dict(row.options)
    return options.get("network"), row.dtype, options.get("malloc")


def _gmac(network: str, sides: tuple[int, int]) -> float:
    """10^9 multiply-adds of the products in attnops' form of the network, for one image."""
    with torch.device("meta"):
        model = create_model(network, num_classes=CLASSES).eval()
    with attnops.use_backend("reference"):
        return count(model, sides, published=False, auxiliary=False).products / 1e9


def _measure(
    network: str, dtype: str, chosen: argparse.Namespace
) -> dict[str, list[dict[str, object]]]:
    """Rows of one process, by setting of glibc."""
    folder = chosen.compiled and chosen.compiled / f"{network}-{dtype}"
    found_some = folder is not None and folder.is_dir()
    with TemporaryDirectory() as empty:
        given = argparse.Namespace(**vars(chosen) | {"compiled": chosen.compiled or Path(empty)})
        task = [str(chosen.seconds), chosen.malloc, *chosen.contenders]
        by_setting = _run(network, dtype, given, task)
        for row in by_setting.get("default", []) if chosen.memory else []:
            if "p50" in row:
                row |= _run(network, dtype, given, [row["name"]])
    if found_some:
        for row in itertools.chain(*by_setting.values()):
            row.pop("ready_s", None)
    return by_setting


def _run(network: str, dtype: str, chosen: argparse.Namespace, task: list[str]) -> Any:
    """What `measure` finds in a process of its own, which takes compiled code and leaves some."""
    sides = "x".join(map(str, chosen.size))
    with TemporaryDirectory() as empty:
        compiled = (chosen.compiled or Path(empty)) / f"{network}-{dtype}"
        return _child([network, dtype, sides, *task], chosen.threads, compiled)


def _child(arguments: list[str], threads: int, compiled: Path) -> Any:
    given = environment("default") | {
        "OMP_NUM_THREADS": str(threads),
        "TORCHINDUCTOR_CACHE_DIR": str(compiled.absolute()),
    }
    line = [sys.executable, "-m", f"{__package__}.measure", *arguments]
    done = subprocess.run(line, env=given, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _put_ratios(rows: list[Row]) -> None:
    """Times of the others over this one, within one process and setting of glibc."""
    by_input: dict[object, list[Row]] = {}
    for row in rows:
        by_input.setdefault(row.input, []).append(row)
    for group in by_input.values():
        for row in group:
            others = (other for other in group if other is not row and other.p50)
            row.ratios = {o.name: o.p50 / row.p50 for o in others} if row.p50 else {}
