"""`attnops predict`: labels of images, folders and videos."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from attnops._console import positive_integer
from attnops.models import SegmentationModel

from ..data import DataInfo
from ..data.labels import read_image
from ..prediction import (
    ExportedNetwork,
    Source,
    attention_maps,
    draw_attention,
    find_sources,
    is_exported,
    open_exported,
    overlay,
    read_frames,
    write_labels,
)
from ..prediction.inputs import count_frames
from ..protocol import Protocol
from .network_options import add_network_options, network_of, protocol_of


def main(arguments: Sequence[str]) -> int:
    chosen = _parser().parse_args(arguments)
    try:
        return _run(chosen)
    except ValueError as error:
        print(f"attnops predict: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "attnops predict",
        description="Label images and videos: for each a PNG of labels (a number a pixel, in the "
        "colours of the classes) and the image under these colours with a legend.",
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="IMAGE",
        help="an image, a folder, a pattern such as 'shots/**/*.jpg', or a video",
    )
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="for results")
    parser.add_argument(
        "--opacity", type=_share, default=0.5, help="of the colours, 0 to 1 (default: 0.5)"
    )
    parser.add_argument("--no-overlay", action="store_true", help="labels only")
    parser.add_argument("--no-legend", action="store_true", help="overlays of the image's own size")
    parser.add_argument(
        "--save-attention",
        action="store_true",
        help="also pictures of what the network attends to: weights of scales, affinities of LDv2, "
        "maps of SANet's heads",
    )
    parser.add_argument(
        "--every", type=positive_integer, default=1, metavar="N", help="every N-th frame of videos"
    )
    add_network_options(parser)
    return parser


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}")
    return value


def _run(chosen: argparse.Namespace) -> int:
    sources = find_sources(chosen.inputs)
    _refuse_to_overwrite(sources, chosen.out)
    network, info, labels = _network(chosen)
    failures = 0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns,
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as progress:
        counts = [count_frames(s.path) if s.is_video else 1 for s in sources]
        total = None if None in counts else sum(-(-c // chosen.every) for c in counts)
        task = progress.add_task("predict", total=total, speed="")
        for source in sources:
            try:
                for image, name in _images(source, chosen.every, network.in_channels):
                    _label(chosen, network, info, labels, image, name)
                    progress.advance(task)
                    speed = progress.tasks[0].speed
                    progress.update(task, speed=f"{speed:.2f} images/s" if speed else "")
            except (OSError, ValueError) as error:
                failures += 1
                print(f"attnops predict: {error}", file=sys.stderr)
    done = len(sources) - failures
    print(f"{chosen.out}/: labels of {done} of {len(sources)} files, {info.num_classes} classes")
    return 1 if failures else 0


def _network(
    chosen: argparse.Namespace,
) -> tuple[SegmentationModel | ExportedNetwork, DataInfo, Callable[[Tensor], Tensor]]:
    """The network of the options, its classes, and what gives labels of an image."""
    if is_exported(chosen.model):
        _refuse_what_is_fixed(chosen)
        exported = open_exported(chosen.model, chosen.threads, chosen.device)
        return exported, exported.info, exported.labels
    network, info = network_of(chosen)
    if not chosen.checkpoint:
        print(f"attnops predict: {chosen.model} without --checkpoint is untrained", file=sys.stderr)
    protocol = protocol_of(chosen)
    return network, info, lambda image: protocol.labels(network, image)


def _refuse_what_is_fixed(chosen: argparse.Namespace) -> None:
    """An exported network labels whole images once, as it was written."""
    asked = protocol_of(chosen) != Protocol()
    if asked or chosen.checkpoint or chosen.save_attention:
        raise ValueError(
            f"{chosen.model} is an exported network: it takes no --checkpoint, no options of the "
            "protocol, no --precision and no --save-attention"
        )


def _refuse_to_overwrite(sources: Sequence[Source], out: Path) -> None:
    """An image beside its own result of the same name would be lost."""
    inputs = {source.path.resolve() for source in sources}
    results = {
        (out / f"{source.name}{ending}.png").resolve()
        for source in sources
        for ending in ("", "_overlay")
    }
    if lost := sorted(inputs & results):
        raise ValueError(
            f"{lost[0]} is an input and would be overwritten; give another folder to -o"
        )


def _images(source: Source, every: int, channels: int) -> Iterator[tuple[Tensor, str]]:
    """Pixels and name of the results; of a video's frames their numbers in a folder."""
    if not source.is_video:
        yield read_image(source.path, channels), source.name
        return
    if channels != 3:
        raise ValueError(f"{source.path}: videos have 3 channels, the network takes {channels}")
    for number, image in read_frames(source.path, every):
        yield image, f"{source.name}/{number:06}"


def _label(
    chosen: argparse.Namespace,
    network: SegmentationModel | ExportedNetwork,
    info: DataInfo,
    labels_of: Callable[[Tensor], Tensor],
    image: Tensor,
    name: str,
) -> None:
    torch.manual_seed(chosen.seed)
    labels = labels_of(image)
    write_labels(chosen.out / f"{name}.png", labels, info)
    if not chosen.no_overlay:
        picture = overlay(image, labels, info, chosen.opacity, not chosen.no_legend)
        picture.save(chosen.out / f"{name}_overlay.png")
    if chosen.save_attention:
        torch.manual_seed(chosen.seed)
        found = {k: v for k, v in attention_maps(network, image, info).items() if len(v.maps)}
        if not found:
            print(
                f"attnops predict: {type(network).__name__} has no attention maps to save",
                file=sys.stderr,
            )
            chosen.save_attention = False  # said once
        for module, maps in found.items():
            picture = draw_attention(maps, tuple(image.shape[1:]))
            picture.save(chosen.out / f"{name}_attention_{module}.png")
