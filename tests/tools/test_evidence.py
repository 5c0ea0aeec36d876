"""The order in which "auto" tries GPU backends is what the committed results say."""

from __future__ import annotations

import json

import pytest
import torch

from attnops import _dispatch
from attnops.benchmarks.report import evidence
from attnops.benchmarks.report.evidence import cuda_first
from attnops.benchmarks.report.records import Document


def test_the_table_is_what_the_results_say():
    assert cuda_first() == _dispatch.CUDA_FIRST


@pytest.fixture
def static(tmp_path):
    def row(backend, passes, low, high, dtype="bfloat16", shape=(1, 8, 4, 4)):
        fixed = {"op": "strip_conv", "layout": "contiguous", "options": [], "shape": list(shape)}
        return (
            fixed
            | {"backend": backend, "pass": passes, "dtype": dtype}
            | {
                "low_us": low,
                "high_us": high,
            }
        )

    rows = [
        row("triton", "forward", 10, 30),
        row("cuda", "forward", 18, 20),
        row("triton", "backward", 10, 10),
        row("cuda", "backward", 30, 30),
        row("triton", "forward", 1, 1, "float32"),
        row("cuda", "forward", None, None, "float32"),
    ]
    (tmp_path / "static.json").write_text(json.dumps({"kind": "x", "rows": rows}))
    return tmp_path


def test_estimates(static):
    """19 against 20 us forward; 49 against 30 with the backward; float32 is not known."""
    assert cuda_first(static) == {("strip_conv", "contiguous", "half", "forward")}


def measured(folder, name, date, *times, device="GPU"):
    """A result file as `make gpu` writes it: of each backend its p50 and graph_p50 in ms."""
    document = Document(date=date)
    for backend, ms, graph_ms in times:
        given = {"shape": [1, 8, 4, 4], "dtype": "float16"}
        row = document.new_row("strip_conv", "attnops", "cpu", **given)
        row.name = "attnops" if backend == "triton" else f"attnops ({backend})"
        row.backend, row.p50, row.graph_p50, row.threads = backend, ms, graph_ms, None
        row.device = device
    document.save(folder / "gpu" / name)


def test_a_measurement_counts_before_the_estimate(static):
    measured(static, "a.json", "2026-01-01", ("triton", 1.0, None), ("cuda", 2.0, None))
    assert cuda_first(static) == set()


def test_graph_replay_counts_before_events_where_both_have_it(static):
    first = {("strip_conv", "contiguous", "half", "forward")}
    measured(static, "a.json", "2026-01-01", ("triton", 1.0, 0.9), ("cuda", 2.0, 0.8))
    assert cuda_first(static) == first
    measured(static, "a.json", "2026-01-01", ("triton", 1.0, 0.9), ("cuda", 0.95, None))
    assert cuda_first(static) == first
    measured(static, "a.json", "2026-01-01", ("triton", 1.0, None), ("cuda", 2.0, 0.8))
    assert cuda_first(static) == set()


def test_the_newest_file_counts_and_devices_are_told_apart(static):
    measured(static, "a.json", "2026-01-02", ("triton", 1.0, 1.0), ("cuda", 3.0, 3.0))
    measured(static, "b.json", "2026-01-01", ("triton", 1.0, 1.0), ("cuda", 0.1, 0.1))
    assert cuda_first(static) == set()
    measured(static, "c.json", "2026-01-01", ("triton", 1.0, 1.0), ("cuda", 0.2, 0.2), device="B")
    assert len(cuda_first(static)) == 1, "the mean over devices: 3 x 0.2"


def test_the_table_is_printed_as_code(static, capsys):
    """As `attnops bench evidence` does after a run, a calibration beside the results."""
    (static / "calibration.json").write_text(json.dumps({"kind": "x", "rows": [{"op": "nmf"}]}))
    measured(static, "a.json", "2026-01-01", ("triton", 2.0, 2.0), ("cuda", 1.0, 1.0))
    assert evidence.main([str(static)]) == 0
    printed = capsys.readouterr().out
    assert printed == '        ("strip_conv", "contiguous", "half", "forward"),\n'


def test_order(monkeypatch):
    kept = frozenset({("nmf", "channels_last", "half", "training")})
    monkeypatch.setattr(_dispatch, "CUDA_FIRST", kept)
    x = torch.zeros(1, 2, 3, 3, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    assert _dispatch.gpu_order("nmf", x)[0] == "triton"
    assert _dispatch.gpu_order("nmf", x.requires_grad_())[0] == "cuda"
    assert _dispatch.gpu_order("nmf", x.detach().float().requires_grad_())[0] == "triton"
    assert _dispatch.gpu_order("local_attention", x)[0] == "triton"
