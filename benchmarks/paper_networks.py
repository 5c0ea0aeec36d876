"""The whole networks that the papers time, at their sizes, against the same on plain PyTorch.

    python -m attnops.benchmarks paper-networks [CASE...] [--malloc default,kept] [--json FILE]

Each case in channels_last, float32: ANN's table 2, GALD's table IV, SegNeXt's table 11, and three
scales against one of Attention to scale. Plain PyTorch is the reference backend, eagerly.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from attnops.models import create_model

from .arguments import first_device, positive_integer
from .costs.multiply_adds import count
from .measure.floor import measure_rates
from .measure.memory import Case, MemoryUnknown, measure_cpu, measure_cuda
from .measure.timing import time_cpu, time_cuda
from .networks import CONTENDERS, FORMATS, Task, on_backend
from .papers import GALD_4, SCALES, SEGNEXT_11
from .report.children import add_malloc_argument, measured
from .report.deliver import add_output_arguments, deliver
from .report.grid import Grid, number
from .report.records import Document, Row

TABLE = "paper networks"
LAYOUT = "channels_last"
ANN, SEGNEXT = "ann 2048x1024", "segnext 768x1536"
GALD = {"+ ASPP + LDv1": "galdv1 512x512", "+ ASPP + LDv2": "galdv2 512x512"}
THREE_SCALES, ONE_SCALE = "three scales, training", "one scale, training"
SCALES_PREDICT = "three scales, predict"


@dataclass(frozen=True)
class PaperCase:
    """A network with its options, and what is timed of it."""

    network: str
    task: Task
    options: dict[str, Any] = field(default_factory=dict)

    def build(self, device: torch.device) -> nn.Module:
        torch.manual_seed(0)
        model = create_model(self.network, num_classes=self.task.classes, **self.options)
        return model.to(device).to(memory_format=FORMATS[LAYOUT])


def _predict(size: tuple[int, int], classes: int = 19) -> Task:
    return Task("predict", 1, size, classes)


_STEP = Task("training step", 2, (321, 321), 21)
CASES = {
    ANN: PaperCase("ann_r101", _predict((1024, 2048))),
    GALD["+ ASPP + LDv1"]: PaperCase("galdv1_r50", _predict((512, 512))),
    GALD["+ ASPP + LDv2"]: PaperCase("galdv2_r50", _predict((512, 512)), {"ga": "aspp"}),
    SEGNEXT: PaperCase("segnext_t", _predict((768, 1536))),
    THREE_SCALES: PaperCase("deeplab_attention", _STEP),
    ONE_SCALE: PaperCase("deeplab_attention", _STEP, {"scales": (1.0,), "reduce": "mean"}),
    SCALES_PREDICT: PaperCase("deeplab_attention", _predict((321, 321), 21)),
}


def _call(case: PaperCase, contender: str, device: torch.device, model: nn.Module) -> Any:
    images = case.task.images(device).contiguous(memory_format=FORMATS[LAYOUT])
    return on_backend(case.task.call(model, images), CONTENDERS[contender])


def memory_case(title: str, contender: str, size: tuple[int, int], warm: tuple[int, int]) -> Case:
    """A contender on the CPU, for `memory.measure_cpu`; it warms up on a smaller image."""
    cpu = torch.device("cpu")
    case = CASES[title]
    model = case.build(cpu)
    calls = [
        _call(replace(case, task=replace(case.task, size=sides)), contender, cpu, model)
        for sides in (size, warm)
    ]
    return Case(*calls)


def measure(
    document: Document,
    titles: Sequence[str],
    device: torch.device,
    seconds: float,
    memory: bool = True,
    shrink: int = 1,
) -> None:
    """A row for every case and contender.

    Args:
        shrink: divides the sides of the images, for a trial.
    """
    rates = measure_rates(device, torch.float32)
    for title in titles:
        case = CASES[title]
        size = tuple(side // shrink for side in case.task.size)
        case = replace(case, task=replace(case.task, size=size))
        rows = _measure_case(document, title, case, device, seconds)
        for row in rows:
            row.ratios = {r.name: r.p50 / row.p50 for r in rows if r is not row}
            if case.task.name == "predict":
                row.gmac = _gmac(case)
                row.put_floor(rates.floor_ms(0, 1e9 * row.gmac))
            if memory and device.type == "cpu":
                _put_memory(row, title, size)
        document.checkpoint()


def _measure_case(
    document: Document, title: str, case: PaperCase, device: torch.device, seconds: float
) -> list[Row]:
    model = case.build(device)
    calls = {name: _call(case, name, device, model) for name in CONTENDERS}
    rows = []
    for name, backend in CONTENDERS.items():
        row = document.new_row(
            TABLE,
            name,
            device.type,
            shape=[case.task.batch, 3, *case.task.size],
            dtype="float32",
            layout=LAYOUT,
            direction=case.task.name,
            options=[["case", title], ["network", case.network]],
        )
        row.backend = backend
        rows.append(row)
    if device.type == "cuda":
        timings = {name: time_cuda(call) for name, call in calls.items()}
        for row in rows:
            row.put_memory(measure_cuda(Case(calls[row.name], calls[row.name])))
    else:
        timings = time_cpu(calls, seconds)
    for row in rows:
        row.put_timing(timings[row.name])
    return rows


def _gmac(case: PaperCase) -> float:
    """Multiply-adds of the products of one image, in attnops' form."""
    with torch.device("meta"):
        model = create_model(case.network, num_classes=case.task.classes, **case.options)
    return count(model, case.task.size, published=False, auxiliary=False).products / 1e9


def _put_memory(row: Row, title: str, size: tuple[int, int]) -> None:
    warm = tuple(max(min(side, 129), side // 8) for side in size)
    try:
        use = measure_cpu(
            memory_case, timeout=600, title=title, contender=row.name, size=size, warm=warm
        )
        row.put_memory(use)
    except MemoryUnknown as error:
        row.add_note(f"memory unknown: {error}")


def grid(document: Document) -> Grid:
    header = ("case", "contender", "glibc", "ms p50 [p20, p80]", "images a second", "x reference")
    header += ("% of floor", "MiB beyond weights and images", "note")
    result = Grid("The networks that the papers time, float32, channels_last", header)
    for row in document.rows:
        if row.table != TABLE:
            continue
        spread = f"{number(row.p50)} [{number(row.p20)}, {number(row.p80)}]"
        result.cells.append(
            (
                f"{dict(row.options)['case']}, {row.hardware}",
                row.name,
                row.malloc,
                spread,
                number(1e3 * row.shape[0] / row.p50),
                number(row.ratios.get("reference")),
                number(row.floor_percent),
                number(row.memory_above_inputs),
                row.note,
            )
        )
    result.notes = [
        f"Papers: {table.title} ({table.hardware})" for table in (GALD_4, SEGNEXT_11, SCALES)
    ]
    return result.without_empty_columns()


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        "attnops bench paper-networks", description=__doc__.splitlines()[0]
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(map(repr, CASES)))
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=positive_integer, help="CPU threads")
    parser.add_argument("--seconds", type=float, default=4.0, help="time for each row")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory out")
    parser.add_argument("--shrink", type=positive_integer, default=1, help="divides the sides")
    add_malloc_argument(parser)
    add_output_arguments(parser)
    chosen = parser.parse_args(arguments)
    unknown = [title for title in chosen.cases if title not in CASES]
    if unknown:
        parser.error(f"no case {unknown[0]!r}; expected some of {', '.join(map(repr, CASES))}")
    status = 0
    if chosen.malloc:
        document, status = measured(["paper-networks", *arguments], chosen.malloc)
    else:
        if chosen.threads:
            torch.set_num_threads(chosen.threads)
        document = Document()
        device = first_device(chosen.device, parser)
        titles = chosen.cases or list(CASES)
        measure(document, titles, device, chosen.seconds, not chosen.no_memory, chosen.shrink)
    deliver(document, grid(document), chosen)
    return status
