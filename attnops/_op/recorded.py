"""A call of an op as autograd's node, where nothing but autograd looks on.

The same as the gradient that is registered with the dispatcher, with less for the CPU to do.
"""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import _dispatch
from .arguments import emptied, filled, places_in, template
from .plans import Call, noting

if TYPE_CHECKING:
    from . import Op


class RecordedCall:
    """A call that autograd notes. Lists of tensors travel flat, as autograd wants them."""

    tape: Any = None

    def __init__(self, op: Op, args: tuple[Any, ...]) -> None:
        self.op, self.tensors = op, []
        self.given = emptied(args, self.tensors)
        self._counts = [
            None if isinstance(arg, Tensor) else len([*places_in(place)])
            for arg, place in zip(args, self.given, strict=True)
        ]

    def run(self) -> tuple[Tensor, ...]:
        tensors, self.tensors = self.tensors, []  # the node is not to keep them
        return _Recorded.apply(self, *tensors)

    def forward(self, ctx: Any, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        args = filled(self.given, tensors)
        with torch._C._AutoDispatchBelowAutograd():
            outputs, backend = self.op._execute(args)
        self.op._keep(ctx, args, list(outputs), _dispatch.CODES[backend])
        return outputs

    def flat(self, found: tuple[Any, ...]) -> list[Tensor | None]:
        """Gradients of the first arguments as those of the tensors."""
        flat: list[Tensor | None] = []
        for grad, count in zip(found, self._counts, strict=False):
            if count is None:
                flat.append(grad)
            elif count:
                flat += grad or [None] * count
        return flat + [None] * (sum(1 if c is None else c for c in self._counts) - len(flat))


class PlannedCall(RecordedCall):
    """One whose launches are known, whatever its tensors are."""

    def __init__(self, op: Op, args: tuple[Any, ...], outputs: Any, plan: tuple[Any, str]) -> None:
        super().__init__(op, args)
        self.tape, backend = plan
        self._code = _dispatch.CODES[backend]
        saved, self._kept = op._setup(args, list(outputs))
        self._saved = template(saved, [*self.tensors, *outputs])
        self.is_complete = self._saved is not None and template(self._kept, []) is not None
        self.tensors = []  # this one is for others

    def forward(self, ctx: Any, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        outputs = self.tape([*tensors], [x.data_ptr() for x in tensors])
        ctx.kept, ctx.code = self._kept, self._code
        ctx.save_for_backward(*filled(self._saved, (*tensors, *outputs)))
        ctx.set_materialize_grads(False)
        return outputs


class _Recorded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: RecordedCall, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.call = call
        return call.forward(ctx, tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        return None, *ctx.call.flat(ctx.call.op._gradients(ctx, grads))


class Replay:
    """The plan of a public function's call: what it has its op do, and returns of it."""

    def __init__(self, order: list[int], known: PlannedCall | None, tape: Any, result: Any) -> None:
        self._pick = itemgetter(*order) if len(order) > 1 else tuple
        self._known, self._tape, self._result = known, tape, result

    @classmethod
    def of(cls, call: Call, result: Any) -> Replay | None:
        """After a call gave `result`, and `noting` saw what it did. None: there is none."""
        if len(noting.calls) != 1:
            return None
        ((op, args, outputs),), given = noting.calls, call.tensors
        if len({id(x) for x in given}) < len(given):
            return None
        placed, picked = template(args, given), template(result, outputs)
        if placed is None or picked is None:
            return None
        order = [place.number for place in places_in(placed)]
        if {*order} != {*range(len(given))}:
            return None  # of some tensor the value counts
        known = None
        if outputs[0].requires_grad:
            known = PlannedCall(op, args, outputs, noting.plan)
            if not known.is_complete:
                return None
        return cls(order, known, noting.plan[0], picked)

    def __call__(self, call: Call) -> Any:
        tensors = self._pick(call.tensors)
        if self._known is not None:
            outputs = _Recorded.apply(self._known, *tensors)
        else:
            outputs = self._tape(tensors, self._pick(call.addresses))
        return filled(self._result, outputs)
