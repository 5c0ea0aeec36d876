"""`attnops export`: a network as a file that runs without its code."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from attnops.models import export_onnx, export_program
from attnops.models.export import export_deployment

from .network_options import network_of

ENDINGS = {"onnx": ".onnx", "pt2": ".pt2", "aoti": ".pt2"}


def main(arguments: Sequence[str]) -> int:
    chosen = _parser().parse_args(arguments)
    try:
        return _run(chosen)
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        print(f"attnops export: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "attnops export",
        description="Write a network as an ONNX file of standard operators, as a program of "
        "torch.export, or compiled for this machine's processor. The names and colours of its "
        "classes and its normalisation go with it, so that `attnops predict --model FILE` labels "
        "images with it.",
    )
    parser.add_argument("--model", metavar="NAME", help="of `attnops models`")
    parser.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="of `attnops train`, or with --model published weights of any origin that "
        "load_checkpoint knows",
    )
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--size", type=_size, metavar="HxW", help="of the images, such as 512x512 (default: any)"
    )
    group.add_argument(
        "--dynamic", action="store_true", help="for images of any size (the default)"
    )
    parser.add_argument(
        "--format",
        choices=ENDINGS,
        help="onnx, pt2 (a program of torch.export) or aoti (compiled by AOTInductor; any size, "
        "labels; needs a C++ compiler here, none where it runs). Default: onnx or pt2 by the "
        "ending of FILE",
    )
    parser.add_argument(
        "--output",
        choices=("labels", "logits"),
        default="labels",
        help="what the file gives of every pixel (default: labels)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the bases of SegNeXt's Hamburger (default: 0)"
    )
    parser.add_argument(
        "-o", "--out", type=Path, required=True, metavar="FILE", help="ending in .onnx or .pt2"
    )
    parser.set_defaults(device="cpu", threads=None)
    return parser


def _size(text: str) -> tuple[int, int]:
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH such as 512x512, got {text!r}")
    return int(sides[0]), int(sides[1])


def _run(chosen: argparse.Namespace) -> int:
    kind = chosen.format or chosen.out.suffix.lstrip(".")
    if chosen.out.suffix != ENDINGS.get(kind):
        wanted = ENDINGS[chosen.format] if chosen.format else ".onnx or .pt2"
        raise ValueError(f"{chosen.out} must end in {wanted}")
    if kind == "aoti" and (chosen.size or chosen.output != "labels"):
        raise ValueError("--format aoti is for labels of images of any size")
    network, info = network_of(chosen)
    if not chosen.checkpoint:
        print(f"attnops export: {chosen.model} without --checkpoint is untrained", file=sys.stderr)
    description = {"info": info.to_dict()}
    start = time.perf_counter()
    if kind == "aoti":
        export_deployment(network, chosen.out, chosen.seed, description)
    else:
        write = export_onnx if kind == "onnx" else export_program
        write(network, chosen.out, chosen.size, chosen.output, chosen.seed, description)
    size = "any size" if chosen.size is None else "{}x{}".format(*chosen.size)
    print(
        f"{chosen.out}: {network.config['name']}, {chosen.output} of images of {size}, "
        f"{chosen.out.stat().st_size / 2**20:.1f} MiB, {time.perf_counter() - start:.0f} s"
    )
    return 0
