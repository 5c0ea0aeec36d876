"""Environments, source archives, and wheels that run in other environments."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from checkout import ROOT, build_wheel, clean_environ, run, script, source_copy

from build_tools import environment, packages, plan

# Another torch than the one that the libraries are compiled against.
OTHER_TORCH = "torch==2.13.0"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this checkout, with the native library of every compiler here."""
    if not plan.make_plan().libraries:
        pytest.skip("no compiler here, so a wheel holds no library")
    return build_wheel(ROOT, tmp_path_factory.mktemp("wheel"), clean_environ())


class TestPackages:
    def test_mapped_folders(self):
        names = packages.packages()
        assert {"attnops", "attnops.nn", "attnops.reference", "attnops.kernels"} <= set(names)
        assert packages.package_dir()["attnops.kernels"] == "kernels"
        assert len(names) == len(set(names))
        assert not any(name.split(".")[0] != "attnops" for name in names)

    def test_checkout_runs_without_an_install(self, tmp_path):
        copy = source_copy(tmp_path / "copy")
        packages.link_checkout(copy)
        packages.link_checkout(copy)  # a second time changes nothing
        assert packages.packages(copy) == packages.packages()
        code = "import attnops.kernels as k; print(k.__file__)"
        env = clean_environ(PYTHONPATH=str(copy))
        out = run(sys.executable, "-c", code, cwd=tmp_path, env=env)
        assert Path(out.strip()).resolve() == (copy / "kernels/__init__.py").resolve()


class TestEnvironment:
    def test_active_environment_is_used(self, monkeypatch, tmp_path):
        monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path))
        assert environment.chosen_environment("", given=False) == tmp_path
        assert environment.chosen_environment("/other", given=False) == Path("/other")

    def test_default_is_in_the_checkout(self, monkeypatch):
        monkeypatch.delenv("VIRTUAL_ENV", raising=False)
        assert environment.chosen_environment("", given=False) == ROOT / ".venv"

    def test_given_interpreter_with_torch_is_used(self):
        assert environment.chosen_environment("", given=True) is None

    def test_given_interpreter_without_torch_makes_one(self, monkeypatch):
        monkeypatch.setattr(sys, "prefix", sys.base_prefix)
        monkeypatch.setattr(environment, "has_torch", lambda python: False)
        assert environment.chosen_environment("", given=True) == ROOT / ".venv"


class TestWheels:
    def test_without_a_compiler_it_is_pure(self, tmp_path):
        copy = source_copy(tmp_path / "copy")
        (tmp_path / "bin").mkdir()
        env = clean_environ(PATH=str(tmp_path / "bin"))
        wheel = build_wheel(copy, tmp_path / "work", env)
        assert wheel.name.endswith("-py3-none-any.whl")
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            record = json.loads(archive.read("attnops/lib/build.json"))
        assert not any(name.endswith(".so") for name in names)
        assert {"attnops/__init__.py", "attnops/kernels/__init__.py"} <= set(names)
        assert not any(name.split("/")[0] in ("csrc", "kernels", "build_tools") for name in names)
        assert record["cpu"] == {"built": False, "reason": "no C++ compiler found", "isas": []}

    def test_failing_compiler_is_an_error(self, tmp_path):
        copy = source_copy(tmp_path / "copy")
        broken = script(
            tmp_path / "broken",
            'case "$*" in *--version*) echo broken 1.0;; *) echo no luck; exit 1;; esac',
        )
        env = clean_environ(CXX=str(broken), ATTNOPS_CUDA="0")
        done = subprocess.run(
            [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
            cwd=copy,
            env=env,
            capture_output=True,
            text=True,
        )
        assert done.returncode != 0
        assert "no luck" in done.stdout
        assert "ATTNOPS_CPU=0" in done.stderr
        assert not list((copy / "attnops").rglob("*.so"))

    @pytest.mark.slow
    def test_sdist_holds_the_sources(self, tmp_path):
        copy = source_copy(tmp_path / "copy")
        env = clean_environ()
        run(sys.executable, "setup.py", "-q", "sdist", "-d", tmp_path, cwd=copy, env=env)
        (archive,) = tmp_path.glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            names = {name.partition("/")[2] for name in tar.getnames()}
        sources = {str(p.relative_to(copy)) for p in (copy / "csrc").rglob("*") if p.is_file()}
        assert sources <= names
        assert {"build_tools/backend.py", "kernels/__init__.py", "setup.py"} <= names

    @pytest.mark.slow
    @pytest.mark.timeout(1800)
    def test_wheel_holds_the_libraries(self, wheel):
        assert "-py3-none-linux_" in wheel.name
        with zipfile.ZipFile(wheel) as archive:
            libraries = {n: archive.read(n) for n in archive.namelist() if n.endswith(".so")}
        built = plan.make_plan().libraries
        assert set(libraries) == {f"attnops/lib/libattnops_{name}.so" for name in built}
        for content in libraries.values():  # what any function of Python's would bring along
            assert b"PyObject" not in content and b"PyErr" not in content

    @pytest.mark.slow
    @pytest.mark.timeout(1800)
    def test_wheel_runs_with_another_torch(self, wheel, tmp_path):
        """One binary for every torch: compiled against this one, run under OTHER_TORCH."""
        python = tmp_path / "venv/bin/python"
        run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-q"]
        env = clean_environ()
        torch = subprocess.run(
            [*pip, OTHER_TORCH, "numpy"], env=env, capture_output=True, text=True
        )
        if torch.returncode != 0:
            pytest.skip(f"{OTHER_TORCH} cannot be installed here: {torch.stderr[-300:]}")
        run(*pip, "--no-index", "--no-deps", wheel, cwd=tmp_path, env=env)
        code = """
import attnops, torch
from torch.nn import functional as F
x = torch.randn(1, 3, 9, 9)
with attnops.use_backend("cpu"):
    got = attnops.pyramid_pool(x)
want = torch.cat([F.adaptive_avg_pool2d(x, n).flatten(2) for n in (1, 3, 6, 8)], 2)
torch.testing.assert_close(got, want)
print(torch.__version__, attnops.__file__)
"""
        version, where = run(python, "-c", code, cwd=tmp_path, env=env).split()
        assert version.startswith(OTHER_TORCH.partition("==")[2])
        assert Path(where).is_relative_to(tmp_path)
