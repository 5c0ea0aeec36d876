"""Rows of results, the document that holds them, and its JSON file."""

from __future__ import annotations

import datetime
import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attnops.env import environment

from ..measure.memory import MIB, MemoryUse
from ..measure.timing import Timing
from .running import Run, current

RESULTS = Path(__file__).resolve().parents[1] / "results"
FORMAT = 1
META = "meta"  # the device of rows that are counted, not measured


@dataclass
class Row:
    """One contender on one input. Times in ms, memory in MiB, counts in 10^9 multiply-adds.

    `note` says why something is missing. `ratios` are times of others over this time: above 1,
    this row is faster than the other.
    """

    table: str
    name: str
    shape: list[int]
    dtype: str
    layout: str = "contiguous"
    direction: str = "forward"
    options: list[list[Any]] = field(default_factory=list)  # name and value pairs
    backend: str = ""  # of attnops: what ran, per op where ops differ
    malloc: str = ""  # of `measure.glibc.SETTINGS`; "": as the process found it
    device: str = ""
    driver: str | None = None
    torch: str = ""
    triton: str | None = None
    threads: int | None = None
    date: str = ""
    p20: float | None = None
    p50: float | None = None
    p80: float | None = None
    repeats: int = 0
    graph_p20: float | None = None
    graph_p50: float | None = None
    graph_p80: float | None = None
    host_p50: float | None = None  # of a call on a GPU: what it keeps the CPU, nothing awaited
    estimate_low: float | None = None  # of the static report, for the same kernels
    estimate_high: float | None = None
    memory_above_inputs: float | None = None
    memory_above_inputs_and_output: float | None = None
    memory_method: str = ""
    peak_mib: float | None = None  # of a process of its own, with everything loaded
    ready_s: float | None = None  # to build, compile or load it and make the first call
    agreement: float | None = None  # share of labels equal to those of `checked_against`
    gmac: float | None = None
    gmac_done: float | None = None
    floor_ms: float | None = None
    floor_percent: float | None = None
    bandwidth_percent: float | None = None
    ratios: dict[str, float] = field(default_factory=dict)
    paper: dict[str, float] = field(default_factory=dict)
    checked_against: str = ""
    relative_error: float | None = None
    note: str = ""

    def put_timing(self, timing: Timing, prefix: str = "") -> None:
        for name in ("p20", "p50", "p80"):
            setattr(self, prefix + name, getattr(timing, name))
        if not prefix:
            self.repeats = timing.repeats

    def put_memory(self, use: MemoryUse) -> None:
        self.memory_above_inputs = use.above_inputs / MIB
        self.memory_above_inputs_and_output = use.above_inputs_and_output / MIB
        self.memory_method = use.method

    def put_floor(self, floor_ms: float) -> None:
        self.floor_ms = floor_ms
        if self.p50:
            self.floor_percent = 100 * floor_ms / self.p50

    def add_note(self, text: str) -> None:
        self.note = f"{self.note}; {text}" if self.note else text

    @property
    def input(self) -> tuple[Any, ...]:
        """What rows must have in common to be compared."""
        fields = (self.table, tuple(self.shape), self.dtype, self.layout, self.direction)
        return *fields, self.device, f"{self.options} {self.malloc}"

    @property
    def hardware(self) -> str:
        """The device in words."""
        if self.threads is None:
            return self.device
        return f"{self.device}, {self.threads} thread{'s' * (self.threads != 1)}"

    @property
    def on_gpu(self) -> bool:
        """Whether it was measured on a GPU (counts on the meta device are not)."""
        return self.threads is None and self.device != META

    @property
    def input_in_any_layout(self) -> tuple[Any, ...]:
        table, shape, dtype, _, *others = self.input
        return table, shape, dtype, *others


def put_ratios(rows: Iterable[Row], references: Iterable[str]) -> None:
    """Fill `ratios` against the rows of the given names on the same input."""
    rows, references = list(rows), set(references)
    times = {(row.input, row.name): row.p50 for row in rows if row.name in references}
    for row in rows:
        for name in references:
            other = times.get((row.input, name))
            if other and row.p50 and name != row.name:
                row.ratios[name] = other / row.p50


def put_better_ratios(rows: Iterable[Row], references: Iterable[str]) -> None:
    """The same against a reference in its better layout, under "NAME, better layout"."""
    rows = list(rows)
    best: dict[tuple[Any, ...], float] = {}
    for row in rows:
        if row.name in references and row.p50:
            key = (row.input_in_any_layout, row.name)
            best[key] = min(row.p50, best.get(key, row.p50))
    for (given, name), time in best.items():
        for row in rows:
            if row.p50 and name != row.name and row.input_in_any_layout == given:
                row.ratios[f"{name}, better layout"] = time / row.p50


@dataclass
class Document:
    """Results of one run: the environment, rows, and whatever else a command adds to `parts`.

    Attributes:
        path: where `checkpoint` saves.
        run: the command that makes it; None: it comes from a file.
        command: of `attnops bench`, from a file that says so.
        seconds: that it had taken when the file was written; None: the file does not say.
    """

    environment: dict[str, Any] = field(default_factory=environment)
    date: str = field(default_factory=lambda: now())
    rows: list[Row] = field(default_factory=list)
    parts: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None
    run: Run | None = field(default_factory=current, compare=False)
    command: list[str] = field(default_factory=list)
    seconds: float | None = None

    def new_row(self, table: str, name: str, device_type: str, **values: Any) -> Row:
        """A row that carries the facts of this environment."""
        facts = self.environment
        on_gpu = device_type == "cuda"
        versions = facts["versions"]
        row = Row(
            table,
            name,
            device=facts["cuda"]["devices"][0]["name"] if on_gpu else facts["cpu"]["model"],
            driver=facts["cuda"]["driver"] if on_gpu else None,
            threads=None if on_gpu else facts["cpu"]["threads"],
            torch=versions["torch"],
            triton=versions["triton"],
            date=now(),
            **values,
        )
        self.rows.append(row)
        return row

    def to_json(self) -> dict[str, Any]:
        rows = [dict(vars(row)) for row in self.rows]
        if self.run is not None:
            self.command, self.seconds = list(self.run.command), round(self.run.seconds(), 1)
        return {
            "format": FORMAT,
            "date": self.date,
            "command": self.command,
            "seconds": self.seconds,
            "environment": self.environment,
            "parts": self.parts,
            "rows": rows,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Document:
        """Raises ValueError if the data is not of this format."""
        if data.get("format") != FORMAT:
            raise ValueError(f"expected results of format {FORMAT}, got {data.get('format')!r}")
        rows = [Row(**row) for row in data["rows"]]
        return cls(
            data["environment"],
            data["date"],
            rows,
            data["parts"],
            run=None,
            command=data.get("command", []),
            seconds=data.get("seconds"),
        )

    def checkpoint(self) -> None:
        """Save what there is so far, if there is a place for it; in one line, which is quick."""
        if self.path is not None:
            write_whole(self.path, json.dumps(self.to_json()) + "\n")

    def absorb(self, other: Document) -> None:
        """Add the rows and parts of another document; dictionaries among the parts are merged."""
        self.rows += other.rows
        for name, part in other.parts.items():
            if isinstance(part, dict) and isinstance(self.parts.get(name), dict):
                self.parts[name] |= part
            else:
                self.parts[name] = part

    def save(self, path: str | Path) -> None:
        write_whole(path, json.dumps(self.to_json(), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Document:
        return cls.from_json(json.loads(Path(path).read_text()))


def why(error: BaseException) -> str:
    """An error in one line."""
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first[:200]}"


def now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def write_whole(path: str | Path, text: str) -> None:
    """Write a file so that a crash leaves the old one or the new one, never half."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w") as file:
        file.write(text)
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)
