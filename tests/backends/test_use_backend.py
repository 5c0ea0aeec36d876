"""The choice of a backend: for the process, for blocks and functions, and across threads."""

from __future__ import annotations

import asyncio
import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import attnops
from attnops import _choice
from attnops._choice import current_backend


@pytest.fixture(autouse=True)
def nothing_is_left():
    assert current_backend() == "auto"
    yield
    left = current_backend()
    attnops.use_backend("auto")
    assert left == "auto"


def in_another_thread() -> str:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(current_backend).result()


def test_a_call_holds_for_the_process():
    attnops.use_backend("reference")
    assert (current_backend(), in_another_thread()) == ("reference", "reference")
    attnops.use_backend("cpu")
    assert (current_backend(), in_another_thread()) == ("cpu", "cpu")
    attnops.use_backend("auto")


def test_a_kept_object_holds_too():
    kept = attnops.use_backend("reference")
    assert (current_backend(), in_another_thread()) == ("reference", "reference")
    del kept
    gc.collect()
    assert current_backend() == "reference"
    attnops.use_backend("auto")


def test_a_block_holds_for_its_thread():
    attnops.use_backend("triton")
    with attnops.use_backend("reference"):
        assert (current_backend(), in_another_thread()) == ("reference", "triton")
        attnops.use_backend("auto")
        assert (current_backend(), in_another_thread()) == ("reference", "auto")
    assert current_backend() == "auto"


@pytest.mark.parametrize("name", ["fast", "", None, 3, print])
def test_argument_is_checked_when_called(name):
    with pytest.raises(ValueError, match=r"unknown backend.*'auto', 'reference', 'cpu', 'triton'"):
        attnops.use_backend(name)


def test_blocks_are_reusable_nestable_and_reentrant():
    outer, inner = attnops.use_backend("reference"), attnops.use_backend("cpu")
    for _ in range(2):
        with outer:
            assert current_backend() == "reference"
            with inner, inner:
                assert current_backend() == "cpu"
                with outer:
                    assert current_backend() == "reference"
                assert current_backend() == "cpu"
            assert current_backend() == "reference"
        assert current_backend() == "auto"


def test_objects_made_before_others_are_entered_in_any_order():
    first, second = attnops.use_backend("reference"), attnops.use_backend("cpu")
    with first:
        assert current_backend() == "reference"
    with second:
        assert current_backend() == "cpu"
    assert current_backend() == "auto"


def test_an_exception_restores():
    with pytest.raises(KeyError), attnops.use_backend("reference"):
        raise KeyError
    assert current_backend() == "auto"


def test_functions():
    @attnops.use_backend("reference")
    def function(depth, *, fail=False):
        """Its words."""
        assert current_backend() == "reference"
        if fail:
            raise KeyError
        return depth if depth == 0 else function(depth - 1) + 1

    assert current_backend() == "auto"
    assert function(3) == 3
    assert (function.__name__, function.__doc__) == ("function", "Its words.")
    with pytest.raises(KeyError):
        function(0, fail=True)
    with attnops.use_backend("cpu"):
        assert function(1) == 1
        assert current_backend() == "cpu"


def test_generators():
    closed = []

    @attnops.use_backend("reference")
    def generator():
        try:
            received = yield current_backend()
            try:
                yield received, current_backend()
            except KeyError:
                yield "caught", current_backend()
            return "returned"
        finally:
            closed.append(current_backend())

    steps = generator()
    assert next(steps) == "reference"
    assert current_backend() == "auto"
    assert steps.send(5) == (5, "reference")
    assert steps.throw(KeyError()) == ("caught", "reference")
    with pytest.raises(StopIteration, match="returned"):
        next(steps)
    early = generator()
    next(early)
    early.close()
    assert closed == ["reference", "reference"]


def test_coroutines_that_take_turns():
    def waits_on(backend):
        @attnops.use_backend(backend)
        async def coroutine():
            seen = []
            for _ in range(3):
                seen.append(current_backend())
                await asyncio.sleep(0)
            return set(seen)

        return coroutine()

    async def main():
        async def plain():
            seen = set()
            for _ in range(5):
                seen.add(current_backend())
                await asyncio.sleep(0)
            return seen

        return await asyncio.gather(waits_on("reference"), plain(), waits_on("cpu"))

    assert asyncio.run(main()) == [{"reference"}, {"auto"}, {"cpu"}]


def test_what_cannot_be_decorated():
    async def generator():
        yield

    for thing in (generator, torch.nn.Linear):
        with pytest.raises(TypeError, match="use_backend decorates functions"):
            attnops.use_backend("reference")(thing)


@pytest.mark.parametrize("first_out", ["first", "second"])
@pytest.mark.parametrize("shared", [True, False])
def test_two_threads_leave_nothing(shared, first_out):
    one = attnops.use_backend("reference")
    choices = {"first": one, "second": one if shared else None}
    seen, inside, leave = {}, {}, {}
    threads = {}
    for name in choices:
        inside[name], leave[name] = threading.Event(), threading.Event()

        def work(name=name):
            with choices[name] or attnops.use_backend("cpu"):
                inside[name].set()
                leave[name].wait(10)
                seen[name] = current_backend()
            seen[name, "after"] = current_backend()

        threads[name] = threading.Thread(target=work)
        threads[name].start()
        assert inside[name].wait(10)
        assert current_backend() == "auto"
    for name in sorted(choices, key=lambda n: n != first_out):
        leave[name].set()
        threads[name].join(10)
        assert current_backend() == "auto"
    assert seen["first"] == "reference"
    assert seen["second"] == ("reference" if shared else "cpu")
    assert seen["first", "after"] == seen["second", "after"] == "auto"


def test_making_a_block_shows_on_no_other_thread():
    """Not even between the construction of the object and its `__enter__`."""
    stop, seen = threading.Event(), set()

    def watch():
        while not stop.is_set():
            seen.add(current_backend())

    thread = threading.Thread(target=watch)
    thread.start()
    for _ in range(2000):
        with attnops.use_backend("cuda"):
            pass
    stop.set()
    thread.join()
    assert seen == {"auto"}


def test_many_calls_do_not_pile_up():
    kept = [attnops.use_backend("reference") for _ in range(10)]
    for _ in range(100):
        attnops.use_backend("cpu")
    attnops.use_backend("auto")
    del kept
    attnops.use_backend("auto")
    assert len(_choice._assignments) <= 3


def test_forced_in_a_block_for_the_op(device):
    impossible = "cuda" if device.type == "cpu" else "cpu"

    @attnops.use_backend(impossible)
    def pool():
        return attnops.pyramid_pool(torch.ones(1, 1, 4, 4, device=device))

    with pytest.raises(attnops.BackendError, match=f"'{impossible}' is forced"):
        pool()
    attnops.pyramid_pool(torch.ones(1, 1, 4, 4, device=device))


def test_decorated_functions_compile():
    @torch.compile(backend="aot_eager", fullgraph=True)
    @attnops.use_backend("reference")
    def pool(x):
        return attnops.pyramid_pool(x)

    x = torch.randn(1, 2, 4, 4)
    torch.testing.assert_close(pool(x), attnops.reference.pyramid_pool(x))
