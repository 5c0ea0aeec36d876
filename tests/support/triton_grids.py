"""The tests on Triton that pytest collects in a folder, as JSON in the last line printed.

Of each: op, file, test, values of its parameters, and whether the fast suite keeps it. Run with
TRITON_INTERPRET=1: `python triton_grids.py FOLDER`.
"""

from __future__ import annotations

import json
import sys

import pytest


class Recorder:
    def __init__(self) -> None:
        self.collected: list[pytest.Item] = []
        self.rows: list[dict[str, object]] = []

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        self.collected.append(item)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        remaining = set(session.items)
        for item in self.collected:
            callspec = getattr(item, "callspec", None)
            parameters = {} if callspec is None else callspec.params
            if parameters.get("backend") == "triton":
                values = {name: repr(value) for name, value in parameters.items()}
                row = {"op": item.module.OP, "file": item.path.name, "test": item.originalname}
                self.rows.append({**row, "values": values, "kept": item in remaining})


if __name__ == "__main__":
    recorder = Recorder()
    options = ["--collect-only", "-q", "-q", "-m", "not slow", "-p", "no:cacheprovider"]
    status = pytest.main([*options, sys.argv[1]], plugins=[recorder])
    print()
    print(json.dumps(recorder.rows))
    sys.exit(status)
