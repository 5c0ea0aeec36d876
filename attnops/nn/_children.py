"""When a module may use the weights of a child instead of calling it.

A short way past a child's forward (a fused op, a folded norm) gives the same result only as long as
the child is what it was built as. Users hook children, prune and reparametrise them, wrap them in
adapters or observers, give them other strides: then the child is called, and the plain chain runs.
The questions here are a few attribute reads, and torch.compile traces them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.nn.functional import interpolate
from torch.nn.modules import module as torch_module
from torch.utils.module_tracker import ModuleTracker

from ._pointwise import as_matrix, pointwise

BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
# The latter two stand for plain tensors while PyTorch traces; others (sharded, quantised) have
# arithmetic of their own.
_PLAIN_TENSORS = (Tensor, nn.Parameter, FakeTensor, FunctionalTensor)


def runs_as_built(module: nn.Module | None, *classes: type[nn.Module]) -> bool:
    """Whether calling `module` does nothing but what the forward of one of `classes` does.

    Subclasses (parametrised modules, adapters, observers), hooks of any kind, on the module or on
    all modules, and a forward that was set on the instance say no.
    """
    return (
        type(module) in classes
        and "forward" not in module.__dict__
        and not (
            module._forward_hooks
            or module._forward_pre_hooks
            or module._backward_hooks
            or module._backward_pre_hooks
        )
        and not (torch_module._has_any_global_hook() and _global_hooks_look())
    )


def _global_hooks_look() -> bool:
    """Whether a hook on all modules may look at values; those of operation counters only keep
    account of which module runs, and are to count what really runs.
    """
    hooks = (
        *torch_module._global_forward_hooks.values(),
        *torch_module._global_forward_pre_hooks.values(),
        *torch_module._global_backward_hooks.values(),
        *torch_module._global_backward_pre_hooks.values(),
    )
    return any(not isinstance(getattr(hook, "__self__", None), ModuleTracker) for hook in hooks)


def _plain_weight(conv: nn.Module | None) -> Tensor | None:
    """The weight of a Conv2d that is nothing but its registered weight and bias, plain tensors; or
    None.
    """
    if not runs_as_built(conv, nn.Conv2d) or conv.padding_mode != "zeros":
        return None
    parameters = conv._parameters  # faster than attributes, which count here
    weight, bias = parameters.get("weight"), parameters.get("bias")
    if type(weight) in _PLAIN_TENSORS and (bias is None or type(bias) in _PLAIN_TENSORS):
        return weight
    return None


def is_pointwise(conv: nn.Module | None, groups: int = 1) -> bool:
    """Whether `conv` is a 1x1 convolution with `groups` that is nothing but weight and bias."""
    weight = _plain_weight(conv)
    return (
        weight is not None
        and weight.shape[2:] == (1, 1)
        and conv.padding == (0, 0)
        and conv.stride == (1, 1)
        and conv.groups == groups
    )


def is_depthwise(
    conv: nn.Module | None, height: int | None = None, width: int | None = None
) -> bool:
    """Whether `conv` is a depthwise convolution of odd sides, padded with zeros to keep the size of
    its map, that is nothing but weight and bias; of this height and width where they are given.
    """
    weight = _plain_weight(conv)
    if weight is None:
        return False
    count, inner, rows, columns = weight.shape
    return (
        inner == 1
        and conv.groups == count
        and rows % 2 == columns % 2 == 1
        and (height is None or height == rows)
        and (width is None or width == columns)
        and conv.padding == (rows // 2, columns // 2)
        and conv.stride == conv.dilation == (1, 1)
    )


def convolve(conv: nn.Module, x: Tensor, *, lean: bool = False) -> Tensor:
    """`conv(x)` of a child built as a 1x1 convolution, by `pointwise` where it still is one."""
    if is_pointwise(conv):
        return pointwise(x, conv.weight, conv.bias, lean=lean)
    return conv(x)


def convolve_joined(conv: nn.Module, maps: Sequence[Tensor], align_corners: bool = False) -> Tensor:
    """`conv`, built as a 1x1 convolution, of maps resized to the first one's size and concatenated.

    As it commutes with the bilinear resize, a 1x1 convolution runs on each map as it is: the
    results are resized and summed.
    """
    first, *rest = maps
    size = first.shape[2:]

    def resize(x: Tensor) -> Tensor:
        return interpolate(x, size, mode="bilinear", align_corners=align_corners)

    if not is_pointwise(conv):
        return conv(torch.cat([first, *map(resize, rest)], dim=1))
    widths = [x.shape[1] for x in maps]
    weight, *weights = as_matrix(conv.weight).split(widths, dim=1)
    total = pointwise(first, weight, conv.bias)
    for x, weight in zip(rest, weights, strict=True):
        total = total + resize(pointwise(x, weight, None))
    return total


def has_fixed_statistics(bn: nn.Module | None) -> bool:
    """Whether `bn` is a BatchNorm that does nothing but apply its running statistics, hence an
    affine map.
    """
    if not runs_as_built(bn, *BATCH_NORMS) or bn.training or bn.running_mean is None:
        return False
    tensors = (bn.running_mean, bn.running_var, bn.weight, bn.bias)
    return all(x is None or type(x) in _PLAIN_TENSORS for x in tensors)


def fold_batch_norm(bias: Tensor | None, bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """`bn` in evaluation after W·x + bias: shift and factor `[O]` of factor·(W·x) + shift."""
    factor = torch.rsqrt(bn.running_var + bn.eps)
    if bn.weight is not None:
        factor = factor * bn.weight
    shift = -bn.running_mean * factor if bias is None else (bias - bn.running_mean) * factor
    if bn.bias is not None:
        shift = shift + bn.bias
    return shift, factor
