"""The native build: which tools and settings are taken, and what is refused."""

from __future__ import annotations

import errno
import fcntl
import importlib.machinery
import importlib.metadata
import importlib.util
import json
import os
import re
import sys

import pytest
from checkout import ROOT, fake_toolkit, script
from packaging.requirements import Requirement

from build_tools import backend, jobs, native, ninja_file, plan, settings, toolchain
from build_tools.settings import BuildError, Settings


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

    @pytest.mark.parametrize(("name", "value"), [("ATTNOPS_CUDA", "yes"), ("ATTNOPS_CPU", "2")])
    def test_bad_values_are_refused(self, name, value):
        with pytest.raises(BuildError, match=name):
            Settings.from_environ({name: value})

    @pytest.mark.parametrize("value", ["0", "many", "-1", "2.5", "²"])
    def test_bad_number_of_jobs(self, value):
        with pytest.raises(BuildError, match="MAX_JOBS: expected a positive number"):
            _ = Settings.from_environ({"MAX_JOBS": value}).max_jobs

    def test_separators_at_the_ends(self):
        assert [str(arch) for arch in settings.parse_archs(" 8.0; 9.0;")] == ["8.0", "9.0"]


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

    def test_toolkit_that_is_too_old(self, tmp_path, monkeypatch):
        """Left out like one that is absent; an error where it was asked for."""
        toolkit = toolchain._toolkit_at(fake_toolkit(tmp_path / "cuda", "10.2"))
        script(tmp_path / "cuda/bin/nvcc", "echo compute_75")
        compiler = toolchain.Compiler(("c++",), "c++ 1.0")
        monkeypatch.setattr(toolchain, "find_compiler", lambda: compiler)
        monkeypatch.setattr(sys, "platform", "linux")
        monkeypatch.setattr(plan, "find_toolkit", lambda: (toolkit, ""))
        assert "nvcc 10.2 is too old" in plan.make_plan(Settings()).no_cuda
        with pytest.raises(BuildError, match="no CUDA architecture is left"):
            plan.make_plan(Settings(cuda="1"))


class TestCompiler:
    def test_with_a_space_in_its_path(self, tmp_path):
        compiler = script(tmp_path / "my compiler/c++", "echo c++ 1.0")
        found = toolchain.find_compiler({"PATH": "", "CXX": str(compiler)})
        assert found.command == (str(compiler),)

    def test_relative_path_leads_there_from_every_folder(self, tmp_path, monkeypatch):
        compiler = script(tmp_path / "c++", "echo c++ 1.0")
        monkeypatch.chdir(tmp_path)
        assert toolchain.find_compiler({"PATH": "", "CXX": "./c++"}).command == (str(compiler),)

    def test_open_quote(self):
        with pytest.raises(BuildError, match="not a command line"):
            toolchain.find_compiler({"PATH": "", "CXX": "g++ -DX='"})

    def test_version_in_another_encoding(self, tmp_path):
        script(tmp_path / "c++", r"printf 'c++ \351t\351\n'")
        assert toolchain.find_compiler({"PATH": str(tmp_path)}) is not None

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


class TestPureInstall:
    """Where nothing is compiled, nothing that only a compilation needs can be wrong."""

    @pytest.fixture
    def broken(self, monkeypatch):
        monkeypatch.setenv("CXX", "/nothing here/c++ '")
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Hopper")
        monkeypatch.setenv("MAX_JOBS", "many")
        monkeypatch.setattr(toolchain, "_torch_version", lambda root: "2.1.0")
        return monkeypatch

    def test_switched_off(self, broken):
        broken.setenv("ATTNOPS_CPU", "0")
        broken.setenv("ATTNOPS_CUDA", "0")
        made = plan.make_plan(introspection=True)
        assert made.libraries == [] and not any(native.outputs(made).values())
        assert "ATTNOPS_CPU=0" in "\n".join(made.table())
        assert backend._native_requirements() == []

    @pytest.mark.parametrize("platform", ["darwin", "win32"])
    def test_other_platform(self, broken, platform):
        broken.delenv("ATTNOPS_CPU", raising=False)
        broken.delenv("ATTNOPS_CUDA", raising=False)
        broken.setattr(sys, "platform", platform)
        made = plan.make_plan(introspection=True)
        assert not any(native.outputs(made).values())
        assert made.no_cpu == f"compiled on Linux only, this is {platform}"
        broken.setenv("ATTNOPS_CPU", "1")
        with pytest.raises(BuildError, match=f"ATTNOPS_CPU=1, but .*this is {platform}"):
            plan.make_plan()

    def test_files_are_written_without_a_build_folder(self, broken, tmp_path, capsys):
        """Nothing is locked and no folder made beside the sources, which may be read-only."""
        broken.setattr(native, "BUILD_DIR", tmp_path / "none")
        native.build(plan.make_plan(Settings(cpu="0", cuda="0")), tmp_path / "attnops")
        assert [path.name for path in tmp_path.iterdir()] == ["attnops"]

    @pytest.mark.parametrize("without", [{"ATTNOPS_CUDA": "0"}, {"PATH": "/nothing"}, {}])
    def test_archs_are_judged_with_a_toolkit_only(self, tmp_path, monkeypatch, without):
        compiler = toolchain.Compiler(("c++",), "c++ 1.0")
        monkeypatch.setattr(toolchain, "find_compiler", lambda: compiler)
        monkeypatch.setattr(sys, "platform", "linux")
        toolkit = toolchain._toolkit_at(fake_toolkit(tmp_path / "cuda"))
        found = (None, "no nvcc found") if without else (toolkit, "")
        monkeypatch.setattr(plan, "find_toolkit", lambda: found)
        made = Settings.from_environ({"TORCH_CUDA_ARCH_LIST": "Hopper"} | without)
        if without:
            assert plan.make_plan(made).no_cuda
        else:
            with pytest.raises(BuildError, match=r"got 'Hopper'.*or set ATTNOPS_CUDA=0"):
                plan.make_plan(made)


class TestTorch:
    def installed(self, root, monkeypatch, version_file: str) -> None:
        (root / "include/torch/csrc/stable").mkdir(parents=True)
        (root / "include/torch/csrc/stable/library.h").touch()
        (root / "version.py").write_text(version_file)
        spec = importlib.machinery.ModuleSpec("torch", None, origin=str(root / "__init__.py"))
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)

    @pytest.mark.parametrize(
        "version",
        ["2.10.0", "2.11.0+cu130", "2.10.0a0+b4e4ee81d3.nv25.12", "2.10a0+git1", "2.12.0.dev2026"],
    )
    def test_versions(self, tmp_path, monkeypatch, version):
        self.installed(tmp_path, monkeypatch, f"__version__ = '{version}'\ndebug = False\n")
        assert toolchain.find_torch().version == version

    def test_other_ways_to_write_it(self, tmp_path, monkeypatch):
        self.installed(tmp_path, monkeypatch, '__version__: str = "2.10.1"\n')
        assert toolchain.find_torch().version == "2.10.1"
        (tmp_path / "version.py").unlink()
        assert toolchain.find_torch().version == importlib.metadata.version("torch")

    @pytest.mark.parametrize("version", ["2.9.1", "2.9.0a0+50eac811a6.nv25.09", "1.13.0"])
    def test_too_old(self, tmp_path, monkeypatch, version):
        self.installed(tmp_path, monkeypatch, f"__version__ = '{version}'\n")
        with pytest.raises(BuildError, match=rf"torch >= 2\.10.*{re.escape(version)}"):
            toolchain.find_torch()

    def test_not_a_version(self, tmp_path, monkeypatch):
        self.installed(tmp_path, monkeypatch, "__version__ = 'main'\n")
        with pytest.raises(BuildError, match="gives its version as 'main'"):
            toolchain.find_torch()

    def test_requirement_takes_pre_releases(self):
        requirement = Requirement(toolchain.TORCH_REQUIREMENT)
        for version in ("2.10.0a0+gitabc.nv25.11", "2.10.0.dev20251001+cu130", "2.10.0", "2.14.1"):
            assert requirement.specifier.contains(version), version
        assert not requirement.specifier.contains("2.9.0a0+50eac811a6.nv25.09", prereleases=True)
        dependencies = re.search(
            r"^dependencies = (.*)$", (ROOT / "pyproject.toml").read_text(), re.M
        )
        assert toolchain.TORCH_REQUIREMENT in json.loads(dependencies[1])


class TestBuildFolder:
    @pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
    def test_file_system_without_locks(self, tmp_path, monkeypatch, capsys, code):
        def refuse(*_):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(fcntl, "flock", refuse)
        with native._locked(tmp_path / "native"):
            (tmp_path / "native/file").touch()
        assert f"no lock in {tmp_path / 'native'}" in (said := capsys.readouterr().out)
        assert os.strerror(code) in said

    def test_system_without_locks(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setitem(sys.modules, "fcntl", None)
        with native._locked(tmp_path):
            pass
        assert "do not run two builds" in capsys.readouterr().out

    def test_two_builds_wait_for_each_other(self, tmp_path):
        with (
            native._locked(tmp_path),
            open(tmp_path / ".lock") as other,
            pytest.raises(BlockingIOError),
        ):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def test_error_of_the_build_is_not_taken_for_the_lock(self, tmp_path, capsys):
        with pytest.raises(OSError, match="disk full"), native._locked(tmp_path):
            raise OSError("disk full")
        assert capsys.readouterr().out == ""

    def test_that_cannot_be_written(self, tmp_path, monkeypatch):
        made = plan.make_plan(Settings(cuda="0"))
        if made.no_cpu:
            pytest.skip(f"nothing to compile here: {made.no_cpu}")
        (tmp_path / "file").touch()
        monkeypatch.setattr(native, "BUILD_DIR", tmp_path / "file/native")
        with pytest.raises(BuildError, match=r"cannot write its files .*file/native"):
            native.build(made, tmp_path / "attnops")


class TestPlan:
    def test_demanded_but_missing(self, tmp_path, monkeypatch):
        monkeypatch.setattr(toolchain, "find_compiler", lambda: None)
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
        (link,) = (line for line in lines if line.startswith("build libattnops_pool.so"))
        assert link.split()[3:] == ["pool/allocator.o", "pool/pool.o"]


class TestBackend:
    def test_pure_install_downloads_no_torch(self, monkeypatch):
        monkeypatch.setattr(toolchain, "find_compiler", lambda: None)
        assert not any("torch" in name for name in backend.get_requires_for_build_wheel())

    def test_compiling_asks_for_torch_and_ninja(self, monkeypatch):
        compiler = toolchain.Compiler(("c++",), "c++ 1.0")
        monkeypatch.setattr(toolchain, "find_compiler", lambda: compiler)
        monkeypatch.setattr(sys, "platform", "linux")
        monkeypatch.delenv("ATTNOPS_CPU", raising=False)
        assert backend._native_requirements() == [toolchain.TORCH_REQUIREMENT, "ninja"]

    @pytest.mark.parametrize("platform", ["darwin", "win32"])
    def test_other_platforms_download_no_torch(self, monkeypatch, platform):
        monkeypatch.setattr(sys, "platform", platform)
        assert backend._native_requirements() == []

    def test_bad_setting_is_one_line(self, monkeypatch):
        monkeypatch.setenv("ATTNOPS_CPU", "yes")
        with pytest.raises(SystemExit, match="error: ATTNOPS_CPU: expected auto, 0 or 1"):
            backend.get_requires_for_build_wheel()
