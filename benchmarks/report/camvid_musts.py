"""What the trainings on CamVid have to reach: scores, and what fast heads save a step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ..camvid.plan import HEADS, NETWORKS, SAME_BUDGET, SEGNEXT
from ..measure.glibc import SETTINGS
from .goal import Goal, divide
from .grid import number

WHERE = "CamVid, test split"
# runs of the plan, the best of which counts -> (in words, least mIoU)
SCORES = {
    ("segnext_t_1500",): ("SegNeXt-T from scratch, 1500 steps of 8 crops", 0.40),
    ("segnext_t_long", "segnext_t_longer"): ("SegNeXt-T, the long run", 0.50),
    ("segnext_lite0_12min",): ("SegNeXt's decoder on EfficientNet-Lite0, 12 minutes", 0.62),
    ("segnext_lite0_long",): ("SegNeXt's decoder on EfficientNet-Lite0, the long run", 0.68),
}
LEAST = {network.title: 1.0 for network in NETWORKS} | {SEGNEXT.title: 1.8}  # x reference heads


def of(parts: Iterable[dict[str, Any]]) -> list[Goal]:
    """Every requirement, measured or not; `parts`: of the result documents."""
    parts = list(parts)
    runs = [run for part in parts for run in part["runs"]]
    costs = [row for part in parts for row in part["costs"]]
    return [*_scores(runs, costs), _families(runs), *_steps(costs), *_memory(costs)]


def _at_least(what: str, where: str, needed: float, value: float | None, note: str = "") -> Goal:
    met = None if value is None else value >= needed
    return Goal(what, where, f">= {needed:g}", value, None, met, note)


def _scores(runs: list[dict[str, Any]], costs: list[dict[str, Any]]) -> Iterator[Goal]:
    step = {row["network"]: row["p50"] for row in costs if _is(row, "fast", "default")}
    for names, (words, needed) in SCORES.items():
        found = [run for run in runs if run["name"] in names]
        run = max(found, key=lambda run: run["miou"], default=None)
        note = "" if run is None else _length(run, step.get(run["network"]))
        yield _at_least(f"{words}: mIoU", WHERE, needed, run and run["miou"], note)


def _length(run: dict[str, Any], ms: float | None) -> str:
    """Steps of a run and about how long they take; its score over scales."""
    words = f"{run['steps']} steps" + (" more" if run.get("begins") else "")
    if ms:
        minutes = number(run["steps"] * ms / 6e4)
        words += f" of {number(ms / 1e3)} s: {minutes} minutes beside loading and validation"
    scales = run.get("miou_over_scales")
    return words if scales is None else f"{words}; over scales {scales:.3f}"


def _families(runs: list[dict[str, Any]]) -> Goal:
    trained = {(run["network"], run["heads"]) for run in runs if run["part"] == SAME_BUDGET}
    count = sum(all((n.title, heads) in trained for heads in HEADS) for n in NETWORKS)
    what = "networks of all families trained with fast and with reference heads"
    return _at_least(what, WHERE, len(NETWORKS), count if runs else None)


def _steps(costs: list[dict[str, Any]]) -> Iterator[Goal]:
    for title, needed in LEAST.items():
        ratios = {malloc: _ratio(costs, title, malloc, "p50") for malloc in SETTINGS}
        for malloc, ratio in ratios.items():
            what = f"{title}, training step: times faster than with reference heads"
            yield _at_least(what, f"CamVid, memory {malloc}", needed, ratio)


def _memory(costs: list[dict[str, Any]]) -> Iterator[Goal]:
    for title in LEAST:
        ratio = _ratio(costs, title, "default", "peak_mib")
        what = f"{title}, training step: times less memory than with reference heads"
        met = None if ratio is None else ratio > 1
        yield Goal(what, "CamVid, memory default", "> 1", ratio, None, met)


def _ratio(costs: list[dict[str, Any]], title: str, malloc: str, key: str) -> float | None:
    """What the reference heads take over what the fast ones take."""
    values = (
        next(
            (row.get(key) for row in costs if row["network"] == title and _is(row, heads, malloc)),
            None,
        )
        for heads in ("reference", "fast")
    )
    return divide(*values)


def _is(row: dict[str, Any], heads: str, malloc: str) -> bool:
    return (row["heads"], row["malloc"]) == (heads, malloc)
