"""Modules with the attribute names and functions of the published code, for the tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

import attnops


def depthwise(channels: int, height: int, width: int) -> nn.Conv2d:
    padding = (height // 2, width // 2)
    return nn.Conv2d(channels, channels, (height, width), padding=padding, groups=channels)


class GatingUnit(nn.Module):
    def __init__(self, channels: int, lengths=(7, 11, 21)):
        super().__init__()
        self.conv0 = depthwise(channels, 5, 5)
        for i, length in enumerate(lengths):
            setattr(self, f"conv{i}_1", depthwise(channels, 1, length))
            setattr(self, f"conv{i}_2", depthwise(channels, length, 1))
        self.count = len(lengths)
        setattr(self, f"conv{self.count}", nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        a = self.conv0(x)
        total = a
        for i in range(self.count):
            total = total + getattr(self, f"conv{i}_2")(getattr(self, f"conv{i}_1")(a))
        return getattr(self, f"conv{self.count}")(total) * x


class ConvModule(nn.Module):
    """As mmcv names the parts."""

    def __init__(self, channels: int, out: int, bias=True, bn=False, gn=False, act=False, k=1):
        super().__init__()
        self.conv = nn.Conv2d(channels, out, k, padding=k // 2, bias=bias)
        if bn:
            self.bn = nn.BatchNorm2d(out)
        if gn:
            self.gn = nn.GroupNorm(4, out)
        if act:
            self.activate = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.children():
            x = part(x)
        return x


class Decomposition(nn.Module):
    def __init__(self, rank: int, rand_init: bool = True, inv_t: float = 1):
        super().__init__()
        self.S, self.R, self.train_steps, self.eval_steps = 1, rank, 6, 7
        self.inv_t, self.rand_init = inv_t, rand_init

    def forward(self, x: Tensor) -> Tensor:
        source = x.flatten(2)
        bases = getattr(self, "bases", None)
        if bases is None:
            drawn = (source.shape[0] if self.rand_init else 1, source.shape[1], self.R)
            bases = normalize(torch.rand(drawn), dim=1)
            if not self.rand_init:
                self.register_buffer("bases", bases)
        bases = bases.to(source).expand(source.shape[0], -1, -1)
        steps = self.train_steps if self.training else self.eval_steps
        bases, coef = attnops.reference.nmf(source, bases, steps, self.inv_t)
        return (bases @ coef.mT).view_as(x)


class PublishedHamburger(nn.Module):
    def __init__(self, channels: int, rank: int, **options):
        super().__init__()
        self.ham_in = ConvModule(channels, channels)
        self.ham = Decomposition(rank, **options)
        self.ham_out = ConvModule(channels, channels, bias=False, gn=True)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.ham_out(self.ham(self.ham_in(x).relu()))).relu()


class Core(nn.Module):
    """The attention core of ANN, with the names of either code."""

    def __init__(self, low, high, key, value, out, shared, official, sizes=(1, 3, 6, 8)):
        super().__init__()
        self.official = official

        def projection(channels):
            if not official:
                return ConvModule(channels, key, bias=False, bn=True, act=True)
            norm = nn.Sequential(nn.BatchNorm2d(key), nn.ReLU())
            return nn.Sequential(nn.Conv2d(channels, key, 1), norm)

        names = (
            ("f_key", "f_query", "f_value", "W")
            if official
            else ("key_project", "query_project", "value_project", "out_project")
        )
        setattr(self, names[0], projection(low))
        setattr(self, names[1], getattr(self, names[0]) if shared else projection(high))
        setattr(self, names[2], nn.Conv2d(low, value, 1))
        setattr(self, names[3], nn.Conv2d(value, out, 1))
        self.names = names
        self.pools = nn.ModuleList(nn.AdaptiveAvgPool2d(n) for n in sizes)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        key, query, value, out = (getattr(self, name) for name in self.names)

        def sample(x):
            return torch.cat([pool(x).flatten(2) for pool in self.pools], dim=2)

        keys, queries = sample(key(low)), query(high)
        scores = queries.flatten(2).mT @ keys * keys.shape[1] ** -0.5
        context = sample(value(low)) @ scores.softmax(dim=2).mT
        return out(context.unflatten(2, high.shape[2:]))


class Block(nn.Module):
    """APNB (one argument) or AFNB (two)."""

    def __init__(self, low, high, shared, official, relu=None, count=1):
        super().__init__()
        out = high
        relu = shared if relu is None else relu
        self.stages = nn.ModuleList(
            Core(low, high, 6, 7, out, shared, official) for _ in range(count)
        )
        if official:
            norm = nn.BatchNorm2d(out)
            norm = nn.Sequential(norm, nn.ReLU()) if relu else norm
            self.conv_bn_dropout = nn.Sequential(
                nn.Conv2d(2 * out, out, 1), norm, nn.Dropout2d(0.05)
            )
        else:
            self.bottleneck = ConvModule(2 * out, out, bias=False, bn=True, act=relu)

    def forward(self, low: Tensor, high: Tensor | None = None) -> Tensor:
        high = low if high is None else high
        context = sum(stage(low, high) for stage in self.stages)
        fuse = getattr(self, "bottleneck", None) or self.conv_bn_dropout
        return fuse(torch.cat([context, high], dim=1))


def strided(channels: int) -> nn.Sequential:
    conv = nn.Conv2d(channels, channels, 3, 2, groups=channels)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=False))


class LocalAttention(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.dconv1, self.dconv2, self.dconv3 = (strided(channels) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        small = self.dconv3(self.dconv2(self.dconv1(x)))
        mask = interpolate(small, x.shape[2:], mode="bilinear", align_corners=True).sigmoid()
        return x + x * mask


class Relation(nn.Module):
    def __init__(self, channels: int, planes: int, groups: int, use_scale: bool = False):
        super().__init__()
        self.groups, self.use_scale = groups, use_scale
        self.t, self.p, self.g = (nn.Conv2d(channels, planes, 1, bias=False) for _ in range(3))
        self.z = nn.Conv2d(planes, channels, 1, groups=groups, bias=False)
        self.gn = nn.GroupNorm(groups, channels)

    def forward(self, x: Tensor) -> Tensor:
        parts = []
        for t, p, g in zip(
            *(conv(x).chunk(self.groups, 1) for conv in (self.t, self.p, self.g)), strict=True
        ):
            a = (p * g).sum((1, 2, 3), keepdim=True)
            parts.append(t * (a * p[0].numel() ** -0.5 if self.use_scale else a))
        return x + self.gn(self.z(torch.cat(parts, 1)))


class Gald(nn.Module):
    def __init__(self, channels: int, planes: int, released: bool = True):
        super().__init__()
        self.down = strided(channels)
        self.long_relation = Relation(channels, planes, 8)
        self.local_attention = LocalAttention(channels)
        self.released = released

    def forward(self, x: Tensor) -> Tensor:
        small = self.long_relation(self.down(x))
        large = interpolate(small, x.shape[2:], mode="bilinear", align_corners=True)
        local = self.local_attention(large)
        return local + large if self.released else local


def shaken(module: nn.Module) -> nn.Module:
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.running_mean, -0.2, 0.2)
            nn.init.uniform_(m.running_var, 0.5, 1.5)
            nn.init.uniform_(m.weight, 0.5, 1.5)
    return module
