"""Any folder of images and masks: by the names of its folders, or by two patterns."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from .classes import numbered, read_classes
from .folder import Pair, SegmentationFolder
from .info import DataInfo
from .labels import IGNORED, LabelMap, read_labels
from .layouts import IMAGES

MASKS = ("masks", "labels", "annotations")
SPLITS = ("train", "val", "test")
OTHER_NAMES = {"training": "train", "validation": "val", "valid": "val", "testing": "test"}
VALIDATION_SHARE = 5  # one image in so many is for validation where the folder does not say

Paths = dict[str, list[Pair]]


def is_folder_of_masks(root: Path) -> bool:
    return bool(_places(root))


def open_folder(
    root: Path,
    images: str | None = None,
    masks: str | None = None,
    class_map: Mapping[int, int] | None = None,
) -> SegmentationFolder:
    """Pairs beneath `root`, by folders called images and masks or by two patterns.

    Classes are those in `root/classes.txt`, as many as `class_map` has, or as the masks hold.
    """
    paths = _by_names(root) if images is None else _by_patterns(root, images, masks or "")
    info = _info(root, [pair for pairs in paths.values() for pair in pairs], class_map)
    labels = LabelMap(class_map) if class_map else LabelMap.identity(info.num_classes)
    return SegmentationFolder(info, paths, labels, root, "folder")


def _places(root: Path) -> dict[str, tuple[Path, Path]]:
    """Split -> folders of images and masks; "" where the folder has no splits."""
    found = {}
    for name in MASKS:
        images, masks = root / "images", root / name
        if images.is_dir() and masks.is_dir():
            inner = [path.name for path in sorted(images.iterdir()) if path.is_dir()]
            inner = [split for split in inner if OTHER_NAMES.get(split, split) in SPLITS]
            if not inner:
                return {"": (images, masks)}
            return {OTHER_NAMES.get(s, s): (images / s, masks / s) for s in inner}
        for split in (*SPLITS, *OTHER_NAMES):
            pair = (root / split / "images", root / split / name)
            if pair[0].is_dir() and pair[1].is_dir():
                found.setdefault(OTHER_NAMES.get(split, split), pair)
    return {split: found[split] for split in SPLITS if split in found}


def _files(folder: Path) -> dict[str, Path]:
    """Path below `folder` without its ending -> file; of several endings the first of IMAGES."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*"), key=lambda path: (_rank(path), path)):
        if _rank(path) < len(IMAGES) and path.is_file():
            found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
    return dict(sorted(found.items()))


def _rank(path: Path) -> int:
    ending = path.suffix.lower()
    return IMAGES.index(ending) if ending in IMAGES else len(IMAGES)


def _by_names(root: Path) -> Paths:
    paths = {}
    for split, (images, masks) in _places(root).items():
        found, labels = _files(images), _files(masks)
        keys = sorted(found.keys() | labels.keys())
        pairs = [
            Pair(found.get(key, images / f"{key}.*"), labels.get(key, masks / f"{key}.png"))
            for key in keys
        ]
        paths |= {split: pairs} if split else _cut(dict(zip(keys, pairs, strict=True)))
    return _checked(root, paths)


def _by_patterns(root: Path, images: str, masks: str) -> Paths:
    if not masks or images.count("*") == 0 or masks.count("*") == 0:
        raise ValueError(
            f"patterns of images and of masks belong together and each needs a *, got "
            f"images={images!r}, masks={masks!r}"
        )
    found, labels = _matches(root, images), _matches(root, masks)
    splits: dict[str, dict[str, Pair]] = {}
    for split, key in sorted(found.keys() | labels.keys()):
        wanted = masks.replace("{split}", split).replace("**/", "").replace("*", key, 1)
        missing = images.replace("{split}", split).replace("**/", "").replace("*", key, 1)
        pair = Pair(
            found.get((split, key), root / missing), labels.get((split, key), root / wanted)
        )
        splits.setdefault(split, {})[key] = pair
    paths: Paths = {}
    for split, pairs in splits.items():
        paths |= {split: list(pairs.values())} if split else _cut(pairs)
    return _checked(root, paths)


def _matches(root: Path, pattern: str) -> dict[tuple[str, str], Path]:
    """(split, what the wildcards stand for) -> file."""
    parts = re.split(r"(\{split\}|\*\*/|\*|\?)", pattern)
    forms = {"{split}": "(?P<split>[^/]+)", "**/": "(?:(.*)/)?", "*": "([^/]*)", "?": "([^/])"}
    expression = re.compile("".join(forms.get(part, re.escape(part)) for part in parts))
    found = {}
    for path in sorted(root.glob(pattern.replace("{split}", "*"))):
        match = expression.fullmatch(path.relative_to(root).as_posix())
        if match and path.is_file():
            named = match.groupdict().get("split") or ""
            groups = list(match.groups())
            if named:
                groups.pop(expression.groupindex["split"] - 1)
            key = "/".join(group for group in groups if group)
            found[OTHER_NAMES.get(named, named), key] = path
    return found


def _cut(pairs: Mapping[str, Pair]) -> Paths:
    """All pairs, and a part for training and one for validation that adding files does not move."""
    val = [key for key in pairs if zlib.crc32(key.encode()) % VALIDATION_SHARE == 0]
    val = val or list(pairs)[-1:]
    train = [key for key in pairs if key not in set(val)] or val
    return {
        "train": [pairs[key] for key in train],
        "val": [pairs[key] for key in val],
        "all": list(pairs.values()),
    }


def _checked(root: Path, paths: Paths) -> Paths:
    paths = {split: pairs for split, pairs in paths.items() if pairs}
    if not paths:
        raise ValueError(f"{root}: no image and no mask found")
    return paths


def _info(root: Path, pairs: Iterable[Pair], class_map: Mapping[int, int] | None) -> DataInfo:
    name = root.resolve().name or "folder"
    if (root / "classes.txt").is_file():
        classes, palette = read_classes(root / "classes.txt")
        return DataInfo(name, tuple(classes), tuple(palette))
    if class_map:
        return numbered(name, 1 + max([v for v in class_map.values() if v != IGNORED], default=-1))
    files = sorted({pair.label for pair in pairs})
    with ThreadPoolExecutor(4) as pool:
        highest = max(pool.map(_highest, files), default=-1)
    if not 0 <= highest < IGNORED:
        raise ValueError(
            f"{root}: cannot tell how many classes its masks have; name them in a file classes.txt "
            "there (a line each) or with classes=, or map their labels with class_map="
        )
    return numbered(name, 1 + highest)


def _highest(path: Path) -> int:
    """The highest label that is a class; -1: none, or the file is for `check_data` to report."""
    try:
        labels = np.unique(read_labels(path))
    except (OSError, ValueError):
        return -1
    return int(max(labels[labels != IGNORED], default=-1))
