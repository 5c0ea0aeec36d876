"""Names of the networks, and how they are made."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

from ._checks import check_classes
from ._options import plain

Factory = Callable[..., Any]  # (num_classes, **options) -> SegmentationModel
_FACTORIES: dict[str, Factory] = {}


def register(name: str) -> Callable[[Factory], Factory]:
    """Decorator: the factory `(num_classes, **options) -> SegmentationModel` makes `name`."""

    def add(factory: Factory) -> Factory:
        if name in _FACTORIES:
            raise ValueError(f"a network {name!r} exists already")
        _FACTORIES[name] = factory
        return factory

    return add


def list_models(filter: str = "*") -> list[str]:
    """Names that `create_model` takes, sorted; `filter` is a pattern such as "segnext_*".

    Example:
        >>> import attnops
        >>> attnops.models.list_models("segnext_?")
        ['segnext_b', 'segnext_l', 'segnext_s', 'segnext_t']
    """
    return sorted(name for name in _FACTORIES if fnmatchcase(name, filter))


def model_options(name: str) -> dict[str, Any]:
    """Options of network `name` and their defaults, num_classes among them.

    Raises:
        ValueError: there is no such network.
    """
    if name not in _FACTORIES:
        raise ValueError(
            f"create_model: no network {name!r}; expected one of {', '.join(list_models())}"
        )
    parameters = inspect.signature(_FACTORIES[name]).parameters.values()
    return {p.name: p.default for p in parameters}


def create_model(name: str, **options: Any) -> Any:
    """A `SegmentationModel` with fresh weights, in training mode.

    Args:
        name: one of `list_models()`.
        options: those of the network's class, of which every one has num_classes; others keep the
            published values.

    Raises:
        ValueError: an unknown name, or an option out of its range.
        TypeError: an option that the network does not have.
        ImportError: the network needs a package that is not installed.

    Example:
        >>> import torch, attnops
        >>> model = attnops.models.create_model("segnext_t", num_classes=19).eval()
        >>> model(torch.randn(1, 3, 64, 96))["out"].shape
        torch.Size([1, 19, 64, 96])
    """
    known = model_options(name)
    for option in options:
        if option not in known:
            raise TypeError(
                f"create_model: {name} has no option {option!r}; expected some of "
                f"{', '.join(known)}"
            )
    options = {option: plain(value) for option, value in options.items()}
    if "num_classes" in options:
        options["num_classes"] = check_classes("create_model", options["num_classes"])
    model = _FACTORIES[name](**options)
    model.config = {"name": name, **known, **options}
    return model
