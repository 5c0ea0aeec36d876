"""Rows of the static report: one an input and pass, from the launches that were recorded."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..ops.cases import OpCase, case_of
from .costs import Traffic, is_tensor
from .estimate import Code, Estimate, PieceCost, estimate, load_code

MODELLED = 90  # the architecture that `costs` and `estimate` describe
COPY_BYTES_A_US = 4.3e6  # measured on an H200
# Multiply-adds a microsecond of the unit that can do them: tensor cores for products (float32 in
# three TF32 products), else float32 pipes.
TENSOR = {"bfloat16": 989e6 / 2, "float16": 989e6 / 2, "float32": 495e6 / 2 / 3}
PIPES = 67e6 / 2
PRODUCTS = ("anchor_attention", "local_attention", "nmf")


def floor_us(case: OpCase, direction: str) -> float:
    """Time that bytes or multiply-adds of one pass need at least."""

    def cost(of: str) -> tuple[int, int]:
        one = OpCase(case.op, case.shape, case.dtype, case.layout, of, case.options)
        return one.moved_bytes(), one.macs()

    moved, macs = cost("forward")
    if direction == "backward":
        both = cost("forward+backward")
        moved, macs = both[0] - moved, both[1] - macs
    rate = TENSOR[case.dtype] if case.op in PRODUCTS else PIPES
    return max(moved / COPY_BYTES_A_US, macs / rate)


def _hot(pieces: Sequence[PieceCost], found: Estimate) -> dict[str, Any]:
    """What the hottest piece of code does, of those that do it at all: loads, stores, products.

    Loads and stores by their width in bits; of all bytes that a thread loads, and stores, the share
    in accesses of 128 bits; and instructions of tensor cores.
    """
    hottest_first = sorted(range(len(pieces)), key=lambda i: -found.spent[i])
    tensor = [sum(map(is_tensor, part.piece.instructions)) for part in pieces]
    row: dict[str, Any] = {
        "tensor_instructions": next((tensor[i] for i in hottest_first if tensor[i]), 0)
    }
    for name in ("loads", "stores"):
        widths = [getattr(Traffic.of(part.piece.instructions), name) for part in pieces]
        shown = next((widths[i] for i in hottest_first if widths[i]), {})
        row[name] = {str(bits): count for bits, count in shown.items()}
        total = wide = 0.0
        for trips, counts in zip(found.trips, widths, strict=True):
            total += trips * sum(bits * count for bits, count in counts.items())
            wide += trips * 128 * counts.get(128, 0)
        row[f"wide_{name}"] = round(wide / total, 3) if total else 1.0
    return row


def _kernel(code: Code, launch: dict[str, Any], arch: int) -> dict[str, Any]:
    """The columns of one launch; what follows from a model, for sm_90 alone."""
    row = {
        "kernel": launch["kernel"],
        "programs": launch["programs"],
        "threads": 32 * code.warps,
        "registers": code.registers,
        "shared": code.shared,
        "spills": code.spills,
    }
    if arch == MODELLED:
        row |= {"resident": code.resident, "limit": code.limit}
    loops = launch["loops"]
    if loops is None:
        return row | {"why": launch["why"]}
    found = estimate(code, launch["programs"], loops)
    if arch != MODELLED:
        return row | _hot(code.pieces, found)
    hottest = max(zip(found.spent, code.pieces, strict=True), key=lambda pair: pair[0])[1].piece
    return row | {
        "low_us": round(found.low, 2),
        "high_us": round(found.high, 2),
        "bound_by": found.bound_by,
        "warp_instructions": round(found.instructions),
        "hottest": f"{hottest.file}:{hottest.line}" if hottest.line else "outside loops",
        "hottest_instructions": len(hottest.instructions),
        **_hot(code.pieces, found),
    }


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """A row an input and pass, from what `launches` left in a folder."""
    recorded = json.loads((folder / "launches.json").read_text())
    variants = recorded["variants"]

    @functools.cache
    def code_of(tag: str) -> Code:
        return load_code(folder / f"{tag}.cubin", variants[tag])

    rows = []
    for found in recorded["rows"]:
        case = case_of(found["op"], found)
        kernels = [
            _kernel(code_of(launch["variant"]), launch, recorded["arch"])
            if "variant" in launch
            else dict(launch)
            for launch in found["launches"]
        ]
        floor = floor_us(case, found["pass"])
        row = {key: value for key, value in found.items() if key not in ("launches", "direction")}
        row |= {"floor_us": round(floor, 2), "launches": len(kernels)}
        if all("low_us" in kernel for kernel in kernels):
            row["low_us"] = round(max(floor, sum(k["low_us"] for k in kernels)), 1)
            row["high_us"] = round(max(floor, sum(k["high_us"] for k in kernels)), 1)
            spent = sum(k["warp_instructions"] * k["programs"] * k["threads"] for k in kernels)
            row["instructions_an_element"] = round(spent / torch.Size(case.shape).numel(), 1)
        rows.append(row | {"kernels": kernels})
    return rows
