"""Environments, source archives, and wheels that run in other environments."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy
import pytest
import torch
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
        code = "import attnops.benchmarks as b; print(b.__file__)"
        env = clean_environ(PYTHONPATH=str(copy))
        out = run(sys.executable, "-c", code, cwd=tmp_path, env=env)
        assert Path(out.strip()).resolve() == (copy / "benchmarks/__init__.py").resolve()


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

    def test_another_extra_is_installed_once(self, tmp_path, monkeypatch):
        ran = []
        monkeypatch.setattr(environment, "has_torch", lambda python: True)
        monkeypatch.setattr(environment, "_keep_torch", lambda python, prefix: [])
        monkeypatch.setattr(environment, "_run", lambda *command: ran.append(command[-1]))
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin/python").touch()
        environment.set_up(tmp_path)
        assert ran[-1] == ".[dev]"
        environment.set_up(tmp_path, "docs")
        assert ran[-1] == ".[docs]"
        done = len(ran)
        environment.set_up(tmp_path, "docs")
        environment.set_up(tmp_path)
        assert len(ran) == done

    @pytest.mark.parametrize(
        ("version", "enough"),
        [("2.10.0a0+gitabc.nv25.11", True), ("2.10a0", True), ("2.9.1", False), ("main", False)],
    )
    def test_torch_that_is_there(self, tmp_path, monkeypatch, version, enough):
        info = tmp_path / "torch-0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        assert environment.has_torch(sys.executable) is enough

    @pytest.mark.parametrize("text", ["", '{"checkout": "/', "\0"])
    def test_damaged_stamp_is_no_stamp(self, tmp_path, text):
        (tmp_path / "stamp").write_text(text)
        assert environment._read_stamp(tmp_path / "stamp") is None
        assert environment._read_stamp(tmp_path / "none") is None


def repository_files(copy: Path) -> set[str]:
    """All files of the repository; in an unpacked source archive, all that is there."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if (ROOT / ".git").exists() and listed.returncode == 0:
        return {name for name in listed.stdout.split("\0") if (copy / name).is_file()}
    return {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> tuple[Path, Path]:
    """A copy of the checkout, and what its source archive unpacks to."""
    work = tmp_path_factory.mktemp("sdist")
    copy = source_copy(work / "copy")
    run(*(sys.executable, "setup.py", "-q", "sdist", "-d", work), cwd=copy, env=clean_environ())
    (archive,) = work.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(work / "unpacked", filter="data")
    (folder,) = (work / "unpacked").iterdir()
    return copy, folder


class TestSourceArchive:
    def test_holds_the_whole_repository(self, unpacked):
        """The tests too, and what they read: documentation, examples, results, CI's script."""
        copy, folder = unpacked
        names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        wanted = repository_files(copy)
        assert {"docs/building.md", "examples/denoise.py", "tests/conftest.py", ".ci/run"} <= wanted
        assert wanted - names == set()
        added = {name for name in names - wanted if ".egg-info/" not in name}
        assert added <= {"PKG-INFO", "setup.cfg"}

    def test_its_wheel_is_that_of_the_checkout(self, unpacked, tmp_path):
        contents = []
        for source in unpacked:
            wheel = build_wheel(source, tmp_path / source.name, no_tools(tmp_path))
            with zipfile.ZipFile(wheel) as archive:
                contents.append({name: archive.read(name) for name in archive.namelist()})
        assert len(contents[0]) > 100
        assert contents[0] == contents[1]


def no_tools(tmp_path: Path, **changes: str) -> dict[str, str]:
    """An environment without compilers."""
    (tmp_path / "bin").mkdir(exist_ok=True)
    return clean_environ(PATH=str(tmp_path / "bin"), **changes)


# What the build asks of a compiler: its version, an object file, a library.
COMPILER = """case "$*" in *--version*) echo c++ 1.0; exit;; esac
for word in "$@"; do
  [ "$previous" != -o ] || { echo "$word" > "$word"; echo "$word:" > "$word.d"; }
  case "$word" in -I*) [ -d "${word#-I}" ] || exit 1;; esac
  previous=$word
done"""


def new_environment(folder: Path) -> list[str]:
    """Makes folder/venv; returns the words of its `pip install`."""
    run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    python = str(folder / "venv/bin/python")
    return [python, "-m", "pip", "--disable-pip-version-check", "install", "-q"]


def lending_environment(folder: Path) -> list[str]:
    """`new_environment` in which the packages of this one can be imported."""
    pip = new_environment(folder)
    (packages_there,) = (folder / "venv/lib").glob("python*/site-packages")
    lent = {Path(module.__file__).parents[1] for module in (torch, numpy)}
    (packages_there / "lent.pth").write_text("".join(f"{place}\n" for place in lent))
    return pip


def use_wheel(wheel: Path, folder: Path) -> str:
    """Installs the wheel into folder/venv and computes with its library; torch's version there."""
    python, env = folder / "venv/bin/python", clean_environ()
    pip = (python, "-m", "pip", "--disable-pip-version-check", "install", "-q")
    run(*pip, "--no-index", "--no-deps", wheel, cwd=folder, env=env)
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
    version, where = run(python, "-c", code, cwd=folder, env=env).split(" ", 1)
    assert Path(where.strip()).is_relative_to(folder)
    return version


class TestWheels:
    def test_pure_where_the_system_has_neither_locks_nor_a_sane_setting(self, tmp_path):
        """As on Windows, and in images that carry settings for other packages."""
        copy = source_copy(tmp_path / "copy")
        (tmp_path / "absent").mkdir()
        (tmp_path / "absent/fcntl.py").write_text("raise ImportError('no fcntl here')\n")
        settings = {"TORCH_CUDA_ARCH_LIST": "Hopper", "MAX_JOBS": "many"}
        env = no_tools(tmp_path, PYTHONPATH=str(tmp_path / "absent"), **settings)
        assert build_wheel(copy, tmp_path / "work", env).name.endswith("-py3-none-any.whl")

    def test_holds_nothing_of_earlier_builds(self, tmp_path):
        """Modules that the sources have no more, in the folders that builds leave behind."""
        copy = source_copy(tmp_path / "copy")
        stale = [tmp_path / "work" / name for name in ("build/lib", "bdist")]
        for folder in stale:
            (folder / "attnops/gone").mkdir(parents=True)
            (folder / "attnops/gone/__init__.py").touch()
        wheel = build_wheel(copy, tmp_path / "work", no_tools(tmp_path))
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
        assert "attnops/__init__.py" in names
        assert not any("gone" in name for name in names)
        training = (p for p in (copy / "training").rglob("*") if p.suffix in (".txt", ".yaml"))
        files = {f"attnops/{path.relative_to(copy).as_posix()}" for path in training}
        assert "attnops/training/data/classes/ade20k.txt" in files and files <= set(names)

    def test_in_a_folder_with_spaces_and_accents(self, tmp_path):
        copy = source_copy(tmp_path / "my dépôt $1 (copy)")
        compiler = script(tmp_path / "my tools/c++", COMPILER)
        env = clean_environ(CXX=str(compiler), ATTNOPS_CUDA="0", ATTNOPS_CPU="1")
        wheel = build_wheel(copy, tmp_path / "work", env)
        with zipfile.ZipFile(wheel) as archive:
            assert archive.read("attnops/lib/libattnops_cpu.so") == b"libattnops_cpu.so\n"

    def test_without_a_compiler_it_is_pure(self, tmp_path):
        copy = source_copy(tmp_path / "copy")
        wheel = build_wheel(copy, tmp_path / "work", no_tools(tmp_path))
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
        pip = new_environment(tmp_path)
        done = subprocess.run(
            [*pip, OTHER_TORCH, "numpy"], env=clean_environ(), capture_output=True, text=True
        )
        if done.returncode != 0:
            pytest.skip(f"{OTHER_TORCH} cannot be installed here: {done.stderr[-300:]}")
        assert use_wheel(wheel, tmp_path).startswith(OTHER_TORCH.partition("==")[2])

    @pytest.mark.slow
    @pytest.mark.timeout(1800)
    def test_wheel_runs_outside_the_checkout(self, wheel, tmp_path):
        """In an environment of its own, which lends only this one's torch and numpy."""
        lending_environment(tmp_path)
        assert use_wheel(wheel, tmp_path) == torch.__version__
        env = clean_environ()
        out = run(tmp_path / "venv/bin/attnops", "env", "--json", cwd=tmp_path, env=env)
        facts = json.loads(out)
        assert facts["versions"]["attnops"] == packages.version()
        everything = "import attnops.nn, attnops.benchmarks, attnops.reference"
        run(tmp_path / "venv/bin/python", "-c", everything, cwd=tmp_path, env=env)

    @pytest.mark.slow
    @pytest.mark.timeout(1800)
    def test_networks_are_trained_evaluated_and_used_outside_the_checkout(self, tmp_path):
        """By a wheel without libraries: what these commands read has to be in it."""
        for module in ("lightning", "jsonargparse", "torchmetrics", "torchvision"):
            pytest.importorskip(module)
        copy = source_copy(tmp_path / "copy")
        wheel = build_wheel(copy, tmp_path / "work", no_tools(tmp_path))
        pip, env = lending_environment(tmp_path), clean_environ()
        run(*pip, "--no-index", "--no-deps", wheel, cwd=tmp_path, env=env)

        def attnops(*arguments: object) -> str:
            return run(tmp_path / "venv/bin/attnops", *arguments, cwd=tmp_path, env=env)

        assert "no faults" in attnops("check", "shapes", "--split", "val")
        size = ("--data.limit", 4, "--data.batch_size", 2, "--trainer.max_steps", 1)
        attnops("train", "--config", "shapes_segnext_t", *size)
        (checkpoint,) = (tmp_path / "runs").rglob("last.ckpt")
        data = ("--data.root", "shapes", "--data.limit", 2)
        assert "mIoU" in attnops("eval", "--checkpoint", checkpoint, *data)
        photo = checkpoint.parent / "eval-shapes-val" / "confusion.png"
        attnops("predict", "--checkpoint", checkpoint, photo, "-o", "out")
        assert {path.name for path in (tmp_path / "out").iterdir()} == {
            "confusion.png",
            "confusion_overlay.png",
        }
