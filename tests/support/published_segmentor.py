"""A segmentor with the attribute names and functions of mmsegmentation's SegNeXt, for the tests."""

from __future__ import annotations

import torch
from published_modules import ConvModule, GatingUnit, PublishedHamburger, depthwise
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate


class DropPath(nn.Module):
    def __init__(self, drop_prob: float):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.drop_prob:
            return x
        kept = 1 - self.drop_prob
        return x / kept * (torch.rand(len(x), 1, 1, 1, dtype=x.dtype) + kept).floor()


class Wrapped(nn.Module):
    """The authors' way to hold the depthwise convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.dwconv = depthwise(channels, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.dwconv(x)


class Mlp(nn.Module):
    def __init__(self, channels: int, hidden: int, wrapped: bool):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.dwconv = Wrapped(hidden) if wrapped else depthwise(hidden, 3, 3)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(hidden, channels, 1)
        self.drop = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.dwconv(self.fc1(x))))))


class SpatialAttention(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.proj_1 = nn.Conv2d(channels, channels, 1)
        self.activation = nn.GELU()
        self.spatial_gating_unit = GatingUnit(channels)
        self.proj_2 = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj_2(self.spatial_gating_unit(self.activation(self.proj_1(x)))) + x


class SegNeXtBlock(nn.Module):
    def __init__(self, channels: int, hidden: int, drop_path: float = 0.0, wrapped: bool = False):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.attn = SpatialAttention(channels)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = nn.BatchNorm2d(channels)
        self.mlp = Mlp(channels, hidden, wrapped)
        self.layer_scale_1 = nn.Parameter(0.3 * torch.rand(channels))
        self.layer_scale_2 = nn.Parameter(0.3 * torch.rand(channels))

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        x = x.permute(0, 2, 1).reshape(len(x), -1, height, width)
        x = x + self.drop_path(self.layer_scale_1[:, None, None] * self.attn(self.norm1(x)))
        x = x + self.drop_path(self.layer_scale_2[:, None, None] * self.mlp(self.norm2(x)))
        return x.flatten(2).permute(0, 2, 1)


class MapBlock(SegNeXtBlock):
    def forward(self, x: Tensor) -> Tensor:
        tokens = super().forward(x.flatten(2).permute(0, 2, 1), *x.shape[2:])
        return tokens.permute(0, 2, 1).reshape(x.shape)


class Embed(nn.Module):
    def __init__(self, inner: int, outer: int):
        super().__init__()
        self.proj, self.norm = nn.Conv2d(inner, outer, 3, 2, 1), nn.BatchNorm2d(outer)

    def forward(self, x: Tensor) -> tuple[Tensor, int, int]:
        x = self.norm(self.proj(x))
        return x.flatten(2).transpose(1, 2), *x.shape[2:]


class Encoder(nn.Module):
    def __init__(self, widths=(6, 8, 12), drop_path: float = 0.0):
        super().__init__()
        self.num_stages = len(widths)
        for i, (inner, outer) in enumerate(zip((3, *widths), widths, strict=False), 1):
            setattr(self, f"patch_embed{i}", Embed(inner, outer))
            blocks = [SegNeXtBlock(outer, 2 * outer, drop_path) for _ in range(2 if i == 1 else 1)]
            setattr(self, f"block{i}", nn.ModuleList(blocks))
            setattr(self, f"norm{i}", nn.LayerNorm(outer))

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for i in range(1, self.num_stages + 1):
            x, height, width = getattr(self, f"patch_embed{i}")(x)
            for block in getattr(self, f"block{i}"):
                x = block(x, height, width)
            x = getattr(self, f"norm{i}")(x)
            x = x.reshape(len(x), height, width, -1).permute(0, 3, 1, 2).contiguous()
            maps.append(x)
        return maps


class CrossEntropyLoss(nn.Module):
    use_sigmoid = use_mask = False
    reduction = "mean"

    def __init__(self, loss_weight=1.0, class_weight=None, avg_non_ignore=False, name="loss_ce"):
        super().__init__()
        self.loss_weight, self.class_weight = loss_weight, class_weight
        self.avg_non_ignore, self.loss_name = avg_non_ignore, name

    def forward(self, score: Tensor, label: Tensor, ignore_index: int) -> Tensor:
        weight = None if self.class_weight is None else score.new_tensor(self.class_weight)
        losses = cross_entropy(score, label, weight, ignore_index=ignore_index, reduction="none")
        valid = label != ignore_index
        if weight is not None:
            count = weight[label * valid].mul(valid).sum()
        else:
            count = valid.sum() if self.avg_non_ignore else label.numel()
        return self.loss_weight * losses.sum() / (count + 2.0**-23)


class FocalLoss(CrossEntropyLoss):
    def forward(self, *args: object, **options: object) -> Tensor:
        return super().forward(*args, **options) ** 2


class BaseDecodeHead(nn.Module):
    sampler = None

    def __init__(self, channels: int, classes: int, losses: nn.Module | None = None):
        super().__init__()
        self.ignore_index, self.align_corners = 255, False
        self.loss_decode = CrossEntropyLoss() if losses is None else losses
        self.conv_seg = nn.Conv2d(channels, classes, 1)
        self.dropout = nn.Dropout2d(0.1)

    def cls_seg(self, x: Tensor) -> Tensor:
        return self.conv_seg(self.dropout(x))

    def forward(self, maps: list[Tensor]) -> Tensor:
        return self.cls_seg(maps[-1])

    def loss(self, maps: list[Tensor], samples: list) -> dict[str, Tensor]:
        return self.loss_by_feat(self.forward(maps), samples)

    def _stack_batch_gt(self, samples: list) -> Tensor:
        return torch.stack([sample.gt_sem_seg.data for sample in samples])

    def loss_by_feat(self, seg_logits: Tensor, batch_data_samples: list) -> dict[str, Tensor]:
        label = self._stack_batch_gt(batch_data_samples).squeeze(1)
        full = interpolate(
            seg_logits, label.shape[1:], mode="bilinear", align_corners=self.align_corners
        )
        many = isinstance(self.loss_decode, nn.ModuleList)
        found: dict[str, Tensor] = {}
        for loss in self.loss_decode if many else [self.loss_decode]:
            value = loss(full, label, ignore_index=self.ignore_index)
            found[loss.loss_name] = found.get(loss.loss_name, 0) + value
        valid = label != self.ignore_index
        right = (full.argmax(1) == label)[valid].float().sum(0, keepdim=True)
        found["acc_seg"] = (right + 2.0**-23) * (100 / (int(valid.sum()) + 2.0**-23))
        return found


class LightHead(BaseDecodeHead):
    input_transform = "multiple_select"

    def __init__(self, widths=(8, 12), index=(1, 2), channels=16, classes=5, losses=None):
        super().__init__(channels, classes, losses)
        self.in_channels, self.in_index = list(widths), list(index)
        self.squeeze = ConvModule(sum(widths), channels, bias=False, gn=True, act=True)
        self.hamburger = PublishedHamburger(channels, 4)
        self.align = ConvModule(channels, channels, bias=False, gn=True, act=True)

    def _transform_inputs(self, maps: list[Tensor]) -> list[Tensor]:
        return [maps[i] for i in self.in_index]

    def forward(self, maps: list[Tensor]) -> Tensor:
        maps = self._transform_inputs(maps)
        size, corners = maps[0].shape[2:], self.align_corners
        maps = [interpolate(x, size, mode="bilinear", align_corners=corners) for x in maps]
        x = self.hamburger(self.squeeze(torch.cat(maps, dim=1)))
        return self.cls_seg(self.align(x))


class Segmentor(nn.Module):
    def __init__(self, drop_path: float = 0.0, head: nn.Module | None = None):
        super().__init__()
        self.backbone = Encoder(drop_path=drop_path)
        self.decode_head = LightHead() if head is None else head

    def forward(self, images: Tensor) -> Tensor:
        return self.decode_head(self.backbone(images))

    def loss(self, images: Tensor, samples: list) -> dict[str, Tensor]:
        return self.decode_head.loss(self.backbone(images), samples)
