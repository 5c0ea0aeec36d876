"""Published layouts, folders of masks and patterns: which files, which labels, which classes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from peers import import_mmseg, import_peer
from PIL import Image
from tiny_data import CAMVID, camvid, write_image, write_labels, write_pair

from attnops.training.data import DataInfo, open_data
from attnops.training.data.classes import published_info
from attnops.training.data.labels import LabelMap, read_labels


def labels_of(data, split: str, index: int = 0) -> list[int]:
    """The labels of the first pixels: write_labels puts the numbers there in turn."""
    image, mask = data.split(split)[index]
    assert image.shape[1:] == mask.shape
    return mask[0].tolist()


def cityscapes(root, ending="labelTrainIds", numbers=(0, 18, 255)):
    for split, city in (("train", "aachen"), ("train", "bonn"), ("val", "ulm")):
        stem = f"{city}_000000_000019"
        write_pair(
            root / f"leftImg8bit/{split}/{city}/{stem}_leftImg8bit.png",
            root / f"gtFine/{split}/{city}/{stem}_gtFine_{ending}.png",
            numbers,
        )
    return root


def test_cityscapes(tmp_path):
    data = open_data(cityscapes(tmp_path))
    assert (data.layout, data.splits, len(data.split("train"))) == (
        "cityscapes",
        ("train", "val"),
        2,
    )
    assert data.info.classes[0] == "road" and data.info.palette[0] == (128, 64, 128)
    assert labels_of(data, "val")[:4] == [0, 18, 255, 0]


def test_cityscapes_before_training_labels_are_made(tmp_path):
    data = open_data(cityscapes(tmp_path, "labelIds", (7, 33, 0, 26, 4)))
    assert labels_of(data, "train", 1)[:5] == [0, 18, 255, 13, 255]


@pytest.mark.parametrize("inside", ["", "ADEChallengeData2016"])
def test_ade20k(tmp_path, inside):
    for split in ("training", "validation"):
        stem = f"ADE_{split}"
        root = tmp_path / inside
        labels = root / f"annotations/{split}/{stem}.png"
        write_pair(root / f"images/{split}/{stem}.jpg", labels, (0, 1, 150))
    data = open_data(tmp_path)
    assert data.layout == "ade20k" and data.info.num_classes == 150
    assert labels_of(data, "val")[:3] == [255, 0, 149]
    assert data.labels.unknown([0, 150, 151, 255]) == [151]


@pytest.mark.parametrize("folder", ["annotations", "stuffthingmaps"])
def test_coco_stuff(tmp_path, folder):
    for split in ("train", "val"):
        labels = tmp_path / f"{folder}/{split}2017/000000000009.png"
        write_pair(tmp_path / f"images/{split}2017/000000000009.jpg", labels, (0, 12, 91, 181, 255))
    data = open_data(tmp_path)
    assert data.layout == "coco_stuff" and data.info.num_classes == 171
    names = [data.info.classes[i] if i < 255 else None for i in labels_of(data, "train")[:5]]
    assert names == ["person", "stop sign", "banner", "wood", None]
    assert data.labels.unknown([11, 12]) == [11]  # street sign, which COCO gave up


def test_coco_stuff_with_training_labels(tmp_path):
    labels = tmp_path / "annotations/train2017/1_labelTrainIds.png"
    write_pair(tmp_path / "images/train2017/1.jpg", labels, (0, 11, 170))
    assert labels_of(open_data(tmp_path), "train")[:3] == [0, 11, 170]


def voc(root, lists):
    folder = root / "ImageSets/Segmentation"
    folder.mkdir(parents=True)
    for name, stems in lists.items():
        (folder / f"{name}.txt").write_text("".join(f"{stem}\n" for stem in stems))
        labels = "SegmentationClass" + ("Aug" if "aug" in name else "")
        for stem in stems:
            write_image(root / f"JPEGImages/{stem}.jpg")
            write_labels(root / labels / f"{stem}.png", (0, 20, 255), palette=True)


def stems(data, split):
    return [pair.image.stem for pair in data.paths[split]]


def test_voc_alone_and_inside_its_archive(tmp_path):
    voc(tmp_path / "VOCdevkit/VOC2012", {"train": ["a"], "val": ["b"]})
    data = open_data(tmp_path)
    assert (data.layout, stems(data, "train"), stems(data, "val")) == ("voc2012", ["a"], ["b"])
    assert labels_of(data, "val")[:3] == [0, 20, 255]
    assert data.info.classes[20] == "tvmonitor" and data.info.palette[20] == (0, 64, 128)


@pytest.mark.parametrize("name, added", [("aug", ["c"]), ("trainaug", ["a", "c"])])
def test_voc_with_boundaries_data_set_as_png(tmp_path, name, added):
    voc(tmp_path, {"train": ["a"], "val": ["b"], name: added})
    data = open_data(tmp_path)
    assert stems(data, "train") == ["a", "c"]
    assert [pair.label.parent.name[17:] for pair in data.paths["train"]] == ["", "Aug"]


def test_voc_with_boundaries_data_set_as_published(tmp_path):
    scipy_io = pytest.importorskip("scipy.io")
    voc(tmp_path / "VOC2012", {"train": ["a"], "val": ["b"]})
    sbd = tmp_path / "benchmark_RELEASE/dataset"
    (sbd / "cls").mkdir(parents=True)
    (sbd / "train.txt").write_text("a\nc\n")
    (sbd / "val.txt").write_text("b\nd\n")
    for stem in "acbd":
        write_image(sbd / f"img/{stem}.jpg", (2, 3))
        struct = {"Segmentation": np.array([[0, 5, 20], [1, 2, 3]], dtype=np.uint8)}
        scipy_io.savemat(sbd / f"cls/{stem}.mat", {"GTcls": struct})
    data = open_data(tmp_path)
    assert stems(data, "train") == ["a", "c", "d"]  # b is VOC's own validation
    assert labels_of(data, "train", 2) == [0, 5, 20]


def test_pascal_context_with_and_without_background(tmp_path):
    lists = tmp_path / "ImageSets/SegmentationContext"
    lists.mkdir(parents=True)
    for split in ("train", "val"):
        (lists / f"{split}.txt").write_text(split)
        labels = tmp_path / f"SegmentationClassContext/{split}.png"
        write_pair(tmp_path / f"JPEGImages/{split}.jpg", labels, (0, 1, 59))
    (tmp_path / "SegmentationClass").mkdir()  # VOC 2010 has it too
    data = open_data(tmp_path)
    assert (data.layout, data.info.num_classes) == ("pascal_context", 60)
    assert labels_of(data, "val")[:3] == [0, 1, 59]
    data = open_data(tmp_path, layout="pascal_context59")
    assert (data.info.num_classes, data.info.classes[0]) == (59, "aeroplane")
    assert labels_of(data, "val")[:3] == [255, 0, 58]


@pytest.mark.parametrize("place", ["pascal_person_part_trainval_list/{}.txt", "{}_id.txt"])
def test_pascal_person_part(tmp_path, place):
    for split in ("train", "val"):
        names = tmp_path / place.format(split)
        names.parent.mkdir(exist_ok=True)
        names.write_text(f"{split}\n")
        labels = tmp_path / f"SegmentationPart/{split}.png"
        write_pair(tmp_path / f"JPEGImages/{split}.jpg", labels, (0, 6, 255))
    data = open_data(tmp_path)
    assert (data.layout, data.info.classes[6]) == ("pascal_person_part", "lower legs")
    assert labels_of(data, "val")[:3] == [0, 6, 255]


@pytest.mark.parametrize("ending", [".png", ".jpg"])
def test_camvid(tmp_path, ending):
    data = open_data(camvid(tmp_path, ending=ending))
    assert (data.layout, data.splits) == ("camvid", ("train", "val", "test"))
    assert data.evaluation_split == "test" and data.info.classes[8] == "car"
    _, mask = data.split("train")[0]
    assert mask[::8, ::8].flatten().tolist() == [*range(11), 255]
    assert data.labels.unknown([11, 12]) == [12]


@pytest.mark.skipif(not CAMVID.is_dir(), reason="CamVid is not here")
def test_real_camvid():
    data = open_data(CAMVID)
    assert [len(data.paths[split]) for split in data.splits] == [367, 101, 233]
    image, mask = data.split("test")[7]
    assert image.shape == (3, 360, 480) and set(mask.unique().tolist()) <= {*range(11), 255}


@pytest.mark.parametrize(
    "name, theirs, with_colours",
    [
        ("cityscapes", "CityscapesDataset", True),
        ("ade20k", "ADE20KDataset", True),
        ("voc2012", "PascalVOCDataset", True),
        ("pascal_context", "PascalContextDataset", False),
        ("coco_stuff", "COCOStuffDataset", False),
    ],
)
def test_classes_are_mmsegmentations(monkeypatch, name, theirs, with_colours):
    import_mmseg(monkeypatch)
    meta = getattr(import_peer("mmseg.datasets"), theirs).METAINFO
    info = published_info(name)
    assert info.classes == tuple(name.strip() for name in meta["classes"])
    if with_colours:
        assert [list(colour) for colour in info.palette] == [list(c) for c in meta["palette"]]
    assert len(set(info.palette)) == info.num_classes or name == "ade20k"  # published so


class TestFolders:
    def test_images_and_masks(self, tmp_path):
        for index in range(20):
            ending = ".jpg" if index % 2 else ".png"
            label = tmp_path / f"masks/sub/{index:02}.png"
            write_pair(tmp_path / f"images/sub/{index:02}{ending}", label, (0, 1, 4, 255))
        data = open_data(tmp_path)
        assert data.splits == ("train", "val", "all") and data.info.classes[4] == "class 4"
        train, val, whole = (set(stems(data, split)) for split in data.splits)
        assert not train & val and train | val == whole and len(whole) == 20 and val
        write_pair(tmp_path / "images/sub/99.png", tmp_path / "masks/sub/99.png", (0, 1))
        again = open_data(tmp_path)
        assert train <= set(stems(again, "train")) and val <= set(stems(again, "val"))

    @pytest.mark.parametrize("form", ["{kind}/{split}", "{split}/{kind}"])
    def test_splits_of_folders(self, tmp_path, form):
        for split, masks in (("training", "labels"), ("validation", "labels")):
            places = (tmp_path / form.format(kind=kind, split=split) for kind in ("images", masks))
            write_pair(*(place / "x.png" for place in places), (0, 2))
        data = open_data(tmp_path)
        assert data.splits == ("train", "val") and data.info.num_classes == 3

    def test_patterns_and_a_class_map(self, tmp_path):
        for split in ("train", "val"):
            for stem in ("a", "b"):
                label = tmp_path / f"{split}/truth/{stem}_mask.png"
                write_pair(tmp_path / f"{split}/photos/{stem}.jpg", label, (0, 7, 900, 3))
        data = open_data(
            tmp_path,
            images="{split}/photos/*.jpg",
            masks="{split}/truth/*_mask.png",
            class_map={0: 255, 7: 0, 900: 1},
        )
        assert data.splits == ("train", "val") and stems(data, "val") == ["a", "b"]
        assert labels_of(data, "val")[:4] == [255, 0, 1, 255]
        assert data.labels.unknown([0, 3, 7, 900]) == [3] and data.info.num_classes == 2

    def test_patterns_pair_by_what_the_wildcards_stand_for(self, tmp_path):
        for place in ("x/1", "y/1", "y/2"):
            write_image(tmp_path / f"rgb/{place}.png", seed=len(place))
            write_labels(tmp_path / f"gt/{place}.png", (0, 1))
        data = open_data(tmp_path, images="rgb/**/*.png", masks="gt/**/*.png")
        for image, label in data.paths["all"]:
            assert image.relative_to(tmp_path / "rgb") == label.relative_to(tmp_path / "gt")
        assert len(data.paths["all"]) == 3

    def test_classes_from_a_file_or_by_name(self, tmp_path):
        write_pair(tmp_path / "images/1.png", tmp_path / "masks/1.png", (0, 1))
        assert open_data(tmp_path, classes=["a", "b", "c"]).info.classes == ("a", "b", "c")
        assert open_data(tmp_path, classes=4).info.num_classes == 4
        (tmp_path / "classes.txt").write_text("sea\t1 2 3\nland\n")
        info = open_data(tmp_path).info
        assert info.classes == ("sea", "land") and info.palette == ((1, 2, 3), (128, 0, 0))
        (tmp_path / "classes.txt").write_text("sea\t1 2\n")
        with pytest.raises(ValueError, match="line 1"):
            open_data(tmp_path)


class TestRefused:
    def test_folders(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no such folder"):
            open_data(tmp_path / "none")
        (tmp_path / "pictures").mkdir()
        with pytest.raises(ValueError, match=r"found pictures/.*images/ and masks/.*leftImg8bit"):
            open_data(tmp_path)
        with pytest.raises(ValueError, match="expected leftImg8bit/ and gtFine/"):
            open_data(tmp_path, layout="cityscapes")
        with pytest.raises(ValueError, match="layout must be one of"):
            open_data(tmp_path, layout="city")
        with pytest.raises(ValueError, match="each needs a"):
            open_data(tmp_path, images="*.png")
        for folder in ("train", "trainannot"):
            (tmp_path / folder).mkdir()
        with pytest.raises(ValueError, match="holds no pair"):
            open_data(tmp_path)

    def test_options(self, tmp_path):
        camvid(tmp_path, 1)
        with pytest.raises(ValueError, match=r"no split 'tset'; it has train, val, test"):
            open_data(tmp_path).split("tset")
        with pytest.raises(ValueError, match="labels go up to 10, but there are 2 classes"):
            open_data(tmp_path, classes=2)
        with pytest.raises(ValueError, match="out of range"):
            open_data(tmp_path, class_map={0: 256})
        with pytest.raises(ValueError, match="one of its 300 classes"):
            open_data(tmp_path, classes=300)


def test_labels_of_every_kind_of_file(tmp_path):
    values = np.array([[0, 1], [2, 255]])
    plain = write_labels(tmp_path / "plain.png", values)
    indexed = write_labels(tmp_path / "indexed.png", values, palette=True)
    deep = write_labels(tmp_path / "deep.png", values + 300)
    grey = tmp_path / "grey.png"
    Image.fromarray(values.astype(np.uint8)).convert("RGB").save(grey)
    for path in (plain, indexed, grey):
        assert read_labels(path).tolist() == values.tolist()
    assert read_labels(deep).tolist() == (values + 300).tolist()
    with pytest.raises(ValueError, match="holds colours"):
        read_labels(write_image(tmp_path / "photo.png"))
    assert LabelMap({300: 4})(read_labels(deep)).tolist() == [[4, 255], [255, 255]]


def test_info_goes_through_json_and_refuses_nonsense():
    info = open_data("shapes").info
    assert DataInfo.from_dict(json.loads(json.dumps(info.to_dict()))) == info
    with pytest.raises(ValueError, match="2 classes but 1 colours"):
        DataInfo("x", ("a", "b"), ((0, 0, 0),))
    with pytest.raises(ValueError, match="has no classes"):
        DataInfo("x", (), ())
    with pytest.raises(ValueError, match="to_dict"):
        DataInfo.from_dict({"name": "x"})
