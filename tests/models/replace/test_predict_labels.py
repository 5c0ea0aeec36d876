"""Labels of segmentors with a backbone and a decode head."""

from __future__ import annotations

import published_segmentor as segmentor
import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

import attnops
from attnops.models import create_model


class Double(nn.Module):
    def forward(self, maps):
        return [x * 2 for x in maps]


def labels_of_full_scores(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    maps = model.backbone(images)
    scores = model.decode_head(model.neck(maps) if hasattr(model, "neck") else maps)
    corners = model.decode_head.align_corners
    full = interpolate(scores, images.shape[2:], mode="bilinear", align_corners=corners)
    if full.shape[1] == 1:
        return (full[:, 0].sigmoid() > model.decode_head.threshold).long()
    return full.argmax(1)


@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("kind", ["light", "neck", "one class"])
def test_labels_are_those_of_full_scores(kind, corners, replaced):
    head = segmentor.BaseDecodeHead(12, 1) if kind == "one class" else None
    model = segmentor.Segmentor(head=head).double().eval()
    model.decode_head.align_corners = corners
    if kind == "one class":
        model.decode_head.threshold = 0.3
    if kind == "neck":
        model.neck = Double()
    if replaced:
        attnops.replace_modules(model)
    images = torch.randn(2, 3, 53, 41, dtype=torch.float64)
    torch.manual_seed(1)
    with torch.no_grad():
        wanted = labels_of_full_scores(model, images)
    torch.manual_seed(1)
    found = attnops.predict_labels(model, images)
    assert found.dtype == torch.int64 and not found.requires_grad
    assert torch.equal(found, wanted) and wanted.unique().numel() > 1


def test_a_model_in_training_is_evaluated_and_left_as_it_is():
    model = segmentor.Segmentor(drop_path=0.5).train()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    images = torch.randn(2, 3, 40, 40)
    torch.manual_seed(1)
    found = attnops.predict_labels(model, images.double())  # in the parameters' dtype
    assert all(m.training for m in model.modules())
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    torch.manual_seed(1)
    assert torch.equal(found, attnops.predict_labels(model.eval(), images))


def test_extract_feat_is_asked():
    class Own(segmentor.Segmentor):
        def extract_feat(self, images):
            return self.backbone(images.flip(3))

    torch.manual_seed(0)
    model = Own().eval()
    images = torch.randn(1, 3, 40, 40)
    torch.manual_seed(1)
    found = attnops.predict_labels(model, images)
    del Own.extract_feat
    torch.manual_seed(1)
    assert torch.equal(found, attnops.predict_labels(model, images.flip(3)))


def test_our_networks_run_their_predict():
    net = create_model("segnext_t", num_classes=4, seed=0)
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(attnops.predict_labels(net, images), net.predict(images))


class Masks(segmentor.BaseDecodeHead):
    def predict(self, maps, metas, config):
        return maps


def with_head(head: nn.Module) -> nn.Module:
    return segmentor.Segmentor(head=head).eval()


class TwoResults(segmentor.BaseDecodeHead):
    def forward(self, maps):
        return maps[-1], maps[-1]


@pytest.mark.parametrize(
    ("make", "images", "error", "message"),
    [
        (dict, torch.randn(1, 3, 40, 40), TypeError, "expected a torch.nn.Module, got dict"),
        (nn.ReLU, torch.randn(1, 3, 40, 40), TypeError, "ReLU has no backbone and decode_head"),
        (segmentor.Segmentor, torch.randn(3, 40, 40), ValueError, r"\[B, C, H, W\], got"),
        (segmentor.Segmentor, torch.ones(1, 3, 40, 40).byte(), TypeError, "uint8"),
        (
            segmentor.Segmentor,
            torch.randn(1, 3, 40, 40, device="meta"),
            ValueError,
            "images are on meta but the model is on cpu",
        ),
        (
            lambda: with_head(Masks(12, 5)),
            torch.randn(1, 3, 40, 40),
            TypeError,
            "Masks has a predict of its own",
        ),
        (
            lambda: with_head(nn.ModuleList([segmentor.LightHead()])),
            torch.randn(1, 3, 40, 40),
            TypeError,
            "cascade of 1 heads",
        ),
        (
            lambda: with_head(TwoResults(12, 5)),
            torch.randn(1, 3, 40, 40),
            TypeError,
            "TwoResults returns tuple",
        ),
        (
            lambda: with_head(segmentor.BaseDecodeHead(12, 1)),
            torch.randn(1, 3, 40, 40),
            TypeError,
            "no threshold",
        ),
    ],
)
def test_errors(make, images, error, message):
    with pytest.raises(error, match=message):
        attnops.predict_labels(make(), images)
