"""Options and fixtures of the whole suite."""

from __future__ import annotations

import importlib.util
import os
import shutil

import pytest
import torch
from sampling import sample

import attnops

TRITON_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="device to test on: cpu or cuda")
    parser.addoption("--only-backend", help="run the tests of the ops alone, on this backend alone")
    parser.addoption("--sampled", action="store_true", help="a sample of each grid is not slow")


def pytest_configure(config: pytest.Config) -> None:
    device = config.getoption("--device")
    if device == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda: this PyTorch sees no GPU")
    if TRITON_INTERPRETED and importlib.util.find_spec("triton"):
        importlib.import_module("interpreter").install()
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def usable_backends(device: str, op: str) -> list[str]:
    """Backends that can run `op` on tensors of `device` in this process."""
    candidates = ["reference", "cpu"] if device == "cpu" else ["reference", "triton", "cuda"]
    if device == "cpu" and TRITON_INTERPRETED:
        candidates.append("triton")
    return [b for b in candidates if attnops.backends()[op][b]]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests with a `backend` argument on every backend; their module names the op in OP."""
    if "backend" in metafunc.fixturenames:
        device = metafunc.config.getoption("--device")
        metafunc.parametrize("backend", usable_backends(device, metafunc.module.OP), indirect=True)


@pytest.hookimpl(tryfirst=True)  # before `-m "not slow"` is applied
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    only = config.getoption("--only-backend")
    kept, dropped = [], []
    for item in items:
        wanted = not cannot_run(item) and (only is None or is_of_backend(item, only))
        (kept if wanted else dropped).append(item)
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept
    if config.getoption("--device") == "cpu":
        thin_out(items, ["triton", "cpu"] if config.getoption("--sampled") else ["triton"])
        skip_what_needs_a_compiler(items)


def parameters_of(item: pytest.Item) -> dict[str, object]:
    callspec = getattr(item, "callspec", None)
    return {} if callspec is None else callspec.params


def cannot_run(item: pytest.Item) -> bool:
    """The Triton kernels have no float64."""
    parameters = parameters_of(item)
    return parameters.get("backend") == "triton" and parameters.get("dtype") == torch.float64


def is_of_backend(item: pytest.Item, backend: str) -> bool:
    """A test of an op, on `backend` or on the one that the op chooses."""
    names = {parameters_of(item).get(name, backend) for name in ("backend", "backend_name")}
    return hasattr(getattr(item, "module", None), "OP") and names == {backend}


def values_of(item: pytest.Item) -> dict[str, int]:
    """Which value each parameter has: the cases of a grid share the objects."""
    return {name: id(value) for name, value in parameters_of(item).items()}


def thin_out(items: list[pytest.Item], backends: list[str]) -> None:
    """Leave the fast suite a sample of each grid on Triton's interpreter, which is slow.

    Tests of the number of CPU threads say least of the interpreter and wait too. What is left out
    is marked slow; `make test-all`, and runs on a GPU, take it all.
    """
    grids: dict[tuple[str, str, str], list[pytest.Item]] = {}
    for item in items:
        backend = parameters_of(item).get("backend")
        if backend in backends:
            grids.setdefault((str(item.path), item.originalname, backend), []).append(item)
    for (*_, backend), grid in grids.items():
        kept = sample([(item.name, values_of(item)) for item in grid])
        for index, item in enumerate(grid):
            waits = backend == "triton" and "threads" in item.fixturenames
            if index not in kept or waits:
                item.add_marker(pytest.mark.slow)


def skip_what_needs_a_compiler(items: list[pytest.Item]) -> None:
    """Leave out what torch.compile cannot do without a C++ compiler."""
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    if any(shutil.which(n) for n in names if n):
        return
    skip = pytest.mark.skip(reason="torch.compile for CPUs needs a C++ compiler")
    for item in items:
        if item.get_closest_marker("inductor"):
            item.add_marker(skip)


@pytest.fixture
def backend(request: pytest.FixtureRequest):
    with attnops.use_backend(request.param):
        yield request.param


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(params=[1, 3], ids=["1 thread", "3 threads"])
def threads(request: pytest.FixtureRequest):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(20190819)


@pytest.fixture(autouse=True)
def poisoned_allocations():
    """Fill every fresh allocation with NaN (integers: the largest), so that unwritten output
    shows.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.utils.deterministic.fill_uninitialized_memory = before
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def without_onednn():
    """Convolutions without oneDNN, whose bfloat16 backward of a depthwise 1x21 never returns."""
    with torch.backends.mkldnn.flags(enabled=False):
        yield
