"""Driving the public ops onto their Triton kernels without a GPU.

Every launcher calls `run` of `attnops.kernels`; here a function of one's own takes its place, on
CPU tensors, and the choice of an implementation always falls on Triton.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from attnops import _dispatch

from ..ops.cases import OpCase
from ..ops.definitions import DEFINITIONS
from ..ops.definitions._definition import OURS, Draw

# Of what runs beside the kernels, these launch nothing.
_FREE = (
    *("view", "as_strided", "permute", "transpose", "t.", "slice", "select", "expand", "squeeze"),
    *("unsqueeze", "detach", "split", "alias", "reshape", "movedim", "empty", "new_empty"),
    *("unbind", "_unsafe_view", "narrow", "is_", "sym_", "_has", "flatten", "unflatten"),
    *("_local_scalar_dense",),
)

_UNFILLED = ("aten.empty", "aten.new_empty")
_COMPOSITE = "CompositeImplicitAutograd"

Run = Callable[..., None]


def kernel_modules() -> list[ModuleType]:
    """Every module of `attnops.kernels` that may launch or define a kernel."""
    package = importlib.import_module("attnops.kernels")
    names = [info.name for info in pkgutil.walk_packages(package.__path__, "attnops.kernels.")]
    parts = [name for name in names if "aot" not in name and "_interpreter" not in name]
    return [importlib.import_module(name) for name in parts]


class Recorder(TorchDispatchMode):
    """Notes every ATen kernel that would run beside those of attnops."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        kwargs = kwargs or {}
        if torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), _COMPOSITE):
            with self:  # `contiguous`, `to`: whether they copy shows in what they call
                return function.decompose(*args, **kwargs)
        name = str(function)
        if name.startswith("aten.") and not name.removeprefix("aten.").startswith(_FREE):
            self.names.append(name.removeprefix("aten."))
        result = function(*args, **kwargs)
        # What no kernel fills here must not change how one is followed from run to run.
        return result.zero_() if name.startswith(_UNFILLED) else result


@contextmanager
def on_triton(run: Run, arch: int) -> Iterator[Recorder]:
    """Within the block, ops on CPU tensors take their Triton implementation, and `run` launches.

    Launchers choose as they do on `arch` (80, 90, ...).

    Yields what notes the ATen kernels that run inside the implementations.
    """
    recorder = Recorder()
    registered = _dispatch._registry.implementations
    before = dict(registered)
    select = _dispatch.select

    def within(function: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(*args: Any) -> Any:
            with recorder:
                return function(*args)

        return recorded

    for key, implementation in before.items():
        if key[1] == "triton":
            backward = implementation.backward
            registered[key] = replace(
                implementation,
                forward=within(implementation.forward),
                backward=backward and within(backward),
            )
    on_cpu_alone = importlib.import_module("attnops.upsample_cross_entropy")
    check_range, on_cpu_alone._check_range = on_cpu_alone._check_range, lambda *args: None
    modules = [module for module in kernel_modules() if hasattr(module, "run")]
    launchers = {module: module.run for module in modules}
    launch = importlib.import_module("attnops.kernels._launch")
    generation, launch.assumed_generation = launch.assumed_generation, arch // 10
    for module in modules:
        module.run = run
    _dispatch.select = lambda op, device, *args: registered[op, "triton"]
    try:
        yield recorder
    finally:
        _dispatch.select = select
        launch.assumed_generation = generation
        on_cpu_alone._check_range = check_range
        registered.update(before)
        for module, function in launchers.items():
            module.run = function


class Blank(Draw):
    """Draws zeros: only shapes, dtypes and layouts count here."""

    def normal(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def map(self, *shape: int) -> Tensor:
        return self.normal(*shape).contiguous(memory_format=self.memory_format)

    def structured_map(self, *shape: int) -> Tensor:
        return self.map(*shape)

    def labels(self, classes: int, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.int64, device=self.device)


def passes(case: OpCase, device: str = "cpu") -> Iterator[tuple[str, Callable[[], None]]]:
    """("forward", call) and, where the case has one, ("backward", call), to be called in order."""
    definition = DEFINITIONS[case.op]
    draw = Blank(torch.device(device), getattr(torch, case.dtype), case.layout)
    inputs = definition.inputs(draw, case.shape, **dict(case.options))
    count = definition.differentiable if case.has_backward else 0
    inputs = [x.detach().requires_grad_() if i < count else x for i, x in enumerate(inputs)]
    out: list[Tensor] = []

    def forward() -> None:
        out.append(definition.functions[OURS](*inputs, **dict(case.options)))

    yield "forward", forward
    if count:
        gradient = torch.zeros_like(out[0])
        yield "backward", lambda: out[0].backward(gradient)
