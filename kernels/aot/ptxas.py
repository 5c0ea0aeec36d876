"""Reading ptxas's report (-v): registers, spills and static shared memory of each kernel."""

from __future__ import annotations

import re
from dataclasses import dataclass

_ENTRY = re.compile(r"Compiling entry function '([^']+)' for '(\w+)'")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


@dataclass(frozen=True)
class Resources:
    """What one kernel takes on one architecture; `shared` is in bytes, without dynamic arrays."""

    name: str
    arch: str
    registers: int
    spill_stores: int
    spill_loads: int
    shared: int


def parse_report(log: str) -> list[Resources]:
    """The entry functions of a report, in its order.

    Raises:
        ValueError: an entry without its figures, that is a report of a form not known here.
    """
    found = []
    for part in re.split(r"(?=Compiling entry function)", log)[1:]:
        entry, spills, used = _ENTRY.search(part), _SPILLS.search(part), _USED.search(part)
        if not (entry and spills and used):
            raise ValueError(f"not a ptxas -v report: {part.strip()[:400]!r}")
        shared = _SHARED.search(part)
        found.append(
            Resources(
                name=entry[1],
                arch=entry[2],
                registers=int(used[1]),
                spill_stores=int(spills[1]),
                spill_loads=int(spills[2]),
                shared=int(shared[1]) if shared else 0,
            )
        )
    return found
