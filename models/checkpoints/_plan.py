"""What loading a state dict in one format would do, before anything is done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from ._mapping import Format, MappingError, State, fits_any, listed
from ._parts import RAW, Located, is_averaging_counter
from ._values import converted

COUNTER = "num_batches_tracked"


@dataclass
class Plan:
    """Loading a state dict in one format.

    Attributes:
        format: how the names are read.
        located: the state dict, and the file's own names.
        found: our name -> tensor, of the model's shape and dtype where it fits.
        loaded: published name -> our name, of what is taken over.
        dropped: keys of the file that are left out.
        kept: our names that keep their values.
        classes: numbers of classes in the file and in the model, where they differ and the
            classifiers are kept.
        problems: kind -> what does not fit; empty: everything does.
        hint: what would help.
    """

    format: Format
    located: Located
    found: State = field(default_factory=dict)
    loaded: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    classes: tuple[int, int] | None = None
    problems: dict[str, list[str]] = field(default_factory=dict)
    hint: str = "Create the network with the options of the checkpoint (num_classes among them)"

    def error(self, model: nn.Module) -> MappingError:
        texts = [f"{what}: {listed(keys)}" for what, keys in self.problems.items()]
        return MappingError(
            f"load_checkpoint: the file, named as in {self.format.style!r} checkpoints, does not "
            f"fit this {type(model).__name__}, and nothing was loaded. {'; '.join(texts)}. "
            f"{self.hint}"
        )

    def in_file(self, key: str) -> str:
        """How one of our keys is called in the file, or would be."""
        name = self.format.published_name(key) or key
        if name not in self.located.keys:
            name = next((there for there, here in self.loaded.items() if here == key), name)
        there = self.located.keys.get(name, self.located.prefix + name)
        return there if there == key else f"{there} (here {key})"


def plan(
    model: nn.Module,
    format: Format,
    located: Located,
    matches: int,
    target: Mapping[str, Tensor],
    drop_classes: bool,
) -> Plan:
    """What loading would do.

    Args:
        model: the network; the keys that its attribute `classifiers` has templates for depend on
            the number of classes.
        format: how to read the names.
        located: the state dict.
        matches: how many names of the file are the format's.
        target: the model's own state dict.
        drop_classes: leave the classifiers out where the numbers of classes differ.
    """
    made = Plan(format, located)
    state, values = _in_our_dtypes(format, located, target)
    if values:
        made.problems = {"values that cannot be taken": values}
        made.hint = "Save the weights as plain float tensors"
        return made
    made.found, rest = format.to_ours(state, model, located.keys)
    for key in located.state:
        name = format.our_name(key)
        if name in made.found:
            made.loaded[key] = name
    misshapen = [k for k, v in made.found.items() if k in target and v.shape != target[k].shape]
    classifiers = getattr(model, "classifiers", ())
    of_classes, numbers = _other_classes(misshapen, made.found, target, classifiers)
    if numbers and drop_classes:
        _drop(made, of_classes, target)
        made.classes = numbers
        misshapen = [key for key in misshapen if key in made.found]
    elif numbers:
        made.hint = (
            f"The file has {numbers[0]} classes, the model {numbers[1]}: create the network with "
            f'num_classes={numbers[0]}, or keep its classifier as it is with classes="drop"'
        )
    made.dropped += [located.keys[key] for key in located.state if key not in made.loaded]
    made.dropped += located.outside
    _find_problems(made, target, matches, rest, misshapen)
    return made


def _in_our_dtypes(
    format: Format, located: Located, target: Mapping[str, Tensor]
) -> tuple[State, list[str]]:
    """The state dict with the dtypes of the model, and the keys that cannot have them."""
    state, refused = dict(located.state), []
    for key, value in located.state.items():
        name = format.our_name(key)
        if name not in target:
            continue
        ready, reason = converted(value, target[name], name.endswith(COUNTER))
        if ready is None:
            refused.append(f"{located.keys[key]} {reason}")
        else:
            state[key] = ready
    return state, refused


def _drop(made: Plan, keys: Iterable[str], target: Mapping[str, Tensor]) -> None:
    """Leave out the modules with these keys, weights and biases."""
    modules = {key.rpartition(".")[0] for key in keys}
    left = [key for key in made.found if key.rpartition(".")[0] in modules]
    for key in left:
        del made.found[key]
    made.kept += [key for key in left if key in target]
    made.loaded = {there: here for there, here in made.loaded.items() if here in made.found}


def _find_problems(
    made: Plan, target: Mapping[str, Tensor], matches: int, rest: list[str], misshapen: list[str]
) -> None:
    format, found, located = made.format, made.found, made.located
    unexpected = [located.keys.get(key, key) for key in rest if not format.is_dropped(key)]
    unexpected += [made.in_file(key) for key in found if key not in target]
    outside = [key for key in located.outside if not is_averaging_counter(key)]
    known = located.prefix.removesuffix(".") in RAW
    if outside and (format.partial or (len(outside) >= matches and not known)):
        unexpected += outside
        made.hint = (
            f"These names do not begin with {located.prefix!r} as the others do; where they are "
            f'another network, part="{located.prefix.removesuffix(".")}" leaves them out'
        )
    missing = [key for key in target if key not in found and key not in made.kept]
    begun = {key.partition(".")[0] for key in found}  # children of the model that the file has
    kept = {
        key
        for key in missing
        if key.endswith(COUNTER) or (format.partial and key.partition(".")[0] not in begun)
    }
    made.kept += [key for key in missing if key in kept]
    problems = {
        "missing": [made.in_file(key) for key in missing if key not in kept],
        "unexpected": unexpected,
        "other shapes": [
            f"{made.in_file(key)} {list(found[key].shape)} instead of {list(target[key].shape)}"
            for key in misshapen
        ],
    }
    made.problems = {what: keys for what, keys in problems.items() if keys}


def _other_classes(
    misshapen: Iterable[str],
    found: State,
    target: Mapping[str, Tensor],
    classifiers: tuple[str, ...],
) -> tuple[list[str], tuple[int, int] | None]:
    """Keys whose shapes differ by the number of classes alone, and the numbers (file, model)."""
    keys: list[str] = []
    others: set[str] = set()  # modules that differ in something else too
    numbers = None
    for key in misshapen:
        there, here = found[key].shape, target[key].shape
        if not fits_any(classifiers, key):
            continue
        if len(there) != len(here):
            others.add(key.rpartition(".")[0])
            continue
        pairs = [(f, t) for f, t in zip(there, here, strict=True) if f != t]
        numbers = numbers or pairs[0]
        # Maps of several heads side by side have a multiple of the classes.
        if all(f * numbers[1] == t * numbers[0] for f, t in pairs):
            keys.append(key)
        else:
            others.add(key.rpartition(".")[0])
    keys = [key for key in keys if key.rpartition(".")[0] not in others]
    return keys, numbers if keys else None
