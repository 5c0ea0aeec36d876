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

QUICK = ("--quick", "--memory", "--malloc", "default,kept")
OPS = "ops"  # the command that runs several ops


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
            ("apnb-table", "--budget", "300"),
            5.3,
            _block("contiguous", "forward"),
        ),
        Wanted(
            "apnb-forward-channels-last",
            "table 1 of ANN, forward, channels_last",
            ("apnb-table", *last, *small, "--budget", "100"),
            1.9,
            _block("channels_last", "forward"),
        ),
        Wanted(
            "apnb-backward",
            "table 1 of ANN, forward and backward",
            ("apnb-table", "--backward", *small, "--budget", "100"),
            1.9,
            _block("contiguous", "forward+backward"),
        ),
    ]


# Of a second for each row and setting of glibc, compiling, and peaks, with a share of what all ops
# get ready once. Two are measured at two widths of the map.
MINUTES = {
    "pyramid_pool": 2.1,
    "anchor_attention": 2.5,
    "local_attention": 1.1,
    "upsample_gate": 0.9,
    "group_attention": 0.8,
    "strip_conv": 1.0,
    "depthwise_gelu": 0.9,
    "feed_forward": 0.8,
    "nmf": 0.8,
    "merge_scales": 1.1,
    "upsample_cross_entropy": 1.4,
    "upsample_argmax": 0.7,
}
WANTED = (
    Wanted("costs", "parameters and multiply-adds", ("costs",), 0.5, _rows(COSTS), "costs"),
    *_table_of_blocks(),
    Wanted("figure2", "figure 2 of ANN", ("figure2", "--repeats", "3"), 1.3, _part(FIGURE2)),
    Wanted("gald", "table IV of GALD, heads", ("gald-table",), 1.0, _rows(gald_table.TABLE)),
    Wanted(
        "paper-networks",
        "whole networks at the papers' sizes",
        ("paper-networks", "--seconds", "2"),
        5.5,
        _rows(paper_networks.TABLE),
    ),
    Wanted("networks", "whole networks", ("networks",), 1.0, _rows(networks.TABLE)),
    *(
        Wanted(op, f"microbenchmarks of {op}", (op, *QUICK), minutes, _rows(op))
        for op, minutes in MINUTES.items()
    ),
    Wanted(
        "curves", "time and memory against size", ("curves", "--budget", "180"), 3.2, _rows(CURVES)
    ),
    Wanted(
        "serving",
        "labels of SegNeXt-T against other runtimes",
        ("serving", "--networks", "segnext_t", "--dtypes", "float32", "--seconds", "2"),
        4.2,
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
    for entry in _joined(wanted):
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


def _joined(wanted: list[Wanted]) -> list[Wanted]:
    """With one command for all ops: each would get ready what takes half a minute."""
    ops = [entry for entry in wanted if entry.name in DEFINITIONS]
    if len(ops) < 2:
        return wanted
    minutes = round(sum(entry.minutes for entry in ops), 1)
    names = [entry.name for entry in ops]
    joined = Wanted(OPS, "microbenchmarks", (OPS, *names, *QUICK), minutes, ops[0].has)
    first = wanted.index(ops[0])
    return [*wanted[:first], joined, *(entry for entry in wanted[first:] if entry not in ops)]


def _run(entry: Wanted, where: Path, seconds: float) -> str:
    """ "", or why it failed."""
    print(f"{entry.line} (about {entry.minutes:g} min)", file=sys.stderr, flush=True)
    line = [sys.executable, "-m", "attnops.benchmarks", *entry.command]
    if entry.name == OPS:
        line += ["--out", str(where)]
    else:
        picture = entry.command[0] == FIGURE2
        suffix, option = ("png", "--plot") if picture else ("md", "--markdown")
        line += ["--json", str(where / f"{entry.name}.json")]
        line += [option, str(where / f"{entry.name}.{suffix}")]
    try:
        done = subprocess.run(line, stdout=subprocess.DEVNULL, timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"stopped after {seconds:.0f} s (--budget)"
    return f"exit status {done.returncode}" if done.returncode else ""
