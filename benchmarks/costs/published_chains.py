"""What the papers' code runs where attnops.nn moves, shares or folds operations.

The chains compute what their blocks compute in evaluation, from the same parameters, but project
the whole map wherever the released code does; for counting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from attnops import pyramid_pool
from attnops.nn import ASPP, Hamburger
from attnops.nn._projection import Projection
from attnops.nn.ann import Fusion
from attnops.nn.pyramid_attention import PyramidAttention
from attnops.reference import nmf


def _projection(self: Projection, x: Tensor) -> Tensor:
    x = self.conv(x)
    return x if self.bn is None else torch.relu(self.bn(x))


def _pyramid_attention(self: PyramidAttention, low: Tensor, high: Tensor) -> Tensor:
    """All projections on the map; a shared one runs for both that share it."""
    projected = self.key(low)
    query = (self.key if self.query is None else self.query)(high).flatten(2)
    key = pyramid_pool(projected, self.sizes, self.reduce)
    value = pyramid_pool((self.value or self.key)(low), self.sizes, self.reduce)
    weights = (key.shape[1] ** -0.5 * (query.mT @ key)).softmax(dim=2)
    return self.out((value @ weights.mT).unflatten(2, high.shape[2:]))


def _fusion(self: Fusion, context: Tensor, high: Tensor) -> Tensor:
    out = self.bn(self.conv(torch.cat([context, high], dim=1)))
    return torch.relu(out) if self.relu else out


def _hamburger(self: Hamburger, x: Tensor) -> Tensor:
    """The factors' product first, the convolution on the map."""
    source = torch.relu(self.ham_in(x)).flatten(2)
    bases, coef = nmf(source, self._initial_bases(source), self.eval_steps)
    rebuilt = (bases @ coef.mT).unflatten(2, x.shape[2:])
    return torch.relu(x + self.norm(self.ham_out(rebuilt)))


def _aspp(self: ASPP, x: Tensor) -> Tensor:
    """The image's vector resized to the map, and everything concatenated."""
    image = self.image(x.mean(dim=(2, 3), keepdim=True))
    image = interpolate(image, x.shape[2:], mode="bilinear", align_corners=True)
    return self.bottleneck(torch.cat([image, *(branch(x) for branch in self.branches)], dim=1))


CHAINS: dict[type[nn.Module], Callable[..., Tensor]] = {
    Projection: _projection,
    PyramidAttention: _pyramid_attention,
    Fusion: _fusion,
    Hamburger: _hamburger,
    ASPP: _aspp,
}


@contextmanager
def published_chains(model: nn.Module) -> Iterator[None]:
    """Within the block, the modules of `model` that have a published chain run that."""
    changed = [module for module in model.modules() if type(module) in CHAINS]
    for module in changed:
        module.forward = MethodType(CHAINS[type(module)], module)
    try:
        yield
    finally:
        for module in changed:
            del module.forward
