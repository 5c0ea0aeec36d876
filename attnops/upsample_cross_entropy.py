"""Cross-entropy at full resolution without full-resolution logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._checks import (
    check_choice,
    check_flag,
    check_integer,
    check_number,
    check_shape,
    check_tensors,
)
from ._layout import dense, empty_map, is_channels_inner
from ._op import Op

NAME = "upsample_cross_entropy"
REDUCTIONS = ("mean", "sum", "none")
_LABELS = (torch.int64, torch.int32, torch.int16, torch.uint8)


def upsample_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = 255,
    align_corners: bool = False,
    reduction: str = "mean",
    keep_threshold: float | None = None,
    min_kept: int = 0,
) -> Tensor:
    """Cross-entropy of bilinearly resized logits, forward and backward one small map at a time.

    Equal to resizing `logits` to the size of `target` and torch.nn.functional.cross_entropy, but
    what is kept is three numbers a pixel, not K.

    With `keep_threshold`, online hard example mining: of the valid pixels of the whole batch those
    are kept whose probability of the true class is below max(keep_threshold, the probability at
    index min(min_kept, n - 1) in ascending order of the n valid ones); the result is the mean of
    the (class-weighted) losses over the kept pixels, 0 if there are none.

    Source: Shrivastava et al., Training Region-based Object Detectors with Online Hard Example
    Mining (CVPR 2016), for pixels as in the released code of ANN and GALD.

    Args:
        logits: `[B, K, h, w]`, contiguous or channels_last.
        target: classes `[B, H, W]`, any integer dtype, each in 0..K-1 or `ignore_index`.
        weight: of the classes, `[K]`; None: 1.
        ignore_index: label of pixels that do not count.
        align_corners: of the resize, as in torch.nn.functional.interpolate.
        reduction: "mean" (divided by the summed weights of valid pixels; NaN if there are none, as
            PyTorch has it), "sum" or "none".
        keep_threshold: probability, or None: every valid pixel counts. Needs reduction="mean".
        min_kept: how many pixels to keep at least, as far as there are.

    Returns:
        A scalar, or `[B, H, W]` with zeros at ignored pixels for reduction "none"; in the dtype of
        `logits`, under autocast in float32. Half precision is computed in float32.

    Raises:
        TypeError: not float logits or integer targets, or an option of the wrong type.
        ValueError: shapes, dtypes or devices that do not match; on the CPU a target that is no
            class. On other devices, and in compiled graphs, such a pixel's loss is NaN.

    Example:
        >>> import torch, attnops
        >>> logits = torch.randn(2, 19, 16, 32, requires_grad=True)
        >>> target = torch.randint(19, (2, 128, 256))
        >>> attnops.upsample_cross_entropy(logits, target).backward()
    """
    for name, tensor in (("logits", logits), ("target", target)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{NAME}: {name} must be a tensor, got {type(tensor).__name__}")
    check_tensors(NAME, logits=logits)
    check_shape(NAME, "logits", logits, ("B", "K", "h", "w"))
    batch, classes, *small = logits.shape
    check_shape(NAME, "target", target, (batch, "H", "W"))
    check_choice(NAME, "reduction", reduction, REDUCTIONS)
    align_corners = check_flag(NAME, "align_corners", align_corners)
    ignore_index = check_integer(NAME, "ignore_index", ignore_index)
    if classes == 0 or (target.numel() and 0 in small):
        raise ValueError(f"{NAME}: logits are empty: {list(logits.shape)}")
    _check_target(target, logits, ignore_index)
    keep_threshold, min_kept = _check_mining(keep_threshold, min_kept, reduction)
    if weight is not None:
        _check_weight(weight, logits)

    nll = _op(logits, target.long(), ignore_index, align_corners)[0]
    loss = _reduce(nll, target, weight, ignore_index, reduction, keep_threshold, min_kept)
    device = logits.device.type
    keeps_float32 = device != "meta" and torch.is_autocast_enabled(device)
    return loss if keeps_float32 else loss.to(logits.dtype)


def _check_target(target: Tensor, logits: Tensor, ignore_index: int) -> None:
    if target.dtype not in _LABELS:
        raise TypeError(
            f"{NAME}: target has dtype {target.dtype}; expected class numbers, for example int64"
        )
    if target.device != logits.device:
        raise ValueError(
            f"{NAME}: logits are on {logits.device} but target is on {target.device}; expected one "
            "device"
        )
    # Elsewhere the check would wait for the device, or need a number while tracing.
    if target.device.type != "cpu" or torch.compiler.is_compiling() or target.numel() == 0:
        return
    if isinstance(target, torch._subclasses.FakeTensor):
        return
    bad = (target != ignore_index) & ((target < 0) | (target >= logits.shape[1]))
    if bad.any():
        raise ValueError(
            f"{NAME}: target holds {target[bad][0].item()}, which is neither a class "
            f"(0..{logits.shape[1] - 1}) nor ignore_index={ignore_index}"
        )


def _check_mining(
    keep_threshold: float | None, min_kept: int, reduction: str
) -> tuple[float | None, int]:
    min_kept = check_integer(NAME, "min_kept", min_kept, least=0)
    if keep_threshold is None:
        return None, min_kept
    if reduction != "mean":
        raise ValueError(f"{NAME}: keep_threshold needs reduction='mean', got {reduction!r}")
    return check_number(NAME, "keep_threshold", keep_threshold), min_kept


def _check_weight(weight: Tensor, logits: Tensor) -> None:
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        raise TypeError(f"{NAME}: weight must be a float tensor or None, got {weight!r}")
    check_shape(NAME, "weight", weight, (logits.shape[1],))
    if weight.device != logits.device:
        raise ValueError(
            f"{NAME}: logits are on {logits.device} but weight is on {weight.device}; expected one "
            "device"
        )


def _reduce(
    nll: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    keep_threshold: float | None,
    min_kept: int,
) -> Tensor:
    """The loss from unweighted losses `[B, H, W]`, 0 at ignored pixels."""
    valid = target != ignore_index
    losses, counts = nll, valid.to(nll.dtype)
    if weight is not None:
        classes = torch.where(valid, target, 0).clamp(0, len(weight) - 1).long()
        of_pixel = weight.to(nll.dtype)[classes]
        losses, counts = nll * of_pixel, counts * of_pixel
    if keep_threshold is not None:
        kept = valid & _is_hard(nll.detach(), valid, keep_threshold, min_kept)
        return torch.where(kept, losses, 0).sum() / kept.sum().clamp(min=1)
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    return losses.sum() / counts.sum()


def _is_hard(nll: Tensor, valid: Tensor, keep_threshold: float, min_kept: int) -> Tensor:
    """Pixels whose true class is improbable enough to be kept; nothing waits for the device."""
    probability = torch.where(valid, torch.exp(-nll), torch.inf)
    ordered = probability.flatten().sort().values
    index = (valid.sum() - 1).clamp(0, min_kept)
    if ordered.numel() == 0:
        return valid
    threshold = ordered.gather(0, index.view(1)).clamp(min=keep_threshold)
    return probability < threshold


# The op itself: unweighted losses [B, H, W], and statistics [2, B, H, W] for the backward: the
# largest logit m of every pixel and log(sum of exp(logit - m)). Their sum, the log-sum-exp, would
# lose the digits of the smaller one.


def _fake(
    logits: Tensor, target: Tensor, ignore_index: int, align_corners: bool
) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    shape = target.shape
    return logits.new_empty(shape, dtype=dtype), logits.new_empty((2, *shape), dtype=dtype)


def _backward_fake(grad: Tensor, logits: Tensor, *args: Any) -> Tensor:
    return empty_map(logits.shape, logits, is_channels_inner(logits))


def _prepare(logits: Tensor, target: Tensor, *options: Any) -> tuple[Any, ...]:
    return dense(logits), target.contiguous(), *options


def _prepare_backward(
    grad: Tensor, logits: Tensor, target: Tensor, statistics: Tensor, *options: Any
) -> tuple[Any, ...]:
    return grad.contiguous(), dense(logits), target.contiguous(), statistics.contiguous(), *options


def _setup(inputs: tuple[Any, ...], outputs: list[Tensor]) -> tuple[tuple, tuple]:
    logits, target, *options = inputs
    return (logits, target, outputs[1]), tuple(options)


def _gradient(
    grads: tuple[Tensor | None, ...], saved: list[Tensor], kept: tuple, call: Callable[..., Tensor]
) -> tuple[Tensor | None, ...]:
    if grads[0] is None:
        return None, None, None, None
    return call(grads[0], *saved, *kept), None, None, None


_op = Op(
    NAME,
    forward="(Tensor logits, Tensor target, int ignore_index, bool align_corners)"
    " -> (Tensor, Tensor)",
    backward="(Tensor grad, Tensor logits, Tensor target, Tensor statistics, int ignore_index,"
    " bool align_corners) -> Tensor",
    fake=_fake,
    backward_fake=_backward_fake,
    prepare=_prepare,
    prepare_backward=_prepare_backward,
    setup=_setup,
    gradient=_gradient,
)
