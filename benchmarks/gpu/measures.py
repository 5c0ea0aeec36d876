"""How each kind of task is measured on the CUDA device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import attnops
from attnops import _dispatch

from .. import networks
from ..apnb import figure2
from ..apnb.cases import compiled_name
from ..apnb.operations import FORMS, Block
from ..apnb.run import Options, run
from ..arguments import DTYPES
from ..measure.floor import exact_float32
from ..measure.timing import Budget, time_cuda, time_cuda_graph
from ..ops.cases import OURS, REFERENCES, OpStep, case_of
from ..ops.microbench import time_on_cuda
from ..report.records import Document, put_better_ratios, put_ratios
from .checks import check as check_against_float64
from .plan import Task

CUDA = torch.device("cuda")
MILLISECONDS = 40  # to repeat a call for
LAUNCH = "launch"  # the part of the document with the least that a call takes


class Measures:
    """The functions of tasks, by kind, and what they share in a process.

    Args:
        refused: what must not be timed (see `Task.is_refused_by`).
        noted: op -> backend -> which of its tests failed.
    """

    def __init__(
        self, refused: Sequence[Mapping[str, str]], noted: Mapping[str, Mapping[str, str]]
    ) -> None:
        self.refused, self.noted = refused, noted
        self._drawn: tuple[str, list[Tensor]] = "", []
        exact_float32()

    def run(self, document: Document, task: Task, budget: Budget) -> None:
        getattr(self, f"_{task.kind.replace(' ', '_')}")(document, task.details, budget)

    def alive(self) -> bool:
        """Whether the device still runs what is asked of it."""
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            return False
        return True

    def _inputs(self, details: Mapping[str, Any]) -> list[Tensor]:
        case = replace(case_of(details["op"], details), direction="forward")
        name = f"{case.op} {case}"
        if self._drawn[0] != name:
            self._drawn = "", []
            self._drawn = name, case.inputs(CUDA)
        return self._drawn[1]

    def _check(self, document: Document, details: Mapping[str, Any], budget: Budget) -> None:
        case = case_of(details["op"], details)
        key = f"{case.op} {details['backend']} {case.dtype} {case.layout}"
        checks = document.parts.setdefault("checks", {})
        try:
            worst = check_against_float64(case, details["backend"], CUDA)
        except _dispatch.BackendError as error:  # it says so, and is right not to run
            checks[key] = {"refused": str(error)}
            return
        checks[key] = {name: round(value, 3) for name, value in worst.items()}

    def _warm(self, document: Document, details: Mapping[str, Any], budget: Budget) -> None:
        with attnops.use_backend(details["backend"]):
            OpStep(case_of(details["op"], details), OURS, self._inputs(details))()

    def _op(self, document: Document, details: Mapping[str, Any], budget: Budget) -> None:
        if LAUNCH not in document.parts:
            document.parts[LAUNCH] = least_of_a_call()
        case, inputs = case_of(details["op"], details), self._inputs(details)
        contender, backend = details["contender"], details["backend"] or "auto"
        first = _first_choice(case.op, inputs[0], case.has_backward)
        name = contender if backend in (first, "auto") else f"{contender} ({backend})"
        row = time_on_cuda(document, case, contender, inputs, backend, name, MILLISECONDS)
        if why := self.noted.get(case.op, {}).get(backend):
            row.add_note(why)
        rows = [other for other in document.rows if other.table == case.op]
        put_ratios(rows, REFERENCES)
        put_better_ratios(rows, REFERENCES)

    def _apnb(self, document: Document, details: Mapping[str, Any], budget: Budget) -> None:
        run(document, self._options(details), budget)

    def _apnb_compiled(
        self, document: Document, details: Mapping[str, Any], budget: Budget
    ) -> None:
        names = tuple(compiled_name(form, "default") for form in FORMS)
        options = self._options(details)
        run(document, replace(options, compile_modes=("default",), only=names), budget)

    def _options(self, details: Mapping[str, Any]) -> Options:
        return Options(
            device=CUDA,
            sizes=(tuple(details["size"]),),
            dtypes=(DTYPES[details["dtype"]],),
            batches=(details["batch"],),
            directions=(details["direction"],),
            compile_modes=(),
            seconds=MILLISECONDS / 1e3,
            refused=self._why_no_modules(details["dtype"]),
        )

    def _figure2(self, document: Document, details: Mapping[str, Any], budget: Budget) -> None:
        figure2.measure(document, Block(256, 128), CUDA, DTYPES[details["dtype"]])

    def _network(self, document: Document, details: Mapping[str, Any], budget: Budget) -> None:
        if why := self._why_no_modules(details["dtype"]):
            raise RuntimeError(f"networks are not timed: {why}")
        self._networks(document, details, networks.CONTENDERS)

    def _network_compiled(
        self, document: Document, details: Mapping[str, Any], budget: Budget
    ) -> None:
        self._networks(document, details, {networks.COMPILED: "reference"})

    def _networks(
        self, document: Document, details: Mapping[str, Any], contenders: Mapping[str, str]
    ) -> None:
        tasks = [task for task in networks.TASKS if task.name == details["task"]]
        dtype = DTYPES[details["dtype"]]
        names = [details["network"]]
        networks.measure(document, names, CUDA, tasks=tasks, dtype=dtype, contenders=contenders)

    def _why_no_modules(self, dtype: str) -> str:
        """Why blocks must not be timed: an op, as "auto" runs it, is refused."""
        return why_no_modules(self.refused, dtype)


def why_no_modules(refused: Sequence[Mapping[str, str]], dtype: str) -> str:
    states = attnops.backends()
    for refusal in refused:
        op = refusal["op"]
        if op not in states or refusal.get("dtype") not in (None, "", dtype):
            continue
        order, first = _dispatch.PREFERENCE["cuda"], 1
        if any(entry[0] == op for entry in _dispatch.CUDA_FIRST):
            order, first = ("cuda", *order), 2  # before Triton in some layout or pass
        if refusal["backend"] in [name for name in order if states[op][name]][:first]:
            return refusal["why"]
    return ""


def _first_choice(op: str, x: Tensor, training: bool) -> str:
    """The backend that "auto" takes for this input."""
    given = x.detach().requires_grad_(training) if x.is_floating_point() else x
    states = attnops.backends()[op]
    return next(name for name in _dispatch.gpu_order(op, given) if states[name])


def least_of_a_call() -> dict[str, float]:
    """Microseconds that the smallest kernel takes by either way of timing."""
    x = torch.ones(1, device=CUDA)
    return {
        "events_us": 1e3 * time_cuda(x.neg_, MILLISECONDS).p50,
        "graph_us": 1e3 * time_cuda_graph(x.neg_, MILLISECONDS).p50,
    }
