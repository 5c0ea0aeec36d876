"""Curves as a CSV file that a resumed run goes on with, and in TensorBoard."""

from __future__ import annotations

import contextlib
import csv
import math
import os
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor


class CsvLogger(Logger):
    """`metrics.csv`: a row a step at which something was logged, a column a metric.

    Unlike Lightning's, it keeps the rows of the run that it goes on with, up to the step that it
    goes on from. A disk that is full costs rows, not the run.

    Attributes:
        folder: of the run; nothing is written without one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder: Path | None = None
        self._columns: list[str] = ["step"]
        self._row: dict[str, float] = {}
        self._written: float | None = None  # step of the last row in the file
        self._warned = False

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> int:
        return 0

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        return None

    @property
    def path(self) -> Path:
        return self.folder / "metrics.csv"

    def begin(self, folder: Path, step: int) -> None:
        """Write to `folder`, where rows after `step` are of a future that did not happen."""
        self.folder = folder
        if not self.path.is_file():
            return
        rows = self._read()
        self._columns = list(rows[0]) if rows else ["step"]
        rows = [row for row in rows if _number(row.get("step")) <= step]
        self._written = _number(rows[-1]["step"]) if rows else None
        self._write(rows)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row = {"step": -1 if step is None else step} | dict(metrics)
        if self._row and self._row["step"] != row["step"]:
            self.save()
        self._row |= row

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        """The run's folder has its configuration."""

    @rank_zero_only
    def save(self) -> None:
        if self.folder is None or not self._row:
            return
        row, self._row = self._row, {}
        new = [name for name in row if name not in self._columns]
        try:
            self._columns += new
            if (new or row["step"] == self._written) and self.path.is_file():
                rows = self._read()
                if rows and row["step"] == _number(rows[-1]["step"]):
                    row = rows.pop() | row
                self._write([*rows, row])
            else:
                self._append(row)
            self._written = row["step"]
        except OSError as error:
            if not self._warned:
                print(f"attnops train: {self.path} cannot be written: {error}", file=sys.stderr)
            self._warned = True

    def _read(self) -> list[dict[str, Any]]:
        with open(self.path, newline="") as file:
            return list(csv.DictReader(file))

    def _append(self, row: dict[str, Any]) -> None:
        exists = self.path.is_file()
        with open(self.path, "a", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            if not exists:
                writer.writeheader()
            writer.writerow(row)

    def _write(self, rows: list[dict[str, Any]]) -> None:
        partial = self.path.with_suffix(".csv.partial")
        with open(partial, "w", newline="") as file:
            writer = csv.DictWriter(file, self._columns, restval="")
            writer.writeheader()
            writer.writerows(rows)
        os.replace(partial, self.path)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()


class Curves(TensorBoardLogger):
    """Lightning's TensorBoard logger in the folder of a run; a full disk costs curves, not the run.

    Args:
        folder: of the run.
        step: after which events are of a future that did not happen.
    """

    def __init__(self, folder: Path, step: int) -> None:
        super().__init__(folder, name="", version="tensorboard", purge_step=step + 1)
        self._works = True

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        with self._forgiven():
            super().log_metrics(metrics, step)

    @rank_zero_only
    def log_image(self, name: str, image: Tensor, step: int) -> None:
        """Show a picture uint8 `[3, H, W]`."""
        with self._forgiven():
            self.experiment.add_image(name, image, step)

    @rank_zero_only
    def save(self) -> None:
        """The run's folder has its configuration."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        with self._forgiven():
            super().finalize(status)

    @contextlib.contextmanager
    def _forgiven(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__  # Lightning wraps it
            if not isinstance(cause, OSError):
                raise
            if self._works:
                print(f"attnops train: {self.log_dir} cannot be written: {cause}", file=sys.stderr)
            self._works = False


def _number(text: str | None) -> float:
    try:
        return float(text or "")
    except ValueError:
        return math.inf
