"""What `replace_modules` did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from .. import nn as ours


@dataclass(frozen=True)
class Replacement:
    """A module that was looked at.

    Attributes:
        path: its name in the model, empty for the model itself.
        was: its class.
        now: the class that took its place, or its class and what that got; None: it was left alone.
        note: what a reader of the report should know.
    """

    path: str
    was: str
    now: str | None
    note: str = ""

    def __str__(self) -> str:
        now = "left alone"
        if self.now is not None:
            now = f"attnops.nn.{self.now}" if hasattr(ours, self.now) else self.now
        note = f" ({self.note})" if self.note else ""
        return f"{self.path or '(the model itself)'}: {self.was} -> {now}{note}"


@dataclass
class ReplacementReport:
    """What `replace_modules` did; printing it gives a line a module.

    Attributes:
        replaced: modules that were swapped.
        left: modules that look like known ones and were left alone, with the reason.
        extended: modules that kept their place and parts, and got a class derived from theirs.
        keys: names of the state dict that changed: before -> now. A tensor that had two names has
            one.
    """

    replaced: list[Replacement] = field(default_factory=list)
    left: list[Replacement] = field(default_factory=list)
    keys: dict[str, str] = field(default_factory=dict)
    extended: list[Replacement] = field(default_factory=list)

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
        first = f"{len(self.replaced)} modules replaced, {len(self.left)} left alone"
        if self.extended:
            first += f", {len(self.extended)} extended"
        entries = (*self.replaced, *self.extended, *self.left)
        if not entries:
            first += " (help(attnops.replace_modules) lists what it knows)"
        return "\n".join([first, *(f"  {entry}" for entry in entries)])
