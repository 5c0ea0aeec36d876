"""What the tests of every op share: inputs in all layouts, and the error budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from rounding import Rounding
from torch import Tensor

from attnops.reference import _resize

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
LAYOUTS = (
    "contiguous",
    "channels_last",
    "sliced",
    "sliced_channels_last",
    "transposed",
    "expanded",
)

# Kernels of CUDA C++ that compute in float32.
CUDA_FLOAT32 = (("cuda", "anchor_attention"), ("cuda", "nmf"))

# Axes of maps whose sides change, for torch.export.
DYNAMIC_SIDES = {2: torch.export.Dim("height", min=2), 3: torch.export.Dim("width", min=2)}


def in_layout(x: Tensor, layout: str) -> Tensor:
    """The values of `x` `[B, C, H, W]` in another memory layout ("expanded": its first sample,
    repeated).
    """
    if layout == "contiguous":
        return x.contiguous()
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":
        big = x.new_full((x.shape[0], x.shape[1] + 3, x.shape[2] + 2, 2 * x.shape[3]), torch.nan)
        view = big[:, 2:-1, 1:-1, ::2]
        return view.copy_(x)
    if layout == "sliced_channels_last":
        big = x.new_full((x.shape[0], x.shape[2] + 2, x.shape[3] + 1, x.shape[1] + 2), torch.nan)
        view = big[:, 1:-1, 1:, 2:].permute(0, 3, 1, 2)
        return view.copy_(x)
    if layout == "transposed":
        return x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    if layout == "expanded":
        return x[:1].expand_as(x)
    raise ValueError(layout)


def error(actual: Tensor, oracle: Tensor) -> float:
    """Largest absolute difference to a float64 oracle; NaN must meet NaN, infinity the same
    infinity.
    """
    actual = actual.detach().double()
    assert actual.shape == oracle.shape, f"shape {tuple(actual.shape)}, not {tuple(oracle.shape)}"
    same = (actual == oracle) | (actual.isnan() & oracle.isnan())
    difference = (actual - oracle).abs().masked_fill(same, 0.0)
    return difference.max().item() if difference.numel() else 0.0


def allowed_error(
    oracle: Tensor, dtype: torch.dtype, expected_error: float, factor: float
) -> float:
    """`factor` times the error that PyTorch makes in `dtype`.

    A few roundings of the largest value are always allowed: PyTorch may hit a value exactly.
    """
    finite = oracle[oracle.isfinite()].abs()
    largest = finite.max().item() if finite.numel() else 0.0
    roundings = 64 if dtype == torch.float64 else 2  # the oracle itself is float64
    return max(factor * expected_error, roundings * torch.finfo(dtype).eps * largest)


def assert_within_budget(
    actual: Tensor, oracle: Tensor, expected_error: float, factor: float, what: str = "output"
) -> None:
    """`actual` errs at most `factor` times as much as PyTorch does in the same dtype."""
    limit = allowed_error(oracle, actual.dtype, expected_error, factor)
    measured = error(actual, oracle)
    assert measured <= limit, f"{what}: error {measured:.3e}, allowed {limit:.3e}"


def run(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor
) -> tuple[Tensor, ...]:
    """Output and gradients of `function`, all detached."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves)
    return out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))


def eager_errors(
    reference: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor, draws: int = 4
) -> list[float]:
    """Errors of `reference` in the dtype of `inputs`: of its output and of each gradient.

    The largest of several draws, the given input and others a little beside it: with few elements a
    single draw says more about luck than about rounding.
    """
    errors: list[list[float]] = []
    for draw in range(draws):
        near = [x if draw == 0 else x * (1 + torch.randn_like(x) / 64) for x in inputs]
        wide = run(reference, [x.double() for x in near], grad)
        errors.append([error(a, b) for a, b in zip(run(reference, near, grad), wide, strict=True)])
    return [max(column) for column in zip(*errors, strict=True)]


@contextmanager
def resizing_in_one_step(*tensors: Tensor) -> Iterator[None]:
    """Definitions call PyTorch's resize, which rounding.py knows as one kernel.

    Their own takes many steps, in float32 even for maps of half precision. Disturbed one by one, as
    if each were rounded to the maps' dtype, positions would be wrong by 2^-11 of the map, and the
    budget would allow several times what half precision loses. Where `tensors` are not all finite
    this cannot be: PyTorch's resize carries NaN to other outputs.
    """
    finite = all(bool(x.isfinite().all()) for x in tensors)
    token = _resize._all_finite.set(finite)
    try:
        yield
    finally:
        _resize._all_finite.reset(token)


def modelled_errors(
    reference: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor, draws: int = 8
) -> list[float]:
    """The same by the model of rounding.py, which no machine changes."""
    wide = [x.double() for x in inputs]
    oracle = run(reference, wide, grad)
    errors: list[list[float]] = []
    for seed in range(draws):
        mode = Rounding(inputs[0].dtype, inputs[0].device, seed)
        with resizing_in_one_step(*wide, grad), mode:
            disturbed = run(reference, wide, grad)
        errors.append([error(a, b) for a, b in zip(disturbed, oracle, strict=True)])
    return [max(column) for column in zip(*errors, strict=True)]


def check_value(
    actual: Tensor, eager: Tensor, definition: Callable[[], Tensor], what: str = "output"
) -> None:
    """The same budget for one result of no inputs that are told apart, such as a module's.

    Args:
        actual: what is checked.
        eager: what PyTorch makes of it in the same dtype.
        definition: computes it in float64.
        what: named in the message.
    """
    oracle = definition().detach()
    expected = error(eager, oracle)
    if error(actual, oracle) <= allowed_error(oracle, actual.dtype, expected, 2.0):
        return
    check_modelled(actual, definition, what)


def check_modelled(actual: Tensor, definition: Callable[[], Tensor], what: str = "output") -> None:
    """The same by the model of rounding alone, for what PyTorch cannot compute in this dtype."""
    oracle = definition().detach()
    expected = 0.0
    for seed in range(8):
        mode = Rounding(actual.dtype, actual.device, seed)
        with resizing_in_one_step(oracle), mode:
            expected = max(expected, error(definition(), oracle))
    assert_within_budget(actual, oracle, expected, 2.0, what)


def check_results(
    found: Sequence[Tensor],
    reference: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    grad: Tensor,
    what: str = "",
) -> None:
    """Hold `found`, an output and its gradients, against the float64 `reference` of `inputs`.

    The budget: twice the error (three times for gradients) that PyTorch makes in the same dtype or,
    where that does not suffice, that the model of rounding gives. PyTorch's errors depend on the
    BLAS, the instruction set and the number of threads here, the model's on nothing; it takes
    longer, so it runs only when it decides.

    Args:
        found: output and gradients with respect to every input.
        reference: the definition in plain PyTorch.
        inputs: float tensors of one dtype.
        grad: the incoming gradient of `found`, in that dtype.
        what: named in the message.
    """
    oracle = run(reference, [x.double() for x in inputs], grad)
    eager = eager_errors(reference, inputs, grad)
    modelled: list[float] | None = None
    for i, (actual, wanted) in enumerate(zip(found, oracle, strict=True)):
        name, factor = ("output", 2.0) if i == 0 else (f"gradient of input {i - 1}", 3.0)
        expected = eager[i]
        if error(actual, wanted) > allowed_error(wanted, actual.dtype, expected, factor):
            modelled = modelled or modelled_errors(reference, inputs, grad)
            expected = max(expected, modelled[i])
        assert_within_budget(actual, wanted, expected, factor, f"{what} {name}".strip())


def check_op(
    op: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    grad_layout: str | None = None,
    what: str = "",
) -> tuple[Tensor, ...]:
    """Compare output and all gradients of `op` with the float64 `reference` within the budget.

    Args:
        op: the fused function of `inputs`.
        reference: its definition in plain PyTorch.
        inputs: float tensors; gradients are taken with respect to every one.
        grad_layout: layout of the incoming gradient (4-D outputs), None: contiguous.
        what: named in the message.

    Returns:
        The output and the gradients of `op`.
    """
    inputs = [x.detach() for x in inputs]
    wide = [x.double() for x in inputs]
    grad = torch.randn_like(reference(*wide), memory_format=torch.contiguous_format)
    grad = grad.to(inputs[0].dtype)  # the same incoming gradient for all
    if grad_layout is not None:
        grad = in_layout(grad, grad_layout)
    found = run(op, inputs, grad)
    assert all(x.dtype == inputs[0].dtype for x in found)
    check_results(found, reference, inputs, grad, what)
    return found


def has_float64(backend: str, op: str) -> bool:
    """Whether the backend's kernels of an op take float64: they document it."""
    return backend != "triton" and (backend, op) not in CUDA_FLOAT32


def skip_unsupported(backend: str, dtype: torch.dtype, op: str = "") -> None:
    """Skip where a backend documents that it has no such dtype."""
    if dtype == torch.float64 and not has_float64(backend, op):
        pytest.skip(f"the {backend} kernels have no float64")


def assert_layout(x: Tensor, layout: str) -> None:
    """`x` is contiguous, or channels_last where the layout's name says so."""
    if x.shape[1] > 1:  # one channel is both layouts at once
        inner = layout.endswith("channels_last")
        memory_format = torch.channels_last if inner else torch.contiguous_format
        assert x.is_contiguous(memory_format=memory_format), x.stride()


def check_runs_are_bit_equal(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
    """Output and gradients are the same bits in every run."""
    grad = torch.randn_like(function(*inputs))
    first, second = (run(function, inputs, grad) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def check_empty(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], shape: Sequence[int]
) -> None:
    """An output without elements, and gradients of zeros."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves)
    assert out.shape == tuple(shape)
    out.sum().backward()
    for leaf in leaves:
        assert torch.equal(leaf.grad, torch.zeros_like(leaf))


def check_compiles(
    op: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    draws: Sequence[Sequence[Tensor]],
) -> None:
    """One whole graph with dynamic shapes, between other operations, forward and backward."""
    torch._dynamo.reset()  # the function below is one code object for all ops

    def between(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, *others: function(x * 2, *others).relu()

    compiled = torch.compile(between(op), fullgraph=True, dynamic=True)
    for inputs in draws:
        check_op(compiled, between(reference), inputs)


def check_exports(
    op: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    example: tuple[Tensor, ...],
    others: tuple[Tensor, ...],
    dynamic_shapes: tuple[dict | None, ...] | None = None,
) -> None:
    """Exported with `example`, the graph is right for `others`; None: the first is a map whose
    sides change.
    """
    if dynamic_shapes is None:
        dynamic_shapes = (DYNAMIC_SIDES, *[None] * (len(example) - 1))

    class Call(torch.nn.Module):
        def forward(self, *inputs):
            return op(*inputs)

    program = torch.export.export(Call(), example, dynamic_shapes=(dynamic_shapes,))
    torch.testing.assert_close(program.module()(*others), reference(*others))


def check_autocast(op: Callable[..., Tensor], inputs: Sequence[Tensor], backend: str) -> None:
    """Everything in the autocast dtype, gradients in that of the inputs; float64 is left alone."""
    leaf, *rest = (x.detach() for x in inputs)
    leaf.requires_grad_()
    with torch.autocast(leaf.device.type, dtype=torch.bfloat16):
        out = op(leaf, rest[0].bfloat16(), *rest[1:])
        if backend != "triton":
            assert op(*(x.double() for x in inputs)).dtype == torch.float64
    assert out.dtype == torch.bfloat16
    assert torch.equal(out.detach(), op(*(x.detach().bfloat16() for x in inputs)))
    out.sum().backward()
    assert leaf.grad.dtype == torch.float32


def check_refuses_double_backward(op: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
    leaves = [x.requires_grad_() for x in inputs]
    (grad,) = torch.autograd.grad(op(*leaves).sum(), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not implemented"):
        grad.sum().backward()


def bad_input(*cases: tuple[dict[str, object], type[Exception], str]) -> pytest.MarkDecorator:
    """Runs a test for arguments that differ by `change` from good ones, which must raise `error`
    with a `message` that matches.
    """
    return pytest.mark.parametrize(("change", "error", "message"), cases)
