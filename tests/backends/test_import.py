"""`import attnops` in fresh processes that lack something."""

from __future__ import annotations

import importlib
import os
import shutil
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
    assert "Warning" not in done.stderr


def imported_with(library: bytes, pure_package: Path) -> subprocess.CompletedProcess[str]:
    """The report of a package whose library for the CPU is `library`."""
    folder = pure_package / "attnops" / "lib"
    folder.mkdir()
    (folder / "libattnops_cpu.so").write_bytes(library)
    return run(REPORT, cwd=pure_package, PYTHONPATH=str(pure_package))


def compiled(source: str, folder: Path) -> bytes:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    (folder / "library.c").write_text(source)
    target = folder / "library.so"
    command = [compiler, "-shared", "-fPIC", str(folder / "library.c"), "-o", str(target)]
    subprocess.run(command, check=True)
    return target.read_bytes()


def of_another_processor(folder: Path) -> bytes:
    library = bytearray(compiled("int nothing;", folder))
    library[18:20] = (0x2A, 0x00)  # e_machine: SuperH
    return bytes(library)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda folder: b"no library\n" * 100, "could not be loaded"),
        (lambda folder: b"", "could not be loaded"),
        (of_another_processor, "could not be loaded"),
        (lambda f: compiled("extern int absent; int *found = &absent;", f), "absent"),
        (lambda folder: compiled("int nothing;", folder), "lacks pyramid_pool, "),
    ],
    ids=["garbage", "empty", "another processor", "missing symbol", "no ops"],
)
def test_a_library_that_does_not_load(make, reason, pure_package, tmp_path_factory):
    """One warning with the reason and what to do; everything else works."""
    done = imported_with(make(tmp_path_factory.mktemp("library")), pure_package)
    assert done.returncode == 0, done.stderr
    assert RESULT in done.stdout
    assert "cpu False" in done.stdout and reason in done.stdout
    assert done.stderr.count("RuntimeWarning") == 1
    assert "libattnops_cpu.so" in done.stderr and reason in done.stderr
    assert "Reinstall attnops" in done.stderr


def test_a_library_that_lacks_an_op():
    """Such as one that was built from older sources: the other ops still run on it."""
    library = importlib.import_module("attnops._backends.library").library_path("cpu")
    if not library.is_file():
        pytest.skip("the library for the CPU is not built")
    lacking = """
import torch
ops = type(torch.ops.attnops_cpu)
found = ops.__getattr__
def search(self, name):
    ours = self.__dict__.get("name", "").endswith("attnops_cpu")
    if ours and name in ("nmf", "strip_conv_backward"):
        raise AttributeError(name)
    return found(self, name)
ops.__getattr__ = search
import attnops
listed = attnops.backends()
print({op: bool(row["cpu"]) for op, row in sorted(listed.items()) if not row["cpu"]})
attnops.strip_conv(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3), None)
print(listed["nmf"]["cpu"].reason)
"""
    done = run(lacking)
    assert done.returncode == 0, done.stderr
    assert "{'nmf': False, 'strip_conv': False}" in done.stdout
    assert "lacks strip_conv, nmf" in done.stdout
    assert done.stderr.count("RuntimeWarning") == 1


@pytest.mark.parametrize("error", ["RuntimeError('no driver')", "OSError('no driver')"])
def test_a_triton_that_raises(error):
    broken = f"""
import sys
import torch  # newer ones look for Triton themselves, and do not come through this
for name in [name for name in sys.modules if name.split(".")[0] == "triton"]:
    del sys.modules[name]
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == "triton":
            raise {error}
sys.meta_path.insert(0, Broken())
"""
    done = run(broken + REPORT)
    assert done.returncode == 0, done.stderr
    assert RESULT in done.stdout
    assert "triton False" in done.stdout and "no driver" in done.stdout
    assert done.stderr.count("RuntimeWarning") == 1 and "no driver" in done.stderr


def test_without_triton():
    done = run(without("triton") + REPORT)
    assert done.returncode == 0, done.stderr
    assert RESULT in done.stdout
    assert "triton False No module named 'triton" in done.stdout
    assert "Warning" not in done.stderr


def test_committed_results_are_shown_without_triton(tmp_path):
    arguments = ["--out", str(tmp_path)]
    code = f"import sys, attnops.benchmarks.report.command as c; sys.exit(c.main({arguments}))"
    done = run(without("triton") + code)
    assert done.returncode == 0, done.stderr
    assert "attnops" in (tmp_path / "report.md").read_text(encoding="utf-8")


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
    assert run(code, ATTNOPS_BACKEND="").stdout.strip() == "auto"
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
