"""Images and label files as tensors and arrays, and labels of files as labels of training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

IGNORED = 255
MODES = {1: "L", 3: "RGB"}  # number of channels -> Pillow's name


def read_image(path: str | Path, channels: int = 3) -> Tensor:
    """The pixels of an image file, uint8 `[channels, H, W]`, upright as its EXIF data says.

    Any image is read as colours (3) or as grey (1); of more channels the file has to have as many.

    Raises:
        ValueError: the file is no image, is cut off, or has another number of channels.
        FileNotFoundError: there is none.
    """
    try:
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image)
            if channels in MODES:
                image = image.convert(MODES[channels])
            elif len(image.getbands()) != channels:
                raise ValueError(f"has {len(image.getbands())} channels, expected {channels}")
            pixels = np.atleast_3d(np.array(image))
    except FileNotFoundError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds for damaged files
        raise ValueError(f"{path}: cannot be read as an image: {error}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def read_labels(path: str | Path) -> np.ndarray:
    """The numbers in a label file, `[H, W]` of unsigned integers, as they are stored.

    Of PNG files with a palette the index; of files with equal channels one of them; of the
    MATLAB files of the Semantic Boundaries Dataset the segmentation.

    Raises:
        ValueError: the file cannot be read, or holds colours instead of labels.
        FileNotFoundError: there is none.
    """
    if Path(path).suffix == ".mat":
        return _read_matlab(path)
    try:
        with Image.open(path) as image:
            values = np.array(image)
            mode = image.mode
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"{path}: cannot be read as labels: {error}") from error
    if values.ndim == 3:
        colours = values[..., :3] if mode in ("RGB", "RGBA") else values[..., :1]
        if mode not in ("RGB", "RGBA", "LA") or (colours != colours[..., :1]).any():
            raise ValueError(
                f"{path}: holds colours ({mode}); labels are one number a pixel, so convert it to "
                "an 8-bit or 16-bit file with one channel"
            )
        values = colours[..., 0]
    if values.dtype.kind == "f":
        raise ValueError(f"{path}: holds fractions ({mode}); labels are integers")
    return values.astype(np.uint8) if values.dtype == bool else values


def _read_matlab(path: str | Path) -> np.ndarray:
    if not Path(path).is_file():
        raise FileNotFoundError(2, "No such file", str(path))
    try:
        from scipy.io import loadmat
    except ModuleNotFoundError as error:
        raise ValueError(f"{path}: MATLAB files need SciPy: pip install scipy") from error
    try:
        return np.asarray(loadmat(path)["GTcls"][0]["Segmentation"][0])
    except Exception as error:
        raise ValueError(f"{path}: cannot be read as labels: {error}") from error


class LabelMap:
    """Which label of training a number in a label file stands for.

    Args:
        known: number in the file -> label, or 255 for pixels without a class. 255 in a file stays
            255 unless it is in `known`; any other number that is not there is unknown.

    Example:
        >>> import numpy as np
        >>> labels = LabelMap({0: 255, 1: 0, 2: 1})
        >>> labels(np.array([[0, 1, 2, 9]], dtype=np.uint8)).tolist()
        [[255, 0, 1, 255]]
        >>> labels.unknown([0, 1, 9])
        [9]
    """

    def __init__(self, known: Mapping[int, int]) -> None:
        self.known = {IGNORED: IGNORED} | {int(k): int(v) for k, v in known.items()}
        wrong = [k for k, v in self.known.items() if not (0 <= v <= IGNORED and 0 <= k <= 65535)]
        if wrong:
            raise ValueError(
                f"class map: {wrong[0]}: {self.known[wrong[0]]} is out of range; numbers in files "
                "are 0 to 65535, labels 0 to 254, and 255 for pixels without a class"
            )
        self._table = np.full(max(self.known) + 1, IGNORED, dtype=np.uint8)
        for number, label in self.known.items():
            self._table[number] = label

    @classmethod
    def identity(cls, classes: int) -> LabelMap:
        """Labels 0 to `classes` - 1 as they are."""
        return cls({label: label for label in range(classes)})

    @classmethod
    def minus_one(cls, classes: int) -> LabelMap:
        """Files count the classes from 1; 0 is no class."""
        return cls({0: IGNORED} | {label + 1: label for label in range(classes)})

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        """Labels, uint8, of the numbers in a file; 255 for those that are unknown."""
        last = len(self._table) - 1
        if numbers.dtype == np.uint8 and last == 255:
            return self._table[numbers]
        inside = (numbers >= 0) & (numbers <= last)
        return np.where(inside, self._table[np.clip(numbers, 0, last)], np.uint8(IGNORED))

    def unknown(self, numbers: Iterable[int]) -> list[int]:
        return sorted({int(number) for number in numbers} - self.known.keys())
