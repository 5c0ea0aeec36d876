"""The blocks as they are published, in eager PyTorch, with the weights of our modules.

Own words for: Zhu et al., Asymmetric Non-local Neural Networks for Semantic Segmentation (ICCV
2019), eq. (1) to (11), and the order of operations of its released code. Every 1x1 convolution
runs on the whole map, every attention matrix is a tensor, each pyramid level is a pooling call of
its own.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.functional import softmax

from attnops.nn import APNB, NonLocal, PyramidAttention


def _projection(source: nn.Module) -> nn.Sequential:
    """Copies of a projection's convolution and, where it has one, BatchNorm and ReLU."""
    layers = [copy.deepcopy(source.conv)]
    if source.bn is not None:
        layers += [copy.deepcopy(source.bn), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class EagerAttention(nn.Module):
    """`[B, C, H, W]` -> context `[B, Co, H, W]`, through an explicit N x S (or N x N) matrix.

    Args:
        source: the module whose weights are copied.
        once: run a projection that query and key share once; the released code runs it twice.
    """

    def __init__(self, source: PyramidAttention | NonLocal, once: bool = True) -> None:
        super().__init__()
        self.key = _projection(source.key)
        self.query = self.key if source.query is None else _projection(source.query)
        self.value = None if source.value is None else copy.deepcopy(source.value)
        self.out = copy.deepcopy(source.out)
        sizes = getattr(source, "sizes", ())
        pool = nn.AdaptiveAvgPool2d
        if getattr(source, "reduce", "mean") == "max":
            pool = nn.AdaptiveMaxPool2d
        self.pools = nn.ModuleList(pool(size) for size in sizes)
        self.once = once

    def _sample(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, S]`."""
        if not self.pools:
            return x.flatten(2)
        return torch.cat([pool(x).flatten(2) for pool in self.pools], dim=2)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        projected = self.key(x)
        shared = self.once and self.query is self.key
        query = projected if shared else self.query(x)
        key = self._sample(projected)
        value = key if self.value is None else self._sample(self.value(x))
        # One name for scores and weights, as published: two such matrices live at a time, not
        # three.
        weights = torch.matmul(query.flatten(2).permute(0, 2, 1), key)
        weights = weights * key.shape[1] ** -0.5
        weights = softmax(weights, dim=-1)
        context = torch.matmul(weights, value.permute(0, 2, 1))
        context = context.permute(0, 2, 1).contiguous()
        return self.out(context.view(batch, -1, height, width))


def eager_apnb(block: APNB, once: bool = True) -> EagerAttention:
    """The published form of an `APNB(fuse=False)`; see `EagerAttention`.

    Raises:
        ValueError: the block has a fusing convolution.
    """
    if block.fusion is not None:
        raise ValueError("eager_apnb: expected an APNB with fuse=False")
    return EagerAttention(block.attention, once)


def eager_non_local(block: NonLocal) -> EagerAttention:
    """The non-local block with an explicit N x N matrix."""
    return EagerAttention(block)


def randomise(module: nn.Module, seed: int, gain: float = 1.0) -> nn.Module:
    """Draw weights and BatchNorm statistics so that outputs and attention are far from trivial.

    Blocks start with an output convolution of zeros, whose context would agree with anything.

    Args:
        gain: standard deviation of a convolution's output for an input of unit variance.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(target: Tensor, mean: float, spread: float) -> None:
        noise = torch.randn(target.shape, generator=generator)
        target.copy_(mean + spread * noise)

    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                draw(layer.weight, 0.0, gain * layer.weight[0].numel() ** -0.5)
                draw(layer.bias, 0.0, 0.1)
            elif isinstance(layer, nn.BatchNorm2d):
                draw(layer.weight, 1.0, 0.1)
                draw(layer.bias, 0.0, 0.1)
                draw(layer.running_mean, 0.0, 0.1)
                layer.running_var.uniform_(0.5, 1.5, generator=generator)
    return module
