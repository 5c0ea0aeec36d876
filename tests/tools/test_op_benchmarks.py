"""The benchmarks of single ops: agreement before timing, cases on file, rows of results."""

from __future__ import annotations

import json

import pytest
import torch

import attnops
from attnops.benchmarks.__main__ import OPS
from attnops.benchmarks.measure import agreement as agree
from attnops.benchmarks.ops import cases as op_cases
from attnops.benchmarks.ops import microbench
from attnops.benchmarks.report import records as record

CPU = torch.device("cpu")


def test_disagreeing_op_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    case = op_cases.OpCase("pyramid_pool", (1, 8, 20, 12), direction="forward+backward")
    inputs = case.inputs(CPU)
    _, error = op_cases.checked_step(case, op_cases.OURS, inputs)
    assert error < 1e-6
    shifted = lambda x: attnops.pyramid_pool(x.roll(1, dims=3))  # noqa: E731
    monkeypatch.setitem(op_cases.FUNCTIONS["pyramid_pool"], op_cases.OURS, shifted)
    with pytest.raises(agree.Disagreement):
        op_cases.checked_step(case, op_cases.OURS, inputs)


SMALL = {
    "nmf": ((2, 16, 60), {"rank": 4, "steps": 2, "grad": "unrolled"}),
    "local_attention": ((2, 16, 19, 23), {"kernel": 3, "dilation": 2}),
    "upsample_gate": ((2, 16, 19, 23), {"side": 4}),
    "merge_scales": ((2, 6, 19, 19), {"sides": (9, 5)}),
    "upsample_cross_entropy": ((2, 6, 9, 7), {"factor": 3}),
    "upsample_argmax": ((2, 6, 9, 7), {"factor": 3}),
}


def small_case(op: str, layout: str = "contiguous") -> op_cases.OpCase:
    shape, options = SMALL.get(op, ((2, 16, 19, 23), {}))
    has_gradient = op_cases.DEFINITIONS[op].differentiable > 0
    direction = op_cases.DIRECTIONS[has_gradient]
    return op_cases.OpCase(op, shape, "float32", layout, direction, tuple(options.items()))


@pytest.mark.parametrize("op", op_cases.FUNCTIONS)
@pytest.mark.parametrize("layout", op_cases.LAYOUTS)
def test_op_contenders_agree(monkeypatch: pytest.MonkeyPatch, op: str, layout: str) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    case = small_case(op, layout)
    for contender in op_cases.FUNCTIONS[op]:
        if contender != op_cases.NATTEN:
            _, error = op_cases.checked_step(case, contender, case.inputs(CPU))
            assert error < 2e-5
    assert case.moved_bytes() > 0 and case.macs() >= 0


def test_every_op_has_a_benchmark() -> None:
    assert set(OPS) == set(op_cases.DEFINITIONS) == set(attnops.backends())


@pytest.mark.parametrize("op", op_cases.FUNCTIONS)
def test_cases_survive_json(op: str) -> None:
    for case in op_cases.all_cases(op):
        described = json.loads(json.dumps(op_cases.facts(case)))
        assert op_cases.case_of(op, described) == case


def test_microbenchmark_results_become_rows() -> None:
    case = op_cases.OpCase("pyramid_pool", (1, 256, 96, 96))
    entries = [
        {
            "extra_info": {
                "op": case.op,
                "contender": contender,
                "relative_error": 0.0,
                "backend": "",
                **op_cases.facts(case),
            },
            "stats": {"data": [seconds, seconds]},
        }
        for contender, seconds in (("eager", 4e-3), ("attnops", 1e-3))
    ]
    document = record.Document()
    document.parts["rates"] = {
        "float32": {"dtype": "float32", "copy_gb_s": 20.0, "matmul_gflop_s": 100.0}
    }
    _, ours = microbench.rows_from_pytest(document, {"benchmarks": entries})
    assert ours.p50 == pytest.approx(1.0) and ours.ratios == {"eager": pytest.approx(4.0)}
    moved = 4 * 256 * (96 * 96 + 110)
    assert ours.floor_percent == pytest.approx(100 * moved / 20e9 / 1e-3)
    assert "| attnops |" in microbench.as_markdown(document.rows)


@pytest.mark.slow
def test_microbenchmarks_run(
    tmp_path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pytest_benchmark")
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # the benchmarks' own run has no xdist
    result = tmp_path / "ops.json"
    options = ["--quick", "--json", str(result), "-k", "contiguous and not backward"]
    assert microbench.main(["pyramid_pool", *options]) == 0
    names = [row.name for row in record.Document.load(result).rows]
    assert names == ["eager", "compiled", "attnops"]
