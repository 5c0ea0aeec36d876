"""Figure 2 of the ANN paper on this machine: time by kind of operation.

    python -m attnops.benchmarks figure2 [--size 256x128] [--plot FILE] [--json FILE]

Source: Zhu et al., Asymmetric Non-local Neural Networks for Semantic Segmentation (ICCV 2019),
figure 2: the average of 10 runs of the non-local block and of APNB at 256x128. Here the operations
that PyTorch's profiler sees are grouped, and the fused block stands beside the two.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from ..arguments import DTYPES, first_device, positive_integer, size
from ..measure.memory import free_bytes
from ..report.grid import Grid, number, show
from ..report.records import Document
from .cases import (
    EAGER_LINEAR,
    EAGER_NON_LOCAL,
    EAGER_RELEASED,
    OURS_LINEAR,
    OURS_RELEASED,
    Step,
    contenders,
    make_input,
    make_module,
)
from .operations import Block

TABLE = "figure2"
FORMS = {
    "linear": (EAGER_NON_LOCAL, EAGER_LINEAR, OURS_LINEAR),
    "released": (EAGER_NON_LOCAL, EAGER_RELEASED, OURS_RELEASED),
}
# In the order of the picture; an operation belongs to the first kind of MATCHED whose pattern it
# contains. adaptive_avg_pool2d to 1x1 runs as aten::mean.
PATTERNS = {
    "convolutions": r"conv",
    "matrix products": r"::(b|add|badd)?mm|::matmul",
    "softmax": r"softmax",
    "pooling": r"pyramid_pool|_pool|::mean$",
    "norm, activation": r"batch_norm|relu|clamp|threshold",
    "fused attention": r"anchor_attention|scaled_dot_product|flash_attention",
}
MATCHED = ("fused attention", *(kind for kind in PATTERNS if kind != "fused attention"))
OTHER = "copies, other"
KINDS = (*list(PATTERNS)[:-1], OTHER, "fused attention")


def kind_of(operation: str) -> str:
    """The group of an operation that the profiler names."""
    for kind in MATCHED:
        if re.search(PATTERNS[kind], operation):
            return kind
    return OTHER


def time_by_kind(step: Step, device: torch.device, repeats: int) -> dict[str, float]:
    """Milliseconds per run spent in each kind of operation, and "total", their sum."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    step()
    with profile(activities=activities, acc_events=True) as profiler:
        for _ in range(repeats):
            step()
        if on_gpu:
            torch.cuda.synchronize()
    times = dict.fromkeys(KINDS, 0.0)
    for event in profiler.key_averages():
        if event.device_type != DeviceType.CPU:
            continue  # a kernel: its time counts for the operation that launched it
        spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        times[kind_of(event.key)] += spent / 1e3 / repeats
    times["total"] = sum(times.values())
    return times


def measure(
    document: Document,
    block: Block,
    device: torch.device,
    dtype: torch.dtype,
    form: str = "linear",
    repeats: int = 10,
    leave_out: Sequence[str] = (),
) -> dict[str, Any]:
    """Times by kind of the three blocks; also put into `document.parts["figure2"]`, by input.

    A block whose explicit matrices do not fit into memory is left out, with a note.
    """
    x = make_input(block, device, dtype, "contiguous")
    found: dict[str, Any] = {
        "shape": block.shape,
        "dtype": str(dtype).removeprefix("torch."),
        "device": _device_name(document, device),
        "repeats": repeats,
        "blocks": {},
        "notes": [],
    }
    by_name = {contender.name: contender for contender in contenders(())}
    for name in FORMS[form]:
        needed = 3 * block.score_bytes(dtype.itemsize) if name == EAGER_NON_LOCAL else 0
        free = free_bytes(device)
        if name in leave_out or (free is not None and needed > 0.8 * free):
            found["notes"].append(f"{name}: left out, for memory or time")
            continue
        step = Step(make_module(by_name[name], block, device, dtype), x, "forward")
        found["blocks"][name] = time_by_kind(step, device, repeats)
        del step
    key = f"{block.height}x{block.width} {found['dtype']}"
    document.parts.setdefault(TABLE, {})[key] = found
    return found


def _device_name(document: Document, device: torch.device) -> str:
    facts = document.environment
    if device.type == "cuda":
        return facts["cuda"]["devices"][0]["name"]
    return f"{facts['cpu']['model']}, {facts['cpu']['threads']} threads"


def grid(found: dict[str, Any]) -> Grid:
    """The times as text; kinds that no block spends time in are left out."""
    kinds = [*KINDS, "total"]
    height, width = found["shape"][2:]
    title = f"ms by kind of operation, {height}x{width}, {found['dtype']}: {found['device']}"
    cells = []
    for name, times in found["blocks"].items():
        cells.append([name, *(number(times[kind]) if times[kind] else "" for kind in kinds)])
    return Grid(title, ["block", *kinds], cells, list(found["notes"])).without_empty_columns()


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("attnops bench figure2", description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=size, default=(256, 128), metavar="HxW")
    parser.add_argument("--form", choices=FORMS, default="linear")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=positive_integer, help="CPU threads")
    parser.add_argument("--repeats", type=positive_integer, default=10)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--plot", metavar="FILE", default="figure2.png")
    chosen = parser.parse_args(arguments)
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    device = first_device(chosen.device, parser)
    from ..report.plots import plot_kinds

    document = Document()
    block = Block(*chosen.size)
    found = measure(document, block, device, DTYPES[chosen.dtype], chosen.form, chosen.repeats)
    show(grid(found))
    plot_kinds(found, chosen.plot)
    print(f"picture: {chosen.plot}")
    if chosen.json:
        document.save(chosen.json)
    return 0
