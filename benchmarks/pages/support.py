"""What runs where: op x backend x dtype x pass, and on what evidence."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

import attnops
from attnops import _dispatch
from attnops._backends import cpu, cuda

from ..apnb.run import TABLE as APNB
from ..report.records import FORMAT
from ..static.table import FILE as STATIC

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
PASSES = ("forward", "backward")
BACKENDS = {
    "reference": "reference, plain PyTorch",
    "cpu": "cpu, C++",
    "triton": "triton",
    "cuda": "cuda, C++",
}
# Tables that are not called like the op they time.
TIMED_BY = {APNB: ("pyramid_pool", "anchor_attention")}
MAP = (1, 4, 5, 6)

Call = Callable[[Callable[..., torch.Tensor]], Any]
# The smallest call of every op; its tensors come from the argument, which makes one of a shape.
CALLS: dict[str, Call] = {
    "pyramid_pool": lambda t: attnops.pyramid_pool(t(*MAP)),
    "anchor_attention": lambda t: attnops.anchor_attention(t(*MAP), t(1, 4, 3), t(1, 4, 3)),
    "local_attention": lambda t: attnops.local_attention(t(*MAP), t(*MAP), t(*MAP)),
    "upsample_gate": lambda t: attnops.upsample_gate(t(1, 4, 2, 2), t(*MAP)),
    "group_attention": lambda t: attnops.group_attention(t(*MAP), t(*MAP), t(*MAP), 2),
    "strip_conv": lambda t: attnops.strip_conv(t(*MAP), t(4, 1, 3, 3), t(4)),
    "depthwise_gelu": lambda t: attnops.depthwise_gelu(t(*MAP), t(4, 1, 3, 3)),
    "feed_forward": lambda t: attnops.feed_forward(
        t(*MAP), t(8, 4, 1, 1), t(8, 1, 3, 3), t(4, 8, 1, 1)
    ),
    "nmf": lambda t: attnops.nmf(t(1, 4, 9), t(1, 4, 2)),
    "merge_scales": lambda t: attnops.merge_scales([t(*MAP), t(*MAP)], t(1, 2, 5, 6)),
    "upsample_cross_entropy": lambda t: attnops.upsample_cross_entropy(
        t(*MAP), torch.zeros(1, 9, 9, dtype=torch.int64)
    ),
    "upsample_argmax": lambda t: attnops.upsample_argmax(t(*MAP), 9),
}


def registered(op: str, backend: str) -> tuple[bool, bool]:
    """Whether attnops has a forward and a backward of `op` for `backend`, built here or not."""
    differentiable = _dispatch.is_differentiable(op)
    if backend == "triton":
        has_backward = import_module("attnops.kernels").OPS.get(op)
        return has_backward is not None, bool(has_backward)
    tables = {"cpu": cpu.OPS, "cuda": cuda.OPS}
    has_forward = op in tables.get(backend, CALLS)
    return has_forward, has_forward and differentiable


def _arguments(op: str, dtype: torch.dtype) -> tuple[Any, ...]:
    """What an implementation of `op` gets in its smallest call."""
    seen: list[tuple[Any, ...]] = []
    select = _dispatch.select

    def listen(name: str, device: torch.device, *args: Any) -> _dispatch.Implementation:
        seen.append(args)
        return _dispatch.reference_of(name)

    _dispatch.select = listen
    try:
        CALLS[op](lambda *shape: torch.ones(shape, dtype=dtype))
    finally:
        _dispatch.select = select
    return seen[0]


def _refusal(op: str, backend: str, dtype: torch.dtype) -> str | None:
    if backend == "triton":
        refuse = import_module(f"attnops.kernels.{op}.forward").refuse
    else:
        refuse = {"cpu": cpu.OPS, "cuda": cuda.OPS}[backend][op]
    return refuse(*_arguments(op, dtype))


def takes(op: str, backend: str, dtype: torch.dtype) -> bool:
    """Whether `backend` refuses no more in `dtype` than in float32, wherever the tensors are."""
    if backend == "reference":
        return True
    return _refusal(op, backend, dtype) == _refusal(op, backend, torch.float32)


def _backends_of(op: str, text: str) -> set[str]:
    """Of a row's column `backend`: one name, or "op: backend" for each op."""
    pairs = [part.split(": ") for part in text.split(", ")]
    return {pair[-1] for pair in pairs if len(pair) == 1 or pair[0] == op}


def measured(folder: Path) -> set[tuple[str, str, str, str]]:
    """(op, backend, dtype, pass) of every row of the result files, where attnops was timed."""
    found = set()
    for path in sorted(folder.rglob("*.json")):
        data = json.loads(path.read_text())
        if data.get("format") != FORMAT:
            continue
        for row in (row for row in data["rows"] if row["p50"]):
            passes = PASSES if "backward" in row["direction"] else PASSES[:1]
            for op in TIMED_BY.get(row["table"], (row["table"],)):
                for backend in _backends_of(op, row["backend"]) & set(BACKENDS):
                    found |= {(op, backend, row["dtype"], name) for name in passes}
    return found


def compiled(folder: Path) -> set[tuple[str, str, str, str]]:
    """(op, backend, dtype, pass) of every row of the reports on compiled GPU kernels."""
    files = [path for path in sorted(folder.rglob(STATIC)) if path.name == STATIC]
    rows = [row for path in files for row in json.loads(path.read_text())["rows"]]
    return {(row["op"], row["backend"], row["dtype"], row["pass"]) for row in rows}


def state(
    key: tuple[str, str, str, str], timed: set[tuple[str, ...]], built: set[tuple[str, ...]]
) -> str:
    """The strongest evidence that there is for an implementation that exists."""
    if key in timed:
        return "measured"
    if key[1] in ("reference", "cpu"):
        return "tested"
    return "compiled" if key in built else "emulated"


def matrix(folder: Path) -> dict[tuple[str, str, str], str]:
    """(op, backend, dtype) -> "forward, backward" in words, or one word for both."""
    timed, built = measured(folder), compiled(folder)
    found = {}
    for op in CALLS:
        for backend in BACKENDS:
            exists = registered(op, backend)
            for dtype in DTYPES:
                name = str(dtype).removeprefix("torch.")
                there = exists[0] and takes(op, backend, dtype)
                states = [
                    state((op, backend, name, way), timed, built) if there and has else "none"
                    for way, has in zip(PASSES, exists, strict=True)
                ]
                if not _dispatch.is_differentiable(op):
                    states = states[:1]
                found[op, backend, name] = " / ".join(dict.fromkeys(states))
    return found


def _lines(found: dict[tuple[str, str, str], str], ops: list[str]) -> Iterator[str]:
    names = [str(dtype).removeprefix("torch.") for dtype in DTYPES]
    first = ["op"] if len(ops) > 1 else []
    yield "| " + " | ".join([*first, "backend", *names]) + " |"
    yield "| " + " | ".join("---" for _ in [*first, "backend", *names]) + " |"
    for op in ops:
        for backend, label in BACKENDS.items():
            cells = [found[op, backend, name] for name in names]
            if set(cells) == {"none"} and len(ops) == 1:
                continue
            title = [f"[`{op}`](ops/{op}.md)" if backend == "reference" else ""]
            yield "| " + " | ".join([*(title if first else []), label, *cells]) + " |"


def table(found: dict[tuple[str, str, str], str], ops: list[str]) -> str:
    """The matrix, or the part of one op, as Markdown."""
    return "\n".join(_lines(found, ops))


WORDS = """\
A cell says what is known of forward / backward, or one word for both, the strongest first:

- **measured**: timed on its device, figures in a committed file under `benchmarks/results/`.
- **tested**: the test suite runs it on the processor it is for, against float64 references. No
  timing is committed.
- **compiled**: compiled for GPUs, and the machine code judged
  ([report](../benchmarks/results/static-sm90/static.md)); its results agree with float64 references
  under Triton's interpreter or in the emulation of CUDA. Not yet run on hardware.
- **emulated**: only that: interpreter or emulation, on a CPU. Not yet run on hardware.
- **none**: there is no implementation; `auto` takes another backend, a forced one raises
  `attnops.BackendError`.

What is here and now: `attnops.backends()`, or `attnops env` on the command line. Limits of shapes
stand on the pages of the ops."""


def page(found: dict[tuple[str, str, str], str]) -> str:
    """docs/support.md."""
    head = "# What runs where\n\n<!-- written by `attnops bench pages` -->\n"
    return f"{head}\n{WORDS}\n\n{table(found, list(CALLS))}\n"
