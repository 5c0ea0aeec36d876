"""Table IV of the GALD paper, as far as heads alone go: time and parameters on a 512x512 image.

    python -m attnops.benchmarks gald-table [--threads N] [--json FILE] [--markdown FILE]

The heads run on the backbone's output for a 512x512 image, [1, 2048, 64, 64]. The paper's figures
are of whole networks (ResNet-50, V100), so only differences between rows compare.

Source: Li et al., Global Aggregation then Local Distribution for Scene Parsing (TIP 2021).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import attnops
from attnops.nn import ASPP, DynamicLocalDistribution, LocalDistribution
from attnops.nn.functional import conv_bn_relu

from .arguments import first_device, positive_integer
from .measure.timing import time_cpu, time_cuda
from .papers import ADDED, GALD_4, MILLION, MS
from .report.deliver import add_output_arguments, deliver
from .report.grid import Grid, number
from .report.records import Document

TABLE = "gald"
SHAPE = (1, 2048, 64, 64)
WIDTH, CLASSES = 512, 19


class Head(nn.Module):
    """A 3x3 convolution, or ASPP and a local distribution, then the classifier."""

    def __init__(self, aspp: bool, distribution: nn.Module | None) -> None:
        super().__init__()
        self.reduce = ASPP(SHAPE[1]) if aspp else conv_bn_relu(SHAPE[1], WIDTH, 3)
        self.distribution = distribution
        dynamic = isinstance(distribution, DynamicLocalDistribution)
        # LDv2 takes the reduced features of the backbone as well, and they enter the classifier.
        self.local = conv_bn_relu(SHAPE[1], WIDTH, 1) if dynamic else None
        self.classify = nn.Conv2d(2 * WIDTH if dynamic else WIDTH, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = self.reduce(x)
        if self.local is not None:
            local = self.local(x)
            features = torch.cat([self.distribution(features, local), local], dim=1)
        elif self.distribution is not None:
            features = self.distribution(features)
        return self.classify(features)


def heads() -> dict[str, nn.Module]:
    return {
        "FCN": Head(False, None),
        "+ ASPP": Head(True, None),
        "+ ASPP + LDv1": Head(True, LocalDistribution(WIDTH)),
        "+ ASPP + LDv2": Head(True, DynamicLocalDistribution(WIDTH)),
    }


def measure(document: Document, device: torch.device, seconds: float = 2.0) -> None:
    """A row for every head, and for every head on the reference backend."""
    x = torch.randn(SHAPE, device=device)
    calls, rows = {}, []
    for name, head in heads().items():
        head = head.to(device).eval()
        parameters = sum(p.numel() for p in head.parameters()) / 1e6
        for backend in ("auto", "reference"):
            row = document.new_row(TABLE, name, device.type, shape=list(SHAPE), dtype="float32")
            row.backend = backend
            row.paper = {"time_ms": GALD_4.rows[name][MS]}
            row.options = [["parameters_million", parameters]]

            def call(head: nn.Module = head, backend: str = backend) -> Tensor:
                with torch.no_grad(), attnops.use_backend(backend):
                    return head(x)

            call()
            calls[f"{name}, {backend}"] = call
            rows.append(row)
    if device.type == "cuda":
        timings = {name: time_cuda(call) for name, call in calls.items()}
    else:
        timings = time_cpu(calls, seconds)
    for row, timing in zip(rows, timings.values(), strict=True):
        row.put_timing(timing)


def grid(document: Document) -> Grid:
    header = ("head", "M parameters", "ms", "ms, reference", "paper: ms", "paper: parameters")
    found = {(row.name, row.backend): row for row in document.rows if row.table == TABLE}
    cells = []
    for name in dict.fromkeys(name for name, _ in found):
        ours, reference = found[name, "auto"], found[name, "reference"]
        printed = GALD_4.rows[name]
        claim = f"{printed[MILLION]} M" if MILLION in printed else ""
        claim = f"+{printed[ADDED]} M" if ADDED in printed else claim
        cells.append(
            (
                name,
                number(ours.options[0][1], 4),
                number(ours.p50),
                number(reference.p50),
                number(ours.paper.get("time_ms")),
                claim,
            )
        )
    notes = [
        "Heads on [1, 2048, 64, 64], 19 classes; the paper's figures are of whole networks on a "
        "V100, with parameters that no reading of the text reproduces exactly.",
        "LDv2 here has its three projections (1.57 M) and a 1x1 reduction of the backbone's map.",
    ]
    device = document.rows[0].device
    return Grid(f"GALD, table IV, heads alone, float32: {device}", header, cells, notes)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        "attnops bench gald-table", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=positive_integer, help="CPU threads")
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each row")
    add_output_arguments(parser)
    chosen = parser.parse_args(arguments)
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    document = Document()
    measure(document, first_device(chosen.device, parser), chosen.seconds)
    deliver(document, grid(document), chosen)
    return 0
