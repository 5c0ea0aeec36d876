"""Which of Triton and CUDA C++ is faster, from results: what `attnops._dispatch.CUDA_FIRST` holds.

    python -m attnops.benchmarks evidence [DIR]

A measurement on a GPU counts before the static report: the replay of CUDA graphs where both have
it, else times by events; of several files of one device the newest.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..ops.cases import OURS
from ..ops.definitions import DEFINITIONS
from ..static import table as static
from .records import RESULTS, Document, Row

BACKENDS = ("triton", "cuda")
Key = tuple[str, str, str, str]  # op, layout, "float32" or "half", "forward" or "training"
Times = dict[tuple[Any, ...], dict[str, float]]  # (op, layout, dtype, pass, input) -> backend -> us


def cuda_first(folder: Path = RESULTS) -> frozenset[Key]:
    """Where CUDA C++ takes less time than Triton, by the geometric mean over the inputs."""
    measured, estimated = _mean_ratios(_measured(folder)), _mean_ratios(_estimated(folder))
    ratios = estimated | measured
    return frozenset(key for key, ratio in ratios.items() if ratio < 1)


def _mean_ratios(times: Times) -> dict[Key, float]:
    """CUDA's time over Triton's."""
    logs = defaultdict(list)
    for (op, layout, dtype, passes, *_), found in times.items():
        if all(found.get(backend) for backend in BACKENDS):
            key = (op, layout, dtype, passes)
            logs[key].append(math.log(found["cuda"] / found["triton"]))
    return {key: math.exp(sum(values) / len(values)) for key, values in logs.items()}


def _estimated(folder: Path) -> Times:
    """Means of the static report's bounds; training is forward plus backward."""
    parts: dict[tuple[Any, ...], dict[str, dict[str, float]]] = defaultdict(dict)
    for path in folder.rglob(static.FILE):
        for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
            if row.get("low_us") is None:
                continue
            given = (tuple(row["shape"]), str(row["options"]))
            key = (row["op"], row["layout"], _kind(row["dtype"]), row["dtype"], given)
            both = parts[key].setdefault(row["backend"], {})
            both[row["pass"]] = (row["low_us"] + row["high_us"]) / 2
    times: Times = defaultdict(dict)
    for (op, layout, kind, *given), backends in parts.items():
        for backend, passes in backends.items():
            if "forward" in passes:
                times[(op, layout, kind, "forward", *given)][backend] = passes["forward"]
            if len(passes) == 2:
                times[(op, layout, kind, "training", *given)][backend] = sum(passes.values())
    return times


def _measured(folder: Path) -> Times:
    """Of every device and input; one way of timing for both backends."""
    rows: dict[tuple[Any, ...], dict[str, Row]] = defaultdict(dict)
    for row in (row for document in _documents(folder) for row in document.rows):
        ours = row.name == OURS or row.name.startswith(f"{OURS} (")
        if ours and row.p50 and row.table in DEFINITIONS and row.threads is None:
            passes = "forward" if row.direction == "forward" else "training"
            given = (row.dtype, tuple(row.shape), str(row.options), row.device)
            key = (row.table, row.layout, _kind(row.dtype), passes, *given)
            rows[key][row.backend] = row
    times: Times = {}
    for key, found in rows.items():
        both = [found[backend] for backend in BACKENDS if backend in found]
        replayed = all(row.graph_p50 for row in both)
        times[key] = {row.backend: 1e3 * (row.graph_p50 if replayed else row.p50) for row in both}
    return times


def _documents(folder: Path) -> list[Document]:
    """Result files, the oldest first."""
    found = []
    for path in folder.rglob("*.json"):
        try:
            found.append(Document.load(path))
        except (ValueError, KeyError, TypeError):
            continue  # the static report, a calibration
    return sorted(found, key=lambda document: document.date)


def _kind(dtype: str) -> str:
    return "half" if dtype in ("float16", "bfloat16") else dtype


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("attnops bench evidence", description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=RESULTS, metavar="DIR")
    for key in sorted(cuda_first(parser.parse_args(arguments).folder)):
        print(f"        {key!r},".replace("'", '"'))
    return 0
