"""The build: what is found, what is refused, and wheels that run in other environments."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # build_tools is part of the checkout, not of the installed package

from build_tools import backend, environment, jobs, ninja_file, packages, plan, settings, toolchain
from build_tools.settings import BuildError, Settings

# Another torch than the one that the libraries are compiled against.
OTHER_TORCH = "torch==2.13.0"


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def fake_toolkit(root: Path, version: str = "13.0") -> Path:
    """A folder that looks like a toolkit; its nvcc answers the questions that the build asks."""
    script(
        root / "bin/nvcc",
        f"""case "$*" in
*--version*) echo "Cuda compilation tools, release {version}, V{version}.1" ;;
*--dryrun*) echo "#$ TOP={root}/bin/.." >&2 ;;
*--list-gpu-arch*) echo compute_80; echo compute_90 ;;
esac""",
    )
    (root / "include").mkdir()
    (root / "include/cuda_runtime.h").touch()
    return root


def source_copy(target: Path) -> Path:
    """The checkout without what was built in it."""
    at_the_top = shutil.ignore_patterns(".git", ".venv*", "build", "dist", "demo")
    anywhere = shutil.ignore_patterns(
        *("lib", "*.so", "*.egg-info", "__pycache__", "results"),
        *(".pytest_cache", ".hypothesis", ".ruff_cache"),
    )

    def skip(folder: str, names: list[str]) -> set[str]:
        built = anywhere(folder, names)
        return built | at_the_top(folder, names) if Path(folder) == ROOT else built

    shutil.copytree(ROOT, target, ignore=skip, symlinks=True)
    for name in packages.MAPPED:
        (target / "attnops" / name).unlink(missing_ok=True)
    return target


def clean_environ(**changes: str) -> dict[str, str]:
    """This process's environment without build settings."""
    names = ("CXX", "CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST", "MAX_JOBS", "PYTHONPATH")
    kept = {k: v for k, v in os.environ.items() if k not in names and "ATTNOPS" not in k}
    return kept | changes


def run(*command: object, cwd: Path, env: dict[str, str] | None = None) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{words} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build_wheel(source: Path, work: Path, env: dict[str, str]) -> Path:
    """A wheel of `source`, with everything but the native build cache under `work`."""
    work.mkdir(exist_ok=True)
    run(
        *(sys.executable, "setup.py", "-q", "egg_info", "--egg-base", work),
        *("build", "--build-base", work / "build"),
        *("bdist_wheel", "--dist-dir", work / "dist", "--bdist-dir", work / "bdist"),
        cwd=source,
        env=env,
    )
    (wheel,) = (work / "dist").glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this checkout, with the native library of every compiler here."""
    if not plan.make_plan().libraries:
        pytest.skip("no compiler here, so a wheel holds no library")
    return build_wheel(ROOT, tmp_path_factory.mktemp("wheel"), clean_environ())


class TestSettings:
    def test_arch_list_forms(self):
        archs = settings.parse_archs("9.0a 8.0;10.0+PTX, 8.0+PTX")
        assert [str(arch) for arch in archs] == ["8.0+PTX", "9.0a", "10.0+PTX"]
        assert archs[1].flags() == ["-gencode=arch=compute_90a,code=sm_90a"]
        assert archs[2].flags() == [
            "-gencode=arch=compute_100,code=sm_100",
            "-gencode=arch=compute_100,code=compute_100",
        ]

    @pytest.mark.parametrize("text", ["Hopper", "90", "9.0+ptx+PTX", "8.0;x"])
    def test_bad_arch_is_named(self, text):
        with pytest.raises(BuildError, match="expected entries like"):
            settings.parse_archs(text)

    def test_native_is_the_devices_arch(self, tmp_path, monkeypatch):
        script(tmp_path / "nvidia-smi", "echo 9.0; echo 9.0")
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        assert [str(arch) for arch in settings.parse_archs("native")] == ["9.0"]

    def test_native_without_a_device(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(BuildError, match="name the architectures"):
            settings.parse_archs("native")

    def test_defaults(self):
        chosen = Settings.from_environ({})
        assert (chosen.cpu, chosen.cuda, chosen.max_jobs) == ("auto", "auto", None)
        assert [str(arch) for arch in chosen.archs] == ["8.0", "9.0", "10.0+PTX"]

    @pytest.mark.parametrize(
        ("name", "value"), [("ATTNOPS_CUDA", "yes"), ("ATTNOPS_CPU", "2"), ("MAX_JOBS", "0")]
    )
    def test_bad_values_are_refused(self, name, value):
        with pytest.raises(BuildError, match=name):
            Settings.from_environ({name: value})


class TestJobs:
    def test_memory_limits_jobs(self):
        assert jobs.job_count(2 * jobs.GIB, cores=16, memory=7 * jobs.GIB, max_jobs=None) == 3

    def test_cores_limit_jobs(self):
        assert jobs.job_count(jobs.GIB, cores=2, memory=64 * jobs.GIB, max_jobs=None) == 2

    def test_at_least_one(self):
        assert jobs.job_count(2 * jobs.GIB, cores=8, memory=1000, max_jobs=None) == 1

    def test_max_jobs_wins(self):
        assert jobs.job_count(2 * jobs.GIB, cores=2, memory=jobs.GIB, max_jobs=5) == 5

    def test_container_limits(self, tmp_path):
        (tmp_path / "cpu.max").write_text("100000 100000\n")
        (tmp_path / "memory.max").write_text(f"{4 * jobs.GIB}\n")
        (tmp_path / "memory.current").write_text(f"{jobs.GIB}\n")
        meminfo = tmp_path / "meminfo"
        meminfo.write_text("MemTotal: 99999999 kB\nMemAvailable: 8388608 kB\n")
        assert jobs.available_cores(tmp_path) == 1
        assert jobs.available_memory(meminfo, tmp_path) == 3 * jobs.GIB


class TestToolkit:
    def test_wrapper_leads_to_the_real_folder(self, tmp_path):
        real = fake_toolkit(tmp_path / "opt/cuda-13.0")
        wrapper = script(tmp_path / "bin/nvcc", f'exec {real}/bin/nvcc "$@"')
        found, remark = toolchain.find_toolkit({"PATH": str(wrapper.parent)}, "/nonexistent*")
        assert (found.root, found.version, remark) == (real, "13.0", "")

    def test_cuda_home_comes_first(self, tmp_path):
        other = fake_toolkit(tmp_path / "other", "12.9")
        path = fake_toolkit(tmp_path / "path") / "bin"
        found, _ = toolchain.find_toolkit({"PATH": str(path), "CUDA_HOME": str(other)})
        assert found.root == other

    def test_wrong_cuda_home_is_passed_over(self, tmp_path):
        """/usr/local with a wrapper in bin/ is what is often guessed: no headers there."""
        real = fake_toolkit(tmp_path / "cuda-13.0")
        wrapper = script(tmp_path / "bin/nvcc", f'exec {real}/bin/nvcc "$@"')
        environ = {"PATH": str(wrapper.parent), "CUDA_HOME": str(tmp_path)}
        found, remark = toolchain.find_toolkit(environ, "/nonexistent*")
        assert found.root == real
        assert f"CUDA_HOME={tmp_path} passed over" in remark

    def test_newest_usual_folder(self, tmp_path):
        for version in ("12.8", "13.0", "9.2"):
            fake_toolkit(tmp_path / f"cuda-{version}", version)
        found, _ = toolchain.find_toolkit({"PATH": ""}, f"{tmp_path}/cuda*")
        assert found.version == "13.0"

    def test_none(self, tmp_path):
        environ = {"PATH": str(tmp_path), "CUDA_PATH": str(tmp_path)}
        found, remark = toolchain.find_toolkit(environ, f"{tmp_path}/cuda*")
        assert found is None
        assert "CUDA_PATH" in remark and "no nvcc found" in remark

    def test_archs_that_nvcc_lacks(self, tmp_path):
        toolkit = toolchain._toolkit_at(fake_toolkit(tmp_path / "cuda"))
        chosen, notes = plan._select_archs(Settings.from_environ({}), toolkit)
        assert [str(arch) for arch in chosen] == ["8.0", "9.0"]
        assert any("10.0" in note for note in notes)
        asked = Settings.from_environ({"TORCH_CUDA_ARCH_LIST": "9.0 10.0"})
        with pytest.raises(BuildError, match=r"asks for 10\.0"):
            plan._select_archs(asked, toolkit)

    def test_archs_too_old_for_the_kernels(self, tmp_path):
        toolkit = toolchain._toolkit_at(fake_toolkit(tmp_path / "cuda"))
        mixed = Settings.from_environ({"TORCH_CUDA_ARCH_LIST": "7.0 9.0"})
        assert [str(arch) for arch in plan._select_archs(mixed, toolkit)[0]] == ["9.0"]
        old = Settings.from_environ({"TORCH_CUDA_ARCH_LIST": "7.0"})
        with pytest.raises(BuildError, match="no CUDA architecture is left"):
            plan._select_archs(old, toolkit)


class TestCompiler:
    def test_none_on_the_path(self, tmp_path):
        assert toolchain.find_compiler({"PATH": str(tmp_path)}) is None

    def test_cxx_with_arguments(self, tmp_path):
        compiler = script(tmp_path / "mycc", 'echo "mycc 1.0 $*"')
        found = toolchain.find_compiler({"PATH": str(tmp_path), "CXX": "mycc -q"})
        assert found.command == (str(compiler), "-q")
        assert found.version == "mycc 1.0 -q --version"

    def test_cxx_that_does_not_run(self, tmp_path):
        with pytest.raises(BuildError, match="does not run"):
            toolchain.find_compiler({"PATH": str(tmp_path), "CXX": "nothing"})


class TestPlan:
    def test_demanded_but_missing(self, tmp_path, monkeypatch):
        monkeypatch.setattr(plan, "find_compiler", lambda: None)
        for name in ("cpu", "cuda"):
            with pytest.raises(BuildError, match=f"ATTNOPS_{name.upper()}=1, but no C"):
                plan.make_plan(Settings(**{name: "1"}))

    @pytest.mark.parametrize("name", ["torch", "ninja"])
    def test_missing_requirement(self, monkeypatch, name):
        """The plan can be made without it (frontends ask what to install), the build cannot."""
        monkeypatch.setattr(plan, f"find_{name}", lambda: None)
        made = plan.make_plan(Settings(cuda="0"))
        if made.no_cpu:
            pytest.skip(f"nothing to compile here: {made.no_cpu}")
        with pytest.raises(BuildError, match=f"needs {name}"):
            made.check_requirements()

    def test_simple_objects_are_linked_first(self):
        made = plan.make_plan(Settings(cuda="0"))
        if made.no_cpu:
            pytest.skip(f"no CPU library here: {made.no_cpu}")
        lines = ninja_file.ninja_text(made).splitlines()
        (link,) = (line for line in lines if line.startswith("build libattnops_cpu.so"))
        isas = [word.split(".")[-2] for word in link.split() if "/kernels." in word]
        order = list(made.isas)
        assert isas and isas == sorted(isas, key=order.index)
        assert link.index("cpu/common/build_info.o") < link.index("/kernels.")


class TestBackend:
    def test_pure_install_downloads_no_torch(self, monkeypatch):
        monkeypatch.setattr(backend, "find_compiler", lambda: None)
        assert not any("torch" in name for name in backend.get_requires_for_build_wheel())

    def test_compiling_asks_for_torch_and_ninja(self, monkeypatch):
        compiler = toolchain.Compiler(("c++",), "c++ 1.0")
        monkeypatch.setattr(backend, "find_compiler", lambda: compiler)
        monkeypatch.delenv("ATTNOPS_CPU", raising=False)
        assert {"torch>=2.10", "ninja"} <= set(backend._native_requirements())


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
