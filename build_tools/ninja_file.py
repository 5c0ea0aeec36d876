"""Writes build.ninja: one rule a kind of compiler call, one edge an object file or library."""

from __future__ import annotations

import os
import shlex
import sysconfig
from pathlib import Path

from .packages import ROOT
from .plan import Plan

TARGET_VERSION = "-DTORCH_TARGET_VERSION=0x020a000000000000"


def _escape(path: str | Path) -> str:
    return str(path).replace("$", "$$").replace(":", "$:").replace(" ", "$ ")


def _words(words: list[str]) -> str:
    return shlex.join(words).replace("$", "$$")


class _Writer:
    def __init__(self, plan: Plan):
        self.plan = plan
        self.lines = ["ninja_required_version = 1.8"]

    def rule(self, name: str, command: str, description: str, **variables: str) -> None:
        self.lines += [f"rule {name}", f"  command = {command}", f"  description = {description}"]
        self.lines += [f"  {key} = {value}" for key, value in variables.items()]

    def edge(self, output: str, rule: str, inputs: list[str | Path], flags: list[str]) -> str:
        sources = " ".join(_escape(i) for i in inputs)
        self.lines += [f"build {_escape(output)}: {rule} {sources}", f"  flags = {_words(flags)}"]
        return output

    def library(self, name: str, objects: list[str], flags: list[str]) -> None:
        self.edge(name, "link", objects, flags)
        self.lines.append(f"default {_escape(name)}")

    @property
    def cxx(self) -> str:
        return _words(list(self.plan.compiler.command))

    def rules(self) -> None:
        extra = os.environ.get("CXXFLAGS", "").replace("$", "$$")
        compile_cxx = f"{self.cxx} -MMD -MF $out.d $flags {extra} -c $in -o $out"
        self.rule("cxx", compile_cxx, "C++ $out", depfile="$out.d", deps="gcc")
        self.rule("link", f"{self.cxx} -shared $in $flags -o $out", "link $out")
        if not self.plan.no_cuda:
            nvcc = _words([str(self.plan.toolkit.nvcc)])
            self.lines += ["pool cuda", f"  depth = {self.plan.cuda_jobs}"]
            self.rule(
                "nvcc",
                f"{nvcc} -MMD -MF $out.d $flags -c $in -o $out",
                "CUDA $out",
                depfile="$out.d",
                deps="gcc",
                pool="cuda",
            )

    def common(self) -> list[str]:
        return ["-std=c++17", "-O3", TARGET_VERSION, f"-I{ROOT / 'csrc'}"]

    def sources(self, folder: str) -> dict[str, Path]:
        """What csrc/`folder` compiles, by the name of the object file: <folder>/<op>/<file>."""
        root = ROOT / "csrc"
        found = [*(root / folder).rglob("*.cpp"), *(root / folder).rglob("*.cu")]
        return {str(path.relative_to(root).with_suffix("")): path for path in sorted(found)}

    def torch_link(self, *libraries: str) -> list[str]:
        """Found at run time through the torch that is loaded already, so no rpath."""
        return [f"-L{self.plan.torch.libraries}", *(f"-l{name}" for name in libraries)]

    def cpu(self) -> None:
        plan = self.plan
        warnings = ["-Wall", "-Wextra"]
        torch = ["-isystem", str(plan.torch.include)]
        have = [f"-DATTNOPS_HAVE_{isa.upper()}" for isa in plan.isas if isa != "baseline"]
        flags = [*self.common(), "-fPIC", *warnings, *torch, *have]
        sources = self.sources("cpu")
        kernels = {name: source for name, source in sources.items() if source.stem == "kernels"}
        objects = [
            self.edge(f"{name}.o", "cxx", [source], flags)
            for name, source in sources.items()
            if name not in kernels
        ]
        # Simpler instruction sets first: of an inline function that several objects hold, the
        # linker keeps the first copy, and that one has to run on every processor.
        # GCC's vector headers warn about themselves.
        quiet = [] if "clang" in plan.compiler.version else ["-Wno-maybe-uninitialized"]
        for isa, isa_flags in plan.isas.items():
            isa_flags = [*flags, *quiet, *isa_flags, f"-DATTNOPS_ISA={isa}"]
            objects += [
                self.edge(f"{name}.{isa}.o", "cxx", [source], isa_flags)
                for name, source in kernels.items()
            ]
        # -z defs: anything outside the stable ABI fails here and not on someone's machine.
        link = ["-Wl,-z,defs", *self.torch_link("torch_cpu")]
        self.library("libattnops_cpu.so", objects, link)

    def pool(self) -> None:
        """Against PyTorch's C++ headers: its stable ABI has no allocators."""
        warnings = ["-Wall", "-Wextra"]
        flags = ["-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", *warnings]
        flags += [f"-I{ROOT / 'csrc'}", "-isystem", str(self.plan.torch.include)]
        objects = [
            self.edge(f"{name}.o", "cxx", [source], flags)
            for name, source in self.sources("pool").items()
        ]
        self.library("libattnops_pool.so", objects, ["-Wl,-z,defs", *self.torch_link("c10")])

    def cuda(self) -> None:
        plan = self.plan
        flags = [*self.common(), "-DUSE_CUDA", "-isystem", str(plan.torch.include)]
        cxx_flags = [*flags, "-fPIC", "-Wall", "-Wextra", "-isystem", str(plan.toolkit.include)]
        nvcc_flags = [*flags, "-Xcompiler=-fPIC", "-Xfatbin=-compress-all"]
        nvcc_flags += [flag for arch in plan.archs for flag in arch.flags()]
        if len(plan.compiler.command) == 1:
            nvcc_flags.append(f"-ccbin={plan.compiler.command[0]}")
        objects = []
        for name, source in self.sources("cuda").items():
            rule, rule_flags = (
                ("nvcc", nvcc_flags) if source.suffix == ".cu" else ("cxx", cxx_flags)
            )
            objects.append(self.edge(f"{name}.o", rule, [source], rule_flags))
        self.library("libattnops_cuda.so", objects, self.cuda_link())

    def cuda_link(self) -> list[str]:
        toolkit, torch = self.plan.toolkit, self.plan.torch
        flags = []
        if toolkit.libraries:
            static = (toolkit.libraries / "libcudart_static.a").exists()
            runtime = ["-lcudart_static", "-lrt", "-lpthread", "-ldl"] if static else ["-lcudart"]
            flags = [f"-L{toolkit.libraries}", *runtime]
        if (torch.libraries / "libtorch_cuda.so").exists():
            return ["-Wl,-z,defs", *self.torch_link("torch_cpu", "torch_cuda"), *flags]
        # Built with a CPU-only torch: libtorch brings torch_cuda along where the library is loaded.
        return ["-Wl,--no-as-needed", *self.torch_link("torch_cpu", "torch"), *flags]

    def introspection(self) -> None:
        import pybind11

        plan = self.plan
        archs = ";".join(map(str, plan.archs)) if not plan.no_cuda else ""
        isas = ";".join(plan.isas) if not plan.no_cpu else ""
        flags = ["-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
        for folder in (pybind11.get_include(), sysconfig.get_path("include")):
            flags += ["-isystem", folder]
        flags += [f'-DATTNOPS_BUILT_ARCHS="{archs}"', f'-DATTNOPS_BUILT_ISAS="{isas}"']
        flags.append(f'-DATTNOPS_PYBIND11="{plan.pybind11}"')
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        source = ROOT / "csrc/introspection.cpp"
        objects = [self.edge(f"introspection{suffix}.o", "cxx", [source], flags)]
        self.library(f"_C{suffix}", objects, [])


def ninja_text(plan: Plan) -> str:
    writer = _Writer(plan)
    writer.rules()
    if not plan.no_cpu:
        writer.cpu()
        writer.pool()
    if not plan.no_cuda:
        writer.cuda()
    if not plan.no_introspection:
        writer.introspection()
    return "\n".join(writer.lines) + "\n"
