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
Hook = Callable[[State, nn.Module], State]
_WILDCARD = re.compile(r"\*\*|\*")


class MappingError(ValueError):
    """A checkpoint does not fit the model; the message names the keys."""


def _pattern(template: str) -> re.Pattern[str]:
    parts = re.split(r"(\*\*|\*)", template)
    groups = {"*": r"([^.]+)", "**": r"(.+)"}
    return re.compile("".join(groups.get(part) or re.escape(part) for part in parts))


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
    def _compiled(self) -> tuple[list[tuple[re.Pattern[str], str]], ...]:
        for published, ours in self.rules:
            if _WILDCARD.findall(published) != _WILDCARD.findall(ours):
                raise ValueError(f"rule {published!r} -> {ours!r}: the wildcards differ")
        there = [(_pattern(published), ours) for published, ours in self.rules]
        back = [(_pattern(ours), published) for published, ours in self.rules]
        return there, back

    def our_name(self, key: str) -> str | None:
        """Our name of a published key; None: it has none."""
        return _renamed(key, self._compiled[0])

    def published_name(self, key: str) -> str | None:
        """The published name of one of our keys; None: it has none."""
        return _renamed(key, self._compiled[1])

    def is_dropped(self, key: str) -> bool:
        return any(_pattern(template).fullmatch(key) for template in self.dropped)

    def overlap(self, keys: Iterable[str], ours: set[str]) -> int:
        """How many published `keys` have a name among `ours`."""
        return sum(self.our_name(key) in ours for key in keys)

    def to_ours(self, state: State, model: nn.Module) -> tuple[State, list[str]]:
        """The published `state` under our names, and the keys that were left out or have no name.

        Raises:
            MappingError: a copy differs from its original, or two keys get one name.
        """
        state = dict(state) if self.load is None else self.load(dict(state), model)
        rest: list[str] = []
        for copy, original in _pairs(self.copies, state):
            if copy not in state:
                continue
            if original not in state or not torch.equal(state[copy], state[original]):
                raise MappingError(
                    f"load_checkpoint: {copy} must repeat {original}, which this network shares, "
                    "but differs from it"
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
                raise MappingError(f"load_checkpoint: two keys of the file are {name}")
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


def _renamed(key: str, rules: list[tuple[re.Pattern[str], str]]) -> str | None:
    for pattern, template in rules:
        match = pattern.fullmatch(key)
        if match:
            return _filled(template, match.groups())
    return None


def _pairs(templates: Iterable[tuple[str, str]], state: State) -> list[tuple[str, str]]:
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
