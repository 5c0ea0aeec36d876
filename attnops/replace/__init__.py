"""Swapping the parts of somebody else's model for ours, and its labels."""

from __future__ import annotations

from torch import Tensor, nn

from . import _ann, _decode_head, _encoder, _gald, _segnext
from ._compare import best_of
from ._parts import Recogniser, Unsupported, is_hooked
from ._report import Replacement, ReplacementReport
from .labels import predict_labels

__all__ = ["Replacement", "ReplacementReport", "predict_labels", "replace_modules"]

# Larger blocks first: what is in a module that is exchanged is not looked at again.
_RECOGNISERS: tuple[Recogniser, ...] = (
    _ann.block,
    _gald.block,
    _gald.local_distribution,
    _gald.cgnl,
    _segnext.block,
    _segnext.gating_unit,
    _segnext.hamburger,
    _encoder.encoder,
    _decode_head.decode_head,
)


def replace_modules(model: nn.Module, compare: bool = True) -> ReplacementReport:
    """Swap the parts that attnops knows for its own, in place, on the same parameters.

    Known, by the names and the shapes of their parts, whatever package they come from: SegNeXt's
    encoder block with its feed-forward network, on tokens or on maps, its gating unit (MSCA) and
    its NMF Hamburger, the blocks APNB and AFNB of ANN, and GALD's local attention, CGNL and the
    block around them; as in the official repositories and in mmsegmentation. Convolutions and norms
    of the old module become parts of the new one, so an optimizer that was made before still trains
    the model; mode, device and dtype stay. So does the order of parameters and buffers: averaged
    models and optimizers' states from before fit. Names in the state dict change: load checkpoints
    before, or translate them with the report's `to_new_names` and `to_old_names`.

    Others stay with all that they have, and get a class derived from their own (`extended`):
    mmsegmentation's decode heads, whose cross-entropy and accuracy then need no logits at the size
    of the labels (same values, also of its average over ignored pixels); of these SegNeXt's
    LightHamHead, which then squeezes its maps before it resizes them; and SegNeXt's encoder, whose
    maps then keep the layout of the images.

    Args:
        model: any module. If it is a known one itself, it becomes the new one: same object.
        compare: run each module and its replacement on a small random input, in evaluation, and
            leave the module alone if the outputs differ. Where the module cannot run (the meta
            device, code for GPUs only), the report says so.

    Returns:
        What was swapped, and what looks like a known module but was left alone, with the reason.
        Hooks on a module that would go are such a reason.

    Raises:
        TypeError: `model` is no module.

    Example:
        >>> import attnops
        >>> from torch import nn
        >>> print(attnops.replace_modules(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())))
        0 modules replaced, 0 left alone (help(attnops.replace_modules) lists what it knows)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"replace_modules: expected a torch.nn.Module, got {type(model).__name__}")
    report = ReplacementReport()
    before = model.state_dict(keep_vars=True)
    new = _replacement_of(model, "", compare, report)
    if new is None:
        _visit(model, "", {}, compare, report)
    else:
        _become(model, new)
    after = model.state_dict(keep_vars=True)
    names = {id(value): key for key, value in after.items() if isinstance(value, Tensor)}
    report.keys = {
        key: names[id(value)]
        for key, value in before.items()
        if key not in after and id(value) in names
    }
    return report


def _become(module: nn.Module, new: nn.Module) -> None:
    """Give `module`, which others hold, the class and all attributes of `new`."""
    module.__class__ = type(new)
    vars(module).clear()
    vars(module).update(vars(new))


def _visit(
    parent: nn.Module,
    prefix: str,
    done: dict[nn.Module, nn.Module | None],
    compare: bool,
    report: ReplacementReport,
) -> None:
    # Not named_children(), which gives a module that stands twice in one parent only once.
    for name, child in list(parent._modules.items()):
        if child is None:
            continue
        path = f"{prefix}{name}"
        if child in done:  # a module that stands in several places
            new = done[child]
        else:
            new = done[child] = _replacement_of(child, path, compare, report)
            if new is None:
                _visit(child, f"{path}.", done, compare, report)
        if new is not None:
            setattr(parent, name, new)


def _replacement_of(
    module: nn.Module, path: str, compare: bool, report: ReplacementReport
) -> nn.Module | None:
    """What has to stand in the place of `module`; None: itself, maybe of another class."""
    was = type(module).__name__
    if type(module).__module__.partition(".")[0] == __name__.partition(".")[0]:
        return None  # ours already
    for recognise in _RECOGNISERS:
        try:
            candidates = recognise(module)
            if candidates is None:
                continue
            if candidates[0].derived is None:
                _refuse_hooks(module, candidates[0].module)
            chosen, note = best_of(module, candidates, compare)
        except Unsupported as reason:
            report.left.append(Replacement(path, was, None, str(reason)))
            continue
        note = "; ".join(filter(None, (chosen.note, note)))
        if chosen.derived is not None:
            module.__class__ = chosen.derived
            report.extended.append(Replacement(path, was, chosen.derived.describe(), note))
            return None
        new = chosen.module
        _take_mode(new, module)
        _take_order(new, module)
        report.replaced.append(Replacement(path, was, type(new).__name__, note))
        return new
    return None


def _refuse_hooks(old: nn.Module, new: nn.Module) -> None:
    """Hooks on the old module, or on a part of it that the new one does not have, would be lost."""
    kept = set(new.modules())
    hooked = [name for name, part in old.named_modules() if is_hooked(part) and part not in kept]
    if hooked:
        names = ", ".join(name or "it" for name in hooked)
        verb = "has" if len(hooked) == 1 else "have"
        raise Unsupported(f"{names} {verb} hooks, which would be lost")


def _take_mode(new: nn.Module, old: nn.Module) -> None:
    """The parts that both have keep their own mode: a BatchNorm may be frozen by itself."""
    kept = set(old.modules())
    for module in new.modules():
        if module not in kept:
            module.training = old.training


def _take_order(new: nn.Module, old: nn.Module) -> None:
    """Parameters and buffers come in the order in which the old module gave them."""
    positions = {module: i for i, module in enumerate(old.modules())}
    parts = [(name, module) for name, module in new.named_modules() if module in positions]
    new.parameter_order = tuple(
        name for name, module in sorted(parts, key=lambda part: positions[part[1]])
    )
