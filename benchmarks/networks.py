"""Whole networks: `predict`, and a training step, against the same network in plain PyTorch.

    python -m attnops.benchmarks networks [--networks NAME,...] [--threads N] [--json FILE]
        [--markdown FILE]

Plain PyTorch is the reference backend, eagerly; on a GPU also under torch.compile. Both run in both
memory formats, and ratios are against the better one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import attnops

from .arguments import first_device, positive_integer
from .measure.timing import time_cpu, time_cuda, time_cuda_graph, time_host
from .report.deliver import add_output_arguments, deliver
from .report.grid import Grid, number
from .report.records import Document, Row, why

TABLE = "networks"
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DEFAULT = {"cpu": "segnext_t", "cuda": "segnext_t,ann_r50,galdv2_r50,sanet_r50"}
CLASSES = 150
CONTENDERS = {"reference": "reference", "attnops": "auto"}
COMPILED = "reference, compiled"


@dataclass(frozen=True)
class Task:
    """What is timed, and on how many images of which size."""

    name: str
    batch: int
    size: tuple[int, int]
    classes: int = CLASSES

    def images(self, device: torch.device) -> Tensor:
        return torch.randn(self.batch, 3, *self.size, device=device)

    def call(self, model: torch.nn.Module, images: Tensor) -> Callable[[], object]:
        if self.name == "predict":
            model.eval()
            return lambda: model.predict(images)
        model.train()
        target = torch.randint(self.classes, (len(images), *images.shape[2:]), device=images.device)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

        def step() -> None:
            optimizer.zero_grad()
            model.loss(model(images), target).backward()
            optimizer.step()

        return step


TASKS = (Task("predict", 1, (512, 512)), Task("training step", 2, (256, 256)))


def measure(
    document: Document,
    networks: Sequence[str],
    device: torch.device,
    seconds: float = 4.0,
    tasks: Sequence[Task] = TASKS,
    dtype: torch.dtype = torch.float32,
    contenders: Mapping[str, str] | None = None,
) -> None:
    """A row for every network, task, memory format and contender.

    Args:
        dtype: half precision is that of autocast.
        contenders: name -> backend; None: all that make sense on the device.
    """
    if contenders is None:
        contenders = CONTENDERS | ({COMPILED: "reference"} if device.type == "cuda" else {})
    for network in networks:
        for task in tasks:
            _measure_task(document, network, task, device, seconds, dtype, contenders)
            document.checkpoint()


def _measure_task(
    document: Document,
    network: str,
    task: Task,
    device: torch.device,
    seconds: float,
    dtype: torch.dtype,
    contenders: Mapping[str, str],
) -> None:
    from attnops.models import create_model

    torch.manual_seed(0)
    model = create_model(network, num_classes=CLASSES).to(device)
    images = task.images(device)
    for layout, memory_format in FORMATS.items():
        model.to(memory_format=memory_format)
        given = images.contiguous(memory_format=memory_format)
        calls, rows = {}, []
        for name, backend in contenders.items():
            call = on_backend(task.call(model, given), backend, name == COMPILED)
            calls[name] = _in_precision(call, device, dtype)
            row = document.new_row(
                TABLE,
                name,
                device.type,
                shape=list(images.shape),
                dtype=str(dtype).removeprefix("torch."),
                layout=layout,
                direction=task.name,
                options=[["network", network]],
            )
            row.backend = backend
            rows.append(row)
            calls[name]()
        if device.type == "cuda":
            for row, call in zip(rows, calls.values(), strict=True):
                _time_on_cuda(row, call, can_be_captured=task.name == "predict")
        else:
            timings = time_cpu(calls, seconds)
            for row, timing in zip(rows, timings.values(), strict=True):
                row.put_timing(timing)
    _put_ratios([row for row in document.rows if row.table == TABLE])


def _time_on_cuda(row: Row, call: Callable[[], object], can_be_captured: bool) -> None:
    row.put_timing(time_cuda(call))
    row.host_p50 = time_host(call, 8).p50
    if can_be_captured:
        try:
            row.put_timing(time_cuda_graph(call), prefix="graph_")
        except RuntimeError as error:
            row.add_note(f"no CUDA graph: {why(error)}")
            torch.cuda.synchronize()


def _put_ratios(rows: Sequence[Row]) -> None:
    """Against every contender of the same input, in its better layout."""
    for row in rows:
        others: dict[str, list[float]] = {}
        for other in rows:
            same = other.input_in_any_layout == row.input_in_any_layout
            if same and other.p50 and other.name != row.name:
                others.setdefault(other.name, []).append(other.p50)
        if row.p50:
            row.ratios |= {name: min(times) / row.p50 for name, times in others.items()}


def _in_precision(
    call: Callable[[], object], device: torch.device, dtype: torch.dtype
) -> Callable[[], object]:
    if dtype == torch.float32:
        return call

    def run() -> object:
        with torch.autocast(device.type, dtype):
            return call()

    return run


def on_backend(
    call: Callable[[], object], backend: str, compiled: bool = False
) -> Callable[[], object]:
    """`call` with the ops on a backend, under torch.compile if asked for."""
    if compiled:
        call = torch.compile(call)

    def run() -> object:
        with attnops.use_backend(backend):
            return call()

    return run


def grid(document: Document) -> Grid:
    found = [row for row in document.rows if row.table == TABLE]
    others = [name for name in (*CONTENDERS, COMPILED) if name != "attnops"]
    others = [name for name in others if any(row.name == name for row in found)]
    header = ["network, task, input", "layout", "contender", "ms p50 [p20, p80]", "graph ms"]
    header += ["launch ms"]
    header += [f"x {name}, better layout" for name in others]
    cells = []
    for row in found:
        shape = "x".join(map(str, row.shape))
        spread = f"{number(row.p50)} [{number(row.p20)}, {number(row.p80)}]"
        spread = spread if row.p50 else row.note or "-"
        ratios = [number(row.ratios.get(name)) for name in others]
        cells.append(
            (
                ", ".join([row.options[0][1], row.direction, shape, *_precision(row)]),
                row.layout,
                row.name,
                spread,
                number(row.graph_p50),
                number(row.host_p50),
                *(ratios if row.name == "attnops" else [""] * len(others)),
            )
        )
    notes = [
        f"{CLASSES} classes; predict: network, resize and labels; training step: forward, loss, "
        "backward and SGD. Reference: the same network on the reference backend."
    ]
    title = f"Whole networks, float32: {found[0].device}"
    return Grid(title, header, cells, notes).without_empty_columns()


def _precision(row: Row) -> list[str]:
    return [] if row.dtype == "float32" else [f"autocast {row.dtype}"]


def main(arguments: Sequence[str]) -> int:
    from attnops.models import list_models

    parser = argparse.ArgumentParser("attnops bench networks", description=__doc__.splitlines()[0])
    parser.add_argument("--networks", help="names, separated by commas")
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=positive_integer, help="CPU threads")
    parser.add_argument("--seconds", type=float, default=4.0, help="time for each row")
    add_output_arguments(parser)
    chosen = parser.parse_args(arguments)
    networks = chosen.networks.split(",") if chosen.networks else None
    unknown = set(networks or ()) - set(list_models())
    if unknown:
        parser.error(f"--networks: no network {sorted(unknown)[0]!r}; `attnops models` lists them")
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    device = first_device(chosen.device, parser)
    networks = networks or DEFAULT[device.type].split(",")
    document = Document()
    measure(document, networks, device, chosen.seconds)
    deliver(document, grid(document), chosen)
    return 0
