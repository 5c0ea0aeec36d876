"""The first thing to know of a kernel on a new device: is it right at all?

Output and gradients of an op on one small input, held against its definition in float64. The
suite's error budgets are finer; this takes a second, and what fails here is not timed.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

import attnops

from ..measure.agreement import Disagreement
from ..ops.cases import EAGER, OURS, OpCase, OpStep

FACTORS = {"output": 2.0, "gradient": 3.0}  # times the error that PyTorch makes in the same dtype
ROUNDINGS = 4  # that are allowed in any case
LABELS = 5e-3  # share of labels that may differ: near-ties, decided by rounding


def error_of(found: Tensor, oracle: Tensor) -> float:
    """|found - oracle| over |oracle|; infinite for NaN."""
    difference = torch.linalg.vector_norm(found.double() - oracle)
    error = (difference / torch.linalg.vector_norm(oracle).clamp_min(1e-300)).item()
    return error if error == error else float("inf")


def _results(case: OpCase, contender: str, inputs: list[Tensor], grad: Tensor | None) -> list:
    step = OpStep(case, contender, inputs)
    step.grad = grad
    return [step(), *step.gradients]


def check(case: OpCase, backend: str, device: torch.device) -> dict[str, float]:
    """The largest error of output and gradients over what is allowed.

    Raises:
        Disagreement: it is more than 1.
    """
    inputs = case.inputs(device)
    grad = None
    if case.has_backward:
        out = OpStep(replace(case, direction="forward"), EAGER, inputs)()
        generator = torch.Generator(device).manual_seed(2)
        grad = torch.randn(out.shape, generator=generator, device=device).to(out.dtype)
        if case.layout == "channels_last" and grad.dim() == 4:
            grad = grad.contiguous(memory_format=torch.channels_last)
    wide = [x.double() if x.is_floating_point() else x for x in inputs]
    oracle = _results(case, EAGER, wide, None if grad is None else grad.double())
    eager = _results(case, EAGER, inputs, grad)
    with attnops.use_backend(backend):
        found = _results(case, OURS, inputs, grad)
    if device.type == "cuda":
        torch.cuda.synchronize()
    worst = {}
    for index, (ours, plain, wanted) in enumerate(zip(found, eager, oracle, strict=True)):
        what = f"gradient {index - 1}" if index else "output"
        if ours.shape != wanted.shape:
            raise Disagreement(f"{what}: shape {list(ours.shape)}, expected {list(wanted.shape)}")
        if not wanted.is_floating_point():
            error, allowed = (ours != wanted).double().mean().item(), LABELS
        else:
            error = error_of(ours, wanted)
            least = ROUNDINGS * torch.finfo(ours.dtype).eps
            allowed = max(FACTORS[what.split()[0]] * error_of(plain, wanted), least)
        worst[what] = error / allowed
        if not error <= allowed:
            raise Disagreement(f"{what}: error {error:.1e}, allowed {allowed:.1e}")
    return worst
