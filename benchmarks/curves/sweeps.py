"""What is varied, and rows for every point: each contender is checked before it is timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..apnb.cases import EAGER_LINEAR, EAGER_NON_LOCAL, OURS_LINEAR
from ..apnb.operations import Block
from ..apnb.run import Options, say
from ..apnb.run import run as run_blocks
from ..measure.agreement import Disagreement
from ..measure.memory import MemoryUnknown, measure_cpu
from ..measure.timing import Budget, time_cpu
from ..ops import cases as op_cases
from ..ops.cases import EAGER, OURS, OpCase, checked_step, facts
from ..report.records import Document, why

TABLE = "curves"
CPU = torch.device("cpu")
BLOCKS = (EAGER_NON_LOCAL, EAGER_LINEAR, OURS_LINEAR)
SECONDS = 0.5  # on timing one contender


@dataclass(frozen=True)
class Sweep:
    """One quantity that is varied, everything else fixed.

    Attributes:
        name: of the sweep; rows carry it as the option "sweep".
        label: of the axis.
        values: points of the axis.
        point: value -> the input: a block (of the non-local kind), or an op's case.
        share: of the time that all sweeps have, beside 1 of the others.
    """

    name: str
    label: str
    values: tuple[int, ...]
    point: Callable[[int], Block | OpCase]
    share: float = 1.0


def _square(positions: int) -> Block:
    side = round(positions**0.5)
    return Block(side, side)


def _local(kernel: int = 5, dilation: int = 3, channels: int = 256) -> OpCase:
    options = (("kernel", kernel), ("dilation", dilation))
    return OpCase("local_attention", (1, channels, 64, 64), options=options)


_SIDES = (24, 32, 48, 64, 96, 128, 192)
SWEEPS = (
    Sweep(
        "pixels", "positions N of the map, C = 2048", tuple(s * s for s in _SIDES), _square, share=4
    ),
    Sweep(
        "block channels",
        "channels C of a 48x48 map, Ĉ = C / 8",
        (256, 512, 1024, 2048),
        lambda channels: Block(48, 48, 1, channels, channels // 8),
    ),
    Sweep("kernel", "kernel k of local attention, dilation 3", (3, 5, 7, 9, 11), _local),
    Sweep(
        "dilation",
        "dilation of local attention, k = 5",
        (1, 2, 3, 6, 9, 12),
        lambda dilation: _local(dilation=dilation),
    ),
    Sweep(
        "channels",
        "channels of local attention, k = 5, dilation 3",
        (64, 128, 256, 512),
        lambda channels: _local(channels=channels),
    ),
)


def measure(
    document: Document, budget: Budget, sweeps: Sequence[Sweep] = SWEEPS, memory: bool = True
) -> None:
    """Add a row for every point and contender, small points first; what has no time says so."""
    for index, sweep in enumerate(sweeps):
        part = _share(budget, sweeps[index:])
        for value in sweep.values:
            point = sweep.point(value)
            say(f"{sweep.name} {value}")
            first = len(document.rows)
            if isinstance(point, Block):
                _measure_block(document, part, point, memory)
            else:
                _measure_op(document, part, point, memory)
            for row in document.rows[first:]:
                row.table = TABLE
                row.options = [["sweep", sweep.name], ["value", value]]
            document.checkpoint()


def _share(budget: Budget, sweeps: Sequence[Sweep]) -> Budget:
    """What the first of the sweeps may take of the time that is left for all of them."""
    if budget.left() == float("inf"):
        return budget
    return Budget(budget.left() * sweeps[0].share / sum(sweep.share for sweep in sweeps))


def _measure_block(document: Document, budget: Budget, block: Block, memory: bool) -> None:
    options = Options(
        sizes=((block.height, block.width),),
        channels=block.channels,
        hidden=block.hidden,
        compile_modes=(),
        seconds=SECONDS,
        memory=memory,
        only=BLOCKS,
    )
    run_blocks(document, options, budget)


def _measure_op(document: Document, budget: Budget, case: OpCase, memory: bool) -> None:
    rows, steps = {}, {}
    for contender in (EAGER, OURS):
        row = document.new_row(case.op, contender, "cpu", **facts(case))
        rows[contender] = row
        if budget.left() < 5:
            row.add_note("not run: no time left (--budget)")
            continue
        try:
            steps[contender], row.relative_error = checked_step(case, contender, case.inputs(CPU))
        except (Disagreement, RuntimeError) as error:
            row.add_note(why(error))
    for contender, timing in time_cpu(steps, SECONDS).items():
        row = rows[contender]
        row.put_timing(timing)
        if memory:
            try:
                build = op_cases.memory_case
                row.put_memory(measure_cpu(build, timeout=120, case=case, contender=contender))
            except MemoryUnknown as error:
                row.add_note(f"memory unknown: {error}")
