"""Measured times beside static estimates: pairs, correlations, what is off."""

from __future__ import annotations

import json
import math

import pytest

from attnops.benchmarks.gpu import calibration
from attnops.benchmarks.measure.timing import Timing
from attnops.benchmarks.report.records import Row


def measured(op: str, passes: str, graph: float, shape, backend="triton", **values) -> Row:
    row = Row(op, "attnops", list(shape), "bfloat16", "channels_last", passes, **values)
    row.backend, row.host_p50 = backend, 0.02
    row.put_timing(Timing(graph, graph + 0.004, graph, 9))
    row.put_timing(Timing(graph, graph, graph, 9), "graph_")
    return row


def static_row(op: str, passes: str, low: float, high: float, shape) -> dict:
    fixed = {"op": op, "shape": list(shape), "dtype": "bfloat16", "layout": "channels_last"}
    fixed |= {"options": [], "pass": passes, "backend": "triton", "launches": 1}
    return fixed | {"low_us": low, "high_us": high, "floor_us": 1.0}


@pytest.fixture
def known(tmp_path):
    """Estimates of 10, 20, 40, 80 us forward and 30, 60, 120, 240 us backward."""
    rows = [
        static_row("pyramid_pool", passes, 0.9 * factor * us, 1.1 * factor * us, (1, 64, us, us))
        for us in (10, 20, 40, 80)
        for passes, factor in (("forward", 1), ("backward", 3))
    ]
    (tmp_path / "static.json").write_text(json.dumps({"arch": "sm_90", "rows": rows}))
    assert calibration.estimates("8.0", tmp_path) == {}
    return calibration.estimates("9.0", tmp_path)


def test_calibration_of_a_perfect_model(known) -> None:
    """Measured is 1.5 times the estimate, forward and backward."""
    rows = [
        measured("pyramid_pool", passes, 1.5e-3 * factor * us, (1, 64, us, us))
        for us in (10, 20, 40, 80)
        for passes, factor in (("forward", 1), ("forward+backward", 4))
    ]
    found = calibration.document_of(rows, known, "GPU", "today")
    assert found["all"] == {
        "rows": 8,
        "pearson_of_logs": 1.0,
        "spearman": 1.0,
        "mean_ratio": 1.5,
        "off": 0,
    }
    passes = [line["pass"] for line in found["rows"]]
    assert passes == ["forward", "backward"] * 4
    assert [line["measured_us"] for line in found["rows"][:2]] == [15.0, 45.0]
    assert found["rows"][0]["host_us"] == 20.0 and found["rows"][0]["by"] == "graph"
    calibration.put_estimates(rows, known)
    assert rows[1].estimate_low == pytest.approx(0.036)
    assert rows[1].estimate_high == pytest.approx(0.044)


def test_calibration_names_what_is_off(known) -> None:
    times = {10: 30.0, 20: 20.0, 40: 10.0, 80: 80.0}  # ratios 3, 1, 1/4, 1
    rows = [measured("pyramid_pool", "forward", 1e-3 * t, (1, 64, u, u)) for u, t in times.items()]
    rows.append(measured("pyramid_pool", "forward", 1.0, (1, 64, 99, 99)))
    found = calibration.document_of(rows, known, "GPU", "today", {"graph_us": 2.0})
    assert found["all"]["rows"] == 4 and len(found["rows"]) == 5
    assert [line["ratio"] for line in found["off"]] == [3.0, 0.25]
    x, y = [math.log(u) for u in times], [math.log(t) for t in times.values()]
    mean_x, mean_y = sum(x) / 4, sum(y) / 4
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    scale = math.sqrt(sum((a - mean_x) ** 2 for a in x) * sum((b - mean_y) ** 2 for b in y))
    assert found["all"]["pearson_of_logs"] == pytest.approx(covariance / scale, abs=1e-4)
    assert found["all"]["spearman"] == pytest.approx(0.2)  # ranks 3 2 1 4
    text = calibration.as_markdown(found)
    assert "## Off by more than 2x" in text and "2 us by graph" in text


def test_ranks_of_equal_values() -> None:
    assert list(calibration._ranks([3.0, 1.0, 3.0, 2.0])) == [3.5, 1.0, 3.5, 2.0]
    assert calibration.correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) is None
