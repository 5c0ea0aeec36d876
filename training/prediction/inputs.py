"""Images and videos named by files, folders and patterns, and what their results are called."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..data.layouts import IMAGES

VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")


class Source(NamedTuple):
    """A file, and the path of its results below the output folder, without an ending."""

    path: Path
    name: str

    @property
    def is_video(self) -> bool:
        return self.path.suffix.lower() in VIDEOS


def find_sources(inputs: Sequence[str]) -> list[Source]:
    """The images and videos that files, folders (with what is below them) and patterns name.

    Results are called like the files, of folders with the path below them; what would be called
    alike gets a number.

    Raises:
        FileNotFoundError: a file that is not there, or a pattern or folder that holds nothing.
    """
    found: list[tuple[Path, str]] = []
    for text in inputs:
        path = Path(text).expanduser()
        if path.is_dir():
            below = [(p, p.relative_to(path)) for p in sorted(path.rglob("*")) if _is_known(p)]
            found += [(p, inner.with_suffix("").as_posix()) for p, inner in below]
            if not below:
                raise FileNotFoundError(f"{path}: no image or video in this folder")
        elif path.is_file():
            found.append((path, path.stem))
        else:
            matches = sorted(glob.glob(str(path), recursive=True))
            files = [Path(p) for p in matches if _is_known(Path(p))]
            if not files:
                kind = (
                    "pattern that fits no image or video"
                    if glob.has_magic(text)
                    else "no such image, folder or video"
                )
                raise FileNotFoundError(f"{text}: {kind}")
            found += [(p, p.stem) for p in files]
    return _named(found)


def _is_known(path: Path) -> bool:
    return path.suffix.lower() in (*IMAGES, *VIDEOS) and path.is_file()


def _named(found: list[tuple[Path, str]]) -> list[Source]:
    taken: set[str] = set()
    sources, seen = [], set()
    for path, name in found:
        if path.resolve() in seen:
            continue
        seen.add(path.resolve())
        chosen, number = name, 1
        while {chosen, f"{chosen}_overlay", f"{chosen}_attention"} & taken:
            number += 1
            chosen = f"{name}-{number}"
        taken |= {chosen, f"{chosen}_overlay", f"{chosen}_attention"}
        sources.append(Source(path, chosen))
    return sources


def read_frames(path: Path, every: int = 1) -> Iterator[tuple[int, Tensor]]:
    """Number and pixels, uint8 `[3, H, W]`, of every `every`-th frame of a video.

    Raises:
        ValueError: OpenCV, which decodes it, is not installed or cannot.
    """
    try:
        import cv2
    except ImportError as error:
        raise ValueError(
            f"{path}: videos are read by OpenCV, which is not installed: pip install "
            "opencv-python-headless; or extract the frames and give their folder"
        ) from error
    video = cv2.VideoCapture(str(path))
    number = 0
    try:
        while video.isOpened() and video.grab():
            if number % every == 0:
                done, pixels = video.retrieve()
                if not done:
                    break
                yield number, torch.from_numpy(pixels[..., ::-1].copy()).permute(2, 0, 1)
            number += 1
    finally:
        video.release()
    if number == 0:
        raise ValueError(f"{path}: OpenCV finds no frame in it; it is damaged or of another kind")


def count_frames(path: Path) -> int | None:
    """As the file says; None: it does not."""
    try:
        import cv2
    except ImportError:
        return None
    video = cv2.VideoCapture(str(path))
    count = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    video.release()
    return count if count > 0 else None
