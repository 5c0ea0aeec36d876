"""Whether a replacement computes what the module does, on small random inputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..nn.evaluation import evaluation_twin
from ._parts import Candidate, Input, Unsupported

# Largest norm of the difference over the norm of the output.
_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}
_HALF_TOLERANCE = 5e-2


def best_of(module: nn.Module, candidates: list[Candidate], compare: bool) -> tuple[Candidate, str]:
    """The first candidate that computes what `module` does, and a remark on the comparison.

    Raises:
        Unsupported: none does.
    """
    example = next(module.parameters())
    if not compare:
        return candidates[0], ""
    if example.is_meta:
        return candidates[0], "not compared: it is on the meta device"
    try:
        wanted = _outputs(candidates[0], module, example)
    except Exception as error:  # somebody else's code
        return candidates[0], f"not compared: it raises {type(error).__name__}"
    for output in wanted:
        if not isinstance(output, Tensor):
            raise Unsupported(f"it returns a {type(output).__name__}")
    for candidate in candidates:
        found = _outputs(candidate, candidate.module, example)
        if len(found) == len(wanted) and all(
            _is_close(*pair, example.dtype) for pair in zip(found, wanted, strict=True)
        ):
            return candidate, ""
    raise Unsupported("it computes something else")


def _is_close(found: Tensor, wanted: Tensor, computed_in: torch.dtype) -> bool:
    if found.shape != wanted.shape:
        return False
    tolerance = max(_TOLERANCES.get(kind, _HALF_TOLERANCE) for kind in (wanted.dtype, computed_in))
    difference = (found - wanted).double().norm()
    return bool(difference <= tolerance * wanted.double().norm())


def _outputs(candidate: Candidate, module: nn.Module, example: Tensor) -> list[object]:
    """What the module, in evaluation, makes of the candidate's inputs; the same for every call."""
    generator = torch.Generator().manual_seed(0)
    inputs = [_made(given, generator, example) for given in candidate.inputs]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        # For what is drawn in the forward; torch.manual_seed would seed the GPUs as well.
        torch.default_generator.manual_seed(0)
        outputs = candidate.call(evaluation_twin(module), *inputs)
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


def _made(given: Input, generator: torch.Generator, example: Tensor) -> object:
    if isinstance(given, list):
        return [_made(part, generator, example) for part in given]
    if isinstance(given, int):
        return given
    return torch.randn(given, generator=generator).to(example)
