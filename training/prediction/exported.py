"""Exported networks, of every kind of file, as something that labels images."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnops.models import load_deployed
from attnops.models.export import KEY, description_file, read_description
from attnops.models.normalization import Normalization

from ..data.classes import numbered
from ..data.info import DataInfo
from ..protocol import continued

SUFFIXES = (".onnx", ".pt2")


def is_exported(name: str | None) -> bool:
    """Whether `name` is a file of `attnops export` rather than a network's name."""
    return name is not None and Path(name).suffix in SUFFIXES


class ExportedNetwork(ABC):
    """A file of `attnops export`.

    Attributes:
        path: of the file.
        info: names and colours of its classes.
        normalization: of its images.
        size: (height, width) of its images; None: any.
        smallest_side: of them.
        in_channels: of them.
    """

    def __init__(self, path: Path, description: dict[str, Any]) -> None:
        self.path = path
        if "info" in description:
            self.info = DataInfo.from_dict(description["info"])
        else:  # written by models.export_onnx, which knows no names
            count = (description["network"] or {}).get("num_classes", 255)
            self.info = numbered("unnamed", count)
        self.normalization = Normalization.from_dict(description["normalization"])
        size = description["size"]
        self.size = None if size is None else (int(size[0]), int(size[1]))
        self.smallest_side = int(description["smallest_side"])
        self.in_channels = int(description["in_channels"])

    @abstractmethod
    def run(self, images: Tensor) -> Tensor:
        """What the file computes of images uint8 `[1, C, H, W]`."""

    def labels(self, image: Tensor) -> Tensor:
        """Labels `[H, W]` of an image uint8 `[C, H, W]`; one that is too small is continued.

        Raises:
            ValueError: the file takes images of another size.
        """
        height, width = image.shape[1:]
        if self.size is not None and (height, width) != self.size:
            raise ValueError(
                f"{self.path} takes images of {self.size[0]}x{self.size[1]}, got {height}x{width}; "
                "resize them, or export with --dynamic"
            )
        out = self.run(continued(image, self.smallest_side)[None])
        found = out.argmax(dim=1) if out.dim() == 4 else out
        return found[0, :height, :width]


class OnnxNetwork(ExportedNetwork):
    """An ONNX file in onnxruntime, on the CPU."""

    def __init__(self, path: Path, threads: int | None) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ValueError(
                f'{path}: ONNX files need onnxruntime: pip install "attnops[serve]"'
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        try:
            self.session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime has a kind for each of its status codes
            raise ValueError(f"{path} cannot be read as an ONNX file: {error}") from error
        metadata = self.session.get_modelmeta().custom_metadata_map
        super().__init__(path, read_description(metadata.get(KEY), path))

    def run(self, images: Tensor) -> Tensor:
        images = self.normalization(images)
        (out,) = self.session.run(None, {"images": np.ascontiguousarray(images.numpy())})
        return torch.from_numpy(out)


class ProgramNetwork(ExportedNetwork):
    """A program of torch.export, on any device."""

    def __init__(self, path: Path, description: dict[str, Any], device: str) -> None:
        super().__init__(path, description)
        self.device = torch.device(device)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "The given buffer is not writable")
                program = torch.export.load(path)
        except Exception as error:  # zipfile's, torch's and pickle's
            raise ValueError(f"{path} cannot be read as a program: {error}") from error
        if self.device.type != "cpu":
            program = torch.export.passes.move_to_device_pass(program, self.device)
        self.program = program.module()

    def run(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return self.program(self.normalization(images.to(self.device)))


class DeployedNetwork(ExportedNetwork):
    """What `deploy` compiled, on the CPU."""

    def __init__(self, path: Path, description: dict[str, Any]) -> None:
        super().__init__(path, description)
        self.deployed = load_deployed(path)

    def run(self, images: Tensor) -> Tensor:
        return self.deployed(images)


def open_exported(
    path: str | Path, threads: int | None = None, device: str | None = None
) -> ExportedNetwork:
    """The network in a file of `attnops export`.

    Args:
        path: ending in ".onnx" (runs in onnxruntime) or ".pt2" (in PyTorch).
        threads: of the CPU; None: PyTorch's number.
        device: of a program; None: a GPU if there is one. Others run on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it was not written by `attnops export`, onnxruntime is missing, or a device
            that the file cannot run on.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such exported network")
    if path.suffix == ".onnx":
        _refuse_device(path, device)
        return OnnxNetwork(path, threads)
    beside = description_file(path)
    if not beside.is_file():
        raise ValueError(f"{path}: {beside.name}, which was written with it, is not beside it")
    description = read_description(beside.read_text(encoding="utf-8"), path)
    if threads:
        torch.set_num_threads(threads)
    if description["kind"] == "deployment":
        _refuse_device(path, device)
        return DeployedNetwork(path, description)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return ProgramNetwork(path, description, device)


def _refuse_device(path: Path, device: str | None) -> None:
    if device not in (None, "cpu"):
        raise ValueError(f"{path} runs on the CPU only, not on {device}")
