"""`attnops eval`: how well a network labels a data set."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch.utils.data import Subset

from attnops._console import positive_integer

from ..data import DataInfo
from ..evaluation import Evaluation, evaluate
from ..metrics import RADII, confusion
from .data_options import add_data_options, open_from
from .network_options import add_network_options, check_classes, network_of, protocol_of

TOTALS = {"mIoU": "mIoU", "accuracy": "accuracy", "mean_accuracy": "mean accuracy"}


def main(arguments: Sequence[str]) -> int:
    parser = _parser()
    chosen = parser.parse_args(arguments)
    rank, world_size = _processes(chosen)
    try:
        return _run(chosen, rank, world_size)
    except ValueError as error:
        print(f"attnops eval: {error}", file=sys.stderr)
        return 1
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "attnops eval",
        description="Label the images of a data set and compare: mIoU, accuracies, a table of the "
        "classes, the confusion matrix. Under torchrun the images are shared out to its processes.",
    )
    parser.add_argument(
        "--data.root",
        dest="root",
        metavar="DIR",
        required=True,
        help="folder of the data set, or `shapes`",
    )
    parser.add_argument(
        "--data.split",
        dest="split",
        metavar="NAME",
        help="default: the one that results are reported of, such as test of CamVid, val of others",
    )
    parser.add_argument(
        "--data.limit", dest="limit", type=positive_integer, metavar="N", help="the first N images"
    )
    parser.add_argument(
        "--data.num_workers",
        dest="num_workers",
        type=int,
        default=1,
        metavar="N",
        help="processes that read images (default: 1)",
    )
    parser.add_argument(
        "--boundary",
        type=positive_integer,
        nargs="*",
        metavar="PIXELS",
        help="also F-scores of the boundaries within so many pixels "
        f"(default: {' '.join(map(str, RADII))})",
    )
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        metavar="DIR",
        help="for scores.json, confusion.csv and confusion.png "
        "(default: eval-DATA-SPLIT beside the checkpoint, or here)",
    )
    add_network_options(parser)
    add_data_options(parser, "data.")
    return parser


def _processes(chosen: argparse.Namespace) -> tuple[int, int]:
    """Number of this process and how many there are, as torchrun says."""
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    if world_size == 1:
        return 0, 1
    if chosen.device is None and torch.cuda.is_available():
        chosen.device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    on_gpu = (chosen.device or "cpu").startswith("cuda")
    torch.distributed.init_process_group("nccl" if on_gpu else "gloo")
    return torch.distributed.get_rank(), world_size


def _run(chosen: argparse.Namespace, rank: int, world_size: int) -> int:
    data = open_from(chosen, chosen.root, "data.")
    name = chosen.split or data.evaluation_split
    split = data.split(name)
    whole = len(split)
    network, info = network_of(chosen, data.info)
    if (warning := check_classes(info, data.info)) and rank == 0:
        print(f"attnops eval: {warning}", file=sys.stderr)
    if chosen.limit is not None and chosen.limit < len(split):
        split = Subset(split, range(chosen.limit))
    radii = () if chosen.boundary is None else tuple(chosen.boundary or RADII)
    with Progress(console=Console(stderr=True), transient=True, disable=rank != 0) as progress:
        task = progress.add_task(f"{data.info.name} {name}", total=-(-len(split) // world_size))
        found = evaluate(
            network,
            split,
            data.info.num_classes,
            protocol_of(chosen),
            radii,
            chosen.num_workers,
            chosen.seed,
            rank,
            world_size,
            lambda count: progress.update(task, completed=count),
        )
    if rank == 0:
        out = chosen.out or _default_folder(chosen, data.info.name, name)
        _write(out, found, data.info, radii, f"{data.info.name} {name}")
        show(found, data.info, radii, Console(soft_wrap=True))
        totals = "  ".join(f"{text} {_figure(found.scores[k])}" for k, text in TOTALS.items())
        print(
            f"{totals}  ({data.info.name} {name}: {found.images} of {whole} images, "
            f"{found.images_per_second * world_size:.2f} images/s)"
        )
        print(f"{out}/: scores.json, confusion.csv, confusion.png")
    return 0


def _default_folder(chosen: argparse.Namespace, data: str, split: str) -> Path:
    beside = Path(chosen.checkpoint).parent if chosen.checkpoint else Path()
    return beside / f"eval-{data}-{split}"


def _figure(value: Any) -> str:
    return "-" if math.isnan(value) else f"{float(value):.4f}"


def show(found: Evaluation, info: DataInfo, radii: Sequence[int], console: Console) -> None:
    """A table of the classes."""
    table = Table("", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("class", no_wrap=True)
    for column in ("IoU", "accuracy", "share", *(f"F {radius}px" for radius in radii)):
        table.add_column(column, justify="right", no_wrap=True)
    scores = found.scores
    shares = scores["confusion"].sum(1) / scores["confusion"].sum().clamp(min=1)
    for index, name in enumerate(info.classes):
        row = [_figure(scores[key][index]) for key in ("IoU", "class_accuracy")]
        row += [f"{float(shares[index]):.2%}"]
        row += [_figure(of[index]) for of in scores.get("boundary", ())]
        table.add_row(str(index), name, *row)
    if radii:
        means = [_figure(of.mean()) for of in scores["boundary"]]
        table.add_section()
        table.add_row("", "mean", _figure(scores["mIoU"]), "", "", *means)
    console.print(table)


def _write(out: Path, found: Evaluation, info: DataInfo, radii: Sequence[int], title: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    scores = found.scores
    values: dict[str, Any] = {name: _plain(scores[name]) for name in TOTALS}
    values |= {"images": found.images, "images_per_second": found.images_per_second}
    for key in ("IoU", "class_accuracy"):
        values[key] = dict(zip(info.classes, _plain(scores[key]), strict=True))
    for radius, row in zip(radii, scores.get("boundary", ()), strict=True):
        values[f"boundary_{radius}px"] = dict(zip(info.classes, _plain(row), strict=True))
    (out / "scores.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    confusion.write_csv(out / "confusion.csv", scores["confusion"], info)
    text = f"{title}: mIoU {_figure(scores['mIoU'])}, % of each class"
    confusion.draw(out / "confusion.png", scores["confusion"], info, text)


def _plain(values: torch.Tensor) -> Any:
    """Numbers, and None for what is not defined."""
    if values.ndim:
        return [_plain(value) for value in values]
    return None if values.isnan() else float(values)
