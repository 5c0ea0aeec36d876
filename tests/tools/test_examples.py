"""The examples run and do what they say."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy
import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def load(name: str):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_denoising_is_non_local_means() -> None:
    """Against the weights written out from distances of patches, pixel by pixel."""
    pytest.importorskip("skimage")
    denoise = load("denoise")
    sigma, side, window = 0.2, 3, 5
    image = torch.rand(1, 2, 9, 11)
    found = denoise.denoise(image, sigma, side, window)
    patches = denoise.patch_features(image, side)[0]
    expected = torch.zeros_like(image)
    for y in range(9):
        for x in range(11):
            rows = slice(max(0, y - 2), y + 3), slice(max(0, x - 2), x + 3)
            distance = (
                (patches[(slice(None), *rows)] - patches[:, y, x, None, None]).square().sum(0)
            )
            weights = torch.exp(-distance / (denoise.STRENGTH * sigma) ** 2)
            expected[0, :, y, x] = (weights * image[(0, slice(None), *rows)]).sum(
                (1, 2)
            ) / weights.sum()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_denoising_removes_noise(tmp_path: Path) -> None:
    data = pytest.importorskip("skimage.data")
    pytest.importorskip("matplotlib")
    denoise = load("denoise")
    photo = data.astronaut()[:208, :320].astype("float32") / 255
    noisy, ours, classical = denoise.compare(photo, 0.1)
    assert noisy.psnr == pytest.approx(20, abs=0.2)
    assert ours.psnr > noisy.psnr + 6
    assert ours.psnr > classical.psnr - 1
    denoise.draw(photo, [noisy, ours, classical], tmp_path / "denoise.png")
    assert (tmp_path / "denoise.png").stat().st_size > 10_000


def test_serving_paints_what_the_network_labels(tmp_path: Path) -> None:
    """A picture in, its overlay out; what is no picture is refused with the reason."""
    pytest.importorskip("fastapi")
    pytest.importorskip("httpx")
    pytest.importorskip("lightning")
    import io

    from fastapi.testclient import TestClient
    from PIL import Image
    from trained import trained

    from attnops.training import load_trained
    from attnops.training.data import DataInfo
    from attnops.training.prediction.pictures import overlay

    info = DataInfo("two", ("ground", "sky"), ((0, 0, 0), (255, 0, 0)))
    trained(tmp_path / "a.ckpt", info)
    network, _ = load_trained(tmp_path / "a.ckpt")
    app = load("serve").make_app(str(tmp_path / "a.ckpt"), compile=False, keep_memory=False)
    client = TestClient(app)
    image = torch.randint(256, (3, 80, 96), dtype=torch.uint8)
    sent = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(sent, "PNG")
    found = client.post("/", content=sent.getvalue())
    assert found.status_code == 200 and found.headers["content-type"] == "image/png"
    labels = network.predict(network.normalization(image[None]))[0]
    expected = overlay(image, labels, info)
    shown = Image.open(io.BytesIO(found.content))
    assert shown.size == expected.size
    same = (numpy.asarray(shown) == numpy.asarray(expected)).all(-1).mean()
    assert same > 0.99  # folded weights round differently
    assert client.post("/", content=b"no picture").status_code == 422
