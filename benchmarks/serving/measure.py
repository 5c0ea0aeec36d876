"""One network, precision and setting of glibc, everything in turn in one process.

python -m attnops.benchmarks.serving.measure NETWORK DTYPE HxW SECONDS [CONTENDER ...]: prints rows
as JSON
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from attnops.models import create_model
from attnops.nn import Hamburger

from ..arguments import size
from ..measure.memory import MIB, high_water_mark
from ..measure.timing import time_cpu
from ..report.records import why
from .contenders import CONTENDERS, NotHere

CLASSES = 150


def prepare(network: str, sides: tuple[int, int]) -> tuple[nn.Module, Tensor]:
    """The network with fixed bases, and an image."""
    torch.manual_seed(0)
    model = create_model(network, num_classes=CLASSES).eval()
    for module in model.modules():
        if isinstance(module, Hamburger):
            module.bases = normalize(torch.rand(1, module.channels, module.rank), dim=1)
    images = torch.randn(1, 3, *sides)
    memory_format = torch.channels_last
    return model.to(memory_format=memory_format), images.contiguous(memory_format=memory_format)


def measure(
    network: str, dtype: str, sides: tuple[int, int], seconds: float, names: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """A row for every contender, or those with these names; what cannot run says why."""
    model, images = prepare(network, sides)
    with torch.no_grad():
        expected = model.predict(images)
    rows: dict[str, dict[str, Any]] = {}
    calls = {}
    for name in names or CONTENDERS:
        make = CONTENDERS[name]
        start = time.perf_counter()
        try:
            call = make(model, images, dtype)
            labels = call(images)
        except NotHere as error:
            rows[name] = {"name": name, "note": str(error)}
            continue
        except Exception as error:  # a peer's failure is a result, too
            rows[name] = {"name": name, "note": why(error)}
            continue
        rows[name] = {
            "name": name,
            "ready_s": time.perf_counter() - start,
            "agreement": _agreement(labels, expected),
            "note": getattr(call, "note", ""),
        }
        calls[name] = lambda call=call: call(images)
    for name, timing in time_cpu(calls, seconds).items():
        rows[name] |= asdict(timing)
    return list(rows.values())


def peak(network: str, dtype: str, sides: tuple[int, int], name: str) -> dict[str, Any]:
    """Peak memory of a process that builds one contender and labels three images."""
    model, images = prepare(network, sides)
    call = CONTENDERS[name](model, images, dtype)
    for _ in range(3):
        call(images)
    return {"peak_mib": high_water_mark() / MIB}


def _agreement(labels: Tensor, expected: Tensor) -> float:
    return float((labels.reshape(expected.shape) == expected).double().mean())


def main(arguments: Sequence[str]) -> int:
    network, dtype, sides, task, *names = arguments
    if task in CONTENDERS:
        print(json.dumps(peak(network, dtype, size(sides), task)))
    else:
        print(json.dumps(measure(network, dtype, size(sides), float(task), names)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
