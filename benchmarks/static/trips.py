"""How often the loops of a kernel run: its index arithmetic executed in Python, the rest left out.

A Triton kernel is Python, and what bounds its loops is made of arguments, constants, the program's
number and ranges of positions. `count_trips` runs the kernel's own code on these, with an object
that swallows everything in place of pointers and of what is loaded through them, which takes
little time, and counts the trips of every `range`. A loop is named by the file and line of its
`for`; a helper that a kernel calls twice has its loops counted call by call.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType, FunctionType, ModuleType, SimpleNamespace
from typing import Any

import numpy
from triton import language
from triton.runtime import JITFunction

from .sass import short_path

SAMPLES = 17  # programs of a launch that are followed, evenly spread


class Undetermined(Exception):
    """A loop or branch depends on what the kernel reads from memory."""


class Block:
    """Stands for a block, a pointer or a loaded value: whatever is done with it gives another."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: Any, **options: Any) -> Block:
        return self

    def __getitem__(self, index: Any) -> Block:
        return self

    def __iter__(self) -> Iterator[Block]:
        return iter((self, self))  # tl.split, and reductions with indices

    def __bool__(self) -> bool:
        raise Undetermined("a branch depends on a loaded value")

    def __index__(self) -> int:
        raise Undetermined("a loop's bound depends on a loaded value")


class Integer(Block):
    """An integer type of the language."""


class Arrival(Block):
    """What an atomic addition returns; `last`: the program is followed as the last to arrive."""

    def __init__(self, last: bool) -> None:
        self.last = last

    def __eq__(self, other: Any) -> Any:
        return Known(self.last)

    __hash__ = object.__hash__


BLOCK, INTEGER = Block(), Integer()


def _absorb(*args: Any) -> Block:
    return BLOCK


_BINARY = (
    *("add", "sub", "mul", "truediv", "floordiv", "mod", "and", "or", "xor", "lshift", "rshift"),
    *("pow", "matmul"),
)
_COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")
for _name in _BINARY:
    setattr(Block, f"__{_name}__", _absorb)
    setattr(Block, f"__r{_name}__", _absorb)
for _name in (*_COMPARISONS, "neg", "invert", "pos", "abs"):
    setattr(Block, f"__{_name}__", _absorb)
Block.__hash__ = object.__hash__


class Known:
    """A number or an array of positions, with the methods of Triton's values."""

    def __init__(self, value: Any) -> None:
        self.value = value.value if isinstance(value, Known) else value

    def to(self, dtype: Any, **options: Any) -> Known:
        if not isinstance(dtype, Integer):
            return self
        whole = numpy.asarray(self.value).astype(numpy.int64)
        return Known(whole if whole.ndim else int(whole))

    def __getitem__(self, index: Any) -> Known:
        return Known(self.value[index])

    def __index__(self) -> int:
        return operator.index(self.value)

    def __bool__(self) -> bool:
        return bool(self.value)

    def __hash__(self) -> int:
        return hash(self.value)

    @property
    def shape(self) -> tuple[int, ...]:
        return numpy.shape(self.value)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return BLOCK


def _on_known(name: str, reflected: bool) -> Callable[[Known, Any], Any]:
    function = getattr(operator, {"and": "and_", "or": "or_"}.get(name, name))

    def apply(self: Known, other: Any) -> Any:
        if isinstance(other, Block):
            return BLOCK
        if not isinstance(other, (Known, int, float)):
            return NotImplemented
        left, right = self.value, Known(other).value
        return Known(function(right, left) if reflected else function(left, right))

    return apply


for _name in (*_BINARY, *_COMPARISONS):
    setattr(Known, f"__{_name}__", _on_known(_name, False))
    if _name in _BINARY:
        setattr(Known, f"__r{_name}__", _on_known(_name, True))
Known.__neg__ = lambda self: Known(-self.value)


class Language:
    """Stands for `triton.language` in one program."""

    def __init__(self, program: int, programs: int, count: Callable[..., Iterator[Any]]) -> None:
        self.program, self.programs = program, programs
        self.range = count
        self._arrived: set[tuple] = set()

    def __getattr__(self, name: str) -> Any:
        return INTEGER if name.startswith(("int", "uint")) else BLOCK

    def program_id(self, axis: Any) -> Known:
        return Known(self.program)

    def num_programs(self, axis: Any) -> Known:
        return Known(self.programs)

    def atomic_add(self, *args: Any, **options: Any) -> Arrival:
        """The last to arrive is on the longest way: every program is, once at every place."""
        place = _places(sys._getframe(1), self)
        last = place not in self._arrived
        self._arrived.add(place)
        return Arrival(last)

    def static_range(self, *bounds: Any) -> Iterator[Known]:
        return map(Known, range(*map(operator.index, bounds)))

    def arange(self, start: Any, end: Any) -> Any:
        if isinstance(end, Block):  # the length of a block: which one, does not matter here
            return BLOCK
        return Known(numpy.arange(operator.index(start), operator.index(end)))

    def max(self, a: Any, axis: int | None = None, **options: Any) -> Any:
        return self._of(lambda x: numpy.max(x, axis), a)

    def min(self, a: Any, axis: int | None = None, **options: Any) -> Any:
        return self._of(lambda x: numpy.min(x, axis), a)

    def constexpr(self, value: Any) -> Any:
        return value

    def multiple_of(self, value: Any, factor: Any) -> Any:
        return value

    def cdiv(self, a: Any, b: Any) -> Any:
        return self._of(lambda x, y: -(-x // y), a, b)

    def minimum(self, a: Any, b: Any, **options: Any) -> Any:
        return self._of(numpy.minimum, a, b)

    def maximum(self, a: Any, b: Any, **options: Any) -> Any:
        return self._of(numpy.maximum, a, b)

    def zeros_like(self, a: Any) -> Any:
        return self._of(numpy.zeros_like, a)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        return self._of(lambda x, y, z: x * y + z, a, b, c)

    def floor(self, a: Any) -> Any:
        return self._of(numpy.floor, a)

    def ceil(self, a: Any) -> Any:
        return self._of(numpy.ceil, a)

    def where(self, condition: Any, a: Any, b: Any) -> Any:
        return self._of(numpy.where, condition, a, b)

    @staticmethod
    def _of(function: Callable[..., Any], *values: Any) -> Any:
        if any(isinstance(value, Block) for value in values):
            return BLOCK
        return Known(function(*(Known(value).value for value in values)))


@dataclass(frozen=True)
class Loop:
    """A loop of a kernel: where its `for` stands, and how often its body runs in a program.

    `file` has its folder before it: every op has a forward.py.
    """

    file: str
    line: int
    mean: float
    most: int


def _places(frame: FrameType | None, language: Language) -> tuple[tuple[str, int], ...]:
    """Files and lines of a call in a followed kernel, from the inside out."""
    found = []
    while frame is not None and frame.f_globals.get("tl") is language:
        found.append((frame.f_code.co_filename, frame.f_lineno))
        frame = frame.f_back
    return tuple(found)


class _Follower:
    """Runs one program after the other and adds up the trips of its loops."""

    def __init__(self) -> None:
        self.counts: dict[tuple, list[int]] = {}
        self._program: dict[tuple, int] = {}

    def follow(self, kernel: JITFunction, values: dict[str, Any], program: int, programs: int):
        self._language = Language(program, programs, self._count)
        self._functions: dict[int, FunctionType] = {}
        self._program = {}
        self._plain(kernel)(**values)
        for key, trips in self._program.items():
            self.counts.setdefault(key, []).append(trips)

    def _plain(self, function: JITFunction) -> FunctionType:
        """The function with the stand-in language, its callees likewise."""
        if id(function) not in self._functions:
            source = function.fn
            scope: dict[str, Any] = {}
            made = FunctionType(source.__code__, scope, source.__name__, source.__defaults__)
            made.__kwdefaults__ = source.__kwdefaults__
            self._functions[id(function)] = made
            scope |= {name: self._translated(v) for name, v in source.__globals__.items()}
            scope["range"] = self._count
        return self._functions[id(function)]

    def _translated(self, value: Any) -> Any:
        """What stands for a global name of a kernel's module."""
        if value is language:
            return self._language
        if isinstance(value, JITFunction):
            return self._plain(value) if value.fn.__module__.startswith("attnops.") else _absorb
        if isinstance(value, ModuleType) and value.__name__.startswith("attnops."):
            functions = {k: v for k, v in vars(value).items() if isinstance(v, JITFunction)}
            found = {k: self._plain(v) for k, v in functions.items()}
            return SimpleNamespace(**(vars(value) | found))
        return value

    def _count(self, *bounds: Any, **options: Any) -> Iterator[Known]:
        chain = _places(sys._getframe(1), self._language)
        key = (short_path(chain[0][0]), chain[0][1], chain[1:])
        self._program.setdefault(key, 0)
        for value in range(*map(operator.index, bounds)):
            self._program[key] += 1
            yield Known(value)


def count_trips(kernel: JITFunction, programs: int, args: Any, constants: Any) -> list[Loop]:
    """Loops of `kernel` in the order in which they are first reached.

    Raises:
        Undetermined: a loop depends on what the kernel reads.
    """
    values = dict(zip(kernel.arg_names, args, strict=False)) | dict(constants)
    values = {name: _stand_in(value) for name, value in values.items()}
    step = max(1, (programs - 1) / (SAMPLES - 1))
    chosen = sorted({min(programs - 1, round(i * step)) for i in range(SAMPLES)})
    follower = _Follower()
    for program in chosen:
        follower.follow(kernel, values, program, programs)
    return [
        Loop(file, line, sum(counts) / len(chosen), max(counts))
        for (file, line, _), counts in follower.counts.items()
    ]


def _stand_in(value: Any) -> Any:
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, (int, float)):
        return Known(value)
    return tuple(map(_stand_in, value)) if isinstance(value, tuple) else BLOCK
