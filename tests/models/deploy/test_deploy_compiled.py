"""Compiled deployments: any size, threads, files, and processes without a compiler."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from small_network import small_network
from tiny_networks import FAMILIES, tiny_network
from torch import nn

from attnops.models import deploy, load_deployed
from attnops.models.deploy.convolutions.pointwise import has_pointwise

SIZES = ((1, 40, 56), (3, 32, 64), (2, 33, 97), (1, 128, 129))

pytestmark = [pytest.mark.inductor, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def compiled():
    return deploy(small_network(), compile=True, keep_memory=False)


@pytest.fixture(scope="module")
def file(compiled, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("deployed") / "small.pt2"
    compiled.save(path)
    return path


def check_as_uncompiled(compiled, model, dtype, sizes=SIZES, share=0.999) -> None:
    plain = deploy(model, dtype, compile=False, keep_memory=False)
    for batch, height, width in sizes:
        images = torch.randn(batch, 3, height, width)
        found, wanted = compiled.logits(images), plain.logits(images)
        tolerance = 1e-4 if dtype == "float32" else 0.02
        assert (found - wanted).norm() <= tolerance * wanted.norm()
        labels = compiled(images)
        assert labels.dtype == torch.int64
        assert (labels == found.argmax(1)).float().mean() >= share


def test_one_compilation_serves_every_size(compiled):
    check_as_uncompiled(compiled, small_network(), "float32")
    report = compiled.report()
    assert report.compiled and report.folded == report.norms == 3
    assert report.fused_ops == {"strip_conv": 1, "packed_feed_forward": 1, "nmf": 1}
    with pytest.raises(ValueError, match="at least 32x32"):
        compiled(torch.zeros(1, 3, 32, 31))
    raw = torch.randint(256, (2, 3, 48, 40), dtype=torch.uint8)
    assert torch.equal(compiled(raw), compiled.logits(raw).argmax(1))


def test_threads_get_their_own_answers(compiled):
    """32 calls at once, more than there are graphs, of different sizes."""
    images = [torch.randn(b, 3, h, w) for b, h, w in SIZES]
    wanted = [compiled.logits(x) for x in images]
    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(compiled.logits, images * 16))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted * 16, strict=True))


def test_weights_are_laid_out_before_calls(compiled, capfd):
    """oneDNN says what it runs; a reorder names the shape of what it lays out."""
    images = torch.randn(1, 3, 72, 40)
    with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
        compiled.logits(images)
    lines = capfd.readouterr().out.splitlines()
    convolutions = [line for line in lines if ",exec,cpu,convolution," in line]
    reorders = [line.split(",") for line in lines if ",exec,cpu,reorder," in line]
    convs = [m for m in small_network().modules() if isinstance(m, nn.Conv2d) and m.groups == 1]
    shapes = {"x".join(map(str, conv.weight.shape)) for conv in convs}
    left = [m for m in convs if m.kernel_size != (1, 1) or min(m.weight.shape[:2]) < 16]
    count = len(left) if has_pointwise(torch.float32) else len(convs) - 3
    assert len(convolutions) == count, (
        "all but 1x1 ones, or those of the bases and the feed-forward"
    )
    assert not [line for line in reorders if shapes.intersection(line)]


ELSEWHERE = """
import sys, time, torch, attnops
start = time.perf_counter()
deployed = attnops.models.load_deployed(sys.argv[1], keep_memory=False)
images = torch.load(sys.argv[2])
labels = [deployed(x) for x in images]
torch.save((labels, "torch._inductor.codecache" in sys.modules), sys.argv[3])
"""


def test_another_process_needs_no_compiler(compiled, file, tmp_path):
    """Nothing is on its PATH; the file it loads is a copy in another place."""
    images = [torch.randn(b, 3, h, w) for b, h, w in SIZES]
    torch.save(images, tmp_path / "images.pt")
    shutil.copy(file, tmp_path / "moved.pt2")
    names = [str(tmp_path / name) for name in ("moved.pt2", "images.pt", "labels.pt")]
    kept = {name: os.environ[name] for name in ("PYTHONPATH", "HOME") if name in os.environ}
    environment = kept | {"PATH": str(tmp_path), "CXX": "/no/such/compiler"}
    subprocess.run([sys.executable, "-c", ELSEWHERE, *names], check=True, env=environment)
    labels, compiles = torch.load(tmp_path / "labels.pt")
    assert not compiles, "the compiler is not even imported"
    assert all(torch.equal(a, compiled(x)) for a, x in zip(labels, images, strict=True))


ALIGNED = """
import sys, torch, attnops
deployed = attnops.models.load_deployed(sys.argv[1], keep_memory=False)
constants = deployed._maps._runner.extract_constants_map(False).values()
print({value.data_ptr() % 64 for value in constants if not value.is_mkldnn})
torch.save(deployed.logits(torch.load(sys.argv[2])), sys.argv[3])
"""


@pytest.mark.parametrize("threshold", [1024, 1 << 30])
def test_weights_begin_with_lines_of_the_caches(compiled, file, tmp_path, threshold):
    """Wherever malloc puts the block that they are loaded into: of its own, 16 bytes behind a
    page, or among others.
    """
    images = torch.randn(1, 3, 64, 96)
    torch.save(images, tmp_path / "images.pt")
    names = [str(file), str(tmp_path / "images.pt"), str(tmp_path / "logits.pt")]
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ALIGNED, *names],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": str(threshold)},
    )
    assert run.stdout.strip() == "{0}"
    assert torch.equal(torch.load(tmp_path / "logits.pt"), compiled.logits(images))


def test_a_loaded_deployment_can_be_saved(compiled, file, tmp_path):
    loaded = load_deployed(file, keep_memory=False)
    assert loaded.report() == compiled.report()
    loaded.save(tmp_path / "again.pt2")
    images = torch.randn(1, 3, 32, 48)
    assert torch.equal(load_deployed(tmp_path / "again.pt2")(images), compiled(images))
    assert [path.name for path in tmp_path.iterdir()] == ["again.pt2"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"torch": "2.3.1"}, "compiled for PyTorch 2.3.1, this is"),
        ({"processor": ["avx1024_f"]}, "processor with avx1024_f, which this one has not"),
        ({"format": 99}, "in format 99"),
    ],
)
def test_what_does_not_fit_is_refused(file, tmp_path, change, message):
    changed = tmp_path / "changed.pt2"
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(changed, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("attnops.json"):
                content = json.dumps(json.loads(content) | change)
            target.writestr(name, content)
    with pytest.raises(ValueError, match=message):
        load_deployed(changed)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_deployed(tmp_path / "missing.pt2")
    torch.save({"a": 1}, tmp_path / "weights.pt")  # an archive, but no deployment
    (tmp_path / "text.pt2").write_text("no archive")
    for name in ("weights.pt", "text.pt2"):
        with pytest.raises(ValueError, match="is no deployment"):
            load_deployed(tmp_path / name)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_compiles(family, dtype):
    model = tiny_network(family).eval()
    ready = deploy(model, dtype, compile=True, keep_memory=False)
    check_as_uncompiled(ready, model, dtype, sizes=((1, 113, 121), (2, 128, 160)))
    images = torch.randn(1, 3, 120, 136)
    share = 0.999 if dtype == "float32" else 0.985
    assert (ready(images) == model.predict(images)).float().mean() >= share


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow(compiled):
    """2,000 calls of 100 sizes; the first ones fill what is kept for sizes."""
    images = [torch.randn(1, 3, 64 + i, 96 - i // 2) for i in range(100)]
    for x in images * 2:
        compiled(x)
    before = resident()
    for x in images * 18:
        compiled(x)
    assert resident() - before < 8 * 2**20


def resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
