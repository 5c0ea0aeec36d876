"""Measuring the APNB table: every contender on one input, checked before it is timed."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..measure.agreement import RELU_STRAYS, Disagreement, check_same
from ..measure.backends_that_ran import in_words, recorded_backends
from ..measure.floor import Rates, exact_float32, measure_rates
from ..measure.memory import Case, MemoryUnknown, free_bytes, measure_cpu, measure_cuda
from ..measure.timing import Budget, time_cpu, time_cuda, time_cuda_graph, time_host
from ..report.records import Document, Row, put_ratios, why
from . import operations
from .cases import (
    EAGER_LINEAR,
    EAGER_NON_LOCAL,
    EAGER_RELEASED,
    Contender,
    Step,
    compiled_name,
    contenders,
    floor_macs,
    make_input,
    make_module,
    memory_case,
)
from .operations import Block

TABLE = "apnb"
REFERENCES = (
    EAGER_NON_LOCAL,
    EAGER_LINEAR,
    EAGER_RELEASED,
    compiled_name("linear", "default"),
    compiled_name("released", "default"),
)
Outputs = tuple[Tensor, Tensor | None]  # of a step: output, gradient of the input
COMPILING = 15.0  # seconds that torch.compile may take
SMALL = (24, 20)  # size of the check when a function's reference is too large to run


@dataclass
class Options:
    """What to measure. `refused` maps "function" to the reason why ours must not be timed."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    sizes: tuple[tuple[int, int], ...] = ((96, 96), (256, 128))
    dtypes: tuple[torch.dtype, ...] = (torch.float32,)
    batches: tuple[int, ...] = (1,)
    layouts: tuple[str, ...] = ("contiguous",)
    directions: tuple[str, ...] = ("forward",)
    compile_modes: tuple[str, ...] = ("default",)
    channels: int = 2048
    hidden: int = 256
    seconds: float = 3.0  # to spend on timing one contender
    memory: bool = True
    compiled_memory: bool = True  # on the CPU it compiles again, in the fresh process
    only: tuple[str, ...] = ()
    refused: str = ""

    def blocks(self) -> list[Block]:
        return [
            Block(height, width, batch, self.channels, self.hidden)
            for batch in self.batches
            for height, width in self.sizes
        ]


def run(document: Document, options: Options, budget: Budget) -> None:
    """Add a row per contender and input to `document`."""
    exact_float32()
    for dtype in options.dtypes:
        rates = rates_of(document, options.device, dtype)
        for direction in options.directions:
            for layout in options.layouts:
                for block in options.blocks():
                    say(f"{block.shape} {rates.dtype} {layout} {direction}")
                    _Input(document, options, budget, rates, block, dtype, layout, direction).run()
                    put_ratios((r for r in document.rows if r.table == TABLE), REFERENCES)
                    document.checkpoint()


def rates_of(document: Document, device: torch.device, dtype: torch.dtype) -> Rates:
    """The device's rates, measured once a document."""
    known = document.parts.setdefault("rates", {})
    name = str(dtype).removeprefix("torch.")
    if name not in known:
        known[name] = vars(measure_rates(device, dtype))
    return Rates(**known[name])


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass
class _Input:
    """All contenders on one input."""

    document: Document
    options: Options
    budget: Budget
    rates: Rates
    block: Block
    dtype: torch.dtype
    layout: str
    direction: str
    expected: dict[str, Outputs] = field(default_factory=dict)

    def run(self) -> None:
        torch._dynamo.reset()  # its limit on recompiled variants counts inputs, too
        device = self.options.device
        x = make_input(self.block, device, self.dtype, self.layout)
        steps: dict[str, Step] = {}
        chosen = [
            c
            for c in contenders(self.options.compile_modes)
            if not self.options.only or c.name in self.options.only
        ]
        rows = {contender.name: self._new_row(contender) for contender in chosen}
        # A machine that is busy loses repetitions, not columns: memory comes before times, and
        # torch.compile, whose length nobody knows, after the others' memory.
        for compiled in (False, True):
            part = [c for c in chosen if (c.compiled is not None) == compiled]
            for contender in part:
                self._check(contender, rows[contender.name], x, steps)
            if device.type == "cpu" and self.options.memory:
                # What is compared first, in case time runs out.
                for contender in sorted(part, key=lambda c: (not c.is_ours, c.name != c.reference)):
                    if contender.name in steps:
                        self._measure_cpu_memory(contender, rows[contender.name])
        self.expected.clear()
        self._time_cpu(rows, steps)
        steps.clear()
        for contender in chosen:
            self._put_floor(contender, rows[contender.name])

    def _check(self, contender: Contender, row: Row, x: Tensor, steps: dict[str, Step]) -> None:
        """Run a contender once; on the CPU it is timed later, from `steps`, on a GPU here."""
        reason = self._reason_to_skip(contender)
        if reason:
            row.add_note(f"not run: {reason}")
            return
        try:
            step = self._checked_step(contender, row, x)
            if self.options.device.type == "cuda":
                self._measure_cuda(row, step)
            else:
                steps[contender.name] = step
            self.document.checkpoint()
        except Disagreement as error:
            row.add_note(f"not timed, it disagrees: {error}")
        except (RuntimeError, ValueError, ImportError) as error:
            row.add_note(f"failed: {why(error)}")

    def _new_row(self, contender: Contender) -> Row:
        row = self.document.new_row(
            TABLE,
            contender.name,
            self.options.device.type,
            shape=self.block.shape,
            dtype=self.rates.dtype,
            layout=self.layout,
            direction=self.direction,
        )
        by_rule = (
            operations.non_local_macs if contender.family == "non-local" else operations.apnb_macs
        )
        row.gmac = by_rule(self.block) / 1e9
        row.gmac_done = contender.macs(self.block) / 1e9
        if self.direction == "forward":
            row.paper = operations.printed(contender.family, self.block)
        return row

    def _reason_to_skip(self, contender: Contender) -> str | None:
        if contender.is_ours and self.options.refused:
            return self.options.refused
        itemsize = self.dtype.itemsize
        needed = 2 * self.block.bytes_moved(itemsize)
        if contender.explicit_matrix():
            matrices = 2 if self.direction == "forward" else 4
            needed += matrices * self.block.score_bytes(itemsize)
        free = free_bytes(self.options.device)
        if free is not None and needed > 0.8 * free:
            return f"it needs {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
        work = 1.5 * self._estimate_ms(contender) / 1e3
        work *= 4 if self.options.memory else 3  # check, warm-up, repeat, memory
        work += COMPILING if contender.compiled else 0
        if work > self.budget.left():
            return f"about {work:.0f} s of work, {max(0, self.budget.left()):.0f} s left (--budget)"
        return None

    def _estimate_ms(self, contender: Contender) -> float:
        """From its own time on an earlier input, else from the rate of matrix products."""
        work = contender.macs(self.block)
        sought = (contender.name, self.rates.dtype, self.layout, self.direction)
        for row in reversed(self.document.rows):
            key = (row.name, row.dtype, row.layout, row.direction)
            if row.table == TABLE and key == sought and row.p50:
                return row.p50 * work / (1e9 * row.gmac_done)
        passes = 1 if self.direction == "forward" else 3
        return passes * 2 * work / (1e6 * self.rates.matmul_gflop_s)

    def _checked_step(self, contender: Contender, row: Row, x: Tensor) -> Step:
        """The contender, after one run whose output agreed with its reference's."""
        step = Step(
            make_module(contender, self.block, self.options.device, self.dtype), x, self.direction
        )
        say(f"  {contender.name}")
        with recorded_backends() as used:
            found = step(), step.gradient
        row.backend = in_words(used)
        if contender.name == contender.reference:
            self.expected[contender.function] = found
        elif contender.function in self.expected:
            row.checked_against = contender.reference
            expected = self.expected[contender.function]
            row.relative_error = _compare(contender, found, expected)
        else:
            row.relative_error = self._check_small(contender)
            height, width = SMALL
            row.checked_against = f"{contender.reference} at {height}x{width}"
        step.gradient = None
        return step

    def _check_small(self, contender: Contender) -> float:
        block = Block(*SMALL, 1, self.block.channels, self.block.hidden, self.block.sizes)
        x = make_input(block, self.options.device, self.dtype, self.layout)
        reference = next(c for c in contenders(()) if c.name == contender.reference)
        found = []
        for case in (reference, contender):
            module = make_module(case, block, self.options.device, self.dtype)
            step = Step(module, x, self.direction)
            found.append((step(), step.gradient))
        return _compare(contender, found[1], found[0])

    def _measure_cuda(self, row: Row, step: Step) -> None:
        milliseconds = 1e3 * min(self.options.seconds, max(0.02, self.budget.left() / 200))
        row.put_timing(time_cuda(step, milliseconds))
        row.host_p50 = time_host(step, 16).p50
        if self.options.memory:
            row.put_memory(measure_cuda(Case(step, step)))
        try:
            row.put_timing(time_cuda_graph(step, milliseconds), prefix="graph_")
        except RuntimeError as error:
            row.add_note(f"no CUDA graph: {why(error)}")
            torch.cuda.synchronize()

    def _time_cpu(self, rows: dict[str, Row], steps: dict[str, Step]) -> None:
        if not steps:
            return
        fair_share = self.budget.left() / (2 * len(steps))
        seconds = max(0.0, min(self.options.seconds, fair_share))
        for name, timing in time_cpu(steps, seconds).items():
            rows[name].put_timing(timing)

    def _measure_cpu_memory(self, contender: Contender, row: Row) -> None:
        if contender.compiled and not self.options.compiled_memory:
            return
        compiling = 60 if contender.compiled else 0
        needed = 5 + 3e-3 * self._estimate_ms(contender)
        if needed + compiling / 4 > self.budget.left():
            row.add_note("memory not measured: no time left (--budget)")
            return
        try:
            row.put_memory(
                measure_cpu(
                    memory_case,
                    timeout=min(max(self.budget.left(), 10), 60 + 10 * needed + compiling),
                    compiles=bool(self.options.compile_modes),
                    name=contender.name,
                    block=self.block,
                    dtype=self.dtype,
                    layout=self.layout,
                    direction=self.direction,
                    compile_modes=self.options.compile_modes,
                )
            )
        except MemoryUnknown as error:
            row.add_note(f"memory unknown: {error}")

    def _put_floor(self, contender: Contender, row: Row) -> None:
        """Floors are stated for the forward pass only."""
        if self.direction == "forward":
            moved = self.block.bytes_moved(self.dtype.itemsize)
            row.put_floor(self.rates.floor_ms(moved, floor_macs(contender.function, self.block)))


def _compare(contender: Contender, found: Outputs, expected: Outputs) -> float:
    """Error of the output; gradients are checked as well where there are some."""
    error = check_same(contender.name, found[0], expected[0])
    if expected[1] is not None:
        strays = RELU_STRAYS[expected[1].dtype] if contender.function == "released" else 0.0
        check_same(f"{contender.name}, gradient of the input", found[1], expected[1], strays)
    return error
