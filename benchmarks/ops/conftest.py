"""Options of the microbenchmarks, and the one test they all are."""

from __future__ import annotations

import pytest
import torch

from attnops.benchmarks.op_cases import FUNCTIONS, OpCase, all_cases, checked_step, facts
from attnops.benchmarks.used import in_words, recorded_backends


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bench-dtype", default="float32", help="dtype of the maps")
    parser.addoption("--bench-quick", action="store_true", help="the smallest map only")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    op = metafunc.module.OP
    dtype = metafunc.config.getoption("--bench-dtype")
    cases = all_cases(op, (dtype,), metafunc.config.getoption("--bench-quick"))
    metafunc.parametrize("case", cases, ids=str)
    metafunc.parametrize("contender", FUNCTIONS[op])


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
