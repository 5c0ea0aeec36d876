"""mmsegmentation's decode heads: the loss of all, and the light decoder of SegNeXt."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ..nn.functional import convolve_joined, runs_as_built
from ..upsample_argmax import upsample_argmax
from ..upsample_cross_entropy import upsample_cross_entropy, valid_weight
from ._derived import Behaviour, derived, stand_in
from ._parts import Candidate, Input, Unsupported, has_children, pointwise_conv

_EPS = torch.finfo(torch.float32).eps  # which mmsegmentation adds to counts that may be 0
_BASE = "BaseDecodeHead"  # the class whose `loss_by_feat` is known


class FusedLoss(Behaviour):
    """Cross-entropies and accuracy of small logits; other losses as the original has them."""

    adds = "upsample_cross_entropy"

    def loss_by_feat(self, seg_logits: Tensor, batch_data_samples: Sequence[Any]) -> dict:
        if _refusal(self) is not None:  # another loss was set since
            return super().loss_by_feat(seg_logits, batch_data_samples)
        target = self._stack_batch_gt(batch_data_samples).squeeze(1)
        found: dict[str, Tensor] = {}
        for loss in _losses(self):
            value = _cross_entropy(self, loss, seg_logits, target)
            name = loss.loss_name
            found[name] = found[name] + value if name in found else value
        found["acc_seg"] = _accuracy(self, seg_logits, target)
        return found


class SqueezesFirst(Behaviour):
    """The maps are squeezed before they are resized and summed, not after they were joined."""

    adds = "convolutions before resizes"

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        if not runs_as_built(self.squeeze, type(self.squeeze)):
            return super().forward(inputs)
        conv, *rest = self.squeeze.children()
        x = convolve_joined(conv, self._transform_inputs(inputs), self.align_corners)
        for part in rest:
            x = part(x)
        return self.cls_seg(self.align(self.hamburger(x)))


def decode_head(module: nn.Module) -> list[Candidate] | None:
    """Children conv_seg and loss_decode, and a method loss_by_feat of the known class; or children
    squeeze, hamburger, align, which make it the light decoder; or all.
    """
    if not has_children(module, "conv_seg", "loss_decode"):
        return None
    behaviours: tuple[type[Behaviour], ...] = ()
    inputs: tuple[Input, ...] = ()
    if _is_light(module):
        behaviours, inputs = (SqueezesFirst,), (_map_shapes(module),)
    refusal = "it has a loss_by_feat of its own, or none"
    if _has_known_loss(module):
        refusal = _refusal(module)
        if not behaviours and refusal is not None:
            raise Unsupported(refusal)
    if refusal is None:
        behaviours += (FusedLoss,)
    if not behaviours:
        return None
    note = "" if refusal is None else f"its loss is left alone: {refusal}"
    kind = derived(behaviours, type(module))
    results = partial(_results, with_loss=refusal is None)
    return [Candidate(stand_in(module, kind), inputs, note, results, kind)]


def _has_known_loss(head: nn.Module) -> bool:
    for kind in type(head).__mro__:
        if "loss_by_feat" in vars(kind):
            return kind.__name__ == _BASE
    return False


def _is_light(head: nn.Module) -> bool:
    if not has_children(head, "squeeze", "hamburger", "align"):
        return False
    if getattr(head, "input_transform", None) != "multiple_select":
        return False
    if min(head.in_index) < 0:
        return False
    try:
        pointwise_conv(next(iter(head.squeeze.children()), None), "squeeze")
    except Unsupported:
        return False
    return True


def _map_shapes(head: nn.Module) -> list[tuple[int, ...]]:
    """Maps of the encoder, each half the size of the one before; those not selected are narrow."""
    widths = dict(zip(head.in_index, head.in_channels, strict=True))
    return [(2, widths.get(i, 1), 33 >> i, 41 >> i) for i in range(max(widths) + 1)]


def _results(head: nn.Module, maps: list[Tensor] | None = None, *, with_loss: bool) -> list[Tensor]:
    """What is compared: logits of maps, and the losses of other logits and labels."""
    results = [] if maps is None else [head(maps)]
    if with_loss:
        weight, classes = head.conv_seg.weight, head.conv_seg.out_channels
        logits = torch.randn(2, classes, 5, 6).to(weight)
        labels = torch.randint(classes, (2, 1, 17, 21), device=weight.device)
        if all(loss.class_weight is None for loss in _losses(head)):
            labels[:, :, 3:9, 4:] = head.ignore_index  # the original looks up its weight
        samples = [SimpleNamespace(gt_sem_seg=SimpleNamespace(data=label)) for label in labels]
        results += head.loss_by_feat(logits, samples).values()
    return results


def _losses(head: nn.Module) -> list[nn.Module]:
    losses = head.loss_decode
    return list(losses) if isinstance(losses, nn.ModuleList) else [losses]


def _refusal(head: nn.Module) -> str | None:
    """Why the loss of the head is not one that we compute; None if it is."""
    if getattr(head, "sampler", None) is not None:
        return f"it samples pixels ({type(head.sampler).__name__})"
    if not isinstance(getattr(head, "ignore_index", None), int):
        return "it has no ignore_index"
    if head.conv_seg.out_channels < 2:
        return "it has one class"
    for loss in _losses(head):
        name = type(loss).__name__
        if name != "CrossEntropyLoss" or not runs_as_built(loss, type(loss)):
            return f"its loss is {name}" if name != "CrossEntropyLoss" else "its loss has hooks"
        if loss.use_sigmoid or loss.use_mask or loss.reduction != "mean":
            return "its cross-entropy is of single classes, of masks or no mean"
    return None


def _cross_entropy(head: nn.Module, loss: nn.Module, logits: Tensor, target: Tensor) -> Tensor:
    """loss_weight · the sum over pixels / (their number or the sum of their weights + eps)."""
    half = logits.dtype in (torch.float16, torch.bfloat16)
    wide = logits.float() if half else logits  # a sum over pixels has no place in half precision
    weight = None if loss.class_weight is None else wide.new_tensor(loss.class_weight)
    total = upsample_cross_entropy(
        wide, target, weight, head.ignore_index, head.align_corners, reduction="sum"
    )
    if weight is not None or loss.avg_non_ignore:
        count = valid_weight(target, weight, head.ignore_index)
    else:
        count = target.numel()
    mean = loss.loss_weight * (total / (count + _EPS))
    device = logits.device.type
    stays_wide = device != "meta" and torch.is_autocast_enabled(device)
    return mean if stays_wide else mean.to(logits.dtype)


def _accuracy(head: nn.Module, logits: Tensor, target: Tensor) -> Tensor:
    """Percentage of the pixels with a class whose label is right, `[1]`."""
    if logits.shape[0] == 0:
        return logits.new_tensor(0.0)
    labels = upsample_argmax(logits, target.shape[1:], head.align_corners)
    valid = target != head.ignore_index
    right = ((labels == target) & valid).sum().float() + _EPS
    return (right * (100.0 / (valid.sum().float() + _EPS)))[None]
