"""Argument types that several commands share."""

from __future__ import annotations

import argparse

import torch

from attnops._console import positive_integer

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def size(text: str) -> tuple[int, int]:
    """ "96x96" -> (96, 96)."""
    try:
        height, width = map(positive_integer, text.split("x"))
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(f"expected HxW such as 96x96, got {text!r}") from None
    return height, width


def first_device(name: str | None, parser: argparse.ArgumentParser) -> torch.device:
    """The device called `name`; None: the GPU if there is one, else the CPU."""
    if name == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no CUDA device found")
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
