"""What every Triton launcher needs: device checks, the device guard, rounding, the launch call."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import triton

from .._op.tape import recorder

MIN_CAPABILITY = (8, 0)  # bf16 tensor cores and asynchronous copies start here

TRITON_DTYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}

INTERPRETED: bool = triton.knobs.runtime.interpret  # kernels are wrapped once, at import
if INTERPRETED:
    from ._interpreter_repairs import repair

    repair()


def refuse_tensor(tensor: torch.Tensor) -> str | None:
    """The reason why no Triton kernel can run on this dtype or device, None if one can."""
    if tensor.dtype not in TRITON_DTYPES:
        name = str(tensor.dtype).removeprefix("torch.")
        return f"triton: {name} is not supported, expected float32, float16 or bfloat16"
    if tensor.device.type == "cpu":
        if INTERPRETED:
            return None
        return "triton: tensors on cpu need TRITON_INTERPRET=1 set before import"
    if tensor.device.type != "cuda":
        return f"triton: device {tensor.device.type} is not supported, expected cuda"
    if torch.version.hip is None:
        capability = capability_of(tensor.device)
        if capability < MIN_CAPABILITY:
            return f"triton: compute capability {capability} is below {MIN_CAPABILITY}"
    return None


@functools.cache
def capability_of(device: torch.device) -> tuple[int, int]:
    """Compute capability of a CUDA device: asking PyTorch each time takes longer than a launch."""
    return torch.cuda.get_device_capability(device)


HOPPER = 9
# What CPU tensors count as: under the interpreter, and where launches are only recorded.
assumed_generation = HOPPER


def generation_of(tensor: torch.Tensor) -> int | None:
    """Major compute capability of the tensor's device, None with ROCm."""
    if tensor.device.type != "cuda":
        return assumed_generation
    return capability_of(tensor.device)[0] if torch.version.hip is None else None


def is_hopper(tensor: torch.Tensor) -> bool:
    """Whether the tensor's device has products of four warps at once."""
    return generation_of(tensor) == HOPPER


_NO_GUARD = contextlib.nullcontext()


def device_guard(tensor: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
    """Makes the tensor's device current: Triton launches on the current one."""
    device = tensor.device
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        return torch.cuda.device(device)
    return _NO_GUARD


@contextlib.contextmanager
def on_device(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Makes the tensors' device current; gives them, those copied that do not start on 16 bytes."""
    with device_guard(tensors[0]):
        yield tuple(map(aligned_storage, tensors))


def round_up(value: int, multiple: int) -> int:
    return triton.cdiv(value, multiple) * multiple


def aligned_storage(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, copied if it does not start on 16 bytes: one variant of a kernel less."""
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


@dataclass(frozen=True)
class Launch:
    """Compile-time part of a launch: constant arguments and compiler options of one kernel.

    `registers` bounds the registers of a thread. Without a bound, ptxas may spill a few for the
    sake of more resident programs; with one it uses all that are needed up to it.
    """

    constants: Mapping[str, Any]
    warps: int
    stages: int = 1
    registers: int | None = None

    @functools.cached_property
    def key(self) -> tuple[Any, ...]:
        """All of it, to look a compiled kernel up."""
        return tuple(self.constants.items()), self.warps, self.stages, self.registers

    def options(self) -> dict[str, int]:
        if torch.version.hip is not None:
            return {"num_warps": self.warps, "num_stages": 1}  # 64 KB of shared memory: one stage
        options = {"num_warps": self.warps, "num_stages": self.stages}
        if self.registers is not None:
            options["maxnreg"] = self.registers
        return options


@dataclass(frozen=True)
class AotCase:
    """One compilation of one kernel: element types of its pointers, types of its other scalars
    than 32-bit integers, and the launch. Pointers start on 16 bytes. `generations`: the major
    compute capabilities that it is launched on, all if None."""

    kernel: Any
    pointers: Mapping[str, str]
    launch: Launch
    scalars: Mapping[str, str] = field(default_factory=dict)
    generations: tuple[int, ...] | None = None

    def runs_on(self, capability: int) -> bool:
        """Whether the case is launched on an architecture (80, 90, ...)."""
        return self.generations is None or capability // 10 in self.generations


# (kernel, device, what the launch and the arguments compile to) -> compiled kernel, and the
# constants that follow the arguments.
_compiled: dict[tuple[Any, ...], tuple[Any, tuple[Any, ...]]] = {}


def run(kernel: Any, programs: int, *args: Any, launch: Launch) -> None:
    """Starts `programs` programs of a kernel on the current device and stream.

    Triton specialises every argument anew in every call; here the compiled kernel is found by one
    key that tells at least as much apart.
    """
    tape = recorder()
    if INTERPRETED:
        start = _interpreted(kernel, programs, launch)
        if tape is None:
            start(args)
        else:
            with tape.paused():  # the interpreter copies tensors
                start(args)
            tape.note_launch(start, args, takes_tensors=True)
        return
    device = triton.runtime.driver.active.get_current_device()
    key = (kernel, device, launch.key, *map(_kind, args))
    found = _compiled.get(key)
    if found is None:
        compiled = kernel[(programs,)](*args, **launch.constants, **launch.options())
        if compiled is None:  # Triton's hooks may keep it from compiling
            if tape is not None:
                tape.is_complete = False
            return
        found = _compiled[key] = compiled, _constants(kernel, len(args), launch.constants)
    else:
        compiled, constants = found
        compiled[(programs, 1, 1)](*args, *constants)
    if tape is not None:
        tape.note_launch(_compiled_start(*found, programs, device), args, takes_tensors=False)


def _interpreted(kernel: Any, programs: int, launch: Launch) -> Callable[[Sequence[Any]], None]:
    return lambda args: kernel[(programs,)](*args, **launch.constants, **launch.options())


def _compiled_start(
    compiled: Any, constants: tuple[Any, ...], programs: int, device: int
) -> Callable[[Sequence[Any]], None]:
    """Starts a compiled kernel again: what Triton's own call does, with less on the way."""
    run, function, metadata = compiled.run, compiled.function, compiled.packed_metadata
    hooks, driver = triton.knobs.runtime, triton.runtime.driver.active

    def start(args: Sequence[Any]) -> None:
        enter, leave = hooks.launch_enter_hook, hooks.launch_exit_hook
        if getattr(enter, "calls", enter) or getattr(leave, "calls", leave):
            compiled[(programs, 1, 1)](*args, *constants)
            return
        stream = driver.get_current_stream(device)
        run(programs, 1, 1, stream, function, metadata, None, None, None, *args, *constants)

    return start


def _kind(value: Any) -> Any:
    """What Triton may compile an argument into, and more: its type, 1, multiples of 16, width."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.data_ptr() % 16 == 0
    if isinstance(value, int) and not isinstance(value, bool):
        return 1 if value == 1 else ("int", value % 16 == 0, value.bit_length() // 32)
    if isinstance(value, (tuple, list)):
        return tuple(map(_kind, value))
    return value if value is None else type(value)


def _constants(kernel: Any, given: int, constants: Mapping[str, Any]) -> tuple[Any, ...]:
    """Values of the parameters behind the first `given` ones, in their order."""
    return tuple(constants.get(p.name, p.default) for p in kernel.params[given:])
