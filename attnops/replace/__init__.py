"""Swapping the heads of somebody else's model for ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..nn.evaluation import evaluation_twin
from . import _ann, _gald, _segnext
from ._parts import Candidate, Recogniser, Unsupported

# Larger blocks first: what is in them is not looked at again.
_RECOGNISERS: tuple[Recogniser, ...] = (
    _ann.block,
    _gald.block,
    _gald.local_distribution,
    _gald.cgnl,
    _segnext.gating_unit,
    _segnext.hamburger,
)
# Largest norm of the difference over the norm of the output.
_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}
_HALF_TOLERANCE = 5e-2


@dataclass(frozen=True)
class Replacement:
    """A module that was looked at: `now` is the class that took its place, None if none did."""

    path: str
    was: str
    now: str | None
    note: str = ""


@dataclass
class ReplacementReport:
    """What `replace_modules` did; printing it gives a line a module.

    Attributes:
        replaced: modules that were swapped.
        left: modules that look like known ones and were left alone, with the reason.
        keys: names of the state dict that changed: before -> now. A tensor that had two names has
            one.
    """

    replaced: list[Replacement] = field(default_factory=list)
    left: list[Replacement] = field(default_factory=list)
    keys: dict[str, str] = field(default_factory=dict)

    def to_new_names(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict of the model as it was, for the model as it is."""
        return {self.keys.get(key, key): value for key, value in state.items()}

    def to_old_names(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict of the model as it is, for the model as it was."""
        before: dict[str, list[str]] = {}
        for old, new in self.keys.items():
            before.setdefault(new, []).append(old)
        return {old: value for key, value in state.items() for old in before.get(key, [key])}

    def __str__(self) -> str:
        lines = [f"{len(self.replaced)} modules replaced, {len(self.left)} left alone"]
        for entry in (*self.replaced, *self.left):
            now = "left alone" if entry.now is None else f"attnops.nn.{entry.now}"
            note = f" ({entry.note})" if entry.note else ""
            lines.append(f"  {entry.path}: {entry.was} -> {now}{note}")
        return "\n".join(lines)


def replace_modules(model: nn.Module, compare: bool = True) -> ReplacementReport:
    """Swap the heads that attnops knows for its own, in place, on the same parameters.

    Known, by the names and the shapes of their parts, whatever package they come from: the gating
    units (MSCA) and NMF Hamburgers of SegNeXt, the blocks APNB and AFNB of ANN, and GALD's local
    attention, CGNL and the block around them; as in the official repositories and in
    mmsegmentation. Convolutions and norms of the old module become parts of the new one, so an
    optimizer that was made before still trains the model; mode, device and dtype stay. So does the
    order of parameters and buffers: averaged models and optimizers' states from before fit. Names
    in the state dict change: load checkpoints before, or translate them with the report's
    `to_new_names` and `to_old_names`.

    Args:
        model: any module; its submodules are looked at, not the model itself.
        compare: run each module and its replacement on a small random input, in evaluation, and
            leave the module alone if the outputs differ. Where the module cannot run (the meta
            device, code for GPUs only), the report says so.

    Returns:
        What was swapped, and what looks like a known module but was left alone, with the reason.

    Raises:
        TypeError: `model` is no module.

    Example:
        >>> import attnops
        >>> from torch import nn
        >>> print(attnops.replace_modules(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())))
        0 modules replaced, 0 left alone
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"replace_modules: expected a torch.nn.Module, got {type(model).__name__}")
    report = ReplacementReport()
    before = model.state_dict(keep_vars=True)
    _visit(model, "", {}, compare, report)
    after = model.state_dict(keep_vars=True)
    names = {id(value): key for key, value in after.items() if isinstance(value, Tensor)}
    report.keys = {
        key: names[id(value)]
        for key, value in before.items()
        if key not in after and id(value) in names
    }
    return report


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
    was = type(module).__name__
    if type(module).__module__.partition(".")[0] == __name__.partition(".")[0]:
        return None  # ours already
    for recognise in _RECOGNISERS:
        try:
            candidates = recognise(module)
            if candidates is None:
                continue
            _refuse_hooks(module)
            chosen, note = _best(module, candidates, compare)
        except Unsupported as reason:
            report.left.append(Replacement(path, was, None, str(reason)))
            continue
        new = chosen.module
        _take_mode(new, module)
        _take_order(new, module)
        note = "; ".join(filter(None, (chosen.note, note)))
        report.replaced.append(Replacement(path, was, type(new).__name__, note))
        return new
    return None


def _refuse_hooks(module: nn.Module) -> None:
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
        raise Unsupported("it has hooks, which would be lost")


def _best(module: nn.Module, candidates: list[Candidate], compare: bool) -> tuple[Candidate, str]:
    """The first candidate that computes what `module` does, and a remark on the comparison."""
    example = next(module.parameters())
    if not compare:
        return candidates[0], ""
    if example.is_meta:
        return candidates[0], "not compared: it is on the meta device"
    generator = torch.Generator().manual_seed(0)
    shapes = candidates[0].inputs
    inputs = [torch.randn(shape, generator=generator).to(example) for shape in shapes]
    try:
        wanted = _run(module, inputs)
    except Exception as error:  # somebody else's code
        return candidates[0], f"not compared: it raises {type(error).__name__}"
    if not isinstance(wanted, Tensor):
        raise Unsupported(f"it returns a {type(wanted).__name__}")
    tolerance = _TOLERANCES.get(example.dtype, _HALF_TOLERANCE)
    for candidate in candidates:
        found = _run(candidate.module, inputs)
        difference = (found - wanted).double().norm()
        if found.shape == wanted.shape and difference <= tolerance * wanted.double().norm():
            return candidate, ""
    raise Unsupported("it computes something else")


def _run(module: nn.Module, inputs: list[Tensor]) -> object:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        # For what is drawn in the forward; torch.manual_seed would seed the GPUs as well.
        torch.default_generator.manual_seed(0)
        return evaluation_twin(module)(*(x.clone() for x in inputs))


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
