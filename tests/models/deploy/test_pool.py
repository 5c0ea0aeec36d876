"""The memory that deployments work in: kept, bounded, and nobody else's."""

from __future__ import annotations

import gc
import os
import resource
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from small_network import small_network
from torch import Tensor, nn

from attnops.models import deploy
from attnops.models.deploy import working_memory
from attnops.models.deploy.working_memory import for_result, for_work, mapped_bytes, used_bytes

MIB = 2**20

if not working_memory.LIBRARY.is_file():
    pytest.skip("the pool is not built", allow_module_level=True)


@pytest.fixture
def keeper():
    """Something that memory is kept for; the pool is empty before."""

    class Keeper:
        pass

    gc.collect()
    working_memory._pool().attnops_pool_release()
    assert used_bytes() == mapped_bytes() == 0
    made = Keeper()
    assert working_memory.keep_for(made)
    return made


def work(*mebibytes: float) -> None:
    """A call that has tensors of these sizes at once."""
    with for_work():
        tensors = [torch.empty(int(size * MIB), dtype=torch.uint8) for size in mebibytes]
        assert used_bytes() >= sum(tensor.numel() for tensor in tensors)


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def test_blocks_are_reused(keeper):
    places = set()
    for call in range(21):
        if call == 1:
            before, mapped = faults(), mapped_bytes()
        with for_work():
            tensors = torch.zeros(8 * MIB), torch.zeros(1000, 1001)
            places.update(tensor.data_ptr() for tensor in tensors)
            del tensors
    assert len(places) == 2 and all(place % 64 == 0 for place in places)
    assert faults() - before < 1000, "20 x 9000 pages if they were mapped anew"
    assert mapped_bytes() == mapped and used_bytes() == 0


def test_small_tensors_and_other_threads_allocate_as_before(keeper):
    with for_work():
        small, empty = torch.zeros(1000), torch.zeros(0)
        with ThreadPoolExecutor(1) as others:
            elsewhere = others.submit(torch.zeros, MIB).result()
    outside = torch.zeros(MIB)
    assert used_bytes() == mapped_bytes() == 0
    assert not any(x.any() for x in (small, empty, elsewhere, outside))


def test_tensors_hold_what_was_written(keeper):
    """Of random sizes, taken and given back in any order by several threads."""

    def run(seed: int) -> bool:
        draw = torch.Generator().manual_seed(seed)
        held: list[tuple[int, Tensor]] = []
        intact = True
        for step in range(300):
            size = int(torch.randint(60_000, 900_000, (), generator=draw))
            with for_result() if step % 5 == 0 else for_work():
                made = torch.empty(size, dtype=torch.uint8)
            value = (seed * 37 + step) % 251
            held.append((value, made.fill_(value)))
            if len(held) > 12:
                chosen = int(torch.randint(len(held), (), generator=draw))
                expected, tensor = held.pop(chosen)
                intact &= bool((tensor == expected).all())
        return intact and all(bool((tensor == value).all()) for value, tensor in held)

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(run, range(8)))
    gc.collect()
    assert used_bytes() == 0
    for _ in range(8):
        work(0.5)
    assert mapped_bytes() == 32 * MIB, "free neighbours became one again"


def test_results_stay_the_caller_s(keeper):
    results = []
    for i in range(10):
        with for_work():
            torch.full((2, MIB), -1.0)
            with for_result():
                results.append(torch.full((MIB // 2,), float(i)))
    for i, result in enumerate(results):
        assert (result == i).all()
    assert used_bytes() == 10 * 2 * MIB
    thread = threading.Thread(target=results.clear)
    del result
    thread.start()
    thread.join()
    assert used_bytes() == 0
    assert mapped_bytes() <= 32 * MIB + 4 * 2 * MIB, "of many dropped at once few are kept"


def test_what_recent_calls_did_not_need_goes(keeper):
    work(300)
    for _ in range(3):
        work(1)
        assert mapped_bytes() >= 300 * MIB
    for _ in range(3):
        work(1)
    assert mapped_bytes() == 32 * MIB


def test_many_sizes_stay_bounded(keeper):
    for i in range(100):
        size = 20 + i * 7919 % 60
        work(size, size / 3, size / 7, 0.3)
    assert mapped_bytes() <= 4 * 120 * MIB
    for _ in range(6):
        work(1)
    assert mapped_bytes() == 32 * MIB


def all_goes() -> None:
    first, second = (deploy(small_network(), compile=False, keep_memory=False) for _ in range(2))
    images = torch.randn(1, 3, 256, 256)
    labels = first(images)
    assert first.report().working_memory_kept and "working memory: kept" in str(first.report())
    del first
    gc.collect()
    assert mapped_bytes() > labels.numel() * 8
    wanted, again = labels.clone(), second(images)
    del second
    gc.collect()
    assert torch.equal(labels, wanted) and torch.equal(again, wanted)
    assert mapped_bytes() == used_bytes() == 2 * labels.numel() * 8
    del labels, again
    assert mapped_bytes() == 0


def test_all_goes_with_the_last_deployment():
    """In a process that no other test has deployed in."""
    folders = [*sys.path, os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, folders))}
    code = "import test_pool; test_pool.all_goes()"
    line = [sys.executable, "-W", "ignore", "-c", code]
    run = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]


def test_calls_give_what_they_gave_without(monkeypatch):
    ready = deploy(small_network(), compile=False, keep_memory=False)
    images = [torch.randn(b, 3, h, w) for b, h, w in ((1, 256, 200), (2, 129, 300))]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(ready.logits, images * 8))
        labels = list(threads.map(ready, images * 8))
    monkeypatch.setattr(working_memory, "_pool", lambda: None)
    assert all(torch.equal(a, ready.logits(x)) for a, x in zip(found, images * 8, strict=True))
    assert all(torch.equal(a, ready(x)) for a, x in zip(labels, images * 8, strict=True))


class Failing(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        raise RuntimeError("no luck")


def test_an_exception_ends_the_call(keeper):
    ready = deploy(small_network(), compile=False, keep_memory=False)
    ready._maps = Failing()
    with pytest.raises(RuntimeError, match="no luck"):
        ready(torch.randn(1, 3, 256, 256))
    gc.collect()
    held = used_bytes()
    outside = torch.zeros(MIB)
    assert used_bytes() == held == 0 and not outside.any()


def test_too_much_is_pytorch_s_error(keeper):
    work(100)
    with for_work(), pytest.raises(RuntimeError, match=r"not enough memory|can't allocate"):
        torch.empty(2**55, dtype=torch.uint8)
    assert mapped_bytes() == 0, "what was free was given up for it"
    work(100)


def test_storages_are_resized_cloned_and_profiled(keeper):
    with for_work():
        source, tensor = torch.arange(MIB), torch.arange(MIB)
    lazy = torch._lazy_clone(source)
    lazy += 1
    assert torch.equal(lazy - 1, source)
    tensor.resize_(2 * MIB)[MIB:] = 7
    assert torch.equal(tensor[:MIB], source) and tensor[-1] == 7
    with torch.profiler.profile(profile_memory=True, acc_events=True) as profile, for_work():
        torch.empty(MIB, dtype=torch.uint8)
    sizes = [e.cpu_memory_usage for e in profile.key_averages() if e.key == "aten::empty"]
    assert sizes == [MIB]


def test_a_fork_has_a_pool_of_its_own(keeper):
    with for_work():
        tensor = torch.full((MIB,), 3.0)
    child = os.fork()
    if child == 0:
        work(5)
        tensor.fill_(4.0)
        os._exit(int(not (tensor == 4).all()))
    assert os.waitpid(child, 0)[1] == 0
    assert (tensor == 3).all()


NEVER = """
import attnops.models.deploy
from attnops.models.deploy.working_memory import keep_for
print("libattnops_pool" in open("/proc/self/maps").read(), keep_for(open),
      "libattnops_pool" in open("/proc/self/maps").read())
"""


def test_who_deploys_nothing_has_no_pool():
    run = subprocess.run([sys.executable, "-c", NEVER], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "True", "True"]
