"""Labels of somebody else's segmentor."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from .._checks import check_shape, check_tensors
from ..nn.evaluation import evaluation_twin
from ..upsample_argmax import upsample_argmax

NAME = "predict_labels"


def predict_labels(model: nn.Module, images: Tensor) -> Tensor:
    """The class of every pixel, without class scores at the size of the images.

    For any segmentor that has a `backbone` and a `decode_head`, as mmsegmentation's EncoderDecoder
    (maybe with a `neck`), whether `attnops.replace_modules` saw it or not; the head's scores are
    resized as its `align_corners` says, else without. Labels are those of
    `model.encode_decode(images, metas).argmax(1)`; of a head with one class, 1 where the resized
    score's sigmoid is above its `threshold`. Whole images are labelled, whatever the segmentor's
    `test_cfg` says of windows. Networks of `attnops.models` run their own `predict`.

    The model is evaluated, in whatever mode it is, and left as it is (`attnops.nn.evaluation`).

    Args:
        model: the segmentor.
        images: `[B, C, H, W]`, normalised as the model wants them; converted to the dtype of its
            parameters outside autocast.

    Returns:
        `[B, H, W]`, int64.

    Raises:
        TypeError: `model` has no backbone and decode head, or a head that does more than to give a
            score map (a cascade, masks, points); images are no float tensor.
        ValueError: images of another shape or on another device.

    Example:
        >>> import torch, attnops
        >>> from torch import nn
        >>> model = nn.Module()
        >>> model.backbone, model.decode_head = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 5, 1)
        >>> attnops.predict_labels(model, torch.randn(2, 3, 32, 48)).shape
        torch.Size([2, 32, 48])
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"{NAME}: expected a torch.nn.Module, got {type(model).__name__}")
    check_tensors(NAME, images=images)
    check_shape(NAME, "images", images, ("B", "C", "H", "W"))
    parts = [getattr(model, name, None) for name in ("backbone", "decode_head")]
    if not all(isinstance(part, nn.Module) for part in parts):
        if _is_ours(model):
            return model.predict(images)
        raise TypeError(
            f"{NAME}: {type(model).__name__} has no backbone and decode_head; expected a segmentor "
            "such as mmsegmentation's EncoderDecoder, or a network of attnops.models"
        )
    _check_head(model.decode_head)
    with torch.no_grad():
        network = evaluation_twin(model)
        scores = _scores(network, _fitting(model, images))
        return _labels(network.decode_head, scores, images.shape[2:])


def _is_ours(model: nn.Module) -> bool:
    model = getattr(model, "_orig_mod", model)
    ours = type(model).__module__.partition(".")[0] == __name__.partition(".")[0]
    return ours and callable(getattr(model, "predict", None))


def _check_head(head: nn.Module) -> None:
    if isinstance(head, nn.ModuleList):
        raise TypeError(f"{NAME}: decode_head is a cascade of {len(head)} heads; expected one")
    for method in ("predict", "predict_by_feat"):
        for kind in type(head).__mro__:
            if method in vars(kind):
                if kind.__name__ != "BaseDecodeHead":
                    raise TypeError(
                        f"{NAME}: {type(head).__name__} has a {method} of its own; expected a head "
                        "whose forward gives the class scores"
                    )
                break


def _fitting(model: nn.Module, images: Tensor) -> Tensor:
    """The images in the dtype of the model's parameters, where nothing else casts them."""
    example = next((p for p in model.parameters() if p.dtype.is_floating_point), None)
    if example is None:
        return images
    if images.device != example.device:
        raise ValueError(
            f"{NAME}: images are on {images.device} but the model is on {example.device}; move one "
            "of them with .to()"
        )
    if not images.is_meta and torch.is_autocast_enabled(images.device.type):
        return images
    return images.to(example.dtype)


def _scores(network: nn.Module, images: Tensor) -> Tensor:
    """`[B, K, h, w]` of the decode head."""
    if callable(getattr(network, "extract_feat", None)):
        maps = network.extract_feat(images)
    else:
        maps = network.backbone(images)
        if isinstance(getattr(network, "neck", None), nn.Module):
            maps = network.neck(maps)
    scores = network.decode_head(maps)
    if not isinstance(scores, Tensor) or scores.dim() != 4:
        given = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise TypeError(
            f"{NAME}: {type(network.decode_head).__name__} returns {given}; expected class scores "
            "[B, K, h, w]"
        )
    return scores


def _labels(head: nn.Module, scores: Tensor, size: torch.Size) -> Tensor:
    corners = bool(getattr(head, "align_corners", False))
    if scores.shape[1] > 1:
        return upsample_argmax(scores, size, corners)
    threshold = getattr(head, "threshold", None)
    if threshold is None:
        raise TypeError(f"{NAME}: {type(head).__name__} gives one score and has no threshold")
    full = interpolate(scores, size, mode="bilinear", align_corners=corners)
    return (full.squeeze(1).sigmoid() > threshold).long()
