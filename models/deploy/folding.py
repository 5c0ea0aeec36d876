"""BatchNorms folded into convolutions, in a network that will only be evaluated."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from attnops.nn import MSCABlock
from attnops.nn._projection import Projection
from attnops.nn.ann import Fusion
from attnops.nn.functional import has_fixed_statistics, is_pointwise, runs_as_built

from ..ann import ANN
from ..decoders import Decoder
from .ann import can_fold_fusion, fold_fusion
from .decoder import FoldedDecoder, can_fold_decoder
from .mscan import FoldedBlock, can_fold_block

_CONVOLUTIONS = (torch.nn.functional.conv2d, torch.conv2d)


class Folded(NamedTuple):
    """How many BatchNorms a network had, and where those of them went that are gone."""

    norms: int
    folded: int


def fold(network: nn.Module, images: Tensor) -> Folded:
    """Fold what can be folded in `network`, which is in evaluation mode, in place.

    A BatchNorm goes into a convolution where the convolution's result goes into it and nowhere
    else. That is seen in an evaluation of `images`, so it holds for any network; the blocks of
    SegNeXt and ANN, whose norms do not stand behind their convolutions or are applied by hand, are
    known. ANN's 1x1 convolution of 2048 channels goes into the one behind it. Modules with hooks,
    and what is parametrised, stay as they are.

    Args:
        network: changed.
        images: that the network can take, any values.
    """
    norms = _norms(network)
    _fold_blocks(network)
    for conv, norm in {**_watched_pairs(network, images), **_pairs_in_sequence(network)}.items():
        _fold_pair(network, conv, norm)
    for module in list(network.modules()):
        if _folds_by_hand(module):
            _fold_into(module.conv, module.bn)
            if isinstance(module, Fusion):
                module.bn = nn.Identity()
            else:
                _replace(network, module, nn.Sequential(module.conv, nn.ReLU()))
    for module in network.modules():
        if type(module) is ANN and can_fold_fusion(module):
            fold_fusion(module)
    return Folded(norms, norms - _norms(network))


def _norms(network: nn.Module) -> int:
    return sum(isinstance(module, _BatchNorm) for module in network.modules())


def _fold_blocks(network: nn.Module) -> None:
    for block in [module for module in network.modules() if type(module) is MSCABlock]:
        if can_fold_block(block):
            _replace(network, block, FoldedBlock(block))
    for decoder in [module for module in network.modules() if type(module) is Decoder]:
        if can_fold_decoder(decoder):
            _replace(network, decoder, FoldedDecoder(decoder))


def _folds_by_hand(module: nn.Module) -> bool:
    """Whether `module` applies its BatchNorm itself, as a factor of its 1x1 convolution."""
    return (
        runs_as_built(module, Projection, Fusion)
        and has_fixed_statistics(module.bn)
        and is_pointwise(module.conv)
    )


def _pairs_in_sequence(network: nn.Module) -> dict[nn.Conv2d, nn.Module]:
    """Convolutions and the BatchNorms right behind them in a Sequential."""
    found = {}
    for module in network.modules():
        if runs_as_built(module, nn.Sequential):
            for conv, norm in itertools.pairwise(module):
                if runs_as_built(conv, nn.Conv2d) and has_fixed_statistics(norm):
                    found[conv] = norm
    return found


def _watched_pairs(network: nn.Module, images: Tensor) -> dict[nn.Conv2d, nn.Module]:
    """Convolutions and the BatchNorms that alone take their results."""
    watch = _Watch(network)
    with torch.no_grad(), watch:
        network(images)
    return watch.pairs()


class _Watch(TorchFunctionMode):
    """Notes which function takes what a convolution gave."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.convolutions: dict[int, nn.Conv2d] = {}
        self.norms: dict[int, nn.Module] = {}
        for module in network.modules():
            if isinstance(module, nn.Conv2d) and _is_open(module):
                self.convolutions[id(module.weight)] = module
            elif isinstance(module, nn.BatchNorm2d) and _is_open(module) and _left_of(module):
                self.norms[id(module.running_mean)] = module
        self.results: dict[int, tuple[Tensor, nn.Conv2d]] = {}  # held, so that no id is used again
        self.taken: dict[nn.Module, list[Any]] = {}  # by what, for every call of a convolution
        self.fed: dict[nn.Module, list[Any]] = {}  # from what, for every call of a BatchNorm

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        norm = None
        if function is torch.nn.functional.batch_norm:
            named = dict(zip(("input", "running_mean"), args, strict=False)) | kwargs
            norm = self.norms.get(id(named.get("running_mean")))
        leaves = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        sources = [self.results[id(x)][1] for x in leaves if id(x) in self.results]
        out = function(*args, **kwargs)
        if tree_leaves(out) and any(isinstance(x, Tensor) for x in tree_leaves(out)):
            for conv in sources:
                self.taken[conv].append(norm)
            if norm is not None:
                self.fed.setdefault(norm, []).append(sources[0] if sources else None)
        if function in _CONVOLUTIONS and len(args) > 1:
            conv = self.convolutions.get(id(args[1]))
            if conv is not None:
                self.results[id(out)] = (out, conv)
                self.taken.setdefault(conv, [])
        return out

    def pairs(self) -> dict[nn.Conv2d, nn.Module]:
        calls: dict[nn.Conv2d, int] = {}
        for _, conv in self.results.values():
            calls[conv] = calls.get(conv, 0) + 1
        return {
            conv: norms[0]
            for conv, norms in self.taken.items()
            if norms
            and norms[0] is not None
            and len(norms) == calls[conv]
            and all(norm is norms[0] for norm in norms)
            and all(source is conv for source in self.fed[norms[0]])
        }


def _is_open(module: nn.Module) -> bool:
    """Whether nobody looks at the module's input or output, and its tensors are its own."""
    return runs_as_built(module, type(module)) and not hasattr(module, "parametrizations")


def _left_of(norm: nn.Module) -> nn.Module | None:
    """What is left of a BatchNorm that was folded; None if it does something else besides."""
    if norm.training or norm.running_mean is None:
        return None
    if type(norm) in (nn.BatchNorm2d, nn.SyncBatchNorm):
        return nn.Identity()
    act, drop = getattr(norm, "act", None), getattr(norm, "drop", None)  # timm's BatchNormAct2d
    if type(norm).__name__ == "BatchNormAct2d" and isinstance(act, nn.Module):
        return act if isinstance(drop, nn.Identity) else nn.Sequential(drop, act)
    return None


def _fold_pair(network: nn.Module, conv: nn.Conv2d, norm: nn.Module) -> None:
    _fold_into(conv, norm)
    _replace(network, norm, _left_of(norm))


def _fold_into(conv: nn.Conv2d, norm: nn.Module) -> None:
    """Give `conv` the weight and bias of itself followed by `norm`, computed in float64."""
    of_norm = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    values = [
        x.double() if isinstance(x, Tensor) else x for x in (conv.weight, conv.bias, *of_norm)
    ]
    weight, bias = fuse_conv_bn_weights(*values)
    conv.weight, conv.bias = (
        nn.Parameter(x.detach().to(conv.weight.dtype), requires_grad=False) for x in (weight, bias)
    )


def _replace(network: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` wherever `old` is in the tree."""
    for parent, name in list(_places(network, old)):
        setattr(parent, name, new)


def _places(network: nn.Module, module: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    for parent in network.modules():
        for name, child in parent._modules.items():
            if child is module:
                yield parent, name
