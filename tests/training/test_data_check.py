"""Faults of a data set: all of them, with their paths, in one error; and the command."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_data import camvid, write_image, write_labels

from attnops import cli
from attnops.training.data import FaultyData, SegmentationData, check, check_data, open_data


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def faulty(root):
    """One fault of every kind; the paths that have to be named, by kind."""
    camvid(root, 8)
    (root / "train/train0.png").unlink()
    (root / "trainannot/train1.png").unlink()
    whole = (root / "train/train2.png").read_bytes()
    (root / "train/train2.png").write_bytes(whole[: len(whole) // 2])
    (root / "trainannot/train3.png").write_bytes(b"no picture")
    write_image(root / "train/train4.png", (24, 33))
    write_labels(root / "valannot/val5.png", (0, 12, 200))
    write_image(root / "train/train6.jpg")
    write_image(root / "valannot/val7.png")
    return {
        "missing image": "train0.",
        "missing label": "trainannot/train1.png",
        "unreadable image": "train/train2.png",
        "unreadable label": "trainannot/train3.png",
        "mis-sized pair": "train/train4.png",
        "unknown label": "valannot/val5.png",
        "doubled label": "train/train6.jpg",
    }


def test_every_fault_is_named_at_once(tmp_path):
    wanted = faulty(tmp_path)
    report = check_data(open_data(tmp_path))
    found = {fault.kind: fault.text for fault in report.faults if "val7" not in fault.text}
    assert found.keys() == wanted.keys()
    assert all(str(tmp_path) in text and wanted[kind] in text for kind, text in found.items())
    assert "12, 200" in found["unknown label"] and "24x33" in found["mis-sized pair"]
    with pytest.raises(FaultyData) as error:
        report.raise_faults()
    assert all(path in str(error.value) for path in [*wanted.values(), "val7.png: holds colours"])
    assert "8 faults" in str(error.value)
    assert check_data(open_data(tmp_path), ["test"]).faults == []


def test_a_fault_in_two_splits_is_one(tmp_path):
    for name in ("1", "2"):
        write_image(tmp_path / f"images/{name}.jpg")
        write_labels(tmp_path / f"masks/{name}.png", (0, 1))
    (tmp_path / "masks/2.png").unlink()
    report = check_data(open_data(tmp_path, classes=2))
    assert sum(len(split.faults) for split in report.splits.values()) == 2  # val or train, and all
    assert [fault.kind for fault in report.faults] == ["missing label"]


def test_counts(tmp_path):
    camvid(tmp_path, 2)
    write_labels(tmp_path / "trainannot/train0.png", np.full((24, 32), 8))
    report = check_data(open_data(tmp_path)).splits["train"]
    assert (report.samples, report.counted, report.sizes) == (2, 2, {"24x32": 2})
    pixels, images = np.full(12, 64), np.full(12, 1)
    pixels[8] += 24 * 32
    images[8] += 1
    assert report.pixels == pixels.tolist() and report.images == images.tolist()
    check_data(open_data(tmp_path)).raise_faults()  # nothing to raise


def test_files_that_did_not_change_are_not_read_again(tmp_path, monkeypatch, cache):
    camvid(tmp_path, 2)
    read = []
    examine = check._examine
    monkeypatch.setattr(check, "_examine", lambda *pair: read.append(1) or examine(*pair))
    first = check_data(open_data(tmp_path))
    assert len(read) == 6
    assert check_data(open_data(tmp_path)).splits == first.splits and len(read) == 6
    write_labels(tmp_path / "valannot/val1.png", (0, 77, 1))
    assert len(check_data(open_data(tmp_path)).faults) == 1 and len(read) == 8
    for file in cache.rglob("*.json"):
        file.write_text("{}")  # a damaged cache
    assert len(check_data(open_data(tmp_path)).faults) == 1 and len(read) == 14
    check_data(open_data(tmp_path), limit=1, cached=False)
    assert len(read) == 17


def test_a_cache_that_cannot_be_written_is_no_fault(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert check_data(open_data(camvid(tmp_path / "data", 1))).faults == []


def test_command(tmp_path, capsys):
    assert cli.main(["check", str(camvid(tmp_path / "good", 2))]) == 0
    out = capsys.readouterr().out
    assert "bicyclist" in out and "24x32 (2)" in out and "no faults" in out
    wanted = faulty(tmp_path / "bad")
    assert cli.main(["check", str(tmp_path / "bad"), "--split", "train"]) == 1
    error = capsys.readouterr().err
    assert "train/train2.png" in error and "6 faults" in error
    assert cli.main(["check", str(tmp_path / "bad")]) == 1
    error = capsys.readouterr().err
    assert all(path in error for path in wanted.values())


def test_command_with_options(tmp_path, capsys):
    write_image(tmp_path / "photos/1.png")
    write_labels(tmp_path / "truth/1.png", (0, 7, 9))
    options = ["--images", "photos/*.png", "--masks", "truth/*.png", "--split", "all"]
    arguments = ["check", str(tmp_path), *options, "--class_map", "{0: 255, 7: 0}"]
    assert cli.main(arguments) == 1
    assert "holds 9" in capsys.readouterr().err
    assert cli.main([*arguments[:-1], "{0: 255, 7: 0, 9: 1}", "--classes", "sea,land"]) == 0
    assert "land" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main([*arguments[:-1], "0:255"])
    assert "expected a map" in capsys.readouterr().err
    assert cli.main(["check", "shapes", "--split", "val"]) == 0
    assert cli.main(["check", str(tmp_path)]) == 1
    assert "no layout" in capsys.readouterr().err


def test_training_checks_what_it_trains_on(tmp_path):
    """Before anything else: no folder of a run is left behind."""
    wanted = faulty(tmp_path / "data")
    data = SegmentationData(str(tmp_path / "data"), num_workers=0)
    with pytest.raises(FaultyData) as error:
        data.check()
    assert all(path in str(error.value) for path in wanted.values())
    SegmentationData(str(tmp_path / "data"), check_files=False).check()
    SegmentationData(str(tmp_path / "data"), train_split="test", val_split="test").check()


def test_train_command_names_the_faults(tmp_path, capsys):
    faulty(tmp_path / "data")
    options = ["--data.root", str(tmp_path / "data"), "--trainer.max_steps", "1"]
    where = ["--trainer.default_root_dir", str(tmp_path / "runs")]
    assert cli.main(["train", "--config", "camvid_segnext_t", *options, *where]) == 2
    error = capsys.readouterr().err
    assert "camvid has 8 faults" in error and "valannot/val5.png: holds 12, 200" in error
    assert not (tmp_path / "runs").exists()
