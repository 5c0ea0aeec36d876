"""Merging score maps of several resolutions, by attention or by mean and maximum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ._checks import cast_and_check, check_choice, check_flag, check_shape
from ._layout import dense, empty_map, is_channels_inner
from ._op import Direction, Op
from ._op.overridable import overridable

NAME = "merge_scales"
# The codes that implementations get are the positions here.
REDUCTIONS = ("attention", "mean", "max")


@overridable
def merge_scales(
    scores: Sequence[Tensor],
    attention_logits: Tensor | None = None,
    reduce: str = "attention",
    align_corners: bool = True,
) -> Tensor:
    """Resize score maps to one size and merge them, without a resized map in memory.

    out[b, k] = sum over s of w[b, s] · resize(scores[s])[b, k] with w the softmax over the scales
    of attention_logits ("attention"), w = 1/S ("mean"), or the maximum over s ("max").

    Source: Chen et al., Attention to Scale: Scale-aware Semantic Image Segmentation (CVPR 2016),
    section 3.1, eq. (1) and (2).

    Args:
        scores: S maps `[B, K, h_s, w_s]` at any resolutions.
        attention_logits: `[B, S, H, W]`; needed for "attention". It sets the size of the result;
            without it the first map does.
        reduce: "attention", "mean" or "max".
        align_corners: of the bilinear resize, as in torch.nn.functional.interpolate.

    Returns:
        `[B, K, H, W]` in the layout and dtype of the first map. Half precision is computed in
        float32. Under autocast all maps are cast to the autocast dtype. Where maps are equally
        large, "max" sends the gradient to the first of them; NaN is larger than any number. A
        neighbour that the resize weighs with 0 is not read, forward or backward, so maps of the
        result's size pass infinities and NaN unchanged.

    Raises:
        TypeError: an argument is not a float tensor, or an option has the wrong type.
        ValueError: no maps, shapes, dtypes or devices that do not match, an empty map, an unknown
            `reduce`, "attention" without logits.

    Example:
        >>> import torch, attnops
        >>> scores = [torch.randn(2, 21, n, n) for n in (41, 31, 21)]
        >>> attnops.merge_scales(scores, torch.randn(2, 3, 41, 41)).shape
        torch.Size([2, 21, 41, 41])
    """
    if isinstance(scores, Tensor) or not isinstance(scores, Sequence):
        raise TypeError(f"{NAME}: scores must be a sequence of maps, got {type(scores).__name__}")
    if not scores:
        raise ValueError(f"{NAME}: scores is empty; expected at least one map [B, K, h, w]")
    check_choice(NAME, "reduce", reduce, REDUCTIONS)
    align_corners = check_flag(NAME, "align_corners", align_corners)
    given = {f"scores[{i}]": s for i, s in enumerate(scores)}
    if attention_logits is None and reduce == "attention":
        raise ValueError(f"{NAME}: reduce='attention' needs attention_logits, got None")
    *maps, logits = cast_and_check(NAME, given, optional={"attention_logits": attention_logits})
    check_shape(NAME, "scores[0]", maps[0], ("B", "K", "h", "w"))
    for i, tensor in enumerate(maps):
        check_shape(NAME, f"scores[{i}]", tensor, (*maps[0].shape[:2], "h", "w"))
        if tensor.shape[0] and 0 in tensor.shape[1:]:
            raise ValueError(f"{NAME}: scores[{i}] is empty: {list(tensor.shape)}")
    if logits is not None:
        expected = (maps[0].shape[0], len(maps) if reduce == "attention" else "S", "H", "W")
        check_shape(NAME, "attention_logits", logits, expected)
    height, width = (maps[0] if logits is None else logits).shape[2:]
    weights = logits if reduce == "attention" else None
    options = REDUCTIONS.index(reduce), align_corners, is_channels_inner(maps[0])
    return _op(maps, weights, height, width, *options)[0]


def resize_map(x: Tensor, height: int, width: int, align_corners: bool) -> Tensor:
    """One map `[B, K, h, w]` at another size, as the ops resize theirs."""
    options = REDUCTIONS.index("mean"), align_corners, is_channels_inner(x)
    return _op([x], None, height, width, *options)[0]


# The op takes the layout of the first map, which is that of the result, as an option of its own:
# hooks on saved tensors may change the strides that the backward sees.


def _fake(
    scores: list[Tensor], logits: Tensor | None, height: int, width: int, *options: Any
) -> tuple[Tensor]:
    first, inner = scores[0], options[-1]
    return (empty_map((*first.shape[:2], height, width), first, inner),)


def _backward_fake(
    grad: Tensor, scores: list[Tensor], logits: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor]:
    # The gradients of all maps, one after the other, each in the layout of the first map; then
    # that of the logits, in this layout as well.
    first, inner = scores[0], options[-1]
    packed = first.new_empty((sum(s.numel() for s in scores),))
    if logits is None:
        return packed, first.new_empty((0,))
    return packed, empty_map(logits.shape, first, inner)


def _prepare(scores: list[Tensor], logits: Tensor | None, *options: Any) -> tuple[Any, ...]:
    *options, inner = options
    logits = None if logits is None else dense(logits, inner)
    return [dense(s, inner) for s in scores], logits, *options


def _prepare_backward(
    grad: Tensor, scores: list[Tensor], logits: Tensor | None, *options: Any
) -> tuple[Any, ...]:
    return dense(grad, options[-1]), *_prepare(scores, logits, *options)


def _forward_arguments(
    grad: Tensor, scores: list[Tensor], logits: Tensor | None, *options: Any
) -> tuple[Any, ...]:
    return scores, logits, *grad.shape[2:], *options


def _setup(inputs: tuple[Any, ...], outputs: list[Tensor]) -> tuple[tuple, tuple]:
    scores, logits, _, _, *options = inputs
    tensors = (*scores, *(() if logits is None else (logits,)))
    return tensors, (len(scores), *options)


def _gradient(
    grads: tuple[Tensor | None, ...], saved: list[Tensor], kept: tuple, call: Callable[..., Any]
) -> tuple[Any, ...]:
    count, *options = kept
    scores, rest = saved[:count], saved[count:]
    if grads[0] is None:
        return ([None] * count,)
    logits = rest[0] if rest else None
    packed, grad_logits = call(grads[0], scores, logits, *options)
    inner = options[-1]
    parts = packed.split([s.numel() for s in scores])
    found = [_unpacked(part, s.shape, inner) for part, s in zip(parts, scores, strict=True)]
    return found, None if logits is None else grad_logits


def _unpacked(flat: Tensor, shape: Sequence[int], inner: bool) -> Tensor:
    batch, channels, height, width = shape
    if not inner:
        return flat.view(shape)
    return flat.view(batch, height, width, channels).movedim(-1, 1)


_op = Op(
    NAME,
    Direction(
        "(Tensor[] scores, Tensor? attention_logits, SymInt height, SymInt width, int reduce,"
        " bool align_corners, bool channels_last) -> (Tensor)",
        _fake,
        _prepare,
    ),
    Direction(
        "(Tensor grad, Tensor[] scores, Tensor? attention_logits, int reduce,"
        " bool align_corners, bool channels_last) -> (Tensor, Tensor)",
        _backward_fake,
        _prepare_backward,
    ),
    setup=_setup,
    gradient=_gradient,
    forward_arguments=_forward_arguments,
)
