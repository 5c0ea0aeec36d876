"""What the trainings on CamVid have to reach: scores, and what fast heads save a step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ..camvid.plan import HEADS, NETWORKS, SAME_BUDGET, SEGNEXT
from ..measure.glibc import SETTINGS
from .goal import Goal, divide
from .grid import number
from .serving_musts import EQUAL

WHERE = "CamVid, test split"
# runs of the plan, the best of which counts -> (in words, least mIoU)
SCORES = {
    ("segnext_t_1500",): ("SegNeXt-T from scratch, 1500 steps of 8 crops", 0.40),
    ("segnext_t_long",): ("SegNeXt-T, the long run", 0.50),
    ("segnext_lite0_12min",): ("SegNeXt's decoder on EfficientNet-Lite0, 12 minutes", 0.62),
    ("segnext_lite0_long", "segnext_lite0_longer"): (
        "SegNeXt's decoder on EfficientNet-Lite0, the long run",
        0.68,
    ),
}
LOGITS = 1e-4  # largest difference of a deployed network's, over their largest value
LEAST = {network.title: 1.0 for network in NETWORKS} | {SEGNEXT.title: 1.8}  # x reference heads


def of(parts: Iterable[dict[str, Any]]) -> list[Goal]:
    """Every requirement, measured or not; `parts`: of the result documents."""
    parts = list(parts)
    runs = [run for part in parts for run in part["runs"]]
    costs = [row for part in parts for row in part["costs"]]
    labels = [row for part in parts for row in part.get("deployed", [])]
    found = [*_scores(runs, costs), _families(runs), *_steps(costs), *_memory(costs)]
    return [*found, *_labels(labels)]


def _at_least(what: str, where: str, needed: float, value: float | None, note: str = "") -> Goal:
    met = None if value is None else value >= needed
    return Goal(what, where, f">= {needed:g}", value, None, met, note)


def _scores(runs: list[dict[str, Any]], costs: list[dict[str, Any]]) -> Iterator[Goal]:
    step = {row["network"]: row["p50"] for row in costs if _is(row, "fast", "default")}
    for names, (words, needed) in SCORES.items():
        found = [run for run in runs if run["name"] in names]
        run = max(found, key=_best, default=None)
        note = "" if run is None else _length(run, step.get(run["network"]))
        yield _at_least(f"{words}: mIoU", WHERE, needed, run and _best(run), note)


def _best(run: dict[str, Any]) -> float:
    """mIoU of whole images or, where it was taken and is better, over scales."""
    return max(run["miou"], run.get("miou_over_scales") or 0)


def _length(run: dict[str, Any], ms: float | None) -> str:
    """Steps of a run and about how long they take; its score over scales."""
    words = f"{run['steps']} steps" + (" more" if run.get("begins") else "")
    if ms:
        minutes = number(run["steps"] * ms / 6e4)
        words += f" of {number(ms / 1e3)} s: {minutes} minutes beside loading and validation"
    scales = run.get("miou_over_scales")
    if scales is None:
        return words
    return f"{words}; {run['miou']:.3f} at one scale, {scales:.3f} over three and mirrored"


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


def _labels(rows: list[dict[str, Any]]) -> Iterator[Goal]:
    """Labels of trained networks that deployment leaves as they are, and what it does to logits."""
    found = {(row["network"], row["dtype"]): row for row in rows}
    for title in LEAST:
        what = f"{title}, trained, deployed"
        for dtype, least in EQUAL.items():
            row = found.get((title, dtype))
            share = None if row is None else 100 * row["equal"]
            yield _at_least(f"{what}: % of equal labels", f"CamVid, {dtype}", least, share)
        row = found.get((title, "float32"))
        error = None if row is None else row["logits_error"]
        met = None if error is None else error <= LOGITS
        what, most = f"{what}: relative error of logits", f"<= {LOGITS:g}"
        yield Goal(what, "CamVid, float32", most, error, None, met)


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
