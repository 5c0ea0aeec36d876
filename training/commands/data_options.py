"""Options that say which data set, as check and eval take them."""

from __future__ import annotations

import argparse
import ast

from ..data import LAYOUTS, open_data
from ..data.folder import SegmentationSet


def add_data_options(parser: argparse.ArgumentParser, prefix: str = "") -> None:
    """`--layout` and the like, each name behind `prefix` ("data." for train and eval)."""
    group = parser.add_argument_group("data")
    group.add_argument(
        f"--{prefix}layout",
        choices=LAYOUTS,
        default="auto",
        metavar="NAME",
        help=f"how its folders are laid out: {', '.join(LAYOUTS)} (default: auto, by looking)",
    )
    group.add_argument(
        f"--{prefix}images", metavar="PATTERN", help="images below DATA, such as 'photos/*.jpg'"
    )
    group.add_argument(
        f"--{prefix}masks",
        metavar="PATTERN",
        help="their masks, such as 'truth/*_mask.png'; pairs have the same text for the *",
    )
    group.add_argument(
        f"--{prefix}classes",
        type=_classes,
        metavar="NAMES",
        help="names with commas, how many, or a file with one a line",
    )
    group.add_argument(
        f"--{prefix}channels",
        type=int,
        default=3,
        metavar="N",
        help="of the images: 3 (default), 1 for grey, or as many as the files have",
    )
    group.add_argument(
        f"--{prefix}class_map",
        type=_class_map,
        metavar="MAP",
        help="numbers in masks to classes, such as '{0: 255, 7: 0}'; 255: no class",
    )


def open_from(chosen: argparse.Namespace, root: str, prefix: str = "") -> SegmentationSet:
    """The data set that the options of `add_data_options` describe."""
    names = ("layout", "classes", "class_map", "images", "masks", "channels")
    return open_data(root, **{name: getattr(chosen, prefix + name) for name in names})


def _classes(text: str) -> str | int | list[str]:
    if text.isdigit():
        return int(text)
    return [name.strip() for name in text.split(",")] if "," in text else text


def _class_map(text: str) -> dict[int, int]:
    try:
        values = ast.literal_eval(text)
        return {int(number): int(label) for number, label in values.items()}
    except (ValueError, SyntaxError, AttributeError, TypeError):
        raise argparse.ArgumentTypeError(
            f"expected a map of numbers such as '{{0: 255, 7: 0}}', got {text!r}"
        ) from None
