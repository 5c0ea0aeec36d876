"""`attnops eval` and what it is made of, against confusion matrices that are counted by hand."""

from __future__ import annotations

import csv
import json
import re
import socket
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from peers import import_mmseg
from PIL import Image
from tiny_data import camvid
from tiny_networks import tiny_network
from torch import nn
from trained import prepared, trained

from attnops import cli
from attnops.training.data import open_data
from attnops.training.data.order import SharedOut
from attnops.training.engine import Normalization
from attnops.training.evaluation import evaluate
from attnops.training.protocol import Protocol


class RedNetwork(nn.Module):
    """Labels are the red channel / 20: what it says of an image is known without running it."""

    smallest_side = 1
    normalization = Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def predict(self, images, scales, flip, window, stride):
        return (images[:, 0].round() // 20).long().clamp(max=10)


def counted(pairs, classes):
    """Pixel by pixel."""
    matrix = np.zeros((classes, classes), dtype=int)
    for labels, truth in pairs:
        for label, true in zip(np.ravel(labels), np.ravel(truth), strict=True):
            if true != 255:
                matrix[true, label] += 1
    return matrix


def mean_iou(matrix):
    areas = matrix.sum(0) + matrix.sum(1) - np.diag(matrix)
    return (np.diag(matrix)[areas > 0] / areas[areas > 0]).mean()


def test_scores_of_a_known_labelling(tmp_path):
    split = open_data(camvid(tmp_path, 3)).split("test")
    samples = [split[i] for i in range(3)]
    wanted = counted([((im[0] // 20).clamp(max=10), mask) for im, mask in samples], 11)
    progress = []
    found = evaluate(RedNetwork(), split, 11, radii=(3,), done=progress.append)
    assert found.scores["confusion"].tolist() == wanted.tolist()
    assert found.scores["mIoU"].item() == pytest.approx(mean_iou(wanted))
    assert found.scores["boundary"].shape == (1, 11)
    assert progress == [1, 2, 3] and found.images == 3


def two_processes(rank, root, port, out):
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    split = open_data(root).split("test")
    found = evaluate(RedNetwork(), split, 11, radii=(3,), rank=rank, world_size=2)
    torch.save(found.scores, f"{out}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_processes_get_what_one_process_gets(tmp_path, free_port):
    """Three images for two processes: one of them has an image that does not count."""
    root = str(camvid(tmp_path / "data", 3))
    assert len(SharedOut(open_data(root).split("test"), 1, 2)) == 2
    wanted = evaluate(RedNetwork(), open_data(root).split("test"), 11, radii=(3,)).scores
    arguments = (root, free_port, str(tmp_path))
    torch.multiprocessing.start_processes(two_processes, arguments, 2, start_method="fork")
    for rank in (0, 1):
        scores = torch.load(tmp_path / f"{rank}.pt")
        for name, value in wanted.items():
            torch.testing.assert_close(scores[name], value, rtol=0, atol=0, equal_nan=True)


@pytest.mark.slow
def test_command_under_torchrun(run, tmp_path):
    root, checkpoint, _ = run
    options = ["eval", "--checkpoint", str(checkpoint), "--data.root", str(root), "--device", "cpu"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for start, name in (([], "one"), (launcher, "two")):
        command = [sys.executable, *start, "-m", "attnops", *options, "-o", str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert sum("mIoU" in line for line in done.stdout.splitlines()) == 1
    one, two = ((tmp_path / name / "confusion.csv").read_text() for name in ("one", "two"))
    assert one == two


@pytest.fixture
def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture
def run(tmp_path):
    """A data set of 60x72 images and a checkpoint for it."""
    root = camvid(tmp_path / "data", 3, blocks=4)
    for image in root.rglob("*.png"):  # large enough for details, and for windows
        with Image.open(image) as small:
            small.resize((72, 60), Image.Resampling.NEAREST).save(image)
    checkpoint = tmp_path / "run" / "last.ckpt"
    network = trained(checkpoint, open_data(root).info)
    return root, checkpoint, network


def test_command(run, capsys):
    root, checkpoint, network = run
    assert cli.main(["eval", "--checkpoint", str(checkpoint), "--data.root", str(root)]) == 0
    out = capsys.readouterr().out
    split = open_data(root).split("test")
    pairs = [(network.predict(prepared(im))[0], mask) for im, mask in (split[i] for i in range(3))]
    wanted = counted(pairs, 11)
    assert len(np.unique(np.concatenate([labels for labels, _ in pairs]))) > 2
    (line,) = [line for line in out.splitlines() if "mIoU" in line]
    assert float(re.search(r"mIoU (\S+)", line)[1]) == pytest.approx(mean_iou(wanted), abs=2e-3)
    assert "camvid test: 3 of 3 images" in line and "bicyclist" in out
    folder = checkpoint.parent / "eval-camvid-test"
    values = json.loads((folder / "scores.json").read_text())
    with (folder / "confusion.csv").open() as file:
        (_, *names), *rows = csv.reader(file)
    assert names == list(open_data(root).info.classes) == [row[0] for row in rows]
    matrix = np.array([[int(x) for x in row[1:]] for row in rows])
    assert np.abs(matrix - wanted).sum() < 0.002 * wanted.sum()  # labels that rounding decides
    assert mean_iou(matrix) == pytest.approx(values["mIoU"], abs=1e-9)
    assert values["images"] == 3
    with Image.open(folder / "confusion.png") as picture:
        assert min(picture.size) > 300


def test_command_with_a_protocol_and_boundaries(run, capsys, tmp_path):
    root, checkpoint, network = run
    options = ["--data.split", "val", "--data.limit", "2", "--data.num_workers", "0"]
    protocol = ["--scales", "0.75", "1.25", "--flip", "--window", "40", "48", "--boundary", "3"]
    common = ["eval", "--checkpoint", str(checkpoint), "--data.root", str(root)]
    assert cli.main([*common, *options, *protocol, "-o", str(tmp_path / "out")]) == 0
    assert "F 3px" in capsys.readouterr().out
    split = open_data(root).split("val")
    pairs = [
        (network.predict(prepared(im), (0.75, 1.25), True, (40, 48))[0], mask)
        for im, mask in (split[i] for i in range(2))
    ]
    values = json.loads((tmp_path / "out/scores.json").read_text())
    assert values["mIoU"] == pytest.approx(mean_iou(counted(pairs, 11)), abs=2e-3)
    assert set(values["boundary_3px"]) == set(open_data(root).info.classes)


def test_what_is_refused(run, capsys, tmp_path):
    root, checkpoint, _ = run
    data = ["--data.root", str(root)]
    for arguments, text in (
        (["--checkpoint", str(tmp_path / "none.ckpt"), *data], "no such checkpoint"),
        (data, "give --checkpoint"),
        (["--checkpoint", str(checkpoint), "--data.root", "shapes"], "11 classes (sky, building"),
        (["--checkpoint", str(checkpoint), *data, "--data.split", "tset"], "no split 'tset'"),
        (["--checkpoint", str(checkpoint), "--data.root", str(tmp_path / "no")], "no such folder"),
        (["--checkpoint", str(root / "train/train0.png"), *data], "cannot be read"),
        (["--checkpoint", str(checkpoint), *data, "--device", "cuda:77"], "--device cuda:77"),
    ):
        assert cli.main(["eval", *arguments]) == 1
        assert text in capsys.readouterr().err
    names = ["--data.classes", ",".join("abcdefghijk")]
    assert cli.main(["eval", "--checkpoint", str(checkpoint), *data, *names]) == 0
    assert "differ in name: sky / a" in capsys.readouterr().err


def test_published_weights_by_the_name_of_a_network(run, tmp_path, capsys, monkeypatch):
    """Weights alone take their classes from the data."""
    root, _, network = run
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    from attnops.training.commands import network_options as module

    tiny = {"widths": (4, 6, 8, 10, 12), "channels": 16, "hidden_channels": 8}
    create = module.create_model
    monkeypatch.setattr(module, "create_model", lambda name, **k: create(name, **tiny, **k))
    arguments = ["--model", "deeplab_attention", "--checkpoint", str(tmp_path / "weights.pth")]
    options = ["--data.root", str(root), "--data.limit", "1", "-o", str(tmp_path / "out")]
    assert cli.main(["eval", *arguments, *options]) == 0
    assert "mIoU" in capsys.readouterr().out


@pytest.mark.parametrize("size, window, stride", [((60, 90), (40, 50), (20, 30))])
def test_windows_are_mmsegmentations(monkeypatch, size, window, stride):
    mmseg = import_mmseg(monkeypatch)
    network = tiny_network("deeplab").eval()
    images = 9 * torch.randn(1, 3, *size)
    theirs = types.SimpleNamespace(
        test_cfg=types.SimpleNamespace(stride=stride, crop_size=window),
        out_channels=5,
        encode_decode=lambda crop, metas: network(crop)["out"],
    )
    with torch.no_grad():
        logits = mmseg.EncoderDecoder.slide_inference(theirs, images, [{}])
    labels = Protocol(window=window, stride=stride)
    monkeypatch.setattr("attnops.training.protocol.normalized", lambda network, x: x)
    found = labels.labels(network, images[0])
    best, second = logits.topk(2, dim=1).values.unbind(1)
    clear = best - second > 1e-4
    assert clear.float().mean() > 0.9
    assert torch.equal(found[None][clear], logits.argmax(1)[clear])


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (70, 5)])
@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0)])
def test_images_that_are_too_small_for_the_network(size, scales):
    network = tiny_network("galdv1").eval()  # at least 113 pixels
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    labels = Protocol(scales=scales).labels(network, image)
    assert labels.shape == size and labels.dtype == torch.int64


def test_a_base_size_scales_every_image(monkeypatch):
    network, asked = tiny_network("deeplab").eval(), []
    predict = type(network).predict

    def spy(self, images, scales=(1.0,), *options):
        asked.append(scales)
        return predict(self, images, scales, *options)

    monkeypatch.setattr(type(network), "predict", spy)
    image = torch.randint(0, 256, (3, 50, 100), dtype=torch.uint8)
    labels = Protocol((1.0, 2.0), base_size=(200, 80)).labels(network, image)
    assert asked == [[1.6, 3.2]] and labels.shape == (50, 100)
