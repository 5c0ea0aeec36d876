"""The contenders of the APNB table: what they are, and how each is made from one seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attnops.nn import APNB, NonLocal

from ..measure.memory import Case
from ..ops.definitions._definition import Draw
from . import operations
from .operations import Block
from .peers import eager_apnb, eager_non_local, randomise

FORMS = {
    "linear": {"share": "key_value", "projection": "linear"},
    "released": {"share": "key_query", "projection": "bn_relu"},
}
GAIN = 1.5  # spreads the scores over about +-3, so that a wrong score shows in the output


@dataclass(frozen=True)
class Contender:
    """A row of the table.

    Attributes:
        function: what it computes; contenders of one function must agree.
        reference: the contender it is checked against.
        make: Block -> module with the weights of `seed`.
        macs: Block -> multiply-adds it executes.
    """

    name: str
    function: str
    reference: str
    make: Callable[[Block], nn.Module]
    macs: Callable[[Block], int]
    compiled: str | None = None  # mode of torch.compile
    is_ours: bool = False

    @property
    def family(self) -> str:
        """The paper's name for it: "non-local" or "apnb"."""
        return "non-local" if self.function == "non-local" else "apnb"

    def explicit_matrix(self) -> bool:
        return self.name == EAGER_NON_LOCAL


def _ours(form: str) -> Callable[[Block], nn.Module]:
    def make(block: Block) -> nn.Module:
        module = APNB(
            block.channels,
            block.hidden,
            block.hidden,
            sizes=block.sizes,
            fuse=False,
            **FORMS[form],
        )
        return randomise(module, seed=0, gain=GAIN).eval()

    return make


def _eager(form: str, once: bool) -> Callable[[Block], nn.Module]:
    return lambda block: eager_apnb(_ours(form)(block), once).eval()


def _non_local(block: Block) -> nn.Module:
    return randomise(NonLocal(block.channels, block.hidden), seed=0, gain=GAIN).eval()


def _twice(block: Block) -> int:
    """The shared projection run for the query and again for the key."""
    projection = block.batch * block.positions * block.channels * block.hidden
    return operations.apnb_macs(block) + projection


EAGER_NON_LOCAL = "eager non-local"
SDPA_NON_LOCAL = "SDPA non-local"
EAGER_LINEAR = "eager APNB linear"
EAGER_RELEASED = "eager APNB released"
EAGER_RELEASED_ONCE = "eager APNB released, once"
OURS_LINEAR = "attnops APNB linear"
OURS_RELEASED = "attnops APNB released"


def contenders(compile_modes: tuple[str, ...] = ("default",)) -> Iterator[Contender]:
    """All contenders, references first within a function, cheap functions first."""
    for form, eager, ours in (
        ("linear", EAGER_LINEAR, OURS_LINEAR),
        ("released", EAGER_RELEASED, OURS_RELEASED),
    ):
        executed = operations.apnb_macs if form == "linear" else _twice
        yield Contender(eager, form, eager, _eager(form, once=False), executed)
        if form == "released":
            make = _eager(form, once=True)
            yield Contender(EAGER_RELEASED_ONCE, form, eager, make, operations.apnb_macs)
        for mode in compile_modes:
            name = compiled_name(form, mode)
            make = _eager(form, once=True)
            yield Contender(name, form, eager, make, operations.apnb_macs, compiled=mode)

        def folded(block: Block, form: str = form) -> int:
            return operations.folded_apnb_macs(block, form)

        yield Contender(ours, form, eager, _ours(form), folded, is_ours=True)
    yield Contender(
        EAGER_NON_LOCAL,
        "non-local",
        EAGER_NON_LOCAL,
        lambda block: eager_non_local(_non_local(block)).eval(),
        operations.non_local_macs,
    )
    yield Contender(
        SDPA_NON_LOCAL, "non-local", EAGER_NON_LOCAL, _non_local, operations.non_local_macs
    )


def compiled_name(form: str, mode: str) -> str:
    suffix = "" if mode == "default" else f", {mode}"
    return f"compiled APNB {form}{suffix}"


def floor_macs(function: str, block: Block) -> int:
    """Fewest multiply-adds known for a function."""
    if function == "non-local":
        return operations.non_local_macs(block)
    return operations.folded_apnb_macs(block, function)


def make_input(
    block: Block, device: torch.device, dtype: torch.dtype, layout: str, seed: int = 1
) -> Tensor:
    """The map that every contender gets."""
    draw = Draw(device, dtype, layout, seed)
    return draw.structured_map(block.batch, block.channels, block.height, block.width)


def make_module(
    contender: Contender, block: Block, device: torch.device, dtype: torch.dtype
) -> nn.Module:
    module = contender.make(block).to(device, dtype)
    if contender.compiled is not None:
        module.compile(mode=contender.compiled, dynamic=False)
    return module


class Step:
    """Forward, or forward and backward, of a module on one input; called it returns the output.

    After a call with gradients, `gradient` is the input's.
    """

    def __init__(self, module: nn.Module, x: Tensor, direction: str) -> None:
        self.module = module
        self.backward = direction == "forward+backward"
        self.x = x.detach().requires_grad_(self.backward)
        self.leaves = [self.x, *module.parameters()] if self.backward else []
        self.grad: Tensor | None = None
        self.gradient: Tensor | None = None

    def __call__(self) -> Tensor:
        with torch.set_grad_enabled(self.backward):
            out = self.module(self.x)
            if not self.backward:
                return out
            if self.grad is None:
                self.grad = self.x.detach()[:, : out.shape[1]]  # any tensor that is not constant
            found = torch.autograd.grad(out, self.leaves, self.grad, allow_unused=True)
        self.gradient = found[0]
        return out.detach()


def memory_case(
    name: str, block: Block, dtype: torch.dtype, layout: str, direction: str, **options: Any
) -> Case:
    """The contender `name` on the CPU, for `memory.measure_cpu`."""
    device = torch.device("cpu")
    contender = next(c for c in contenders(**options) if c.name == name)
    module = make_module(contender, block, device, dtype)
    step = Step(module, make_input(block, device, dtype, layout), direction)
    if contender.compiled is not None:
        return Case(step, step)  # compiling is no part of the call
    small = Block(16, 16, 1, block.channels, block.hidden, block.sizes)
    return Case(step, Step(module, make_input(small, device, dtype, layout), direction))
