"""Dilated bottleneck ResNets with the stems and dilations of the published networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from attnops._checks import check_choice

from .from_timm import import_timm, without_inplace
from .pooling import MaxPool3x3

DEPTHS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
STEMS = {"plain": 0, "deep": 64, "v1c": 32}  # width of the first 3x3 convolutions, 0: one 7x7
DILATIONS = ("contracted", "full")
EXPANSION = 4  # channels of a bottleneck's result over those of its 3x3 convolution


class DilatedResNet(nn.Module):
    """ResNet at output stride 8 that returns the maps of its four stages.

    Parameters are named as in timm and torchvision, so their files load; the modules are timm's,
    whose dilated form is the "contracted" one here. Blocks are 1-3-1 with the stride in the 3x3.

    Stems: "plain", 7x7 of stride 2; "deep", 3x3 of 64 (stride 2), 64 and 128 channels (ANN, GALD);
    "v1c", 3x3 of 32, 32 and 64 (mmsegmentation). A 3x3 max pooling of stride 2 follows.

    Dilations in place of the strides of the last two stages: "contracted", 2 and 4, but half of
    them in the first block of a stage (ANN, mmsegmentation, timm); "full", 2 in every block of
    stage 3 and 4·grid in those of stage 4 (GALD).

    Source: Yu et al., Dilated Residual Networks (CVPR 2017), in the forms released with Zhu et al.,
    ANN (ICCV 2019) and Li et al., GALD (BMVC 2019).

    Args:
        blocks: blocks of the four stages, or "resnet50" or "resnet101".
        stem: "plain", "deep" or "v1c".
        dilation: "contracted" or "full".
        grid: factors of the dilations in the blocks of stage 4, repeated; for "full".
        ceil_mode: round the pooled sizes up: 512 -> 65, not 64.
        width: channels of the first stage's 3x3 convolutions; stages and stem scale with it.
        in_channels: of the images.

    Attributes:
        channels: of the four maps.

    Shapes: `[B, in_channels, H, W]` -> maps of 4, 8, 16 and 32 times `width` channels
        (64: 256 .. 2048), the first at a quarter of the size, the others at an eighth.

    Raises:
        ImportError: timm is not installed.
        ValueError: unknown option.
    """

    def __init__(
        self,
        blocks: str | Sequence[int] = "resnet50",
        stem: str = "plain",
        dilation: str = "contracted",
        grid: Sequence[int] = (1, 2, 4),
        ceil_mode: bool = False,
        width: int = 64,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        check_choice(name, "stem", stem, tuple(STEMS))
        check_choice(name, "dilation", dilation, DILATIONS)
        if isinstance(blocks, str):
            check_choice(name, "blocks", blocks, tuple(DEPTHS))
            blocks = DEPTHS[blocks]
        resnet = import_timm("timm.models.resnet")
        from .bottleneck import Bottleneck

        planes = tuple(width * 2**stage for stage in range(4))
        net = resnet.ResNet(
            Bottleneck,
            tuple(blocks),
            num_classes=0,
            in_chans=in_channels,
            output_stride=8,
            stem_type="" if stem == "plain" else "deep",
            stem_width=STEMS[stem] * width // 64,
            channels=planes,
            base_width=64,
            zero_init_last=False,
        )
        without_inplace(net)
        self.conv1, self.bn1, self.act1 = net.conv1, net.bn1, net.act1
        self.maxpool = MaxPool3x3(2, ceil_mode)
        self.layer1, self.layer2 = net.layer1, net.layer2
        self.layer3, self.layer4 = net.layer3, net.layer4
        self.channels = tuple(EXPANSION * n for n in planes)
        if dilation == "full":
            _dilate(self.layer3, 2, (1,))
            _dilate(self.layer4, 4, grid)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.maxpool(self.act1(self.bn1(self.conv1(x))))
        maps = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            maps.append(x)
        return maps


def dilated_resnets(**options: Any) -> dict[str, Callable[[int], nn.Module]]:
    """Functions of the images' channels that make the networks of `DEPTHS` with these options."""

    def maker(name: str) -> Callable[[int], nn.Module]:
        return lambda in_channels: DilatedResNet(name, in_channels=in_channels, **options)

    return {name: maker(name) for name in DEPTHS}


def _dilate(stage: nn.Sequential, dilation: int, grid: Sequence[int]) -> None:
    """Give the 3x3 convolutions of a stage these dilations, with padding that keeps the size."""
    for i, block in enumerate(stage):
        step = dilation * grid[i % len(grid)]
        block.conv2.dilation = block.conv2.padding = (step, step)
