"""One network and precision, everything in turn in one process.

python -m attnops.benchmarks.serving.measure NETWORK DTYPE HxW SECONDS SETTING,... [CONTENDER ...]:
prints rows as JSON, by the setting of glibc
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
from attnops.models.deploy.memory import keep_freed_memory
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
    network: str,
    dtype: str,
    sides: tuple[int, int],
    seconds: float,
    names: Sequence[str] = (),
    settings: Sequence[str] = ("default",),
) -> dict[str, list[dict[str, Any]]]:
    """By setting of glibc, a row for every contender or those with these names.

    What cannot run says why. The settings take turns behind each other, with one compilation of
    each contender: "default" first, since a process that keeps freed memory keeps it for its life.
    """
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
    found = {}
    for setting in sorted(settings):
        if setting == "kept" and not keep_freed_memory():
            raise RuntimeError("only glibc can be told to keep freed memory: --malloc default")
        times = {name: asdict(timing) for name, timing in time_cpu(calls, seconds).items()}
        found[setting] = [row | times.get(name, {}) for name, row in rows.items()]
    return found


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
    network, dtype, sides, task, *rest = arguments
    if task in CONTENDERS:
        found = peak(network, dtype, size(sides), task)
    else:
        settings, *names = rest
        found = measure(network, dtype, size(sides), float(task), names, settings.split(","))
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
