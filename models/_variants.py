"""Networks that come with several backbones."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from ._model import SegmentationModel
from ._registry import register


def register_variants(cls: type[SegmentationModel], backbones: Mapping[str, str]) -> None:
    """Register `cls` under every name of `backbones`, each with the backbone that stands there."""
    for name, backbone in backbones.items():
        register(name)(_Variant(cls, backbone))


class _Variant:
    """`cls` with another default of its argument `backbone`."""

    def __init__(self, cls: type[SegmentationModel], backbone: str) -> None:
        self.cls, self.backbone = cls, backbone
        signature = inspect.signature(cls)
        parameters = [
            p.replace(default=backbone) if p.name == "backbone" else p
            for p in signature.parameters.values()
        ]
        self.__signature__ = signature.replace(parameters=parameters)

    def __call__(self, **options: Any) -> SegmentationModel:
        return self.cls(**{"backbone": self.backbone, **options})
