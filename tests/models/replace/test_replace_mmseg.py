"""Swapping the parts of mmsegmentation's own models, where it is installed."""

from __future__ import annotations

import importlib

import pytest
import torch
from peers import import_mmseg
from torch import nn

import attnops


@pytest.fixture
def mmseg(monkeypatch):
    return import_mmseg(monkeypatch)


def test_mmsegmentations_segnext(mmseg):
    from mmseg.models.backbones import MSCAN
    from mmseg.models.decode_heads import LightHamHead

    backbone = MSCAN(
        embed_dims=[8, 16, 24, 32], depths=[1, 1, 1, 1], norm_cfg={"type": "BN"}, drop_path_rate=0.0
    ).eval()
    head = LightHamHead(
        ham_channels=32,
        ham_kwargs={"MD_R": 4},
        in_channels=[16, 24, 32],
        in_index=[1, 2, 3],
        channels=32,
        num_classes=5,
        norm_cfg={"type": "GN", "num_groups": 8},
    ).eval()
    images = torch.randn(1, 3, 64, 96)

    def logits():
        torch.manual_seed(1)
        with torch.no_grad():
            return head(backbone(images))

    wanted = logits()
    assert len(attnops.replace_modules(backbone).replaced) == 4
    assert [entry.now for entry in attnops.replace_modules(head).replaced] == ["Hamburger"]
    torch.testing.assert_close(logits(), wanted, rtol=1e-4, atol=1e-4)


def test_mmsegmentations_segmentor(mmseg):
    """Losses and their gradients, accuracy, labels."""
    from mmengine.config import ConfigDict
    from mmengine.structures import PixelData
    from mmseg.models.segmentors import EncoderDecoder
    from mmseg.structures import SegDataSample

    fcn = {"type": "FCNHead", "in_channels": 16, "in_index": 1, "channels": 8, "num_convs": 1}
    weighted = {"type": "CrossEntropyLoss", "loss_weight": 0.4, "avg_non_ignore": True}
    model = EncoderDecoder(
        backbone={
            "type": "MSCAN",
            "embed_dims": [8, 16, 24, 32],
            "depths": [1, 1, 1, 1],
            "norm_cfg": {"type": "BN"},
            "drop_path_rate": 0.3,
        },
        decode_head={
            "type": "LightHamHead",
            "ham_channels": 32,
            "ham_kwargs": {"MD_R": 4},
            "in_channels": [16, 24, 32],
            "in_index": [1, 2, 3],
            "channels": 32,
            "num_classes": 5,
            "norm_cfg": {"type": "GN", "num_groups": 8},
        },
        auxiliary_head=fcn
        | {"num_classes": 5, "norm_cfg": {"type": "BN"}, "loss_decode": weighted},
        train_cfg=ConfigDict(),
        test_cfg=ConfigDict(mode="whole"),
    )
    images, labels = torch.randn(2, 3, 64, 96), torch.randint(5, (2, 1, 64, 96))
    labels[:, :, 5:30] = 255
    samples = [SegDataSample(gt_sem_seg=PixelData(data=label)) for label in labels]

    def results():
        torch.manual_seed(1)
        losses = model.train().loss(images, samples)
        total = losses["decode.loss_ce"] + losses["aux.loss_ce"]
        grads = torch.autograd.grad(total, list(model.parameters()))
        return losses, grads

    def labelled(predict):
        torch.manual_seed(2)
        with torch.no_grad():
            return predict()

    metas = 2 * [{"img_shape": (64, 96), "ori_shape": (64, 96)}]
    wanted_losses, wanted_grads = results()
    model.eval()
    wanted_labels = labelled(lambda: model.encode_decode(images, metas).argmax(1))
    assert torch.equal(labelled(lambda: attnops.predict_labels(model, images)), wanted_labels)
    report = attnops.replace_modules(model)
    assert [entry.path for entry in report.extended] == [
        "backbone",
        "decode_head",
        "auxiliary_head",
    ]
    assert report.left == [] and "not compared" not in str(report)
    found = labelled(lambda: attnops.predict_labels(model, images))
    assert (found == wanted_labels).float().mean() > 0.999
    losses, grads = results()
    assert losses.keys() == wanted_losses.keys()
    for name, value in wanted_losses.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-4, atol=1e-5)
    for a, b in zip(grads, wanted_grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_mmsegmentations_ann(mmseg):
    from mmseg.models.decode_heads import ANNHead

    head = ANNHead(
        in_channels=[16, 24],
        in_index=[0, 1],
        channels=12,
        project_channels=8,
        num_classes=5,
        norm_cfg={"type": "BN"},
    ).eval()
    for module in head.modules():
        if isinstance(module, nn.Conv2d) and not module.weight.any():
            nn.init.normal_(module.weight, std=0.1)
    maps = [torch.randn(1, 16, 20, 24), torch.randn(1, 24, 20, 24)]
    with torch.no_grad():
        wanted = head(maps)
        report = attnops.replace_modules(head)
        assert sorted(entry.now for entry in report.replaced) == ["AFNB", "APNB"]
        torch.testing.assert_close(head(maps), wanted, rtol=1e-4, atol=1e-4)


def test_the_benchmark_of_mmsegmentation_against_itself(mmseg, capsys):
    replaced = importlib.import_module("attnops.benchmarks.serving.replaced")
    options = ["--size", "64x96", "--seconds", "0", "--malloc", "default", "--threads"]
    assert replaced.main([*options, str(torch.get_num_threads())]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "14 modules replaced, 0 left alone, 2 extended"
    assert [line.partition(":")[0] for line in lines[1:]] == ["logits", "labels", "training step"]
    assert all(line.endswith("x") and " ms, replaced " in line for line in lines[1:])
