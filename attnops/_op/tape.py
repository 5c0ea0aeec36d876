"""What an implementation does in one call, noted so that it can be done again without it.

Implementations decide by shapes, strides, dtypes, devices and options alone (what `plans` tells
apart), allocate, and launch. So for equal calls the same is launched, on other addresses: a `Tape`.
What else an implementation may do, such as PyTorch's own kernels, is not noted; then there is no
tape, and such calls go through the implementation every time.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_iter

from .arguments import Place, emptied, filled, template

_ALLOCATIONS = ("empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided")
_COMPOSITE = "CompositeImplicitAutograd"
_BETWEEN = 512  # bytes: starts of scratch tensors in their common memory are so far apart at least

_VIEW_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.ADInplaceOrView)


class _Thread(threading.local):
    recorder: Recorder | None = None


_thread = _Thread()


def recorder() -> Recorder | None:
    """What notes the launches of this thread now, if something does."""
    return _thread.recorder


@contextmanager
def recording(tensors: Sequence[Tensor]) -> Iterator[Recorder]:
    """Note what is done to `tensors` within the block, which has to take those of the recorder."""
    noted, before = Recorder(tensors), _thread.recorder
    _thread.recorder = noted
    try:
        with torch._C._ExcludeDispatchKeyGuard(_VIEW_KEYS), noted:
            yield noted
    finally:
        _thread.recorder = before


class At(NamedTuple):
    """An address: bytes behind the start of a tensor, by its number. `like`: a tensor there."""

    number: int
    offset: int
    like: Tensor


class _Launch(NamedTuple):
    """start(arguments), where the arguments at `slots` are addresses."""

    start: Callable[[list[Any]], None]
    arguments: list[Any]
    slots: list[tuple[int, int, int]]  # argument, tensor, bytes behind its start

    def again(self, addresses: list[int]) -> None:
        arguments = self.arguments.copy()
        for slot, number, offset in self.slots:
            arguments[slot] = addresses[number] + offset
        self.start(arguments)


class _InterpretedLaunch(NamedTuple):
    """The same of kernels that take tensors."""

    start: Callable[[list[Any]], None]
    arguments: list[Any]

    def again(self, tensors: list[Tensor]) -> None:
        self.start(
            [_tensor_at(a, tensors[a.number]) if type(a) is At else a for a in self.arguments]
        )


class _Copy(NamedTuple):
    """A dense copy of a call's tensor, or of a view of it."""

    at: At
    memory_format: torch.memory_format

    def again(self, tensors: Sequence[Tensor]) -> Tensor:
        return _view_at(self.at, tensors).clone(memory_format=self.memory_format)


def _view_at(at: At, tensors: Sequence[Tensor]) -> Tensor:
    like, source = at.like, tensors[at.number]
    if _is_whole(at, source):
        return source
    start = source.storage_offset() + at.offset // like.element_size()
    return torch.as_strided(source, like.shape, like.stride(), start)


def _is_whole(at: At, source: Tensor) -> bool:
    like = at.like
    return at.offset == 0 and like.shape == source.shape and like.stride() == source.stride()


def _tensor_at(at: At, source: Tensor) -> Tensor:
    like, start = at.like, source.storage_offset() * source.element_size() + at.offset
    made = torch.empty(0, dtype=like.dtype, device=source.device)
    step = like.element_size()
    return made.set_(source.untyped_storage(), start // step, like.shape, like.stride())


class Tape:
    """Launches to repeat. Called with a call's tensors and their addresses, returns the outputs."""

    def __init__(
        self,
        copies: list[_Copy],
        made: list[tuple[Any, ...]],
        scratch: int,
        launches: list[Any],
        outputs: Any,
        device: torch.device,
    ) -> None:
        self._copies, self._made, self._scratch = copies, made, scratch
        self._launches = launches
        self._outputs, self._allocate = outputs, _allocator(device)
        self._interpreted = any(isinstance(step, _InterpretedLaunch) for step in launches)

    def __call__(self, tensors: Sequence[Tensor], addresses: Sequence[int]) -> Any:
        allocate = self._allocate
        made = [allocate(shape, strides, dtype) for shape, strides, dtype in self._made]
        sources = [*[copy.again(tensors) for copy in self._copies], *made] if self._copies else made
        if self._scratch:
            sources = [*sources, allocate((self._scratch,), (1,), torch.uint8)]
        if self._interpreted:
            at = [*tensors, *sources]
        else:
            at = [*addresses, *[x.data_ptr() for x in sources]]
        for step in self._launches:
            step.again(at)
        return filled(self._outputs, made)


def _allocator(device: torch.device) -> Callable[..., Tensor]:
    """torch.empty_strided of (shape, strides, dtype) on the current device of the type.

    What compiled graphs allocate with takes half the time; it does not fill memory where PyTorch
    was asked to do so, with its deterministic mode.
    """
    fast = getattr(torch._C._dynamo.guards, f"_empty_strided_{device.type}", None)
    if fast is not None and not torch.are_deterministic_algorithms_enabled():
        return fast
    return functools.partial(_empty_strided, device)


def _empty_strided(
    device: torch.device, shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    return torch.empty_strided(shape, strides, dtype=dtype, device=device)


class Native:
    """A compiled op that does all of a call. Called like a Tape.

    Args:
        copies: of the call's tensors; they are numbered behind those.
        arguments: a template of the call's tensors, `copies` and `views`.
        outputs: a template of `made`: numbers of tensors, the op's outputs being behind `copies`,
            or views of them.
    """

    def __init__(
        self,
        copies: list[_Copy],
        function: Callable[..., Any],
        arguments: Any,
        views: list[At],
        outputs: Any,
        made: list[int | At],
    ) -> None:
        self._copies, self._function = copies, function
        self._arguments, self._views, self._outputs, self._made = arguments, views, outputs, made

    def __call__(self, tensors: Sequence[Tensor], addresses: Sequence[int]) -> Any:
        sources = [*tensors]
        if self._copies:
            sources += [copy.again(tensors) for copy in self._copies]
        given = sources
        if self._views:
            given = [*sources, *[_view_at(at, sources) for at in self._views]]
        emptied(self._function(*filled(self._arguments, given)), sources)
        made = [sources[n] if type(n) is int else _view_at(n, sources) for n in self._made]
        return filled(self._outputs, [x.detach() if x._is_view() else x for x in made])


class Recorder(TorchDispatchMode):
    """Notes what is allocated and launched within a block of `recording`."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        super().__init__()
        # Others on the same memory: a tensor that is given twice has to be two.
        self.tensors = [x.detach() for x in tensors]
        self._kept: list[Tensor] = [*self.tensors]  # no other tensor gets their ids
        self._at = {id(x): At(number, 0, x) for number, x in enumerate(self.tensors)}
        self._sources = dict(enumerate(self.tensors))  # what addresses count from
        self._copies: list[_Copy] = []
        self._made: list[Tensor] = []
        self._launches: list[tuple[Callable[..., None], list[Any], bool]] = []
        self._native: tuple[Any, Any, Any] | None = None
        self.is_complete = True

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), _COMPOSITE):
            with self:  # `contiguous`, `to`: whether they copy shows in what they call
                return function.decompose(*args, **kwargs)
        found = function(*args, **kwargs)
        if function.namespace.startswith("attnops_"):
            self._note_native(function, args, found)
        elif function._schema.name.removeprefix("aten::") in _ALLOCATIONS:
            self._note(found, At(-1 - len(self._made), 0, found))
            self._made.append(found)
        elif function is torch.ops.aten.clone.default:
            self._note_copy(args[0], found, kwargs.get("memory_format") or torch.preserve_format)
        elif function.is_view:
            self._note_views(args[0], found)
        else:
            self.is_complete = False
        return found

    def _note(self, tensor: Tensor, at: At) -> None:
        self._kept.append(tensor)
        self._at[id(tensor)] = at
        self._sources.setdefault(at.number, tensor)

    def _note_copy(self, source: Tensor, copy: Tensor, memory_format: torch.memory_format) -> None:
        at = self._at.get(id(source))
        if at is None or not 0 <= at.number < len(self.tensors) or self._native is not None:
            self.is_complete = False
            return
        self._note(copy, At(self._inputs, 0, copy))
        self._copies.append(_Copy(_without_memory(at), memory_format))

    def _note_views(self, base: Tensor, views: Any) -> None:
        at = self._at.get(id(base))
        for view in tree_iter(views):
            if at is None:
                self.is_complete = False
            elif id(view) not in self._at:
                offset = view.data_ptr() - base.data_ptr() if view.numel() else 0
                self._note(view, At(at.number, at.offset + offset, view))

    def _note_native(self, function: Any, args: Any, found: Any) -> None:
        given: list[Tensor] = []
        arguments = emptied(args, given)
        known = [self._at.get(id(x)) for x in given]
        if None in known or self._native is not None or self._made:
            self.is_complete = False
            return
        views, numbers = [], []
        for at in known:
            place = self._place(at)
            if type(place) is not int:
                views.append(place)
                place = self._inputs + len(views) - 1
            numbers.append(Place(place))
        self._native = function, filled(arguments, numbers), views
        for n, x in enumerate(tree_iter(found)):
            self._note(x, At(self._inputs + n, 0, x))

    def _place(self, at: At) -> int | At:
        """The number alone of what is all of a tensor."""
        return at.number if _is_whole(at, self._sources[at.number]) else _without_memory(at)

    @property
    def _inputs(self) -> int:
        """Tensors that are there before something is allocated or launched."""
        return len(self.tensors) + len(self._copies)

    def paused(self) -> AbstractContextManager[Any]:
        """A block in which nothing is noted."""
        return _disable_current_modes()

    def note_launch(
        self, start: Callable[[list[Any]], None], arguments: Sequence[Any], takes_tensors: bool
    ) -> None:
        """A kernel was launched: start(arguments), with addresses or tensors for its pointers."""
        noted: list[Any] = []
        for value in arguments:
            at = self._at.get(id(value)) if isinstance(value, Tensor) else value
            is_unknown = at is None and value is not None
            if is_unknown or isinstance(value, (tuple, list)):
                self.is_complete = False
                return
            noted.append(at)
        self._launches.append((start, noted, takes_tensors))

    def plan(self, outputs: Any) -> Tape | Native | None:
        """What gives outputs like `outputs`, which the block has made; None: not to be repeated."""
        if not self.is_complete:
            return None
        if self._native is not None:
            return self._native_plan(outputs)
        made, inputs = [*tree_iter(outputs)], self._inputs
        given = template(outputs, made)
        numbers: dict[int, int] = {}
        for new, x in enumerate(made):
            at = self._at.get(id(x))
            if at is None or at.number >= 0 or at.offset or at.number in numbers:
                return None
            if not _covers(x, self._made[-1 - at.number]):
                return None
            numbers[at.number] = inputs + new
        behind: dict[int, int] = {}
        scratch, last = 0, inputs + len(made)
        for old, x in enumerate(self._made):
            if -1 - old not in numbers:
                behind[-1 - old] = scratch
                scratch += -(-x.untyped_storage().nbytes() // _BETWEEN) * _BETWEEN

        def moved(value: Any) -> Any:
            if type(value) is not At or value.number >= 0:
                return value
            if value.number in numbers:
                return value._replace(number=numbers[value.number])
            return value._replace(number=last, offset=behind[value.number] + value.offset)

        return Tape(
            self._copies,
            [(tuple(x.shape), x.stride(), x.dtype) for x in made],
            scratch,
            [_launch(start, [*map(moved, noted)], takes) for start, noted, takes in self._launches],
            given,
            self.tensors[0].device,
        )

    def _native_plan(self, outputs: Any) -> Native | None:
        made = [*tree_iter(outputs)]
        known = [self._at.get(id(x)) for x in made]
        if self._launches or any(at is None or at.number < self._inputs for at in known):
            return None
        places = [*map(self._place, known)]
        return Native(self._copies, *self._native, template(outputs, made), places)


def _launch(start: Callable[..., None], arguments: list[Any], takes_tensors: bool) -> Any:
    if takes_tensors:
        return _InterpretedLaunch(start, [_without_memory(a) for a in arguments])
    slots = [(n, a.number, a.offset) for n, a in enumerate(arguments) if type(a) is At]
    return _Launch(start, [0 if type(a) is At else a for a in arguments], slots)


def _without_memory(value: Any) -> Any:
    if type(value) is not At:
        return value
    like = value.like
    made = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device="meta")
    return value._replace(like=made)


def _covers(x: Tensor, made: Tensor) -> bool:
    """Whether `x`, a view of `made`, is all of it, so that it can be allocated instead."""
    needed = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
    return needed.untyped_storage().nbytes() == made.untyped_storage().nbytes()
