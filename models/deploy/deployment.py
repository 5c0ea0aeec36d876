"""A network made ready to label images on a CPU."""

from __future__ import annotations

import copy
import math
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from attnops import upsample_argmax
from attnops._checks import check_choice, check_flag
from attnops.nn import Hamburger

from .._model import SegmentationModel
from .._same_padding import replace_same_padding
from .compilation import (
    SMALLEST_SIDE,
    check_agreement,
    check_compiler,
    compile_package,
    drop_checks,
    export,
    fused_ops,
)
from .compiled_maps import CompiledMaps
from .feed_forward import ResidualFeedForward
from .folding import fold
from .inner_ops import direct_calls, runs_inner_ops, uses_tiles
from .interface import Interface
from .memory import keep_freed_memory
from .norms import NORMS
from .package import copy_package, read_facts, write_facts
from .pooling import use_library_pools
from .processor import emulates_bfloat16
from .report import Report
from .working_memory import for_result, for_work, keep_for

# dtype -> norm of the compiled network's difference, relative to that of the maps, and which norm.
# Roundings to bfloat16 in 50 layers differ by up to 0.03 of the maps, in single values by far more.
TOLERANCES = {"float32": (1e-4, math.inf), "bfloat16": (0.05, 2)}
TRIAL_SIDE = 128  # of the image that the network is watched with, if it is large enough


class Deployed:
    """A network for labelling on a CPU, made by `deploy` or `load_deployed`.

    Calls may come from several threads at once, with images of any size and batch. They record no
    gradients, and autocast around them changes nothing. The memory that they work in is kept for
    the next calls, of whichever deployment: what none of the last four needed is given back, and
    all of it when the last deployment is collected.

    Args:
        maps: images as `Interface.prepared` gives them -> maps `[B, K, h, w]`.
        interface: of the network.
        report: what was done to it.
        package: the file that `save` copies; None: there is none.
        folder: that holds it, kept for as long as this object is there.
    """

    def __init__(
        self,
        maps: Callable[[Tensor], Tensor],
        interface: Interface,
        report: Report,
        package: Path | None = None,
        folder: tempfile.TemporaryDirectory | None = None,
    ) -> None:
        self._maps, self._interface, self._report = maps, interface, report
        self._package, self._folder = package, folder
        self._keeps_memory = keep_for(self)

    def __call__(self, images: Tensor) -> Tensor:
        """Labels `[B, H, W]`, int64, of images `[B, C, H, W]`.

        Args:
            images: float, normalised as the network's authors did; or uint8, RGB, which are
                normalised here with the network's mean and standard deviation.

        Raises:
            TypeError: images of another dtype, or no tensor.
            ValueError: images of another shape, too small for the network, or not on the CPU.
        """
        with torch.no_grad(), for_work():
            maps = self._small(images)
            with for_result():
                return upsample_argmax(maps, images.shape[2:], self._interface.align_corners)

    def logits(self, images: Tensor) -> Tensor:
        """Logits `[B, K, H, W]`, float32, of images as the call takes them."""
        with torch.no_grad(), for_work():
            maps, corners = self._small(images), self._interface.align_corners
            with for_result():
                return interpolate(maps, images.shape[2:], mode="bilinear", align_corners=corners)

    def _small(self, images: Tensor) -> Tensor:
        prepared = self._interface.prepared(images)
        if prepared.shape[0] == 0:
            return prepared.new_empty((0, self._interface.num_classes, 1, 1))
        with torch.autocast("cpu", enabled=False):
            return self._maps(prepared)

    def report(self) -> Report:
        """What was folded, fused and compiled; printed, it reads as text."""
        return replace(self._report, working_memory_kept=self._keeps_memory)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one file for `load_deployed`, which needs no compiler.

        It is for processors with the instructions of this one and for this version of PyTorch.

        Args:
            path: of the file, .pt2 by custom; a file that is there is replaced.

        Raises:
            ValueError: the network was not compiled, so a file would spare nothing.
        """
        if self._package is None:
            raise ValueError(
                f"save: this {self._interface.name} is not compiled ({self._report.reason}); "
                "deploy it with compile=True where there is a C++ compiler, or save the network"
            )
        copy_package(self._package, Path(path))

    def __repr__(self) -> str:
        return f"<Deployed {self._report}>".replace("\n", "; ")


def deploy(
    model: SegmentationModel,
    dtype: str = "float32",
    compile: str | bool = "auto",
    keep_memory: bool = True,
    seed: int = 0,
) -> Deployed:
    """A copy of a network, made ready to label images on a CPU as fast as it can.

    BatchNorms (and SegNeXt's scales) are folded into convolutions and weights laid out for the
    processor. Compiled, activations and sums are fused into convolutions too, and those of 3x3 take
    fewer products, by Winograd's algorithm. Labels are found without logits at the images' size, as
    in `predict`.

    Compilation takes minutes for a whole network. One compilation serves every batch, every size
    with sides of at least 32, and every number of threads (`torch.set_num_threads`); `save` keeps
    it. Its maps are compared with those of the uncompiled network before it is used.

    Args:
        model: any mode, any device; it is not changed.
        dtype: "float32", which AMX multiplies in parts, to the same precision; or "bfloat16",
            convolutions and fused ops in bfloat16, sums and residuals in float32, for processors
            with instructions for it (AVX512_BF16, AMX).
        compile: True; False; or "auto": where there is a C++ compiler and the network can be
            compiled, else not, with a warning.
        keep_memory: also have the C library keep freed memory (`keep_freed_memory`): a setting of
            the whole process, for its life. Deployments keep the memory that they work in anyway;
            this serves what is allocated around them, and where attnops' C++ library is missing.
        seed: of the bases of Hamburgers that would draw them anew in every call.

    Raises:
        TypeError: `model` is no network of attnops, or an option has another type.
        ValueError: an unknown option, or weights on the meta device.
        RuntimeError: compile=True, and there is no C++ compiler.

    Example:
        >>> import torch, attnops
        >>> model = attnops.models.create_model("segnext_t", num_classes=19)
        >>> deployed = attnops.models.deploy(model, compile=False, keep_memory=False)
        >>> deployed(torch.randint(256, (1, 3, 64, 96), dtype=torch.uint8)).shape
        torch.Size([1, 64, 96])
    """
    network = _checked(model)
    check_choice("deploy", "dtype", dtype, tuple(TOLERANCES))
    check_choice("deploy", "compile", compile, ("auto", True, False))
    check_flag("deploy", "keep_memory", keep_memory)
    if dtype == "bfloat16" and emulates_bfloat16():
        warnings.warn(
            "deploy: this processor has no instructions for bfloat16 (AVX512_BF16 or AMX); float32 "
            "is faster here",
            RuntimeWarning,
            stacklevel=2,
        )
    maps = _Maps(evaluation_copy(network, seed), dtype)
    side = max(TRIAL_SIDE, network.smallest_side)
    trial = torch.linspace(-2, 2, network.in_channels * side * side).view(1, -1, side, side)
    folded = fold(maps.network, trial)
    use_library_pools(maps.network)
    maps.finish()
    with torch.no_grad():
        interface = Interface.of(network, maps(trial).shape[1])
    in_parts = dtype == "float32" and runs_inner_ops() and uses_tiles()
    report = Report(
        interface.name, dtype, *folded, compiled=False, reason="compile=False", in_parts=in_parts
    )
    if keep_memory:
        report = replace(report, memory_kept=keep_freed_memory())
    if not compile:
        return Deployed(maps, interface, report)
    try:
        check_compiler()
        return _compiled(maps, interface, report)
    except Exception as error:
        if compile is True:
            raise
        reason = str(error).partition("\n")[0]
        warnings.warn(
            f"deploy: the {interface.name} runs uncompiled, which is slower: {reason}",
            RuntimeWarning,
            stacklevel=2,
        )
        return Deployed(maps, interface, replace(report, reason=reason))


def load_deployed(path: str | os.PathLike[str], keep_memory: bool = True) -> Deployed:
    """What `Deployed.save` wrote; needs no compiler.

    Args:
        path: of the file.
        keep_memory: as in `deploy`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no deployment, or one for another PyTorch or processor, or the C++ library
            of attnops that it calls is not installed.
    """
    file = Path(path)
    interface, report = read_facts(file)
    report = replace(report, memory_kept=keep_memory and keep_freed_memory())
    return Deployed(CompiledMaps(file), interface, report, file)


class _Maps(nn.Module):
    """Images, normalised, -> the maps of a network at its own resolution, float32."""

    def __init__(self, network: SegmentationModel, dtype: str) -> None:
        super().__init__()
        self.network = network
        self.half = dtype == "bfloat16"
        self.eval()

    def finish(self) -> None:
        """Lay out the weights, of which convolutions have those of their dtype."""
        self.to(memory_format=torch.channels_last)
        for module in list(self.modules()):
            if isinstance(module, ResidualFeedForward):
                module.lay_out(torch.bfloat16 if self.half else torch.float32)
        for module in self.modules():
            if self.half and type(module) is nn.Conv2d:
                module.to(torch.bfloat16)

    def forward(self, images: Tensor) -> Tensor:
        if not self.half:
            return self.network.logits(images)["out"]
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
            return self.network.logits(images)["out"].float()


def _checked(model: object) -> SegmentationModel:
    network = getattr(model, "_orig_mod", model)  # of a network that torch.compile wraps
    if not isinstance(network, SegmentationModel):
        raise TypeError(
            f"deploy: expected a network of attnops.models, got {type(model).__name__}; "
            "attnops.replace_modules speeds up other networks"
        )
    empty = [name for name, value in network.state_dict().items() if value.is_meta]
    if empty:
        raise ValueError(
            f"deploy: {empty[0]} and {len(empty) - 1} others are on the meta device, without "
            "values; load a checkpoint first"
        )
    return network


def evaluation_copy(network: SegmentationModel, seed: int) -> SegmentationModel:
    """A float32 copy on the CPU, in evaluation mode, without what only training needs, whose maps
    have sizes that compilers can reckon with.
    """
    made = copy.deepcopy(network).cpu().float().eval().requires_grad_(False)
    for name in [name for name, _ in made.named_children() if name.startswith("aux")]:
        setattr(made, name, None)
    for module in made.modules():
        if isinstance(module, Hamburger):
            bases = module.bases
            if bases is None:
                with torch.device("meta"):  # its weights are drawn nowhere
                    bases = Hamburger(module.channels, module.rank, seed=seed, norm_groups=1).bases
            module.bases = bases.detach().cpu().float()
    replace_same_padding(made)
    return made


def _compiled(maps: _Maps, interface: Interface, report: Report) -> Deployed:
    least = max(interface.smallest_side, SMALLEST_SIDE)
    interface = replace(interface, smallest_side=least)
    program = export(maps, interface.in_channels)
    report = replace(report, compiled=True, reason="", fused_ops=fused_ops(program))
    direct = direct_calls(half=maps.half)
    with torch.no_grad():
        program = program.run_decompositions(NORMS | direct)
    drop_checks(program)
    folder = tempfile.TemporaryDirectory(prefix="attnops-")
    package = Path(folder.name) / "network.pt2"
    compile_package(program, package)
    write_facts(package, interface, report, needs_library=bool(direct))
    compiled = CompiledMaps(package)
    with torch.no_grad():
        check_agreement(compiled, maps, interface.in_channels, least, *TOLERANCES[report.dtype])
    return Deployed(compiled, interface, report, package, folder)
