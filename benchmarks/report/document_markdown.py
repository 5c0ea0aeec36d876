"""One Markdown text of one result document."""

from __future__ import annotations

from typing import Any

from attnops.env import as_text

from .. import networks
from ..apnb import figure2
from ..apnb import grid as apnb_grid
from ..apnb.run import TABLE
from ..camvid import grids as camvid
from ..costs import table as costs
from ..ops import microbench
from ..serving import grids as serving
from . import goals
from .grid import markdown
from .records import Document


def _tests(found: dict[str, Any]) -> list[str]:
    counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(found["counts"].items()))
    lines = ["## Tests", "", f"{counts or 'none ran'}, in {found['seconds']:.0f} s.", ""]
    for title, key in (
        ("Failed", "failures"),
        ("Crashed", "crashed"),
        ("Not finished in time", "unfinished"),
    ):
        if found[key]:
            lines += [f"{title}:", "", *(f"- `{name}`" for name in found[key]), ""]
    return lines


def _checks(found: dict[str, dict[str, Any]]) -> list[str]:
    """Of the small inputs that a GPU run begins with: error over what is allowed."""
    refused = {name: one["refused"] for name, one in found.items() if "refused" in one}
    worst = {name: max(one.values()) for name, one in found.items() if name not in refused}
    lines = ["## Checks", "", f"{len(worst)} agree with float64."]
    if worst:
        name = max(worst, key=worst.get)
        lines[-1] += f" The largest error is {worst[name]:.2f} of what is allowed ({name})."
    return [*lines, "", *(f"- {name}: {why}" for name, why in refused.items()), ""]


def device_of(document: Document) -> str:
    devices = document.environment["cuda"]["devices"]
    if devices and any(row.threads is None for row in document.rows):
        return devices[0]["name"]
    if devices and "tests" in document.parts:
        return devices[0]["name"]
    cpu = document.environment["cpu"]
    return f"{cpu['model']}, {cpu['threads']} threads"


def as_markdown(document: Document) -> str:
    """Environment, tests, goals and every table of `document`."""
    device = device_of(document)
    lines = [f"# {device}, {document.date}", ""]
    for name, why in document.parts.get("failed parts", {}).items():
        lines += [f"**{name} failed:** {why}", ""]
    for name, why in document.parts.get("left out", {}).items():
        lines += [f"{name}: {why}", ""]
    lines += ["```", as_text(document.environment), "```", ""]
    if "checks" in document.parts:
        lines += _checks(document.parts["checks"])
    if "tests" in document.parts:
        lines += _tests(document.parts["tests"])
    reached = goals.of(document.rows)
    if reached:
        lines += [markdown(goals.grid(reached))]
    if any(row.table == TABLE for row in document.rows):
        lines += ["## Table 1 of the ANN paper", "", apnb_grid.as_markdown(document)]
    operations = microbench.as_markdown(document.rows)
    if operations:
        lines += ["## Ops", "", operations]
    if any(row.table == networks.TABLE for row in document.rows):
        lines += [markdown(networks.grid(document))]
    if any(row.table == costs.TABLE for row in document.rows):
        lines += [markdown(costs.grid(document))]
    lines += map(markdown, serving.grids(document.rows))
    if camvid.PART in document.parts:
        lines += map(markdown, camvid.grids(document.parts[camvid.PART]))
    for found in document.parts.get(figure2.TABLE, {}).values():
        lines += [markdown(figure2.grid(found))]
    return "\n".join(lines).rstrip() + "\n"
