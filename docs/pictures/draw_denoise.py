"""Draws denoise.png: examples/denoise.py on a small part of a photograph.

python docs/pictures/draw_denoise.py
"""

from __future__ import annotations

import sys

import torch
from panels import FOLDER, figure, save, show

sys.path.append(str(FOLDER.parents[1] / "examples"))
import denoise

SIGMA = 0.1
SHOWN = (slice(40, 130), slice(95, 215))


def main() -> None:
    photo = denoise.data.astronaut()[:260, 60:420].astype("float32") / 255
    noisy, ours, _ = denoise.compare(photo, SIGMA)
    drawn, panels = figure(3, height=2.75)
    pictures = (("photograph", photo), ("with noise", noisy.picture), ("denoised", ours.picture))
    for panel, (title, picture) in zip(panels, pictures, strict=True):
        show(panel, torch.from_numpy(picture[SHOWN]).permute(2, 0, 1), title)
    save(drawn, "denoise", colours=48)


if __name__ == "__main__":
    main()
