"""All result files of a folder, read into one place."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..gpu import calibration
from ..static import table as static
from .records import Document, Row


@dataclass
class Results:
    """What the JSON files of a folder, or one file, hold.

    Attributes:
        documents: file -> what a bench command wrote.
        static: file -> what `attnops bench static` wrote.
        calibrations: file -> estimates beside what `attnops bench gpu` measured.
        left_out: files that are none of these, each with the reason.
    """

    documents: dict[Path, Document] = field(default_factory=dict)
    static: dict[Path, dict[str, Any]] = field(default_factory=dict)
    calibrations: dict[Path, dict[str, Any]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    @property
    def rows(self) -> list[Row]:
        return [row for document in self.documents.values() for row in document.rows]

    def of(self, table: str) -> list[Row]:
        """The rows of a table."""
        return [row for row in self.rows if row.table == table]

    def parts(self, name: str) -> Iterator[Any]:
        """A part of every document that has it."""
        for document in self.documents.values():
            if name in document.parts:
                yield document.parts[name]

    @property
    def static_rows(self) -> list[dict[str, Any]]:
        return [row for document in self.static.values() for row in document["rows"]]


def load(path: Path) -> Results:
    """Read a result file, or every one under a folder."""
    found = Results()
    for file in [path] if path.is_file() else sorted(path.rglob("*.json")):
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            if file.name == static.FILE:
                found.static[file] = data
            elif file.name == static.FIRST_CALLS:
                continue  # times of compilers, of which no report speaks
            elif file.name == calibration.FILE:
                found.calibrations[file] = data
            else:
                found.documents[file] = Document.from_json(data)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            found.left_out.append(f"{file} left out: {error}")
    return found
