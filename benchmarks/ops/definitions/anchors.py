"""The ops of the asymmetric pyramid non-local block."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, scaled_dot_product_attention, softmax

import attnops
from attnops.pyramid_pool import anchor_count

from ._definition import COMPILED, EAGER, OURS, SDPA, Definition, Draw, Shape, size_of, variant

SIZES = (1, 3, 6, 8)
ANCHORS = anchor_count(SIZES)
VARIANTS = (variant(1, 256, 96, 96), variant(1, 2048, 96, 96), variant(1, 2048, 256, 128))
QUICK = 2  # what projections make smaller, and what a backbone gives


def eager_pyramid_pool(x: Tensor) -> Tensor:
    return torch.cat([adaptive_avg_pool2d(x, size).flatten(2) for size in SIZES], dim=2)


def eager_anchor_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    batch, channels, height, width = query.shape
    weights = torch.matmul(query.flatten(2).permute(0, 2, 1), key)
    weights = weights * channels**-0.5
    weights = softmax(weights, dim=-1)
    out = torch.matmul(weights, value.permute(0, 2, 1))
    return out.permute(0, 2, 1).contiguous().view(batch, -1, height, width)


def sdpa_anchor_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Through PyTorch's fused attention with contiguous rows, its fast path."""
    tokens = [t.flatten(2).transpose(1, 2).unsqueeze(1).contiguous() for t in (query, key, value)]
    out = scaled_dot_product_attention(*tokens)
    return out.squeeze(1).transpose(1, 2).reshape(*query.shape)


def _pool_elements(shape: Shape, backward: bool) -> int:
    """x and the anchors; then their gradients."""
    once = size_of(shape) + size_of(shape[:2]) * ANCHORS
    return 2 * once if backward else once


def _attention_inputs(draw: Draw, shape: Shape) -> list[Tensor]:
    x = draw.structured_map(*shape)
    anchors = eager_pyramid_pool(x)
    # A pixel's product with the anchor it lies in is about C/2: scores of about 2, not 20.
    return [x, anchors * (4 * shape[1] ** -0.5), anchors.flip(2).contiguous()]


def _attention_elements(shape: Shape, backward: bool) -> int:
    """query and out; then grad, query and its gradient. Key and value, twice with gradients."""
    whole, anchors = size_of(shape), size_of(shape[:2]) * ANCHORS
    return 5 * whole + 6 * anchors if backward else 2 * (whole + anchors)


PYRAMID_POOL = Definition(
    functions={
        EAGER: eager_pyramid_pool,
        COMPILED: eager_pyramid_pool,
        OURS: attnops.pyramid_pool,
    },
    variants=VARIANTS,
    inputs=lambda draw, shape: [draw.structured_map(*shape)],
    elements=_pool_elements,
    macs=lambda shape, backward: 0,
    quick=QUICK,
)

ANCHOR_ATTENTION = Definition(
    functions={
        EAGER: eager_anchor_attention,
        COMPILED: eager_anchor_attention,
        SDPA: sdpa_anchor_attention,
        OURS: attnops.anchor_attention,
    },
    variants=VARIANTS,
    inputs=_attention_inputs,
    elements=_attention_elements,
    # two products, and five more in the backward
    macs=lambda shape, backward: (7 if backward else 2) * size_of(shape) * ANCHORS,
    differentiable=3,
    quick=QUICK,
)
