"""Windowed non-local means of a photograph through `attnops.local_attention`, without training.

Every pixel becomes the mean of the pixels in a window around it, weighted by how alike the patches
around the two are (Buades et al., A Non-Local Algorithm for Image Denoising, CVPR 2005):

    weight(i, j) ∝ exp(-max(|p_i - p_j|² - 2σ², 0) / h²)      (classical)
    weight(i, j) ∝ exp(-|p_i - p_j|² / h²) = softmax_j(2·p_i·p_j / h² - |p_j|² / h²)

The second form is attention: with q = (2·p / h², -1 / h²) and k = (p, |p|²), the score of a
neighbour is q_i·k_j up to a term of i alone, which the softmax cancels. Values are the pixels.

    python examples/denoise.py [--out demo] [--sigma 0.1]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from skimage import data
from skimage.metrics import peak_signal_noise_ratio
from skimage.restoration import denoise_nl_means
from torch import Tensor
from torch.nn.functional import pad, unfold

import attnops

PATCH, WINDOW = 3, 13
# h in units of the noise's standard deviation. Without the classical form's 2σ² every neighbour is
# further away than the pixel itself, so more is needed.
STRENGTH = 1.1
# What scikit-image recommends for its fast mode.
CLASSICAL_PATCH, CLASSICAL_STRENGTH = 5, 0.6


@dataclass
class Result:
    """A picture `[H, W, 3]`, its peak signal-to-noise ratio in dB, and the milliseconds it took."""

    name: str
    picture: numpy.ndarray
    psnr: float
    ms: float | None = None


def patch_features(image: Tensor, side: int) -> Tensor:
    """The patch around every pixel as channels, `[1, C, H, W]` -> `[1, C·side², H, W]`.

    Scaled so that squared distances of features are mean squared distances of patches.
    """
    margin = side // 2
    columns = unfold(pad(image, (margin,) * 4, mode="reflect"), side)
    return columns.view(1, -1, *image.shape[2:]) / columns.shape[1] ** 0.5


def attention_inputs(image: Tensor, sigma: float, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value for `attnops.local_attention` with scale 1."""
    h2 = (STRENGTH * sigma) ** 2
    patches = patch_features(image, side)
    norm = patches.square().sum(dim=1, keepdim=True)
    query = torch.cat([2 / h2 * patches, torch.full_like(norm, -1 / h2)], dim=1)
    return query, torch.cat([patches, norm], dim=1), image


def denoise(image: Tensor, sigma: float, side: int = PATCH, window: int = WINDOW) -> Tensor:
    """Non-local means of `[1, C, H, W]`; neighbours outside the picture are left out."""
    return attnops.local_attention(
        *attention_inputs(image, sigma, side), kernel_size=window, border="mask"
    )


def compare(photo: numpy.ndarray, sigma: float) -> list[Result]:
    """Noise a photograph `[H, W, 3]` in 0..1, and remove it with both programs."""
    generator = numpy.random.default_rng(0)
    noisy = photo + sigma * generator.standard_normal(photo.shape, dtype=numpy.float32)
    image = torch.from_numpy(noisy).permute(2, 0, 1)[None].contiguous()

    def ours() -> numpy.ndarray:
        return denoise(image, sigma)[0].permute(1, 2, 0).numpy()

    def theirs() -> numpy.ndarray:
        return denoise_nl_means(
            noisy,
            patch_size=CLASSICAL_PATCH,
            patch_distance=WINDOW // 2,
            h=CLASSICAL_STRENGTH * sigma,
            sigma=sigma,
            fast_mode=True,
            channel_axis=2,
        )

    results = [Result("noisy", noisy, peak_signal_noise_ratio(photo, noisy, data_range=1))]
    for name, run in (("attnops.local_attention", ours), ("skimage non-local means", theirs)):
        run()
        start = time.perf_counter()
        picture = run()
        ms = 1e3 * (time.perf_counter() - start)
        psnr = peak_signal_noise_ratio(photo, picture.astype(numpy.float32), data_range=1)
        results.append(Result(name, picture, psnr, ms))
    return results


def draw(photo: numpy.ndarray, results: Sequence[Result], path: Path) -> None:
    """A crop of the photograph and of every result, side by side."""
    from matplotlib import pyplot

    from attnops.benchmarks.report.plots import STYLE, save

    crop = (slice(40, 200), slice(150, 310))
    panels = [("photograph", photo), *((f"{r.name}\n{r.psnr:.2f} dB", r.picture) for r in results)]
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(1, len(panels), figsize=(3.1 * len(panels), 3.7))
        for panel, (title, picture) in zip(axes, panels, strict=True):
            panel.imshow(numpy.clip(picture[crop], 0, 1), interpolation="nearest")
            panel.set_title(title)
            panel.axis("off")
        figure.tight_layout()
        save(figure, path)


def main(arguments: Sequence[str] | None = None) -> list[Result]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR")
    parser.add_argument("--sigma", type=float, default=0.1, help="standard deviation of the noise")
    chosen = parser.parse_args(arguments)
    chosen.out.mkdir(parents=True, exist_ok=True)
    photo = data.astronaut().astype(numpy.float32) / 255
    results = compare(photo, chosen.sigma)
    height, width = photo.shape[:2]
    print(
        f"Non-local means of a {height}x{width} photograph with noise of {chosen.sigma:g}, "
        f"windows of {WINDOW}x{WINDOW}:"
    )
    for result in results:
        time_text = "" if result.ms is None else f"  {result.ms:6.0f} ms"
        print(f"  {result.name:25} PSNR {result.psnr:5.2f} dB{time_text}")
    draw(photo, results, chosen.out / "denoise.png")
    print(f"  {chosen.out / 'denoise.png'}")
    return results


if __name__ == "__main__":
    main()
