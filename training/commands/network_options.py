"""Options that say which network, on which device and by which protocol; for eval and predict."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from attnops.models import SegmentationModel, create_model, load_checkpoint

from ..data import DataInfo
from ..data.classes import PUBLISHED_INFO, numbered, published_info
from ..engine.loading import load_trained
from ..protocol import PRECISIONS, Protocol


def add_network_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("network")
    group.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="a checkpoint of `attnops train`; with --model published weights, of any origin that "
        "load_checkpoint knows",
    )
    group.add_argument(
        "--model",
        metavar="NAME",
        help="of `attnops models`, where FILE does not say it; for predict also a file of "
        "`attnops export`",
    )
    group.add_argument("--device", help="such as cpu or cuda:1 (default: a GPU if there is one)")
    group.add_argument(
        "--precision", choices=PRECISIONS, default="32", help="bf16 and 16 run under autocast"
    )
    group.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    group = parser.add_argument_group("protocol")
    group.add_argument(
        "--scales", type=float, nargs="+", default=[1.0], metavar="S", help="of the image"
    )
    group.add_argument("--flip", action="store_true", help="also the mirrored image")
    group.add_argument(
        "--window", type=int, nargs=2, metavar=("H", "W"), help="sliding windows of this size"
    )
    group.add_argument(
        "--stride", type=int, nargs=2, metavar=("H", "W"), help="of them (default: 3/4 of it)"
    )
    group.add_argument(
        "--base_size",
        type=int,
        nargs=2,
        metavar=("LONG", "SHORT"),
        help="resize images into these sides first, such as 2048 512 for ADE20K; labels keep the "
        "image's size",
    )
    group.add_argument(
        "--seed", type=int, default=0, help="of random numbers that a network draws (default: 0)"
    )


def protocol_of(chosen: argparse.Namespace) -> Protocol:
    def pair(values: list[int] | None) -> tuple[int, int] | None:
        return None if values is None else (values[0], values[1])

    return Protocol(
        tuple(chosen.scales),
        chosen.flip,
        pair(chosen.window),
        pair(chosen.stride),
        pair(chosen.base_size),
        chosen.precision,
    )


def network_of(
    chosen: argparse.Namespace, data: DataInfo | None = None
) -> tuple[SegmentationModel, DataInfo]:
    """The network of the options, on its device and in evaluation mode, and its classes.

    Args:
        chosen: with the options of `add_network_options`.
        data: classes of the data set, where there is one: those of weights that do not say theirs.

    Raises:
        ValueError: options that do not name a network, or a file that is none.
        FileNotFoundError: there is no such file.
    """
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    if chosen.checkpoint and not Path(chosen.checkpoint).exists():
        raise FileNotFoundError(f"{chosen.checkpoint}: no such checkpoint")
    if not (chosen.model or chosen.checkpoint):
        raise ValueError("give --checkpoint FILE (of `attnops train`) or --model NAME")
    trained = _trained(chosen)
    if trained is not None:
        network, info = trained
    else:
        options = {} if data is None else {"num_classes": data.num_classes}
        network = create_model(chosen.model, **options).eval()
        info = data or _info_of(network)
        if chosen.checkpoint:
            load_checkpoint(network, chosen.checkpoint)
    name = chosen.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return network.to(name, memory_format=torch.channels_last), info
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name}: {str(error).splitlines()[0]}") from error


def _trained(chosen: argparse.Namespace) -> tuple[SegmentationModel, DataInfo] | None:
    """What a checkpoint of `attnops train` holds, which says itself how its network is made and
    its images are normalised; None for weights of another origin.
    """
    if not chosen.checkpoint:
        return None
    if chosen.model is None:
        return load_trained(chosen.checkpoint)
    try:
        network, info = load_trained(chosen.checkpoint)
    except ValueError:
        return None
    if network.config["name"] != chosen.model:
        raise ValueError(
            f"{chosen.checkpoint} holds a {network.config['name']}, not a {chosen.model}; leave "
            "--model out"
        )
    return network, info


def _info_of(network: SegmentationModel) -> DataInfo:
    """Published classes of that number, else numbers."""
    count = network.config["num_classes"]
    infos = map(published_info, PUBLISHED_INFO)
    return next((info for info in infos if info.num_classes == count), numbered("unnamed", count))


def check_classes(trained: DataInfo, data: DataInfo) -> str | None:
    """What to say of classes whose names differ; None if all is well.

    Raises:
        ValueError: they are not equally many.
    """
    if trained.num_classes != data.num_classes:
        raise ValueError(
            f"the checkpoint has {trained.num_classes} classes ({_some(trained)}) but "
            f"{data.name} has {data.num_classes} ({_some(data)})"
        )
    differing = [f"{a} / {b}" for a, b in zip(trained.classes, data.classes, strict=True) if a != b]
    if not differing:
        return None
    return f"classes of the checkpoint and of {data.name} differ in name: {', '.join(differing)}"


def _some(info: DataInfo) -> str:
    return ", ".join(info.classes[:4]) + (", ..." if info.num_classes > 4 else "")
