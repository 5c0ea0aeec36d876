"""Which data set a folder holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from .classes import numbered, read_classes
from .folder import SegmentationFolder, SegmentationSet
from .folders import is_folder_of_masks, open_folder
from .info import DataInfo
from .labels import LabelMap
from .layouts import INSIDE, PUBLISHED
from .shapes import Shapes

LAYOUTS = ("auto", *PUBLISHED, "folder", "shapes")


def open_data(
    root: str | Path,
    layout: str = "auto",
    classes: Sequence[str] | str | int | None = None,
    class_map: Mapping[int, int] | None = None,
    images: str | None = None,
    masks: str | None = None,
    size: tuple[int, int] = (160, 160),
    seed: int = 0,
    channels: int = 3,
) -> SegmentationSet:
    """The data set in `root`.

    Args:
        root: its folder; "shapes" for the generated data set.
        layout: one of `LAYOUTS`; "auto" looks at the folders.
        classes: names of the classes, a text file with a line each, or how many there are, instead
            of those that the layout has.
        class_map: number in label files -> label, 255 for pixels without a class, instead of what
            the layout says; numbers that are not in it are unknown, 255 stays 255.
        images: with `masks`: patterns of files below `root`, such as "photos/*.jpg" and
            "truth/*_mask.png", paired by what their wildcards stand for. `{split}` in both stands
            for the name of a split.
        masks: see `images`.
        size: (height, width) of the generated images.
        seed: of the generated images.
        channels: of the images: 3, 1 (grey), or as many as the files have.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it has no layout that is known, or options that do not fit.

    Example:
        >>> from attnops.training.data import open_data
        >>> data = open_data("shapes")
        >>> image, mask = data.split("val")[0]
        >>> image.shape, mask.shape
        (torch.Size([3, 160, 160]), torch.Size([160, 160]))
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    folder = Path(root).expanduser()
    if layout == "shapes" or (layout == "auto" and str(root) == "shapes" and not folder.exists()):
        if channels != 3:
            raise ValueError(f"shapes has 3 channels, channels={channels} was asked for")
        return Shapes(size=size, seed=seed)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no such folder; give the folder of a data set, or `shapes` for the "
            "generated one"
        )
    data = _open(folder, layout, class_map, images, masks)
    if classes is not None:
        info = _renamed(data.info, classes)
        labels = data.labels
        if not class_map and data.layout == "folder":
            labels = LabelMap.identity(info.num_classes)
        data.info, data.labels = info, labels
    data.channels = channels
    highest = max((v for v in data.labels.known.values() if v != 255), default=0)
    if highest >= data.info.num_classes:
        raise ValueError(
            f"{folder}: labels go up to {highest}, but there are {data.info.num_classes} classes; "
            "name more classes or change class_map"
        )
    return data


def _open(
    folder: Path,
    layout: str,
    class_map: Mapping[int, int] | None,
    images: str | None,
    masks: str | None,
) -> SegmentationFolder:
    if images is not None or masks is not None:
        return open_folder(folder, images or "", masks, class_map)
    if layout == "folder":
        if not is_folder_of_masks(folder):
            raise ValueError(_unknown(folder))
        return open_folder(folder, class_map=class_map)
    names = PUBLISHED if layout == "auto" else [layout]
    for name in names:
        for inside in INSIDE:
            root = folder / inside
            if all((root / mark).is_dir() for mark in PUBLISHED[name].marks):
                data = PUBLISHED[name].open(root)
                data.labels = LabelMap(class_map) if class_map else data.labels
                return data
    if layout == "auto" and is_folder_of_masks(folder):
        return open_folder(folder, class_map=class_map)
    if layout == "auto":
        raise ValueError(_unknown(folder))
    expected = " and ".join(f"{mark}/" for mark in PUBLISHED[layout].marks)
    raise ValueError(f"{folder}: not {layout}: expected {expected} in it, {_contents(folder)}")


def _contents(folder: Path) -> str:
    names = [path.name + ("/" if path.is_dir() else "") for path in sorted(folder.iterdir())]
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"found {', '.join(names[:8]) or 'nothing'}{more}"


def _unknown(folder: Path) -> str:
    known = "; ".join(f"{name}: {', '.join(layout.marks)}" for name, layout in PUBLISHED.items())
    return (
        f"{folder}: no layout that is known: {_contents(folder)}. Expected images/ and masks/ "
        f"(perhaps with train/ and val/ in both), or the folders of a published data set ({known}),"
        " or two patterns of files, images= and masks="
    )


def _renamed(info: DataInfo, classes: Sequence[str] | str | int) -> DataInfo:
    if isinstance(classes, int):
        return numbered(info.name, classes)
    if isinstance(classes, str):
        names, palette = read_classes(classes)
        return DataInfo(info.name, tuple(names), tuple(palette))
    return numbered(info.name, len(classes), classes)
