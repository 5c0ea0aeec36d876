"""Names of published checkpoints against ours, in both directions.

A `Format` is a list of rules, pairs of templates for a key: `*` stands for one part between dots,
`**` for one or more. The parts that the wildcards of one template match are put, in order, into
those of the other, so that the two need the same wildcards in the same order. The first rule that
matches decides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

State = dict[str, Tensor]
Rule = tuple[str, re.Pattern[str], str]  # how a key begins, all of it, what it becomes
Hook = Callable[[State, nn.Module], State]
_WILDCARD = re.compile(r"\*\*|\*")


class MappingError(ValueError):
    """A checkpoint does not fit the model; the message names the keys."""


def _pattern(template: str) -> re.Pattern[str]:
    parts = re.split(r"(\*\*|\*)", template)
    groups = {"*": r"([^.]+)", "**": r"(.+)"}
    return re.compile("".join(groups.get(part) or re.escape(part) for part in parts))


def _start(template: str) -> str:
    """What stands before the first wildcard."""
    return template.partition("*")[0]


def _filled(template: str, parts: Iterable[str]) -> str:
    values = iter(parts)
    return _WILDCARD.sub(lambda match: next(values), template)


@dataclass(frozen=True)
class Format:
    """One published naming of one network or block.

    Attributes:
        style: the name that `export_checkpoint` takes.
        rules: (published template, our template), in order.
        dropped: templates of published keys that have no counterpart and are left out.
        copies: (copy, original): keys that repeat another's tensor in the file. Loading checks that
            they are equal, exporting writes them again.
        biases: (bias, running_mean): convolutions without a bias in the file, each followed by the
            BatchNorm with that mean. Loading adds zeros; exporting moves the bias into the mean.
        partial: the file holds a part of the network (a backbone): the other keys keep their
            values.
        load: applied to the published state before everything else.
        export: applied to the published state after everything else.
    """

    style: str
    rules: tuple[tuple[str, str], ...]
    dropped: tuple[str, ...] = ()
    copies: tuple[tuple[str, str], ...] = ()
    biases: tuple[tuple[str, str], ...] = ()
    partial: bool = False
    load: Hook | None = None
    export: Hook | None = None

    @cached_property
    def _compiled(self) -> tuple[list[Rule], ...]:
        for published, ours in self.rules:
            if _WILDCARD.findall(published) != _WILDCARD.findall(ours):
                raise ValueError(f"rule {published!r} -> {ours!r}: the wildcards differ")
        there = [(_start(published), _pattern(published), ours) for published, ours in self.rules]
        back = [(_start(ours), _pattern(ours), published) for published, ours in self.rules]
        return there, back

    def our_name(self, key: str) -> str | None:
        """Our name of a published key; None: it has none."""
        return _renamed(key, self._compiled[0])

    def published_name(self, key: str) -> str | None:
        """The published name of one of our keys; None: it has none."""
        return _renamed(key, self._compiled[1])

    def is_dropped(self, key: str) -> bool:
        return fits_any(self.dropped, key)

    def names_of(self, ours: Iterable[str]) -> set[str]:
        """The published names of our keys, those of copies included."""
        names = {name for key in ours if (name := self.published_name(key)) is not None}
        originals = [(original, copy) for copy, original in self.copies]
        return names | {copy for _, copy in _pairs(originals, names)}

    def to_ours(
        self, state: State, model: nn.Module, keys: Mapping[str, str]
    ) -> tuple[State, list[str]]:
        """The published `state` under our names, and the keys that were left out or have no name.

        Args:
            state: tensors by published names.
            model: where they go.
            keys: published name -> key in the file, for messages.

        Raises:
            MappingError: a copy differs from its original, or two keys get one name.
        """
        state = dict(state) if self.load is None else self.load(dict(state), model)
        rest: list[str] = []
        for copy, original in _pairs(self.copies, state):
            if copy not in state:
                continue
            if original not in state or not _equal(state[copy], state[original]):
                raise MappingError(
                    f"load_checkpoint: {keys[copy]} must repeat {keys.get(original, original)}, "
                    "which this network shares, but differs from it"
                )
            del state[copy]
        for mean, bias in _pairs([(mean, bias) for bias, mean in self.biases], state):
            if bias not in state:
                state[bias] = torch.zeros_like(state[mean])
        found: State = {}
        for key, value in state.items():
            name = self.our_name(key)
            if name is None:
                rest.append(key)
            elif name in found:
                both = [keys.get(k, k) for k in state if self.our_name(k) == name]
                raise MappingError(f"load_checkpoint: {' and '.join(both)} are both {name}")
            else:
                found[name] = value
        return found, rest

    def to_published(self, state: Mapping[str, Tensor], model: nn.Module) -> State:
        """Our `state` under the published names; a partial format leaves out what it has not.

        Raises:
            MappingError: a key has no published name, or a bias no mean to move into.
        """
        found: State = {}
        nameless = []
        for key, value in state.items():
            name = self.published_name(key)
            if name is not None:
                found[name] = value
            elif not self.partial:
                nameless.append(key)
        if nameless:
            raise MappingError(
                f"export_checkpoint: the style {self.style!r} has no names for {listed(nameless)}"
            )
        for mean, bias in _pairs([(mean, bias) for bias, mean in self.biases], found):
            if bias in found:
                found[mean] = found[mean] - found.pop(bias)
        for original, copy in _pairs([(original, copy) for copy, original in self.copies], found):
            found[copy] = found[original]
        return found if self.export is None else self.export(found, model)


def _renamed(key: str, rules: list[Rule]) -> str | None:
    for start, pattern, template in rules:
        match = pattern.fullmatch(key) if key.startswith(start) else None
        if match:
            return _filled(template, match.groups())
    return None


def fits_any(templates: Iterable[str], key: str) -> bool:
    return any(_pattern(template).fullmatch(key) for template in templates)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.shape == b.shape and a.layout == b.layout and torch.equal(a, b))


def _pairs(templates: Iterable[tuple[str, str]], state: Iterable[str]) -> list[tuple[str, str]]:
    """(key, partner) for every key of `state` that fits a first template."""
    found = []
    for first, second in templates:
        pattern = _pattern(first)
        for key in state:
            match = pattern.fullmatch(key)
            if match:
                found.append((key, _filled(second, match.groups())))
    return found


def listed(keys: Iterable[str], most: int = 8) -> str:
    """The first `most` keys as text, and how many more there are."""
    keys = list(keys)
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + more
