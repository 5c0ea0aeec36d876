"""State dicts inside of what a file holds, and networks inside of their wrappers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from ._mapping import MappingError, State, listed
from ._unpickle import StandIn

# Names under which training tools keep the weights; the first that fits is taken.
RAW = (
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "params",
    "weights",
    "net",
    "network",
    "model_state",
    "net_state_dict",
    "segmentor",
)
# Parts of a name that tell averaged weights; they are taken where there are no others.
_AVERAGED = frozenset(("ema", "averaged", "average", "swa", "teacher"))
# Wrappers add these parts to the names of what they hold.
HOLDERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_PARALLEL = "module"
_NETWORKS = ("model", "net", "network", "segmentor", _PARALLEL)
# What averages of models keep beside the weights: PyTorch's, mmengine's and other tools'.
_COUNTERS = frozenset(("n_averaged", "steps", "step", "num_updates", "updates", "decay", "initted"))
_DEEPEST = 5


class Part(NamedTuple):
    """A state dict in a file.

    Attributes:
        path: the keys that lead to it, joined by dots; empty: it is the file.
        rank: 0 for names that say weights, 1 for others, 2 for averaged weights.
        state: its tensors by their names.
    """

    path: str
    rank: int
    state: State


def parts_of(found: Mapping[str, Any], where: str, wanted: str | None) -> list[Part]:
    """The state dicts in what a file holds, those to prefer first.

    Args:
        found: what the file holds.
        where: the file, for messages.
        wanted: key, or keys joined by dots, of the one to take; a beginning of its names will do.
            None: all.

    Raises:
        MappingError: there is none, or none of that name.
    """
    parts = sorted(_parts(found, "", 0, 0), key=lambda part: part.rank)
    if not parts:
        raise MappingError(f"load_checkpoint: {where} {_why_none(found)}")
    if wanted is None:
        return parts
    chosen = [part for part in parts if part.path == wanted]
    chosen = chosen or [part for part in parts if part.path.startswith(f"{wanted}.")]
    if not chosen:
        begin = f"{wanted}."
        for part in parts:
            state = {k: v for k, v in part.state.items() if k.startswith(begin)}
            if state:
                chosen.append(part._replace(state=state))
    if not chosen:
        names = listed(part.path or "its top level" for part in parts)
        raise MappingError(f"load_checkpoint: {where} has no part {wanted!r}; it has {names}")
    return chosen


def _parts(found: Mapping[str, Any], path: str, rank: int, depth: int) -> Iterable[Part]:
    values = found.values()
    if found and all(isinstance(value, Tensor) for value in values):
        yield Part(path, rank, {str(key): value for key, value in found.items()})
        return
    if depth == _DEEPEST:
        return
    keys = [str(key) for key in found if isinstance(found[key], Mapping)]
    by_name = {str(key): value for key, value in found.items()}
    for key in sorted(keys, key=lambda k: RAW.index(k) if k in RAW else len(RAW)):
        if key.startswith("optim"):
            continue
        averaged = not _AVERAGED.isdisjoint(key.lower().split("_"))
        own = 2 if averaged else 0 if key in RAW else 1
        inside = f"{path}.{key}" if path else key
        yield from _parts(by_name[key], inside, max(rank, own), depth + 1)


def _why_none(found: Mapping[str, Any]) -> str:
    modules = [f"{k} ({v.full_name})" for k, v in found.items() if isinstance(v, StandIn)]
    if modules and not any(isinstance(v, Tensor) for v in found.values()):
        return (
            f"has no tensors by their names, but objects whose code is not run: {listed(modules)}; "
            "save the state_dict() of the model instead, where it is made"
        )
    strange = [str(key) for key, value in found.items() if not isinstance(value, Tensor)]
    what = f"{listed(strange)} are no tensors" if strange else "it is empty"
    return f"should be a state dict, names to tensors; {what}"


class Located(NamedTuple):
    """A state dict with what wrappers added to its names taken off.

    Attributes:
        state: its tensors by published names.
        keys: published name -> key in the file.
        prefix: what was taken off.
        outside: keys of the file that do not begin with it.
    """

    state: State
    keys: dict[str, str]
    prefix: str
    outside: list[str]


def located(
    state: State, published: Sequence[set[str]], ours: Iterable[str]
) -> list[tuple[int, int, Located]]:
    """Where the names of formats are in a state dict: (matches, index of the format, where).

    Only the best are given, all of them, those with the shortest prefix first; nothing if no name
    matches.

    Args:
        state: names to tensors, as in the file.
        published: names of every format.
        ours: names in the model.
    """
    keys = _without_holders(state, ours)
    votes: Counter[tuple[int, str]] = Counter()
    for key in keys:
        for index, names in enumerate(published):
            rest, start = key, 0
            while True:
                if rest in names:
                    votes[index, key[:start]] += 1
                _, dot, rest = rest.partition(".")
                if not dot:
                    break
                start = len(key) - len(rest)
    most = max(votes.values(), default=0)
    best = sorted((len(p), i, p) for (i, p), count in votes.items() if count == most)
    return [(most, index, _under(state, keys, prefix)) for _, index, prefix in best]


def _under(state: State, keys: dict[str, str], prefix: str) -> Located:
    inside = {
        name.removeprefix(prefix): key
        for name, key in keys.items()
        if name.startswith(prefix) and not is_averaging_counter(key)
    }
    outside = [key for name, key in keys.items() if name.removeprefix(prefix) not in inside]
    return Located({n: state[k] for n, k in inside.items()}, inside, prefix, outside)


def _without_holders(state: State, ours: Iterable[str]) -> dict[str, str]:
    """Key without the wrappers' parts -> key. A part that the model has too stays."""
    known = {part for name in ours for part in name.split(".")}
    parts = {*HOLDERS, _PARALLEL} - known
    keys: dict[str, str] = {}
    for key in state:
        name = ".".join(part for part in key.split(".") if part not in parts)
        if not name or name in keys:  # two would become one
            return {key: key for key in state}
        keys[name] = key
    return keys


def is_averaging_counter(key: str) -> bool:
    return key.rpartition(".")[2] in _COUNTERS


def unwrapped(model: nn.Module, known: Callable[[nn.Module], bool]) -> list[nn.Module]:
    """What DataParallel, torch.compile, an average or the like hold, and the network within it.

    Args:
        known: whether a module is a network or block of ours.

    Returns:
        The module without such wrappers; then, where that is a training module with a network of
        ours in its attribute `model`, `net` or the like, the network.
    """
    while not known(model):
        children = {name: child for name, child in model._modules.items() if child is not None}
        holder = next((name for name in HOLDERS if name in children), None)
        if holder is None and list(children) == [_PARALLEL]:
            holder = _PARALLEL
        if holder is None:
            networks = [unwrapped(children[n], known)[-1] for n in _NETWORKS if n in children]
            networks = [network for network in networks if known(network)]
            return [model, *networks] if len(networks) == 1 else [model]
        model = children[holder]
    return [model]
