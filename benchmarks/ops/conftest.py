"""Options of the microbenchmarks, and the one test they all are."""

from __future__ import annotations

import pytest
import torch

from attnops.benchmarks.measure.backends_that_ran import in_words, recorded_backends
from attnops.benchmarks.ops.cases import FUNCTIONS, OpCase, all_cases, checked_step, facts


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bench-op", action="append", help="an op to time; default: every one")
    parser.addoption("--bench-dtype", default="float32", help="dtype of the maps")
    parser.addoption("--bench-quick", action="store_true", help="the first inputs only")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    option = metafunc.config.getoption
    contests = [
        pytest.param(case, contender, id=f"{case.op}-{case}-{contender}")
        for op in option("--bench-op") or FUNCTIONS
        for case in all_cases(op, (option("--bench-dtype"),), option("--bench-quick"))
        for contender in FUNCTIONS[op]
    ]
    metafunc.parametrize("case, contender", contests)


@pytest.fixture
def run_contender(benchmark, case: OpCase, contender: str):
    """Checks a contender against eager PyTorch, then times it."""

    def run() -> None:
        with recorded_backends() as used:
            step, error = checked_step(case, contender, case.inputs(torch.device("cpu")))
        benchmark.group = f"{case.op} {case}"
        benchmark.extra_info.update(
            op=case.op,
            contender=contender,
            relative_error=error,
            backend=in_words(used),
            **facts(case),
        )
        benchmark(step)

    return run
