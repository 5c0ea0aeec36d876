"""Tensors of a file as the model takes them, and putting them into it: all of them or none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ._mapping import MappingError, State, listed


def converted(value: Tensor, target: Tensor, counter: bool) -> tuple[Tensor | None, str]:
    """`value` in the dtype of `target`, or the reason why it cannot be.

    Floats become floats of another width. A counter may be any whole number, as tools that average
    models keep counters as floats.
    """
    here = _dtype(target)
    if value.is_meta:
        return None, "has no values (it is on the meta device)"
    if value.layout != torch.strided or value.is_nested:
        return None, "is sparse or nested"
    if value.is_quantized:
        return None, f"is quantized ({_dtype(value)})"
    value = value.detach()
    if value.dtype == target.dtype:
        return value, ""
    if target.is_floating_point():
        if not value.is_floating_point() or value.element_size() < 2:  # float8 needs its scales
            return None, f"is {_dtype(value)}, which is no {here}"
        ready = value.to(target.dtype)
        narrower = torch.finfo(target.dtype).max < torch.finfo(value.dtype).max
        if narrower and not torch.equal(ready.isfinite(), value.isfinite()):
            return None, f"has values too large for {here}"
        return ready, ""
    if not counter or value.is_complex():
        return None, f"is {_dtype(value)}, which is no {here}"
    ready = value.to(target.dtype)
    whole = torch.equal(ready.to(value.dtype), value)
    return (ready, "") if whole else (None, f"is {value.tolist()}, which is no {here}")


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _slots(model: nn.Module) -> Iterator[tuple[str, dict[str, Tensor | None], str]]:
    """(name, the dict of its module that holds it, its name there) of parameters and buffers."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        for held in (module._parameters, module._buffers):
            for name, value in held.items():
                if value is not None:
                    yield f"{prefix}.{name}" if prefix else name, held, name


def without_values(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers on the meta device by name, those of no state dict included."""
    return {name: held[key] for name, held, key in _slots(model) if held[key].is_meta}


def put(model: nn.Module, values: State) -> None:
    """Give the model these values, by its own names; on any failure it is as it was.

    Tensors on the meta device are replaced by the values themselves, others are copied into.

    Raises:
        MappingError: copying failed.
    """
    target = model.state_dict()
    copied = {k: v for k, v in values.items() if k in target and not target[k].is_meta}
    before = {key: target[key].detach().clone() for key in copied}
    replaced = []
    try:
        news: dict[int, Tensor] = {}  # a tensor that stands in several places stays one
        for name, held, key in _slots(model):
            old = held[key]
            if not old.is_meta or (name not in values and id(old) not in news):
                continue
            if id(old) not in news:
                value = values[name]
                if isinstance(old, nn.Parameter):
                    value = nn.Parameter(value, requires_grad=old.requires_grad)
                news[id(old)] = value
            replaced.append((held, key, old))
            held[key] = news[id(old)]
        model.load_state_dict(copied, strict=False)
    except BaseException as error:
        for held, key, old in replaced:
            held[key] = old
        with torch.no_grad():
            for key, value in before.items():
                target[key].copy_(value)
        if not isinstance(error, Exception):
            raise
        raise MappingError(
            f"load_checkpoint: copying failed, and the model is as it was ({error})"
        ) from error


def initial_values(model: nn.Module, names: Mapping[str, Tensor], device: torch.device) -> State:
    """What these parameters and buffers of a model on the meta device start with.

    Of a network that `create_model` made, another is made for it.

    Raises:
        MappingError: it was made otherwise, or changed since.
    """
    from .._registry import create_model

    config = getattr(model, "config", None)
    if config is None:
        raise MappingError(
            f"load_checkpoint: the file has nothing for {listed(names)}, which would stay on the "
            "meta device, without values; nothing was loaded. Make the model on another device, or "
            "with attnops.models.create_model, whose networks can be initialised afterwards"
        )
    options = dict(config)
    if options.get("pretrained"):
        options["pretrained"] = False
    with torch.device("cpu"):
        fresh = create_model(**options)
    values = {name: held[key] for name, held, key in _slots(fresh)}
    strange = [k for k, v in names.items() if k not in values or values[k].shape != v.shape]
    strange += [k for k in names if k in values and values[k].is_meta]
    if strange:
        raise MappingError(
            f"load_checkpoint: the file has nothing for {listed(strange)}, on the meta device, "
            f"which a new {config['name']} has not; nothing was loaded"
        )
    return {k: values[k].detach().to(device=device, dtype=v.dtype) for k, v in names.items()}
