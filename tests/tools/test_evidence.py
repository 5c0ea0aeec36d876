"""The order in which "auto" tries GPU backends is what the committed results say."""

from __future__ import annotations

import json

import pytest
import torch

from attnops import _dispatch
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


def test_a_measurement_counts_before_the_estimate(static):
    document = Document()
    for backend, ms in (("triton", 1.0), ("cuda", 2.0)):
        row = document.new_row("strip_conv", "attnops", "cpu", shape=[1], dtype="float16")
        row.backend, row.p50, row.threads = backend, ms, None
    document.save(static / "gpu.json")
    assert cuda_first(static) == set()


def test_order(monkeypatch):
    kept = frozenset({("nmf", "channels_last", "half", "training")})
    monkeypatch.setattr(_dispatch, "CUDA_FIRST", kept)
    x = torch.zeros(1, 2, 3, 3, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    assert _dispatch.gpu_order("nmf", x)[0] == "triton"
    assert _dispatch.gpu_order("nmf", x.requires_grad_())[0] == "cuda"
    assert _dispatch.gpu_order("nmf", x.detach().float().requires_grad_())[0] == "triton"
    assert _dispatch.gpu_order("local_attention", x)[0] == "triton"
