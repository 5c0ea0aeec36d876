"""`attnops predict`: what it reads, what it writes, and what it refuses."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from peers import import_peer
from PIL import Image
from tiny_data import write_image
from tiny_networks import tiny_network
from trained import prepared, trained

from attnops import cli
from attnops.training.data import DataInfo
from attnops.training.data.classes import numbered
from attnops.training.data.labels import read_image
from attnops.training.prediction import attention_maps, draw_attention, find_sources, overlay
from attnops.training.prediction.attention import AttentionMaps

INFO = DataInfo(
    "things", ("a", "b", "c", "d"), ((10, 20, 30), (200, 0, 0), (0, 200, 0), (0, 0, 200))
)


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "run/last.ckpt"
    return path, trained(path, INFO)


def predict(checkpoint, *arguments):
    return cli.main(["predict", "--checkpoint", str(checkpoint), *map(str, arguments)])


def test_labels_and_overlays(tmp_path, checkpoint, capsys):
    path, network = checkpoint
    first = write_image(tmp_path / "photos/one.png", (50, 60), seed=1, blocks=10)
    second = write_image(tmp_path / "photos/sub/two.jpg", (41, 77), seed=2, blocks=10)
    out = tmp_path / "out"
    assert predict(path, tmp_path / "photos", "-o", out) == 0
    assert "labels of 2 of 2 files" in capsys.readouterr().out
    for source, name in ((first, "one"), (second, "sub/two")):
        image = read_image(source)
        wanted = network.predict(prepared(image))[0]
        with Image.open(out / f"{name}.png") as labels:
            assert labels.mode == "P" and labels.getpalette()[:6] == [10, 20, 30, 200, 0, 0]
            np.testing.assert_array_equal(np.array(labels), wanted)
        assert wanted.unique().numel() > 2
        mixed = np.array(Image.open(out / f"{name}_overlay.png").convert("RGB"))
        height, width = image.shape[1:]
        assert mixed.shape[0] >= height and mixed.shape[1] > width  # the legend
        colours = np.array(INFO.palette)[wanted.numpy()]
        plain = image.permute(1, 2, 0).numpy()
        assert np.abs(mixed[:height, :width] - (plain / 2 + colours / 2)).max() <= 0.51


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (301, 5)])
def test_any_size(tmp_path, checkpoint, size):
    source = write_image(tmp_path / "x.png", size)
    assert predict(checkpoint[0], source, "-o", tmp_path / "out", "--no-legend") == 0
    for ending in ("", "_overlay"):
        with Image.open(tmp_path / f"out/x{ending}.png") as result:
            assert result.size == size[::-1]


def test_overlays():
    image = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8)
    labels = torch.randint(0, 4, (20, 30))
    clear = np.array(overlay(image, labels, INFO, 0.0, legend=False))
    np.testing.assert_array_equal(clear, image.permute(1, 2, 0))
    full = np.array(overlay(image, labels, INFO, 1.0, legend=False))
    np.testing.assert_array_equal(full, np.array(INFO.palette)[labels])
    # The legend shows the colours of the classes that occur, and no others.
    legend = np.array(overlay(image, labels.clamp(max=1), INFO, 0.5))[:, 30:]
    shown = {tuple(colour) for colour in legend.reshape(-1, 3).tolist()}
    assert {INFO.palette[0], INFO.palette[1]} <= shown
    assert not {INFO.palette[2], INFO.palette[3]} & shown


def test_many_classes_have_a_legend_that_fits():
    info = numbered("many", 150)
    labels = torch.arange(150).repeat_interleave(20).reshape(50, 60)
    picture = overlay(torch.zeros(3, 50, 60, dtype=torch.uint8), labels, info)
    assert picture.height >= 40 * 16 and picture.width > 150


def test_upright_as_cameras_say(tmp_path, checkpoint):
    image = Image.fromarray(np.arange(40 * 60 * 3, dtype=np.uint8).reshape(40, 60, 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(tmp_path / "phone.jpg", exif=exif)
    assert predict(checkpoint[0], tmp_path / "phone.jpg", "-o", tmp_path / "out") == 0
    assert Image.open(tmp_path / "out/phone.png").size == (40, 60)


def test_grey_networks_read_grey(tmp_path, capsys):
    """A photograph in colours is read as grey; a film has colours."""
    network = trained(tmp_path / "grey.ckpt", INFO, in_channels=1)
    assert network.in_channels == 1
    source = write_image(tmp_path / "x.png", (50, 60), blocks=10)
    assert predict(tmp_path / "grey.ckpt", source, "-o", tmp_path / "out", "--no-legend") == 0
    with Image.open(tmp_path / "out/x_overlay.png") as result:
        assert result.mode == "RGB" and result.size == (60, 50)
    (tmp_path / "film.mp4").touch()
    assert predict(tmp_path / "grey.ckpt", tmp_path / "film.mp4", "-o", tmp_path / "out") == 1
    assert "videos have 3 channels, the network takes 1" in capsys.readouterr().err


class TestSources:
    def test_files_folders_and_patterns(self, tmp_path):
        for name in ("a.png", "b.jpg", "deep/er/c.png", "film.mp4", "notes.txt", "deep/a.png"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        named = {s.name: s for s in find_sources([str(tmp_path)])}
        assert set(named) == {"a", "b", "deep/er/c", "deep/a", "film"} and named["film"].is_video
        pattern = [s.name for s in find_sources([f"{tmp_path}/**/*.png"])]
        assert sorted(pattern) == ["a", "a-2", "c"]
        twice = find_sources([str(tmp_path / "a.png"), f"{tmp_path}/*.png"])
        assert [s.name for s in twice] == ["a"]

    def test_results_never_overwrite_each_other(self, tmp_path):
        for name in ("x.png", "x.jpg", "x_overlay.png"):
            (tmp_path / name).touch()
        names = [s.name for s in find_sources([str(tmp_path)])]
        results = [f"{name}{ending}" for name in names for ending in ("", "_overlay")]
        assert len(set(results)) == 6

    @pytest.mark.parametrize(
        "text, message", [("none.png", "no such image"), ("*.png", "fits no image")]
    )
    def test_nothing_there(self, tmp_path, text, message):
        with pytest.raises(FileNotFoundError, match=message):
            find_sources([str(tmp_path / text)])
        with pytest.raises(FileNotFoundError, match="no image or video in this folder"):
            find_sources([str(tmp_path)])


def test_faults(tmp_path, checkpoint, capsys):
    path, _ = checkpoint
    good = write_image(tmp_path / "good.png")
    bad = tmp_path / "bad.png"
    bad.write_bytes(good.read_bytes()[:100])
    assert predict(path, bad, good, "-o", tmp_path / "out") == 1
    captured = capsys.readouterr()
    assert f"{bad}: cannot be read" in captured.err and "labels of 1 of 2" in captured.out
    assert (tmp_path / "out/good.png").is_file()
    before = good.read_bytes()
    assert predict(path, good, "-o", tmp_path) == 1
    assert "would be overwritten" in capsys.readouterr().err and good.read_bytes() == before
    assert predict(tmp_path / "no.ckpt", good, "-o", tmp_path / "out") == 1
    assert "no such checkpoint" in capsys.readouterr().err
    assert predict(path, tmp_path / "none*.png", "-o", tmp_path / "out") == 1
    with pytest.raises(SystemExit):
        predict(path, good, "-o", tmp_path / "out", "--opacity", "2")
    assert "from 0 to 1" in capsys.readouterr().err
    assert predict(path, good, "-o", tmp_path / "out", "--scales", "0") == 1
    assert "scales must be positive" in capsys.readouterr().err


def test_the_name_of_a_trained_network_may_be_given_too(tmp_path, checkpoint, capsys):
    path, network = checkpoint
    source = write_image(tmp_path / "one.png", (50, 60), blocks=10)
    name = network.config["name"]
    assert predict(path, "--model", name, source, "-o", tmp_path / "out") == 0
    with Image.open(tmp_path / "out/one.png") as labels:
        wanted = network.predict(prepared(read_image(source)))[0]
        np.testing.assert_array_equal(np.array(labels), wanted)
    assert predict(path, "--model", "segnext_t", source, "-o", tmp_path / "out") == 1
    assert f"holds a {name}, not a segnext_t" in capsys.readouterr().err


class TestAttention:
    def test_saved(self, tmp_path, checkpoint):
        source = write_image(tmp_path / "x.png", (50, 60))
        out = tmp_path / "out"
        assert predict(checkpoint[0], source, "-o", out, "--save-attention", "--no-overlay") == 0
        names = sorted(p.name for p in out.iterdir())
        assert names == ["x.png", "x_attention_attention.png"]
        with Image.open(out / "x_attention_attention.png") as picture:
            assert picture.width > 3 * 240 and picture.height > 200

    @pytest.mark.parametrize("family, count", [("deeplab", 3), ("galdv2", 25)])
    def test_weights_sum_to_one(self, family, count):
        network = tiny_network(family)
        image = torch.randint(0, 256, (3, 120, 130), dtype=torch.uint8)
        (found,) = attention_maps(network, image, INFO).values()
        assert len(found.maps) == len(found.titles) == count
        # The rest of LDv2's goes to padding.
        total = found.maps.sum(0)
        middle = total[total.shape[0] // 2, total.shape[1] // 2]
        assert total.max() <= 1 + 1e-5 and middle == pytest.approx(1, abs=1e-5)
        assert all(module.training for module in network.modules())

    def test_every_stage_of_sanet_and_none_of_segnext(self):
        image = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8)
        found = attention_maps(tiny_network("sanet"), image, numbered("x", 5))
        assert [maps.titles for maps in found.values()] == [[f"class {i}" for i in range(5)]] * 4
        assert all((maps.maps >= 0).all() for maps in found.values())
        assert attention_maps(tiny_network("segnext"), image, numbered("x", 5)) == {}

    def test_gates_of_ldv1_in_a_small_image(self):
        image = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8)
        (found,) = attention_maps(tiny_network("galdv1"), image, INFO).values()
        assert len(found.maps) == 1 and (found.maps >= 0.5).all() and (found.maps <= 1).all()

    def test_pictures_show_large_values_bright(self):
        maps = AttentionMaps(torch.tensor([[[0.0, 0.0]], [[1.0, 1.0]]]), ["low", "high"], 2)
        picture = np.array(draw_attention(maps, (100, 200)).convert("L")).astype(int)
        assert picture[100, 100] < 60 < 180 < picture[100, 350]


class TestVideos:
    def test_frames(self, tmp_path, checkpoint):
        cv2 = import_peer("cv2")
        film = tmp_path / "film.avi"
        writer = cv2.VideoWriter(str(film), cv2.VideoWriter_fourcc(*"MJPG"), 5, (64, 48))
        for level in range(5):
            writer.write(np.full((48, 64, 3), (0, 0, 50 * level), dtype=np.uint8))  # BGR
        writer.release()
        out = tmp_path / "out"
        assert predict(checkpoint[0], film, "-o", out, "--every", "2", "--opacity", "0") == 0
        names = sorted(str(p.relative_to(out)) for p in out.rglob("*.png"))
        stems = [f"film/{number:06}{e}.png" for number in (0, 2, 4) for e in ("", "_overlay")]
        assert names == stems
        red = np.array(Image.open(out / "film/000004_overlay.png").convert("RGB"))[24, 32]
        assert red[0] > 180 and red[1] < 30 and red[2] < 30

    def test_damaged(self, tmp_path, checkpoint, capsys):
        import_peer("cv2")
        (tmp_path / "film.mp4").write_bytes(b"nothing")
        assert predict(checkpoint[0], tmp_path / "film.mp4", "-o", tmp_path / "out") == 1
        assert "finds no frame" in capsys.readouterr().err

    def test_without_a_decoder(self, tmp_path, checkpoint, capsys, monkeypatch):
        monkeypatch.setitem(sys.modules, "cv2", None)
        (tmp_path / "film.mp4").write_bytes(b"nothing")
        assert predict(checkpoint[0], tmp_path / "film.mp4", "-o", tmp_path / "out") == 1
        assert "pip install opencv-python-headless" in capsys.readouterr().err
