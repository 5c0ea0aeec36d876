"""`import attnops` in fresh processes that lack something."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import attnops

PACKAGE = Path(attnops.__file__).parent

REPORT = """
import torch, attnops
listed = attnops.backends()["pyramid_pool"]
for backend, availability in listed.items():
    print(backend, availability.available, availability.reason)
x = torch.arange(24.0).view(1, 1, 4, 6).requires_grad_()
out = attnops.pyramid_pool(x, (1, 2))
out.sum().backward()
print("out", out.flatten().tolist())
"""
RESULT = "out [11.5, 4.0, 7.0, 16.0, 19.0]"


def run(code: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def without(*modules: str) -> str:
    """Code after which importing any of `modules` fails as if it were not installed."""
    return f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {modules!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
"""


@pytest.fixture
def pure_package(tmp_path, monkeypatch) -> Path:
    """A copy of the package without compiled libraries."""
    copy = tmp_path / "attnops"
    copy.mkdir()
    for entry in PACKAGE.iterdir():
        if entry.name not in ("lib", "__pycache__") and entry.suffix != ".so":
            (copy / entry.name).symlink_to(entry)
    backends = copy / "_backends"
    backends.unlink()
    backends.mkdir()
    for entry in (PACKAGE / "_backends").glob("*.py"):
        (backends / entry.name).write_text(entry.read_text())
    return tmp_path


def test_without_compiled_libraries(pure_package):
    done = run(REPORT, cwd=pure_package, PYTHONPATH=str(pure_package))
    assert done.returncode == 0, done.stderr
    assert RESULT in done.stdout
    assert "cpu False the C++ library for cpu was not built" in done.stdout
    assert "reference True" in done.stdout


def test_without_triton():
    done = run(without("triton") + REPORT)
    assert done.returncode == 0, done.stderr
    assert RESULT in done.stdout
    assert "triton False No module named 'triton" in done.stdout


def test_committed_results_are_shown_without_triton():
    code = "import sys, attnops.benchmarks.report.command as c; sys.exit(c.main([]))"
    done = run(without("triton") + code)
    assert done.returncode == 0, done.stderr
    assert "attnops" in done.stdout


def test_without_a_gpu():
    done = run(
        REPORT + "print('initialised', torch.cuda.is_initialized())", CUDA_VISIBLE_DEVICES=""
    )
    assert done.returncode == 0, done.stderr
    assert RESULT in done.stdout
    assert "initialised False" in done.stdout


def test_import_loads_no_extras():
    extras = ("rich", "matplotlib", "skimage", "timm", "lightning", "torchvision", "pytest")
    done = run(without(*extras) + REPORT)
    assert done.returncode == 0, done.stderr
    assert RESULT in done.stdout


def test_environment_variable_chooses():
    code = "import attnops; print(attnops._dispatch.current_backend())"
    assert run(code, ATTNOPS_BACKEND="reference").stdout.strip() == "reference"
    done = run(code, ATTNOPS_BACKEND="fast")
    assert done.returncode != 0
    assert "ATTNOPS_BACKEND='fast': expected one of auto, reference, cpu" in done.stderr


def test_version_is_the_distribution_s():
    from importlib.metadata import PackageNotFoundError, version

    try:
        installed = version("attnops")
    except PackageNotFoundError:
        pytest.skip("attnops is not installed, it runs from a bare checkout")
    assert attnops.__version__ == installed
