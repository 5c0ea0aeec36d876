"""timm's bottleneck, without operations in place. Importing this needs timm."""

from __future__ import annotations

from timm.models.resnet import Bottleneck as TimmBottleneck
from torch import Tensor


class Bottleneck(TimmBottleneck):
    """1-3-1 bottleneck with the parts and names of timm's.

    timm adds the shortcut in place, which changes what a forward hook on the last norm has seen,
    and breaks a backward hook on it.
    """

    def forward(self, x: Tensor) -> Tensor:
        out = self.act1(self.bn1(self.conv1(x)))
        out = self.aa(self.act2(self.drop_block(self.bn2(self.conv2(out)))))
        out = self.bn3(self.conv3(out))
        for part in (self.se, self.drop_path):
            out = out if part is None else part(out)
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.act3(out + shortcut)
