"""Networks deployed without a compiler: folding, both dtypes, what comes in, what is refused."""

from __future__ import annotations

import copy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from model_checks import shake
from small_network import SmallNetwork, small_network
from tiny_networks import CLASSES, FAMILIES, SIZE, tiny_network
from torch import Tensor, nn

import attnops
from attnops.models import SegmentationModel, create_model, deploy, list_models
from attnops.models.deploy import keep_freed_memory
from attnops.models.deploy.convolutions.tiles import has_tiles
from attnops.models.normalization import normalization_of


def deployed(model, dtype="float32", **options):
    return deploy(model, dtype, compile=False, keep_memory=False, **options)


def check_labels(found: Tensor, wanted: Tensor, share: float = 0.999) -> None:
    assert found.dtype == torch.int64 and found.shape == wanted.shape
    assert (found == wanted).float().mean() >= share


def check_logits(found: Tensor, wanted: Tensor) -> None:
    assert found.dtype == torch.float32
    assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def without_preference(model: SegmentationModel, logits: Tensor) -> None:
    """Change biases so that no class wins everywhere."""
    names = ("classify", "cls", "head.cls", "dense")
    last = next(m for n, m in model.named_modules() if n in names)
    last.bias.data -= logits.mean(dim=(0, 2, 3))


@pytest.mark.parametrize("family", FAMILIES)
def test_folded_networks_label_as_before(family):
    images = torch.randn(2, 3, *SIZE)
    model = tiny_network(family)
    evaluated = copy.deepcopy(model).eval()
    with torch.no_grad():
        logits = evaluated(images)["out"]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            of_autocast = evaluated(images)["out"]
    rough = deployed(model, "bfloat16").logits(images)
    assert rough.dtype == torch.float32
    assert (rough - logits).norm() < 2 * (of_autocast - logits).norm()
    without_preference(model, logits)
    before = copy.deepcopy(model.state_dict())
    ready = deployed(model)
    assert model.training
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    wanted = model.predict(images)
    assert len(wanted.unique()) == CLASSES
    check_labels(ready(images), wanted)
    with torch.no_grad():
        check_logits(ready.logits(images), model.eval()(images)["out"])
    norms = [m for n, m in model.named_modules() if type(m) is nn.BatchNorm2d and n[:3] != "aux"]
    assert ready.report().norms == ready.report().folded == len(norms)


def test_bfloat16_labels_of_a_network_that_has_learned():
    model = small_network()
    optimiser = torch.optim.Adam(model.train().parameters(), lr=0.02)
    images, target = blocks(4)
    for _ in range(60):
        optimiser.zero_grad()
        model.loss(model(images), target).backward()
        optimiser.step()
    images, target = blocks(8)
    wanted = model.predict(images)
    assert (wanted == target).float().mean() > 0.8
    check_labels(deployed(model, "bfloat16")(images), wanted, 0.985)


def blocks(count: int) -> tuple[Tensor, Tensor]:
    """Noisy images of squares, whose colours say their classes."""
    colours = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [-1, -1, 0], [0, 0, -1]]).float()
    classes = torch.randint(5, (count, 4, 4))
    classes = classes.repeat_interleave(16, 1).repeat_interleave(16, 2)
    return colours[classes].movedim(3, 1) + 0.3 * torch.randn(count, 3, 64, 64), classes


@pytest.mark.slow
@pytest.mark.parametrize("name", list_models())
def test_every_network_folds(name):
    """Folded, it errs at most twice as much as it does in float32, which in EfficientNet's random
    weights is much.
    """
    model = shake(create_model(name, num_classes=5)).eval()
    ready = deployed(model)
    assert ready.report().folded == ready.report().norms
    if name.startswith("segnext"):
        model.decoder.context.bases = ready._maps.network.decoder.context.bases
    images = torch.randn(1, 3, *SIZE)
    with torch.no_grad():
        plain, exact = model(images)["out"], model.double()(images.double())["out"]
    largest = exact.abs().max()
    budget = 2 * (plain - exact).abs().max() + 1e-5 * largest
    assert (ready.logits(images) - exact).abs().max() <= budget


class Odd(SmallNetwork):
    """Convolutions whose BatchNorm cannot go into them, or only into the one before it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.plain, self.again, self.after = (nn.Conv2d(16, 16, 1) for _ in range(4))
        self.norms = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(5))

    def logits(self, images: Tensor) -> dict[str, Tensor]:
        seen = self.seen(self.stem(images))
        x = self.norms[0](seen) + seen  # the result goes elsewhere too
        x = self.norms[2](self.again(self.norms[1](self.again(x))))  # twice, with other norms
        x = self.norms[3](torch.relu(self.plain(x)))  # something comes between
        return {"out": self.classify(self.norms[4](self.after(x)))}


def test_a_norm_is_folded_only_where_it_alone_follows_its_convolution():
    model = shake(Odd()).eval()
    ready = deployed(model)
    # The stem's, the last one, and the two of a block that is not used.
    assert (ready.report().norms, ready.report().folded) == (8, 4)
    images = torch.randn(1, 3, 40, 56)
    with torch.no_grad():
        check_logits(ready.logits(images), model(images)["out"])


def test_what_is_hooked_stays():
    model, calls = small_network(), []
    model.stem[0].register_forward_hook(lambda *_: calls.append(1))
    ready = deployed(model)
    calls.clear()
    images = torch.randn(1, 3, 40, 56)
    check_labels(ready(images), model.predict(images))
    assert ready.report().folded == 2 and len(calls) == 2


def test_random_bases_are_fixed_by_the_seed():
    model, images = small_network(seed=None), torch.randn(2, 3, 40, 56)
    state = torch.get_rng_state()
    first, same, other = (deployed(model, seed=seed).logits(images) for seed in (1, 1, 2))
    assert torch.equal(first, same) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers go on as before"
    assert model.context.bases is None
    model.context.bases = torch.rand(1, 16, 4)
    with torch.no_grad():
        check_logits(deployed(model).logits(images), model(images)["out"])


@pytest.mark.parametrize("family", ["segnext", "galdv2"])
def test_uint8_images_are_normalised(family):
    """RGB as ImageNet has it, and BGR as the authors' Caffe models do."""
    model = tiny_network(family)
    raw = torch.randint(256, (2, 3, *SIZE), dtype=torch.uint8)
    ready = deployed(model)
    wanted = ready.logits(normalization_of(model)(raw))
    torch.testing.assert_close(ready.logits(raw), wanted, rtol=0, atol=1e-5)
    assert torch.equal(ready(raw.clone()), ready.logits(raw).argmax(1))
    mean, std = (
        torch.tensor(x).view(3, 1, 1) for x in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
    )
    by_hand = (raw.float() - mean) / std
    if family == "galdv2":
        by_hand = raw.flip(1).float() - torch.tensor(
            [104.00698793, 116.66876762, 122.67891434]
        ).view(3, 1, 1)
    torch.testing.assert_close(ready.logits(raw), ready.logits(by_hand), rtol=1e-4, atol=1e-4)


def test_threads_and_other_images():
    """Several threads, layouts, dtypes, an empty batch, autocast around the call."""
    model = small_network()
    ready = deployed(model)
    images = [torch.randn(b, 3, h, w) for b, h, w in ((1, 40, 56), (3, 16, 64), (2, 33, 97))]
    wanted = [ready.logits(x) for x in images]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ready.logits, images * 8))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted * 8, strict=True))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ready.logits(images[1]), wanted[1])
    strided = images[1].transpose(2, 3).contiguous().transpose(2, 3)
    for same in (images[1].contiguous(memory_format=torch.channels_last), strided):
        assert torch.equal(ready.logits(same), wanted[1])
    torch.testing.assert_close(ready.logits(images[1].double()), wanted[1])
    assert ready(images[0][:0]).shape == (0, 40, 56)
    assert ready.logits(images[0][:0]).shape == (0, 5, 40, 56)
    assert not ready.logits(images[0].requires_grad_()).requires_grad


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ([1], TypeError, "images must be a tensor"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.int32), TypeError, "dtype torch.int32"),
        (torch.zeros(1, 4, 32, 32), ValueError, r"\[B, 3, H, W\]"),
        (torch.zeros(3, 32, 32, dtype=torch.uint8), ValueError, r"give images\[None\]"),
        (torch.zeros(1, 3, 32, 8, dtype=torch.uint8), ValueError, "at least 16x16"),
        (torch.zeros(1, 3, 32, 32, device="meta"), ValueError, "runs on the CPU"),
    ],
)
def test_bad_images_are_refused(images, error, message):
    with pytest.raises(error, match=message):
        deployed(small_network())(images)


def test_bad_options_are_refused():
    model = small_network()
    with pytest.raises(ValueError, match="dtype"):
        deploy(model, "float16")
    with pytest.raises(ValueError, match="compile"):
        deploy(model, compile="always")
    with pytest.raises(TypeError, match="network of attnops"):
        deploy(nn.Conv2d(3, 3, 1))
    with pytest.raises(ValueError, match="load a checkpoint first"):
        deploy(small_network().to("meta"))
    with pytest.raises(ValueError, match="not compiled"):
        deployed(model).save("never.pt2")


def test_without_a_compiler_it_says_so_and_runs():
    model, images = small_network(), torch.randn(1, 3, 40, 56)
    with torch._inductor.config.patch({"cpp.cxx": ("/no/such/compiler",)}):
        with pytest.warns(RuntimeWarning, match=r"runs uncompiled.*no C\+\+ compiler"):
            ready = deploy(model, keep_memory=False)
        with pytest.raises(RuntimeError, match=r"no C\+\+ compiler"):
            deploy(model, compile=True, keep_memory=False)
    assert not ready.report().compiled and "no C++ compiler" in str(ready.report())
    check_labels(ready(images), model.predict(images))


def test_bfloat16_where_it_is_emulated_is_said(monkeypatch):
    old = {"architecture": "x86_64", "avx2": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: old)
    with pytest.warns(RuntimeWarning, match="no instructions for bfloat16"):
        deployed(small_network(), "bfloat16")


FAULTS = """
import resource, torch
from attnops.models.deploy import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.zeros(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
without = faults()
print(keep_freed_memory(), without, faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_kept_memory_is_not_mapped_again():
    """64 MiB are 16384 pages, or 32 large ones; kept, they fault once at most, not 20 times."""
    if not keep_freed_memory():
        pytest.skip("the C library is not glibc")
    run = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    taken, without, kept = run.stdout.split()
    assert taken == "True" and int(kept) < int(without) / 4


def test_the_public_names():
    assert attnops.models.deploy is deploy
    assert "folded into convolutions: 3 of 3" in str(deployed(small_network()).report())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_its_report_says_how_floats_are_multiplied(dtype):
    report = deployed(small_network(), dtype).report()
    assert report.in_parts == (dtype == "float32" and has_tiles(torch.float32))
    assert report.in_parts == ("(products in three bfloat16 parts)" in str(report))
    with attnops.use_backend("reference"):
        assert not deployed(small_network(), dtype).report().in_parts
