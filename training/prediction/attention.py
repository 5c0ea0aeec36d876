"""What a network attends to, as maps and as pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torch.nn.functional import interpolate

from attnops.models import SegmentationModel
from attnops.models.normalization import normalized
from attnops.nn import (
    DynamicLocalDistribution,
    LocalDistribution,
    ScaleAttention,
    SqueezeAttention,
)
from attnops.nn.evaluation import evaluation_twin

from ..data.info import DataInfo
from ..protocol import continued

TILE, GAP, TITLE = 240, 6, 16  # pixels: width of a map, distance of maps, height of a title
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "identity": lambda x: x,
}


class AttentionMaps(NamedTuple):
    """Maps `[N, h, w]` of one module, with a title each; `columns` of them make a row."""

    maps: Tensor
    titles: list[str]
    columns: int


def attention_maps(
    network: SegmentationModel, image: Tensor, info: DataInfo
) -> dict[str, AttentionMaps]:
    """Attention of every module that has some, by the module's name, for one image.

    Weights of the scales (`ScaleAttention`), affinities to each neighbour
    (`DynamicLocalDistribution`), the attention of each class (`SqueezeAttention`, in every stage),
    and the mean gate (`LocalDistribution`).

    Args:
        network: evaluated whole, at scale 1.
        image: uint8 `[C, H, W]`; one that is too small is continued at its borders.
        info: names of the classes.
    """
    twin = evaluation_twin(network)
    found: dict[str, AttentionMaps] = {}
    hooks = []
    for name, module in twin.named_modules():
        read = next((read for kind, read in READERS.items() if type(module) is kind), None)
        if read is None:
            continue

        def keep(
            module: nn.Module,
            inputs: tuple[Any, ...],
            result: Any,
            name: str = name,
            read: Callable[..., AttentionMaps] = read,
        ) -> None:
            found[name] = read(module, inputs, info, network)

        hooks.append(module.register_forward_hook(keep))
    try:
        with torch.no_grad():
            device = next(network.parameters()).device
            images = continued(image, network.smallest_side)[None].to(device)
            twin(normalized(network, images), resize=False)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _scales(module: ScaleAttention, inputs: Any, info: DataInfo, network: Any) -> AttentionMaps:
    features = inputs[0]
    if module.head is None:
        return AttentionMaps(features[0].new_zeros(0, 1, 1), [], 1)
    kept, weights = module.keep_weights, module.weights
    module.keep_weights = True
    try:
        # The hook runs outside of module.__call__, so that it does not call itself.
        module.forward(*inputs)
        maps = module.weights[0]
    finally:
        module.keep_weights = kept
        module._kept["weights"] = weights
    scales = getattr(network, "scales", range(1, len(maps) + 1))
    return AttentionMaps(maps.cpu(), [f"scale {scale:g}" for scale in scales], len(maps))


def _affinities(
    module: DynamicLocalDistribution, inputs: Any, info: DataInfo, network: Any
) -> AttentionMaps:
    maps = module.attention(*inputs)[0].cpu()
    height, width = _pair(module.kernel_size)
    dilations = _pair(module.dilation)
    offsets = [
        tuple((place - side // 2) * step for place, side, step in parts)
        for row in range(height)
        for column in range(width)
        for parts in [zip((row, column), (height, width), dilations, strict=True)]
    ]
    return AttentionMaps(maps, [f"{down:+d}, {right:+d}" for down, right in offsets], width)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _classes(module: SqueezeAttention, inputs: Any, info: DataInfo, network: Any) -> AttentionMaps:
    pool = nn.functional.max_pool2d if module.pool == "max" else nn.functional.avg_pool2d
    logits = module.attention(pool(inputs[0], module.pool_size, ceil_mode=True))
    maps = ACTIVATIONS[module.activation](logits)[0].cpu()
    return AttentionMaps(maps, list(info.classes), min(6, len(maps)))


def _gate(module: LocalDistribution, inputs: Any, info: DataInfo, network: Any) -> AttentionMaps:
    maps = module.gate(inputs[0]).sigmoid().mean(dim=1).cpu()
    return AttentionMaps(maps, ["mean gate"], 1)


READERS: dict[type[nn.Module], Callable[..., AttentionMaps]] = {
    ScaleAttention: _scales,
    DynamicLocalDistribution: _affinities,
    SqueezeAttention: _classes,
    LocalDistribution: _gate,
}


def draw_attention(found: AttentionMaps, size: tuple[int, int]) -> Image.Image:
    """All maps beside each other, on one colour scale from their least to their largest value.

    Args:
        found: the maps.
        size: (height, width) of the image, whose proportions the maps are drawn in.
    """
    maps = found.maps.float()
    height = max(1, round(TILE * size[0] / size[1]))
    low, high = (float(x) for x in maps.aminmax())
    maps = interpolate(maps[:, None], (height, TILE), mode="bilinear", align_corners=False)[:, 0]
    shares = (maps - low) / max(high - low, 1e-12)
    pixels = (colormaps["viridis"](shares.numpy())[..., :3] * 255).round().astype("uint8")
    rows = -(-len(maps) // found.columns)
    step = (TILE + GAP, height + GAP + TITLE)
    top = 2 * TITLE
    canvas = Image.new("RGB", (found.columns * step[0] + GAP, rows * step[1] + top), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(TITLE - 4)
    pen.text((GAP, GAP), f"{low:.3g} (dark) to {high:.3g} (bright)", "black", font)
    for number, (tile, title) in enumerate(zip(pixels, found.titles, strict=True)):
        row, column = divmod(number, found.columns)
        left, upper = GAP + column * step[0], top + row * step[1]
        pen.text((left, upper), title, "black", font)
        canvas.paste(Image.fromarray(tile), (left, upper + TITLE))
    return canvas
