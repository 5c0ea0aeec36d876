"""What has become worse between two static reports."""

from __future__ import annotations

import json
from typing import Any

from .words import name_of

THRESHOLD = 1.1  # an estimate that has grown by more than that is a regression
FACTS = ("op", "shape", "options", "dtype", "layout", "pass")


def keyed(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows of a report by what they are of."""
    return {
        json.dumps([row.get("backend", "triton"), *(row[key] for key in FACTS)]): row
        for row in document["rows"]
    }


def words(row: dict[str, Any]) -> str:
    """What a row is of, for people."""
    facts = (row["op"], name_of(row), row.get("backend", ""), row["dtype"], row["layout"])
    return " ".join(fact for fact in (*facts, row["pass"]) if fact)


def regressions(
    before: dict[str, Any], after: dict[str, Any], threshold: float = THRESHOLD
) -> list[str]:
    """Rows whose estimate has grown, that launch more kernels than before, or that spill now."""
    old, found = keyed(before), []
    for key, row in keyed(after).items():
        if key not in old:
            continue
        was, what = old[key], words(row)
        if row["launches"] > was["launches"]:
            found.append(f"{what}: {was['launches']} -> {row['launches']} launches")
        if "high_us" in was and row.get("high_us", float("inf")) > threshold * was["high_us"]:
            found.append(f"{what}: {was['high_us']} -> {row.get('high_us', 'no')} us")
        if _spills(row) > _spills(was):
            found.append(f"{what}: {_spills(was)} -> {_spills(row)} accesses of local memory")
    return found


def _spills(row: dict[str, Any]) -> int:
    return sum(kernel.get("spills", 0) for kernel in row.get("kernels", ()))
