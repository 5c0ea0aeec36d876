"""What a run on a GPU measures, in the order of importance, cut into tasks of seconds.

A task is one row, or a few that belong together: what breaks or hangs costs no more than that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .. import networks
from ..apnb.run import Options
from ..ops.cases import COMPILED, EAGER, FUNCTIONS, OURS, OpCase, facts
from ..ops.definitions import DEFINITIONS
from ..ops.definitions._definition import Variant, variant
from ..static.inputs import DTYPES, HALF, VARIANTS

# Tensor cores or a new algorithm first, then what is bound by memory.
_FIRST = ("local_attention", "nmf", "strip_conv", "anchor_attention", "pyramid_pool")
OPS = tuple(dict.fromkeys((*_FIRST, "upsample_cross_entropy", "upsample_argmax", *FUNCTIONS)))
CHECKED_DTYPES = (*DTYPES, HALF)
# One small input an op: rows of 16 bytes, so that the kernels of large inputs run, odd otherwise.
SMALL: dict[str, Variant] = {
    "local_attention": variant(2, 64, 21, 24, kernel=5, dilation=3),
    "anchor_attention": variant(2, 128, 21, 24),
    "pyramid_pool": variant(2, 128, 21, 24),
    "strip_conv": variant(2, 64, 21, 24),
    "nmf": variant(2, 128, 504, rank=64, steps=3, grad="unrolled"),
    "upsample_gate": variant(2, 64, 21, 24, side=5),
    "group_attention": variant(2, 64, 21, 24),
    "depthwise_gelu": variant(2, 64, 21, 24),
    "feed_forward": variant(2, 32, 21, 24, hidden=64),
    "merge_scales": variant(2, 24, 24, 24, sides=(13, 7)),
    "upsample_cross_entropy": variant(2, 24, 13, 16, factor=4),
    "upsample_argmax": variant(2, 24, 13, 16, factor=4),
}
# Inputs of the goals for GPUs that are no one else's: first among the others.
LARGE: dict[str, Variant] = {
    "upsample_cross_entropy": variant(16, 150, 128, 128, factor=4),
    "nmf": variant(1, 512, 32768, rank=64, steps=6, grad="unrolled"),
}
# Shares of the whole time, at most; what a part does not need is left to those behind it.
CHECKS, OP_TESTS = 0.22, 0.08
CORE = {
    "table": 0.16,
    "float32": 0.11,
    "contiguous": 0.05,
    "batch 8": 0.08,
    "asymmetric block": 0.10,
    "SegNeXt-T": 0.09,
}
OTHER_TESTS = 0.4  # of what is left after these
# Seconds after which a task hangs; what Triton or torch.compile has to compile is no hang.
RUNNING, COMPILING = 45.0, 100.0
REST = {  # of what is left then; torch.compile takes seconds a row
    "backward of the block": 0.2,
    "other inputs": 0.4,
    "figure 2": 0.1,
    "networks": 0.3,
    "compiled": 1.0,
}
BACKWARD, OTHER, FIGURE, NETWORKS, PEERS = REST
Available = Mapping[str, Sequence[str]]  # op -> GPU backends that can run it, the preferred first


@dataclass(frozen=True)
class Task:
    """One thing to measure, by the function `kind` of `measures`, on what `details` say (JSON)."""

    part: str
    kind: str
    name: str
    details: dict[str, Any] = field(default_factory=dict)
    limit: float = RUNNING  # seconds after which it hangs

    @property
    def who(self) -> dict[str, str]:
        """Whom to blame if the device is lost: an op on a backend; else such tasks in a dtype."""
        if "op" in self.details:
            by = self.details["backend"] or self.details["contender"]
            return {"op": self.details["op"], "backend": by}
        return {"op": self.kind, "backend": "", "dtype": self.details.get("dtype", "")}

    def is_refused_by(self, refusal: Mapping[str, str]) -> bool:
        """Whether a refusal, of an op and backend and perhaps a dtype and layout, is about it."""
        same = all(refusal[key] == self.who[key] for key in ("op", "backend"))
        rest = ((refusal.get(key), self.details.get(key)) for key in ("dtype", "layout"))
        return same and all(not of or of == mine for of, mine in rest)


def has_backward(op: str) -> bool:
    return DEFINITIONS[op].differentiable > 0


def directions(op: str) -> tuple[str, ...]:
    return ("forward", "forward+backward") if has_backward(op) else ("forward",)


def checks(op: str, backend: str) -> list[Task]:
    """Every dtype and layout against float64, and the core's inputs once, to compile for them.

    What is timed first is checked and compiled first: this is done for every op and backend at
    once, while the core is measured by one process.
    """
    small = SMALL[op]
    layouts = tuple(reversed(DEFINITIONS[op].layouts))
    kinds = [(dtype, layout) for dtype in CHECKED_DTYPES for layout in layouts]
    tasks = [
        _of(
            OpCase(op, small.shape, dtype, layout, directions(op)[-1], small.options),
            *("checks", "check", OURS, backend),
            limit=COMPILING,
        )
        for dtype, layout in kinds
    ]
    warm = [
        _of(case, "checks", "warm", OURS, backend, limit=COMPILING)
        for case in (*_firsts(), *_firsts("float32"), *_firsts(layout="contiguous"), *_batches())
        if case.op == op
    ]
    checked, compiled = len(layouts) + 1, len(directions(op))
    return [*tasks[:checked], *warm[:compiled], *tasks[checked:], *warm[compiled:]]


def _layout(op: str) -> str:
    """channels_last where an op has layouts."""
    return DEFINITIONS[op].layouts[-1]


def _of(case: OpCase, part: str, kind: str, contender: str, backend: str, limit: float) -> Task:
    details = {"op": case.op, "contender": contender, "backend": backend, **facts(case)}
    name = f"{case.op} {case} {backend or contender}"
    return Task(part, kind, name, details, limit)


def _ours(part: str, cases: Sequence[OpCase], available: Available) -> Iterator[Task]:
    for case in cases:
        for backend in available[case.op]:
            yield _of(case, part, "op", OURS, backend, RUNNING)


def _peers(part: str, cases: Sequence[OpCase]) -> Iterator[Task]:
    """Eager in both layouts, and the libraries."""
    for case in cases:
        for layout in DEFINITIONS[case.op].layouts:
            in_layout = OpCase(case.op, case.shape, case.dtype, layout, *_rest(case))
            yield _of(in_layout, part, "op", EAGER, "", RUNNING)
        for name in FUNCTIONS[case.op]:
            if name not in (OURS, EAGER, COMPILED):
                yield _of(case, part, "op", name, "", RUNNING)


def _rest(case: OpCase) -> tuple[str, tuple[tuple[str, Any], ...]]:
    return case.direction, case.options


def _cases(op: str, chosen: Variant, dtype: str, layout: str) -> list[OpCase]:
    return [
        OpCase(op, chosen.shape, dtype, layout, direction, chosen.options)
        for direction in directions(op)
    ]


def _firsts(dtype: str = DTYPES[0], layout: str | None = None) -> list[OpCase]:
    """The first input of every op; `layout`: only ops that have it beside their better one."""
    return [
        case
        for op in OPS
        if layout is None or layout != _layout(op)
        for case in _cases(op, VARIANTS[op][0], dtype, layout or _layout(op))
    ]


def _batches() -> list[OpCase]:
    return [
        case
        for op in OPS
        for chosen in VARIANTS[op]
        if chosen.shape[0] == 8
        for case in _cases(op, chosen, DTYPES[0], _layout(op))
    ]


def _blocks(part: str, kind: str, direction: str, batches: Sequence[int] = (1,)) -> Iterator[Task]:
    for dtype in DTYPES:
        for batch in batches:
            for height, width in Options().sizes:
                details = {"dtype": dtype, "size": [height, width], "batch": batch}
                details["direction"] = direction
                name = f"{kind} {batch}x2048x{height}x{width} {dtype} {direction}"
                limit = 60 if kind == "apnb" else 120
                yield Task(part, kind, name, details, limit)


def _networks(part: str, kind: str, names: Sequence[str]) -> Iterator[Task]:
    for network in names:
        for dtype in ("bfloat16", "float32"):
            for task in networks.TASKS:
                details = {"network": network, "task": task.name, "dtype": dtype}
                limit = 60 if kind == "network" else 150
                yield Task(part, kind, f"{kind} {network} {task.name} {dtype}", details, limit)


def core(available: Available) -> list[Task]:
    """What a run of five minutes has to show."""
    wide = _firsts("float32")
    tasks = [*_ours("table", _firsts(), available), *_peers("table", _firsts())]
    tasks += [*_ours("float32", wide, available), *_peers("float32", wide)]
    tasks += _ours("contiguous", _firsts(layout="contiguous"), available)
    tasks += [*_ours("batch 8", _batches(), available), *_peers("batch 8", _batches())]
    tasks += _blocks("asymmetric block", "apnb", "forward")
    return [*tasks, *_networks("SegNeXt-T", "network", ["segnext_t"])]


def rest(available: Available, done: Sequence[Task]) -> list[Task]:
    """Everything else; torch.compile, whose length nobody knows, comes last."""
    both = "forward+backward"
    tasks = [*_blocks(BACKWARD, "apnb", both), *_blocks(BACKWARD, "apnb", "forward", (8,))]
    large = [c for op, chosen in LARGE.items() for c in _cases(op, chosen, DTYPES[0], _layout(op))]
    tasks += [*_ours(OTHER, large, available), *_peers(OTHER, large)]
    inputs = {op: [*dict.fromkeys((*VARIANTS[op], *DEFINITIONS[op].variants))] for op in OPS}
    cases = [
        case
        for place in range(max(map(len, inputs.values())))  # the seconds of all ops, the thirds
        for op in OPS
        for chosen in inputs[op][place : place + 1]
        for dtype in CHECKED_DTYPES
        for layout in reversed(DEFINITIONS[op].layouts)
        for case in _cases(op, chosen, dtype, layout)
        if dtype != HALF or place == 0
    ]
    tasks += [*_ours(OTHER, cases, available), *_peers(OTHER, cases)]
    tasks += [Task(FIGURE, "figure2", f"figure 2 {dtype}", {"dtype": dtype}) for dtype in DTYPES]
    others = [name for name in networks.DEFAULT["cuda"].split(",") if name != "segnext_t"]
    tasks += _networks(NETWORKS, "network", others)
    tasks += [_of(case, PEERS, "op", COMPILED, "", COMPILING) for case in _firsts()]
    tasks += _blocks(PEERS, "apnb compiled", "forward")
    tasks += _networks(PEERS, "network compiled", ["segnext_t"])
    known = {task.name for task in done}
    return [*{task.name: task for task in tasks if task.name not in known}.values()]


def shares(tasks: Sequence[Task], whole: float, left: float) -> dict[str, float]:
    """Seconds that each part may take, of the whole run's and of those that are left."""
    parts = dict.fromkeys(task.part for task in tasks)
    return {part: CORE[part] * whole if part in CORE else REST[part] * left for part in parts}
