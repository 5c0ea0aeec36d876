"""Initial weights: their spread is that of the published networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attnops.models import DeepLabAttention, create_model

CLASSES = 5


def assert_normal(weight: torch.Tensor, std: float, name: str) -> None:
    """Mean 0 and spread `std`, both within six of their own standard deviations; no outlier."""
    count = weight.numel()
    assert abs(weight.std(correction=0).item() / std - 1) < 6 / (2 * count) ** 0.5, name
    assert abs(weight.mean().item()) < 6 * std / count**0.5, name
    assert weight.abs().max() < 7 * std, name


@pytest.mark.parametrize("decoder", ["ham", "nl", "cc", "ema", "msca", "mlp"])
def test_segnext_draws_by_the_outputs_that_an_input_reaches(decoder):
    """Kaiming's spread by fan-out: sqrt(2 / (kernel positions · output channels of a group))."""
    torch.manual_seed(0)
    model = create_model("segnext_t", num_classes=CLASSES, decoder=decoder)
    told_apart = 0
    for name, conv in model.named_modules():
        if not isinstance(conv, nn.Conv2d) or conv is model.classify:
            continue
        if conv.bias is not None:
            assert not conv.bias.any(), name
        if name.endswith("block.out"):  # the non-local context starts at zero
            assert not conv.weight.any()
            continue
        positions = conv.weight[0, 0].numel()
        in_group = name.startswith("backbone")
        outputs = conv.out_channels // (conv.groups if in_group else 1)
        told_apart += conv.weight.numel() > 2000 and outputs != conv.weight.shape[1]
        assert_normal(conv.weight.detach(), (2 / (positions * outputs)) ** 0.5, name)
    assert told_apart > 20
    assert_normal(model.classify.weight.detach(), 0.01, "classify")
    assert not model.classify.bias.any()


def test_deeplab_draws_its_classifier_narrowly():
    torch.manual_seed(0)
    model = DeepLabAttention(21, widths=(4, 6, 8, 10, 12), channels=64, hidden_channels=8)
    assert_normal(model.cls.weight.detach(), 0.01, "cls")
