"""Folders as published data sets come: which files are a pair, what the numbers in them mean.

Where a data set is published with labels of another form (polygons, MATLAB files of all objects),
the form is the one that segmentation codes convert it to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from .classes import published_info
from .folder import Pair, SegmentationFolder
from .info import DataInfo
from .labels import IGNORED, LabelMap

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
# Cityscapes' label numbers that are classes, in the order of its training labels.
CITYSCAPES = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
# Numbers that COCO-Stuff's files leave out: things that COCO gave up.
COCO_GAPS = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)


class Layout(NamedTuple):
    """One published form: `marks` are folders that only it has."""

    marks: tuple[str, ...]
    open: Callable[[Path], SegmentationFolder]


def images_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGES)


def pair_up(
    images: Iterable[Path], labels: Path, ending: str = ".png", cut: str = ""
) -> list[Pair]:
    """Images and the files in `labels` of their stems (without `cut`) and `ending`, there or not;
    then the label files in `labels` that no image has.
    """
    pairs = [Pair(image, labels / (image.stem.removesuffix(cut) + ending)) for image in images]
    found = {pair.label for pair in pairs}
    folder = pairs[0].image.parent if pairs else labels
    alone = [path for path in sorted(labels.glob(f"*{ending}")) if path not in found]
    return pairs + [Pair(folder / (p.name.removesuffix(ending) + cut + ".*"), p) for p in alone]


def pairs_of_list(root: Path, names: Path, images: str, labels: str, ending: str) -> list[Pair]:
    """Pairs of the stems in a text file; of several words a line the first counts."""
    lines = names.read_text(encoding="utf-8").splitlines()
    stems = [Path(line.split()[0]).stem for line in lines if line.strip()]
    return [
        Pair(root / images / f"{stem}.jpg", root / labels / f"{stem}{ending}") for stem in stems
    ]


def _open(
    name: str,
    root: Path,
    paths: dict[str, list[Pair]],
    labels: LabelMap | None = None,
    evaluation_split: str = "val",
    info: DataInfo | None = None,
) -> SegmentationFolder:
    info = info or published_info(name)
    paths = {split: pairs for split, pairs in paths.items() if pairs}
    if not paths:
        raise ValueError(f"{root}: looks like {name}, but holds no pair of image and label file")
    labels = labels or LabelMap.identity(len(info.classes))
    return SegmentationFolder(info, paths, labels, root, name, evaluation_split)


def _camvid(root: Path) -> SegmentationFolder:
    """SegNet's copy: `train/`, `trainannot/`, ...; 11 is void."""
    paths = {}
    for split in ("train", "val", "test"):
        folder, labels = root / split, root / f"{split}annot"
        if folder.is_dir() and labels.is_dir():
            paths[split] = pair_up(images_in(folder), labels)
    known = {label: label for label in range(11)} | {11: IGNORED}
    return _open("camvid", root, paths, LabelMap(known), evaluation_split="test")


def _cityscapes(root: Path) -> SegmentationFolder:
    """`leftImg8bit/SPLIT/CITY/*_leftImg8bit.png`, `gtFine/SPLIT/CITY/*_gtFine_labelTrainIds.png`.

    Where those were not made, `*_labelIds.png` with the published table.
    """
    trained = any(root.glob("gtFine/*/*/*_gtFine_labelTrainIds.png"))
    ending = "_gtFine_labelTrainIds.png" if trained else "_gtFine_labelIds.png"
    paths: dict[str, list[Pair]] = {}
    for split in ("train", "val"):
        for city in sorted((root / "leftImg8bit" / split).glob("*/")):
            images = [path for path in images_in(city) if path.stem.endswith("_leftImg8bit")]
            labels = root / "gtFine" / split / city.name
            paths.setdefault(split, []).extend(pair_up(images, labels, ending, "_leftImg8bit"))
    if trained:
        return _open("cityscapes", root, paths)
    known = dict.fromkeys(range(34), IGNORED)
    known |= {number: label for label, number in enumerate(CITYSCAPES)}
    return _open("cityscapes", root, paths, LabelMap(known))


def _ade20k(root: Path) -> SegmentationFolder:
    """`images/` and `annotations/`, each `training/` and `validation/`; 0 is no class."""
    paths = {}
    for split, name in (("train", "training"), ("val", "validation")):
        images, labels = root / "images" / name, root / "annotations" / name
        if images.is_dir() and labels.is_dir():
            paths[split] = pair_up(images_in(images), labels)
    return _open("ade20k", root, paths, LabelMap.minus_one(150))


def _coco_stuff(root: Path) -> SegmentationFolder:
    """`images/` and `annotations/` (or `stuffthingmaps/`), each `train2017/` and `val2017/`.

    Labels as published, 0 to 181 with gaps, or `*_labelTrainIds.png`, 0 to 170.
    """
    labels = next(p for p in (root / "annotations", root / "stuffthingmaps") if p.is_dir())
    trained = next(labels.glob("*2017/*_labelTrainIds.png"), None) is not None
    ending = "_labelTrainIds.png" if trained else ".png"
    paths = {}
    for split in ("train", "val"):
        folder = root / "images" / f"{split}2017"
        if folder.is_dir():
            paths[split] = pair_up(images_in(folder), labels / f"{split}2017", ending)
    numbers = [number for number in range(182) if number not in COCO_GAPS]
    known = None if trained else LabelMap({n: label for label, n in enumerate(numbers)})
    return _open("coco_stuff", root, paths, known)


def _voc(root: Path) -> SegmentationFolder:
    """Pascal VOC 2012; "train" has the Semantic Boundaries Dataset where that is beside it.

    As `SegmentationClassAug/` with the list trainaug.txt or aug.txt, or as its authors published
    it, in `../benchmark_RELEASE/dataset/` or `benchmark_RELEASE/dataset/`. Images of VOC's own
    validation set are left out of it.
    """
    lists = root / "ImageSets" / "Segmentation"
    own = ("JPEGImages", "SegmentationClass", ".png")
    added = ("JPEGImages", "SegmentationClassAug", ".png")
    train = pairs_of_list(root, lists / "train.txt", *own)
    val = pairs_of_list(root, lists / "val.txt", *own)
    sbd = next(
        (
            path
            for path in (
                root / "benchmark_RELEASE/dataset",
                root.parent / "benchmark_RELEASE/dataset",
            )
            if (path / "cls").is_dir()
        ),
        None,
    )
    if (lists / "trainaug.txt").is_file() and (root / "SegmentationClassAug").is_dir():
        more = pairs_of_list(root, lists / "trainaug.txt", *added)
    elif (lists / "aug.txt").is_file() and (root / "SegmentationClassAug").is_dir():
        more = pairs_of_list(root, lists / "aug.txt", *added)
    elif sbd is not None:
        parts = (
            pairs_of_list(sbd, sbd / f"{part}.txt", "img", "cls", ".mat")
            for part in ("train", "val")
        )
        more = [pair for part in parts for pair in part]
    else:
        more = []
    known = {pair.image.stem for pair in train + val}
    train += [pair for pair in more if pair.image.stem not in known]
    return _open("voc2012", root, {"train": train, "val": val})


def _pascal_context(root: Path, background: bool = True) -> SegmentationFolder:
    """`SegmentationClassContext/` with 0 for background and 59 classes."""
    lists = root / "ImageSets" / "SegmentationContext"
    paths = {
        split: pairs_of_list(
            root, lists / f"{split}.txt", "JPEGImages", "SegmentationClassContext", ".png"
        )
        for split in ("train", "val")
        if (lists / f"{split}.txt").is_file()
    }
    info = published_info("pascal_context")
    if background:
        return _open("pascal_context", root, paths, info=info)
    info = DataInfo("pascal_context59", info.classes[1:], info.palette[1:])
    return _open("pascal_context59", root, paths, LabelMap.minus_one(59), info=info)


def _pascal_context59(root: Path) -> SegmentationFolder:
    return _pascal_context(root, background=False)


def _person_part(root: Path) -> SegmentationFolder:
    """`SegmentationPart/` with 0 for background and six parts; lists in one of three places."""
    places = ("pascal_person_part_trainval_list", "ImageSets/Person_Part", "list", ".")
    paths = {}
    for split in ("train", "val"):
        names = (root / place / f"{split}{end}.txt" for place in places for end in ("", "_id"))
        if (found := next((path for path in names if path.is_file()), None)) is not None:
            paths[split] = pairs_of_list(root, found, "JPEGImages", "SegmentationPart", ".png")
    return _open("pascal_person_part", root, paths)


PUBLISHED = {
    "cityscapes": Layout(("leftImg8bit", "gtFine"), _cityscapes),
    "ade20k": Layout(("images/training", "annotations/training"), _ade20k),
    "coco_stuff": Layout(("images/train2017",), _coco_stuff),
    "pascal_context": Layout(("JPEGImages", "SegmentationClassContext"), _pascal_context),
    "pascal_context59": Layout(("JPEGImages", "SegmentationClassContext"), _pascal_context59),
    "pascal_person_part": Layout(("JPEGImages", "SegmentationPart"), _person_part),
    "voc2012": Layout(("JPEGImages", "SegmentationClass"), _voc),
    "camvid": Layout(("train", "trainannot"), _camvid),
}
# Folders that archives unpack to, tried beneath the one that was given.
INSIDE = (
    "",
    "ADEChallengeData2016",
    "VOCdevkit/VOC2012",
    "VOCdevkit/VOC2010",
    "VOC2012",
    "VOC2010",
)
