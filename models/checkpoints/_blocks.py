"""Names of chains of convolutions and BatchNorms, where the convolutions may have a bias or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from ._mapping import Format, State


class Normed(NamedTuple):
    """A convolution and the BatchNorm that follows it: their published names, and ours."""

    conv: str
    bn: str
    our_conv: str
    our_bn: str


@dataclass(frozen=True)
class Naming:
    """How a block's or a network's modules are called in a published file.

    Attributes:
        normed: convolutions that a BatchNorm follows.
        plain: other modules, (published, ours); `**` stands for several.
        copies: (copy, original), published modules that the file holds twice.
        bias: whether the file's `normed` convolutions have a bias.
    """

    normed: tuple[Normed, ...]
    plain: tuple[tuple[str, str], ...]
    copies: tuple[tuple[str, str], ...] = ()
    bias: bool = True

    def within(self, published: str, ours: str) -> Naming:
        """The same names inside of modules with these prefixes."""
        return Naming(
            tuple(
                Normed(published + n.conv, published + n.bn, ours + n.our_conv, ours + n.our_bn)
                for n in self.normed
            ),
            tuple((published + there, ours + here) for there, here in self.plain),
            tuple((published + copy, published + original) for copy, original in self.copies),
            self.bias,
        )

    def joined(self, *others: Naming) -> Naming:
        """All names of several parts of one network."""
        parts = (self, *others)
        return Naming(
            tuple(n for part in parts for n in part.normed),
            tuple(pair for part in parts for pair in part.plain),
            tuple(pair for part in parts for pair in part.copies),
            self.bias,
        )

    def format(self, style: str, bias: bool, more: tuple[tuple[str, str], ...] = ()) -> Format:
        """The format of a model whose `normed` convolutions have a bias or not.

        A bias that only the model has is zero when loaded, and moved into the running mean of the
        BatchNorm when exported; one that only the file has is moved when loaded, and zero when
        exported: the functions are the same.

        Args:
            style: its name.
            bias: of the model.
            more: rules of other parts of the model.
        """
        added = bias and not self.bias
        moved = self.bias and not bias
        return Format(
            style,
            self._rules(moved) + more,
            copies=tuple((f"{copy}.**", f"{original}.**") for copy, original in self.copies),
            biases=tuple(self._biases()) if added else (),
            load=self._move_biases if moved else None,
            export=self._add_biases if moved else None,
        )

    def _rules(self, moved: bool) -> tuple[tuple[str, str], ...]:
        rules = [(f"{n.bn}.*", f"{n.our_bn}.*") for n in self.normed]
        if moved:  # for the report: where a bias of the file has gone
            rules += [(f"{n.conv}.bias", f"{n.our_bn}.running_mean") for n in self.normed]
        rules += [(f"{n.conv}.*", f"{n.our_conv}.*") for n in self.normed]
        rules += [
            (there, here) if there.endswith("*") else (f"{there}.*", f"{here}.*")
            for there, here in self.plain
        ]
        for copy, original in self.copies:  # after the original's, which exporting takes
            rules += [
                (copy + there.removeprefix(original), here)
                for there, here in rules
                if there.startswith(f"{original}.")
            ]
        return tuple(rules)

    def _biases(self) -> list[tuple[str, str]]:
        """(bias, running mean) of the file, those of copies included."""
        pairs = [(f"{n.conv}.bias", f"{n.bn}.running_mean") for n in self.normed]
        for copy, original in self.copies:
            pairs += [
                (copy + bias.removeprefix(original), copy + mean.removeprefix(original))
                for bias, mean in pairs
                if bias.startswith(f"{original}.")
            ]
        return pairs

    def _move_biases(self, state: State, model: nn.Module) -> State:
        for bias, mean in self._biases():
            if bias in state and mean in state:
                state[mean] = state[mean] - state.pop(bias)
        return state

    def _add_biases(self, state: State, model: nn.Module) -> State:
        for bias, mean in self._biases():
            if mean in state:
                state[bias] = torch.zeros_like(state[mean])
        return state
