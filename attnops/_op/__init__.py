"""How an op becomes part of PyTorch: dispatcher entries, fake kernels, gradients.

For every op `name` two entries are registered in the namespace `attnops`: the forward, and
`name_backward` which its gradient calls. Both run whatever `_dispatch` selects. The forward has
one output more than its schema says, the *trace*: a tensor with no elements whose stride is the
code of the backend that ran. The backward gets it back, so it finds the same backend on any
thread, after any change of `use_backend`, and inside compiled graphs, without a device
synchronisation. Outside compiled graphs the code is kept as a number; inside them the trace
travels with the saved tensors, and where hooks on those made another tensor of it, the backward
runs on what would be chosen by then.

Calls of plain tensors that nothing but autograd looks on (`transforms.is_unwatched`) run the same
implementations without going through the dispatcher.

Calls that a transformation has to look into (`_transforms`) run the reference implementation, step
by step, instead of the registered op.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._pytree import tree_map

from .. import _dispatch
from . import transforms
from .plans import Call, Plans, noting
from .recorded import RecordedCall

_library = torch.library.Library("attnops", "DEF")
OPS: list[Op] = []  # all that were made
_TAGS = (torch.Tag.needs_exact_strides,)  # implementations rely on the layouts the fakes promise

_AUTOCAST_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)
for _key in ("AutocastCUDA", "AutocastXPU", "AutocastMPS", "AutocastPrivateUse1"):
    if hasattr(torch._C.DispatchKey, _key):
        _AUTOCAST_KEYS = _AUTOCAST_KEYS.add(getattr(torch._C.DispatchKey, _key))


def _make_trace(code: int, device: torch.device) -> Tensor:
    return torch.empty_strided((0,), (code,), dtype=torch.uint8, device=device)


def _first_tensor(args: tuple[Any, ...]) -> Tensor:
    """The tensor that says device and emptiness: the first argument, or the first in its list."""
    return args[0] if isinstance(args[0], Tensor) else args[0][0]


def _fake_trace(like: Tensor) -> Tensor:
    return like.new_empty((0,), dtype=torch.uint8)


def _fresh(value: Any) -> Any:
    """A view as a tensor of its own on the same memory, so that it may be changed in place."""
    if isinstance(value, Tensor) and value._is_view() and not value.requires_grad:
        return value.detach()
    return value


def _all_fresh(values: Any) -> Any:
    """`_fresh` of a tensor, or of all in a list or tuple."""
    if isinstance(values, (list, tuple)):
        return type(values)(map(_all_fresh, values))
    return _fresh(values)


@contextmanager
def recording_gradients() -> Iterator[None]:
    """Let autograd record inside an op's implementation, where PyTorch switches it off.

    The reference implementations get their gradients this way: from autograd, not from a second
    set of formulas.
    """
    included = torch._C._dispatch_tls_local_include_set()
    guard = torch._C._ForceDispatchKeyGuard(included, _AUTOCAST_KEYS)
    with guard, torch.enable_grad():
        yield


def _without_gradient(grad: Tensor, *args: Any) -> tuple[Any, ...]:
    return args


def _gradient_of_first_output(
    grads: tuple[Tensor | None, ...], saved: list[Tensor], kept: tuple, call: Callable[..., Any]
) -> tuple[Tensor, ...]:
    return () if grads[0] is None else call(grads[0], *saved, *kept)


def _implement(
    function: Callable[..., Any],
    implementation: _dispatch.Implementation,
    args: tuple[Any, ...],
    call: Call | None,
) -> Any:
    """function(implementation, args); where it is time for a plan for such calls, one is made."""
    if call is None or not call.look.is_due():
        return function(implementation, args)
    if implementation.backend == "reference":
        call.look.settle(None)
        return function(implementation, args)
    return call.plan(lambda given: function(implementation, given), args, implementation.backend)


class Direction(NamedTuple):
    """The forward or the backward of an op.

    Args:
        schema: without name and trace, "(Tensor x, ...) -> (Tensor, ...)".
        fake: shapes, strides and dtypes of the outputs, from the arguments.
        prepare: brings the arguments into the layouts that implementations may rely on.
    """

    schema: str
    fake: Callable[..., Any]
    prepare: Callable[..., tuple[Any, ...]]


class Op:
    """An op under construction.

    Args:
        name: public name.
        forward: its forward.
        backward: its backward; None: the op has no gradient.
        restore: (arguments of the forward or the backward, its outputs) -> the outputs in the
            shapes that the fakes promise, where `prepare` changed them; None: as they are.
        forward_arguments: (arguments of the backward) -> arguments of the forward that the same
            implementations refuse, for a backward that has to choose one itself; None: all but
            the first, the incoming gradient.
        setup: (inputs, outputs) -> (tensors to save, other values to keep) for the gradient; None
            only without one.
        gradient: (grads of outputs, saved tensors, kept values, call) -> gradients of the first
            inputs, where `call` runs the backward op on its arguments; the others have none. None:
            what the backward makes of the first output's gradient and of what `setup` returned.
    """

    def __init__(
        self,
        name: str,
        forward: Direction,
        backward: Direction | None = None,
        *,
        setup: Callable[..., tuple[tuple[Tensor, ...], tuple[Any, ...]]] | None = None,
        gradient: Callable[..., tuple[Any, ...]] | None = None,
        restore: Callable[..., tuple[Tensor, ...]] | None = None,
        forward_arguments: Callable[..., tuple[Any, ...]] | None = None,
    ) -> None:
        self.name = name
        self._forward, self._backward = forward, backward
        self.differentiable = backward is not None
        self._setup = setup
        self._gradient = gradient or _gradient_of_first_output
        self._restore = restore
        self._plans, self._backward_plans = Plans(), Plans()
        self.forward_arguments = forward_arguments or _without_gradient
        OPS.append(self)
        _dispatch.add_op(name, differentiable=self.differentiable)
        arguments, returns = forward.schema.split(" -> ")
        _library.define(f"{name}{arguments} -> {returns[:-1]}, Tensor)", tags=_TAGS)
        _library.impl(name, self._run, "CompositeExplicitAutograd")
        torch.library.register_fake(f"attnops::{name}", self._run_fake, lib=_library)
        self._call = getattr(torch.ops.attnops, name).default
        self._inputs = len(self._call._schema.arguments)
        self._takes_lists = "Tensor[]" in forward.schema
        if backward is not None:
            self._add_gradient(backward)

    def _add_gradient(self, backward: Direction) -> None:
        qualified = f"attnops::{self.name}"
        arguments, returns = backward.schema.split(" -> ")
        _library.define(
            f"{self.name}_backward{arguments[:-1]}, Tensor trace) -> {returns}", tags=_TAGS
        )
        _library.impl(f"{self.name}_backward", self._run_backward, "CompositeExplicitAutograd")
        torch.library.register_fake(
            f"{qualified}_backward", lambda *args: backward.fake(*args[:-1]), lib=_library
        )
        torch.library.register_autograd(
            qualified, self._differentiate, setup_context=self._setup_context, lib=_library
        )
        torch.library.register_autograd(
            f"{qualified}_backward", self._refuse_double_backward, lib=_library
        )
        self._call_backward = getattr(torch.ops.attnops, f"{self.name}_backward").default

    def __call__(self, *args: Any) -> tuple[Tensor, ...]:
        """Run the op; returns its outputs without the trace."""
        if transforms.is_transformed(args):
            return self._run_reference(args)
        if transforms.is_unwatched(args):
            outputs = None
            if not transforms.is_recorded(args):
                with torch._C._AutoDispatchBelowAutograd():
                    outputs = self._execute(args)[0]
            elif self.differentiable:
                outputs = RecordedCall(self, args).run()
            if outputs is not None:
                noting.note(self, args, outputs)
                return outputs
        return self._call(*args)[:-1]

    def _run_reference(self, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
        with transforms.without_autocast(_first_tensor(args).device):
            outputs = _dispatch.reference_of(self.name).forward(*self._forward.prepare(*args))
            return outputs if self._restore is None else self._restore(args, outputs)

    def _run(self, *args: Any) -> tuple[Tensor, ...]:
        outputs, backend = self._execute(args)
        return *outputs, _make_trace(_dispatch.CODES[backend], _first_tensor(args).device)

    def _execute(self, args: tuple[Any, ...]) -> tuple[tuple[Tensor, ...], str]:
        """The outputs, and the backend that made them."""
        call = self._plans.find(args)
        if call is not None and call.look.plan is not None:
            noting.plan = call.look.plan
            tape, backend = call.look.plan
            return tape(call.tensors, call.addresses), backend
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST_KEYS):
            self._refuse_tangents(args)
            implementation = _dispatch.select(self.name, _first_tensor(args).device, *args)
            outputs = _implement(self._forward_of, implementation, args, call)
            noting.plan = None if call is None else call.look.plan
            return outputs, implementation.backend

    def _forward_of(
        self, implementation: _dispatch.Implementation, args: tuple[Any, ...]
    ) -> tuple[Tensor, ...]:
        if _first_tensor(args).numel() == 0:
            outputs = self._forward.fake(*args)
        else:
            outputs = implementation.forward(*self._forward.prepare(*args))
            if self._restore is not None:
                outputs = self._restore(args, outputs)
        return tuple(map(_fresh, outputs))

    def _run_backward(self, *args: Any) -> Any:
        *args, trace = args
        args, code = tuple(args), trace.stride(0)
        call = self._backward_plans.find(args, code)
        if call is not None and call.look.plan is not None:
            return call.look.plan[0](call.tensors, call.addresses)
        return self._execute_backward(args, code, call)

    def _execute_backward(self, args: tuple[Any, ...], code: int, call: Call | None) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST_KEYS):
            self._refuse_tangents(args)
            if args[0].numel() == 0:
                return tree_map(Tensor.zero_, self._backward.fake(*args))
            implementation = self._implementation_of(code, args)
            return _implement(self._backward_of, implementation, args, call)

    def _backward_of(self, implementation: _dispatch.Implementation, args: tuple[Any, ...]) -> Any:
        outputs = implementation.backward(*self._backward.prepare(*args))
        if self._restore is not None:
            outputs = self._restore(args, outputs)
        return _all_fresh(outputs)

    def _refuse_tangents(self, args: Iterable[Any]) -> None:
        """Raise an error where a tangent of forward mode would silently be dropped."""
        if forward_ad._current_level < 0:
            return
        with recording_gradients():  # tangents are not to be seen below autograd
            found = transforms.has_tangent(args)
        if found:
            raise NotImplementedError(
                f"attnops.{self.name}: forward-mode differentiation of compiled graphs, and of "
                f"the op's gradient, is not implemented. Call attnops.reference.{self.name} there."
            )

    def _implementation_of(self, code: int, args: tuple[Any, ...]) -> _dispatch.Implementation:
        found = _dispatch.implementation_of(self.name, code)
        if found is None:
            given = self.forward_arguments(*args)
            found = _dispatch.select_again(self.name, args[0].device, *given)
        return found

    def _run_fake(self, *args: Any) -> tuple[Tensor, ...]:
        return (*self._forward.fake(*args), _fake_trace(_first_tensor(args)))

    def _setup_context(self, ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        *outputs, trace = output
        # While a graph is traced, what the trace will be is not known yet.
        code = trace.stride(0) if type(trace) is Tensor else None
        self._keep(ctx, inputs, outputs, code, *(() if code else (trace,)))

    def _keep(
        self,
        ctx: Any,
        inputs: tuple[Any, ...],
        outputs: list[Tensor],
        code: int | None,
        *traces: Tensor,
    ) -> None:
        """Note in `ctx` what the gradient needs."""
        tensors, ctx.kept = self._setup(inputs, outputs)
        ctx.code = code
        ctx.save_for_backward(*tensors, *traces)
        ctx.set_materialize_grads(False)

    def _differentiate(self, ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        found = self._gradients(ctx, grads[:-1])
        return *found, *(None,) * (self._inputs - len(found))

    def _gradients(self, ctx: Any, grads: tuple[Tensor | None, ...]) -> tuple[Any, ...]:
        """Those of the first inputs, from those of the outputs."""
        saved, trace = ctx.saved_tensors, None
        if ctx.code is None:
            *saved, trace = saved

        def call(*args: Any) -> Any:
            if self._takes_lists and transforms.is_batched(args[0]):
                # PyTorch loops over batched gradients, but not for ops that take lists.
                return transforms.for_each_in_batch(lambda grad: call(grad, *args[1:]), args[0])
            planned = None
            if ctx.code is not None:
                planned = self._backward_plans.find(args, ctx.code)
                if planned is not None and planned.look.plan is not None:
                    return planned.look.plan[0](planned.tensors, planned.addresses)
            if transforms.is_unwatched(args) and not transforms.is_recorded(args):
                code = trace.stride(0) if ctx.code is None else ctx.code
                with torch._C._AutoDispatchBelowAutograd():
                    return self._execute_backward(args, code, planned)
            known = _make_trace(ctx.code, args[0].device) if trace is None else trace
            return self._call_backward(*args, known)

        return tuple(map(_all_fresh, self._gradient(grads, list(saved), ctx.kept, call)))

    def _refuse_double_backward(self, ctx: Any, *grads: Any) -> None:
        raise RuntimeError(
            f"attnops.{self.name}: double backward is not implemented (its gradient cannot be "
            f"differentiated again). Call attnops.reference.{self.name} instead."
        )
