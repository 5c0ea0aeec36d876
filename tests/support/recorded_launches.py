"""What tests of the Triton launchers share: layouts, and every launch held against `make aot`'s."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attnops._layout import empty_map
from attnops.kernels import _launch
from attnops.kernels.aot import triton as aot_triton

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
FLAGS = (False, True)


def in_layout(x: Tensor, inner: bool) -> Tensor:
    return empty_map(x.shape, x, inner).copy_(x)


@pytest.fixture(autouse=True)
def launches(monkeypatch: pytest.MonkeyPatch) -> list:
    """Every launch of a test, to be held against what is compiled ahead of time."""
    found = []

    def run(kernel, programs, *args, launch):
        found.append((kernel, launch))
        original(kernel, programs, *args, launch=launch)

    original = _launch.run
    for module in aot_triton.modules():
        if module is not _launch and hasattr(module, "run"):
            monkeypatch.setattr(module, "run", run)
    return found


def assert_compiled_ahead(launches: list) -> None:
    cases = {(case.kernel.__name__, str(case.launch)) for case in aot_triton.all_cases()}
    assert launches
    for kernel, launch in launches:
        assert (kernel.__name__, str(launch)) in cases
