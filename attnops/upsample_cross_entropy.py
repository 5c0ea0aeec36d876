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
from ._layout import dense, empty_map, is_channels_inner, statistics_dtype
from ._op import Direction, Op
from ._op.overridable import overridable
from ._op.transforms import is_in_function_transform
from .merge_scales import resize_map
from .reference._labels import int64_labels

NAME = "upsample_cross_entropy"
REDUCTIONS = ("mean", "sum", "none")
NONE, SUM, MEAN, MEAN_OF_ALL = range(4)  # what the op makes of the losses of pixels
_LABELS = (
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint64,
    torch.uint32,
    torch.uint16,
    torch.uint8,
    torch.bool,
)


@overridable
def upsample_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = 255,
    align_corners: bool = False,
    reduction: str = "mean",
    keep_threshold: float | None = None,
    min_kept: int = 0,
    label_smoothing: float = 0.0,
    avg_non_ignore: bool = True,
) -> Tensor:
    """Cross-entropy of bilinearly resized logits, forward and backward one small map at a time.

    Equal to resizing `logits` to the size of `target` and torch.nn.functional.cross_entropy, but
    what is kept is three numbers a pixel, not K. Two things differ where logits are not finite: a
    neighbour that the resize weighs with 0 is not read, forward or backward, so that an infinity
    or NaN reaches only pixels that it has a share in (all of its own pixel where the sizes are
    equal); and ignored pixels never have a gradient.

    With `keep_threshold`, online hard example mining: of the valid pixels of the whole batch those
    are kept whose probability of the true class is below max(keep_threshold, the probability at
    index min(min_kept, n - 1) in ascending order of the n valid ones); the result is the mean of
    the (class-weighted) losses over the kept pixels, 0 if there are none.

    Source: Shrivastava et al., Training Region-based Object Detectors with Online Hard Example
    Mining (CVPR 2016), for pixels as in the released code of ANN and GALD.

    Args:
        logits: `[B, K, h, w]`, contiguous or channels_last.
        target: classes `[B, H, W]`, any integer dtype or bool, each in 0..K-1 or `ignore_index`.
            Labels are compared as 64-bit integers.
        weight: of the classes, `[K]`; None: 1.
        ignore_index: label of pixels that do not count. One that the dtype of `target` cannot
            hold is the label of no pixel.
        align_corners: of the resize, as in torch.nn.functional.interpolate.
        reduction: "mean" (divided by the summed weights of valid pixels; NaN if there are none, as
            PyTorch has it), "sum" (what `valid_weight` divides over several batches) or "none".
        keep_threshold: probability, or None: every valid pixel counts. Needs reduction="mean".
        min_kept: how many pixels to keep at least, as far as there are.
        label_smoothing: share, 0 to 1, of a pixel's target that goes to all classes in equal parts,
            as in torch.nn.functional.cross_entropy, class weights included. Which pixels mining
            keeps does not depend on it.
        avg_non_ignore: False: "mean" divides by the number of all pixels, ignored ones and their
            weights regardless, as mmsegmentation averages by default; 0 if all are ignored.

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
    check_tensors(NAME, logits=logits)
    check_shape(NAME, "logits", logits, ("B", "K", "h", "w"))
    _check_labels(NAME, target)
    batch, classes, *small = logits.shape
    check_shape(NAME, "target", target, (batch, "H", "W"))
    check_choice(NAME, "reduction", reduction, REDUCTIONS)
    align_corners = check_flag(NAME, "align_corners", align_corners)
    ignore_index = check_integer(NAME, "ignore_index", ignore_index)
    if classes == 0 or (target.numel() and 0 in small):
        raise ValueError(f"{NAME}: logits are empty: {list(logits.shape)}")
    if target.device != logits.device:
        raise ValueError(
            f"{NAME}: logits are on {logits.device} but target is on {target.device}; expected one "
            "device"
        )
    labels, ignored = int64_labels(target, ignore_index)
    _check_range(target, labels, ignored, classes, ignore_index)
    smoothing = check_number(NAME, "label_smoothing", label_smoothing)
    if not 0 <= smoothing <= 1:
        raise ValueError(f"{NAME}: label_smoothing must be in 0..1, got {smoothing}")
    avg_non_ignore = check_flag(NAME, "avg_non_ignore", avg_non_ignore)
    keep_threshold, min_kept = _check_mining(keep_threshold, min_kept, reduction)
    if weight is not None:
        _check_weight(weight, logits)

    device = logits.device.type
    keeps_float32 = device != "meta" and torch.is_autocast_enabled(device)
    is_plain = keep_threshold is None and not smoothing and target.numel() and logits.numel()
    if reduction != "none" and is_plain and not _has_gradient(weight):
        reduces = SUM if reduction == "sum" else MEAN if avg_non_ignore else MEAN_OF_ALL
        return _op(logits, labels, weight, ignored, align_corners, reduces, keeps_float32)[0]

    options = (ignored, align_corners, NONE, False)
    nll, statistics, _ = _op(logits, labels, None, *options)
    valid = labels != ignored
    of_pixel = valid.to(nll.dtype) if weight is None else weights_of(labels, valid, weight, nll)
    losses = nll if weight is None else nll * of_pixel
    if smoothing:
        uniform = _uniform_loss(logits, statistics, weight, align_corners)
        losses = (1 - smoothing) * losses + smoothing * torch.where(valid, uniform, 0)
    if keep_threshold is not None:
        kept = valid & _is_hard(nll.detach(), valid, keep_threshold, min_kept)
        loss = torch.where(kept, losses, 0).sum() / kept.sum().clamp(min=1)
    elif reduction == "none":
        loss = losses
    elif reduction == "sum":
        loss = losses.sum()
    else:
        loss = losses.sum() / (of_pixel.sum() if avg_non_ignore else losses.numel())
    return loss if keeps_float32 else loss.to(logits.dtype)


def _has_gradient(weight: Tensor | None) -> bool:
    return weight is not None and weight.requires_grad and torch.is_grad_enabled()


def _check_labels(op: str, target: Tensor) -> None:
    if not isinstance(target, Tensor):
        raise TypeError(f"{op}: target must be a tensor, got {type(target).__name__}")
    if target.dtype not in _LABELS:
        raise TypeError(
            f"{op}: target has dtype {target.dtype}; expected class numbers, for example int64"
        )


def _check_range(
    target: Tensor, labels: Tensor, ignored: int, classes: int, ignore_index: int
) -> None:
    """Raise where a label on the CPU is neither a class nor ignored."""
    # Elsewhere the check would wait for the device, or need a number while tracing.
    if target.device.type != "cpu" or torch.compiler.is_compiling() or target.numel() == 0:
        return
    if isinstance(target, torch._subclasses.FakeTensor) or is_in_function_transform():
        return
    bad = (labels != ignored) & ((labels < 0) | (labels >= classes))
    if bad.any():
        raise ValueError(
            f"{NAME}: target holds {target.flatten()[bad.flatten().int().argmax()].item()}, which "
            f"is neither a class (0..{classes - 1}) nor ignore_index={ignore_index}"
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


def weights_of(labels: Tensor, valid: Tensor, weight: Tensor, like: Tensor) -> Tensor:
    """The weight of every pixel's class, 0 at ignored ones, in the dtype of `like`."""
    classes = torch.where(valid, labels, 0).clamp(0, len(weight) - 1)
    return weight.to(like.dtype)[classes] * valid


def _uniform_loss(
    logits: Tensor, statistics: Tensor, weight: Tensor | None, align_corners: bool
) -> Tensor:
    """Mean over all classes of weight · (log-sum-exp - logit), `[B, H, W]`.

    Resizing is linear: the mean of resized logits is the resized mean, one map instead of K.
    """
    wide = logits.to(statistics.dtype)
    share = 1.0
    if weight is not None:
        share = weight.to(statistics.dtype)
        wide = wide * share.view(-1, 1, 1)
        share = share.mean()
    mean = resize_map(wide.mean(dim=1, keepdim=True), *statistics.shape[2:], align_corners)
    largest, rest = statistics.unbind()
    return (share * largest - mean.squeeze(1)) + share * rest


def _is_hard(nll: Tensor, valid: Tensor, keep_threshold: float, min_kept: int) -> Tensor:
    """Pixels whose true class is improbable enough to be kept; nothing waits for the device."""
    probability = torch.where(valid, torch.exp(-nll), torch.inf)
    ordered = probability.flatten().sort().values
    index = (valid.sum() - 1).clamp(0, min_kept)
    if ordered.numel() == 0:
        return valid
    threshold = ordered.gather(0, index.view(1)).clamp(min=keep_threshold)
    return probability < threshold


def valid_weight(target: Tensor, weight: Tensor | None = None, ignore_index: int = 255) -> Tensor:
    """What the mean of `upsample_cross_entropy` divides by: the summed weights of valid pixels.

    Means of batches with unequally many ignored pixels do not average to the mean over all of
    them. Summed losses over the summed weights do: the way to accumulate gradients.

    Args:
        target: classes `[B, H, W]`, any integer dtype or bool.
        weight: of the classes, `[K]`; None: 1.
        ignore_index: label of pixels that do not count.

    Returns:
        A scalar on the device of `target`: int64 without `weight`, else float32 or float64.

    Raises:
        TypeError: not an integer target, or an option of the wrong type.

    Example:
        >>> import torch, attnops
        >>> logits = torch.randn(4, 19, 16, 32, requires_grad=True)
        >>> target = torch.randint(19, (4, 128, 256))
        >>> total = attnops.valid_weight(target)
        >>> for part, labels in zip(logits.split(1), target.split(1)):
        ...     loss = attnops.upsample_cross_entropy(part, labels, reduction="sum") / total
        ...     loss.backward()
    """
    name = "valid_weight"
    _check_labels(name, target)
    labels, ignored = int64_labels(target, check_integer(name, "ignore_index", ignore_index))
    valid = labels != ignored
    if weight is None:
        return valid.sum()
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        raise TypeError(f"{name}: weight must be a float tensor or None, got {weight!r}")
    wide = weight.to(statistics_dtype(weight))
    return weights_of(labels, valid, wide, wide).sum()


# The op itself. With NONE: unweighted losses [B, H, W]; else their weighted sum over valid pixels
# times `share`, a scalar in the dtype of the logits, or in that of the statistics if `wide`.
# `share` is 1 over 1 for SUM, the summed weights of valid pixels for MEAN, the number of all pixels
# for MEAN_OF_ALL; no number for NONE. `weight`, which has no gradient here, is of the classes.
# Statistics [2, B, H, W] are for the backward: the largest logit m of every pixel and log(sum of
# exp(logit - m)). Their sum, the log-sum-exp, would lose the digits of the smaller one. Only that
# sum has a gradient, so both halves of an incoming gradient of the statistics are the same. The
# gradient of the losses is [B, H, W], or a scalar that all valid pixels have.


def _fake(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    align_corners: bool,
    reduces: int,
    wide: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = statistics_dtype(logits)
    statistics = logits.new_empty((2, *target.shape), dtype=dtype)
    if reduces == NONE:
        losses = logits.new_empty(target.shape, dtype=dtype)
        return losses, statistics, logits.new_empty((0,), dtype=dtype)
    loss = logits.new_empty((), dtype=dtype if wide else logits.dtype)
    return loss, statistics, logits.new_empty((), dtype=dtype)


def _backward_fake(grad: Tensor, grad_lse: Tensor | None, logits: Tensor, *args: Any) -> Tensor:
    return empty_map(logits.shape, logits, is_channels_inner(logits))


def _prepare(
    logits: Tensor, target: Tensor, weight: Tensor | None, *options: Any
) -> tuple[Any, ...]:
    if weight is not None:
        weight = weight.to(statistics_dtype(logits)).contiguous()
    return dense(logits), target.contiguous(), weight, *options


def _prepare_backward(grad: Tensor, grad_lse: Tensor | None, *args: Any) -> tuple[Any, ...]:
    logits, target, statistics, *options = args
    grads = grad.contiguous(), None if grad_lse is None else grad_lse.contiguous()
    return *grads, dense(logits), target.contiguous(), statistics.contiguous(), *options


def _forward_arguments(grad: Tensor, grad_lse: Tensor | None, *args: Any) -> tuple[Any, ...]:
    logits, target, _, *options = args
    return logits, target, None, *options, NONE, False


def _setup(inputs: tuple[Any, ...], outputs: list[Tensor]) -> tuple[tuple, tuple]:
    logits, target, weight, ignore_index, align_corners, reduces, _ = inputs
    saved = logits, target, outputs[1]
    if reduces != NONE:
        saved += (outputs[2],) if weight is None else (outputs[2], weight)
    return saved, (ignore_index, align_corners)


def _gradient(
    grads: tuple[Tensor | None, ...], saved: list[Tensor], kept: tuple, call: Callable[..., Tensor]
) -> tuple[Tensor | None, ...]:
    grad, grad_statistics, _ = grads
    if grad is None:
        return ()
    logits, target, statistics, *reduced = saved
    if reduced:
        share, *weights = reduced
        grad = (grad * share).to(share.dtype)
        for weight in weights:
            grad = grad * weights_of(target, target != kept[0], weight, share)
    of_lse = None if grad_statistics is None else grad_statistics[0]
    return (call(grad, of_lse, logits, target, statistics, *kept),)


_op = Op(
    NAME,
    Direction(
        "(Tensor logits, Tensor target, Tensor? weight, int ignore_index, bool align_corners,"
        " int reduces, bool wide) -> (Tensor, Tensor, Tensor)",
        _fake,
        _prepare,
    ),
    Direction(
        "(Tensor grad, Tensor? grad_lse, Tensor logits, Tensor target, Tensor statistics,"
        " int ignore_index, bool align_corners) -> Tensor",
        _backward_fake,
        _prepare_backward,
    ),
    setup=_setup,
    gradient=_gradient,
    forward_arguments=_forward_arguments,
)
