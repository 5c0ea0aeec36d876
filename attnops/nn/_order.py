"""Modules whose parameters come in another order than they were registered in."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


class Ordered(nn.Module):
    """A module that can list its parameters in the order of another one that it stands for.

    What goes through parameters by number (optimizers' states, averages of weights) fits both then.

    Attributes:
        parameter_order: names of submodules in the order in which `modules()`, `parameters()` and
            `buffers()` give them, others come before; empty: as registered. The state dict's order
            does not change.
    """

    parameter_order: tuple[str, ...] = ()

    def named_modules(
        self,
        memo: set[nn.Module] | None = None,
        prefix: str = "",
        remove_duplicate: bool = True,
    ) -> Iterator[tuple[str, nn.Module]]:
        found = super().named_modules(memo, prefix, remove_duplicate)
        if not self.parameter_order:
            yield from found
            return
        ranks = {name: i for i, name in enumerate(self.parameter_order)}
        start = len(prefix) + 1 if prefix else 0

        def rank(entry: tuple[str, nn.Module]) -> int:
            name = entry[0][start:]
            while name and name not in ranks:  # what is inside of a part comes with it
                name = name.rpartition(".")[0]
            return ranks.get(name, -1)

        yield from sorted(found, key=rank)
