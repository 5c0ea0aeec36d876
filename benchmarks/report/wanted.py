"""The result files that a whole report is made of, and the commands that write them."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from attnops.env import environment

from .. import gald_table, networks, paper_networks
from ..apnb.figure2 import TABLE as FIGURE2
from ..apnb.run import TABLE as APNB
from ..camvid.grids import PART as CAMVID
from ..costs.table import TABLE as COSTS
from ..curves.sweeps import TABLE as CURVES
from ..measure.timing import Budget
from ..ops.definitions import DEFINITIONS
from ..serving.grids import TABLE as SERVING
from .load import Results

MALLOC = ("--malloc", "default,kept")


@dataclass(frozen=True)
class Wanted:
    """Results that the report shows.

    Attributes:
        name: stem of the files.
        about: what it is, in words.
        command: arguments of `attnops bench`; (): it cannot be run from here, `about` says why.
        minutes: that it takes on two cores, about.
        has: whether the results hold it.
        folder: where its files belong; "": the folder of the CPU.
    """

    name: str
    about: str
    command: tuple[str, ...]
    minutes: float
    has: Callable[[Results], bool]
    folder: str = ""

    @property
    def line(self) -> str:
        return f"attnops bench {' '.join(self.command)}"


def _rows(table: str) -> Callable[[Results], bool]:
    return lambda results: bool(results.of(table))


def _part(name: str) -> Callable[[Results], bool]:
    return lambda results: any(True for _ in results.parts(name))


def _block(layout: str, direction: str) -> Callable[[Results], bool]:
    return lambda results: any(
        (row.layout, row.direction) == (layout, direction) for row in results.of(APNB)
    )


def _table_of_blocks() -> list[Wanted]:
    small = ("--size", "96x96")
    last = ("--layout", "channels_last")
    return [
        Wanted(
            "apnb-forward",
            "table 1 of ANN, forward",
            ("apnb-table", "--budget", "390"),
            6.5,
            _block("contiguous", "forward"),
        ),
        Wanted(
            "apnb-forward-channels-last",
            "table 1 of ANN, forward, channels_last",
            ("apnb-table", *last, *small, "--budget", "120"),
            2,
            _block("channels_last", "forward"),
        ),
        Wanted(
            "apnb-backward",
            "table 1 of ANN, forward and backward",
            ("apnb-table", "--backward", *small, "--budget", "120"),
            2,
            _block("contiguous", "forward+backward"),
        ),
    ]


WANTED = (
    Wanted("costs", "parameters and multiply-adds", ("costs",), 0.4, _rows(COSTS), "costs"),
    *_table_of_blocks(),
    Wanted("figure2", "figure 2 of ANN", ("figure2", "--repeats", "3"), 1.5, _part(FIGURE2)),
    Wanted("gald", "table IV of GALD, heads", ("gald-table",), 0.7, _rows(gald_table.TABLE)),
    Wanted(
        "paper-networks",
        "whole networks at the papers' sizes",
        ("paper-networks", "--seconds", "2"),
        6,
        _rows(paper_networks.TABLE),
    ),
    Wanted("networks", "whole networks", ("networks",), 0.7, _rows(networks.TABLE)),
    *(
        Wanted(op, f"microbenchmarks of {op}", (op, "--quick", "--memory", *MALLOC), 1.2, _rows(op))
        for op in DEFINITIONS
    ),
    Wanted(
        "curves", "time and memory against size", ("curves", "--budget", "210"), 3.5, _rows(CURVES)
    ),
    Wanted(
        "serving",
        "labels of SegNeXt-T against other runtimes",
        ("serving", "--networks", "segnext_t", "--dtypes", "float32", "--seconds", "2"),
        2.5,
        _rows(SERVING),
    ),
    Wanted(
        "camvid",
        "training on CamVid: hours, with the data set (`attnops bench camvid --help`)",
        (),
        0,
        _part(CAMVID),
    ),
    Wanted(
        "static",
        "static estimates of the GPU kernels: 20 minutes and nvcc (`attnops bench static --out`)",
        (),
        0,
        lambda results: bool(results.static),
    ),
    Wanted(
        "gpu",
        "measurements on a GPU: needs one (`attnops bench gpu`)",
        (),
        0,
        lambda results: any(row.on_gpu for row in results.rows),
    ),
)


def missing(results: Results) -> list[Wanted]:
    return [wanted for wanted in WANTED if not wanted.has(results)]


def folder_of_cpu(folder: Path) -> Path:
    """Where this machine's results belong: `folder` itself if it has files, else a folder in it."""
    if any(folder.glob("*.json")):
        return folder
    cpu = environment()["cpu"]
    name = re.sub(r"[^a-z0-9]+", "-", f"cpu {cpu['model']} {cpu['threads']} threads".lower())
    return folder / name.strip("-")


def run(wanted: list[Wanted], folder: Path, seconds: float) -> list[str]:
    """Run what can be run, each in a process; why some of it gave nothing.

    Args:
        seconds: for all of it; what does not fit is left out.
    """
    budget, failed = Budget(seconds), []
    for entry in wanted:
        if not entry.command:
            continue
        if 60 * entry.minutes > budget.left():
            failed.append(f"{entry.line}: left out, {max(0, budget.left()):.0f} s left (--budget)")
            continue
        where = folder / entry.folder if entry.folder else folder_of_cpu(folder)
        where.mkdir(parents=True, exist_ok=True)
        why = _run(entry, where, budget.left())
        if why:
            failed.append(f"{entry.line}: {why}")
    return failed


def _run(entry: Wanted, where: Path, seconds: float) -> str:
    """ "", or why it failed."""
    print(f"{entry.line} (about {entry.minutes:g} min)", file=sys.stderr, flush=True)
    line = [sys.executable, "-m", "attnops.benchmarks", *entry.command]
    line += ["--json", str(where / f"{entry.name}.json")]
    picture = entry.command[0] == FIGURE2
    suffix, option = ("png", "--plot") if picture else ("md", "--markdown")
    line += [option, str(where / f"{entry.name}.{suffix}")]
    try:
        done = subprocess.run(line, stdout=subprocess.DEVNULL, timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"stopped after {seconds:.0f} s (--budget)"
    return f"exit status {done.returncode}" if done.returncode else ""
