"""1x1 convolutions as matrix products: of maps, and of anchors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d, linear

from .._layout import empty_map, is_channels_inner
from .._op.transforms import is_transformed

_SLAB = 2**17  # elements of a map that are multiplied at a time, but
_SLAB_POSITIONS = 256  # at least so many positions: fewer would slow a product down


def as_matrix(weight: Tensor) -> Tensor:
    """The weight `[O, C, 1, 1]` of a 1x1 convolution, in either memory format, as `[O, C]`.

    The gradient of a channels_last weight arrives with that weight's strides.
    """
    if weight.dim() == 4 and weight.stride(1) == 1 != weight.stride(3):
        return weight.permute(0, 2, 3, 1).flatten(1)
    return weight.flatten(1)


def scale_outputs(weight: Tensor, factor: Tensor) -> Tensor:
    """The weight `[O, C]` of a 1x1 convolution whose outputs are multiplied by factor `[O]`."""
    return as_matrix(weight) * factor.to(weight.dtype)[:, None]


def pointwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    factor: Tensor | None = None,
    *,
    lean: bool = False,
) -> Tensor:
    """factor·(W·x) + bias of a map `[B, C, *spatial]` with W `[O, C(, 1, 1)]`, in x's layout.

    lean: memory counts for more than time; without gradients the product then needs no more than
    its output.
    """
    recorded = _is_recorded(x, weight, bias, factor)
    if lean and _may_run_in_slabs(x, recorded):
        return _multiply_in_slabs(x, weight, bias, factor)
    if factor is None:
        matrix = as_matrix(weight)
    else:
        matrix = scale_outputs(weight, factor)
        bias = None if bias is None else bias.to(weight.dtype)
    if x.dim() == 4 and (torch.compiler.is_compiling() or _convolves_faster(x, recorded)):
        return conv2d(x, matrix[:, :, None, None], bias)  # Inductor lays convolutions out itself
    if is_channels_inner(x):
        return linear(x.movedim(1, -1), matrix, bias).movedim(-1, 1)
    columns = x.flatten(2)
    matrix = matrix.expand(x.shape[0], -1, -1)
    if bias is None:
        return torch.bmm(matrix, columns).unflatten(2, x.shape[2:])
    shift = bias[:, None].expand(x.shape[0], -1, columns.shape[2])
    return torch.baddbmm(shift, matrix, columns).unflatten(2, x.shape[2:])


def _convolves_faster(x: Tensor, recorded: bool) -> bool:
    """Whether oneDNN's convolution beats the matrix product: not in the backward of contiguous
    maps, and only in the types that it has.
    """
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and (is_channels_inner(x) or not recorded)
    )


def _is_recorded(*tensors: Tensor | None) -> bool:
    """Whether autograd, or torch.func, follows what is computed from the tensors."""
    recorded = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    return recorded or is_transformed(tensors)


def _may_run_in_slabs(x: Tensor, recorded: bool) -> bool:
    """Whether the product may be written piece by piece: eagerly, on the CPU, with no gradient.

    A traced loop would be unrolled for one size, and autocast does not cast where `out=` is given.
    """
    return (
        x.device.type == "cpu"
        and not recorded
        and not (torch.compiler.is_compiling() or torch.jit.is_tracing())
        and not torch.is_autocast_enabled("cpu")
    )


def _multiply_in_slabs(
    x: Tensor, weight: Tensor, bias: Tensor | None, factor: Tensor | None
) -> Tensor:
    """`pointwise`, some positions at a time.

    BLAS packs its operands into buffers that grow with the product, and keeps them afterwards. A
    slab is scaled while it is in cache, which spares a scaled copy of the weight.
    """
    matrix = as_matrix(weight)
    out = empty_map((x.shape[0], matrix.shape[0], *x.shape[2:]), x, is_channels_inner(x))
    positions = max(_SLAB // x.shape[1], _SLAB_POSITIONS)
    for columns, target in zip(x.flatten(2), out.flatten(2), strict=True):
        slabs = zip(columns.split(positions, 1), target.split(positions, 1), strict=True)
        for source, slab in slabs:
            torch.mm(matrix, source, out=slab)
            if factor is not None:
                slab.mul_(factor[:, None])
            if bias is not None:
                slab.add_(bias[:, None])
    return out


def apply_to_anchors(weight: Tensor, bias: Tensor | None, anchors: Tensor) -> Tensor:
    """The 1x1 convolution, weight `[O, C(, 1, 1)]`, of anchors: `[B, C, S]` -> `[B, O, S]`."""
    return pointwise(anchors, weight, bias)


def folding_saves(positions: int, *, once: int, folded: int, unfolded: int) -> bool:
    """Whether moving a convolution from the map to the anchors saves multiply-adds.

    Args:
        positions: N. A symbolic N (dynamic shapes) counts as large, so that no guard arises.
        once: multiply-adds to fold, independent of N.
        folded: multiply-adds a position with the convolution folded.
        unfolded: multiply-adds a position without.
    """
    if not isinstance(positions, int):
        return folded < unfolded
    return once + positions * folded < positions * unfolded
