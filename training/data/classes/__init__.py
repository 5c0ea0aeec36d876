"""Classes and colours of published data sets: NAME.txt has a line `name<TAB>red green blue` each.

Colours are those that the data set was published with, otherwise those of Pascal VOC's colour map.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..info import Colour, DataInfo

PUBLISHED_INFO = (
    "cityscapes",
    "ade20k",
    "voc2012",
    "pascal_context",
    "coco_stuff",
    "camvid",
    "pascal_person_part",
)


def published_info(name: str) -> DataInfo:
    """The classes in NAME.txt of this folder."""
    classes, palette = read_classes(Path(__file__).with_name(f"{name}.txt"))
    return DataInfo(name, tuple(classes), tuple(palette))


def read_classes(path: str | Path) -> tuple[list[str], list[Colour]]:
    """Names and colours in a file with a class a line; without colours those of `voc_palette`.

    Raises:
        ValueError: a line is not `name` or `name<TAB>red green blue`.
    """
    lines = [line for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    classes, palette = [], voc_palette(len(lines))
    for number, line in enumerate(lines):
        name, tab, colour = line.partition("\t")
        classes.append(name.strip())
        if tab:
            try:
                red, green, blue = (int(part) for part in colour.split())
            except ValueError:
                raise ValueError(
                    f"{path}: line {number + 1}: expected `name<TAB>red green blue`, got {line!r}"
                ) from None
            palette[number] = (red, green, blue)
    return classes, palette


def voc_palette(count: int) -> list[Colour]:
    """Pascal VOC's colours: the bits of the label, dealt out to red, green and blue."""
    return [_voc_colour(label) for label in range(count)]


def _voc_colour(label: int) -> Colour:
    channels = [0, 0, 0]
    for place in range(8):
        for channel in range(3):
            channels[channel] |= (label >> (3 * place + channel) & 1) << (7 - place)
    return channels[0], channels[1], channels[2]


def numbered(name: str, count: int, classes: Sequence[str] | None = None) -> DataInfo:
    """Classes called by their numbers, or by `classes`, in VOC's colours."""
    names = tuple(classes) if classes is not None else tuple(f"class {i}" for i in range(count))
    return DataInfo(name, names, tuple(voc_palette(count)))
