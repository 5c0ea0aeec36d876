"""Networks as files that run without their code: ONNX, and programs of torch.export."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from .._model import SegmentationModel
from ..deploy import deploy
from ._description import KEY, describe, read_description
from ._program import OUTPUTS, checked_size, exported_module, trace

__all__ = [
    "KEY",
    "OUTPUTS",
    "description_file",
    "export_deployment",
    "export_onnx",
    "export_program",
    "read_description",
]

AXES = {0: "batch", 2: "height", 3: "width"}  # what is free in "images", as ONNX calls it
INSTALL = 'pip install "attnops[serve]"'


def export_onnx(
    model: SegmentationModel,
    path: str | os.PathLike[str],
    size: tuple[int, int] | None = None,
    output: str = "labels",
    seed: int = 0,
    description: Mapping[str, Any] | None = None,
) -> None:
    """Write a network as an ONNX file of standard operators, for any batch.

    The input "images" is float32 `[B, in_channels, H, W]`, normalised as the network's authors did;
    the output "labels" is int64 `[B, H, W]`, "logits" float32 `[B, num_classes, H, W]`. Weights are
    in the file. What a Hamburger would draw anew in every forward is drawn once from `seed`, unless
    the network has bases of its own. The model is not changed.

    Args:
        model: in any mode, on any device.
        path: of the file, ending in ".onnx".
        size: (height, width) of the images; None: any from 64 on (GALDv1: from 222 on).
        output: "labels" or "logits".
        seed: of a Hamburger's bases.
        description: entries for the file's metadata, which are JSON under "attnops": `attnops
            predict` reads "info", `DataInfo.to_dict()` of the classes.

    Raises:
        ImportError: onnx or onnxscript are not installed.
        TypeError: another model, or a size that is not two integers.
        ValueError: another ending, a size that is too small, or None for a network that takes
            images of fixed sizes only.

    Example:
        >>> from attnops import models
        >>> net = models.create_model("segnext_t", num_classes=19)
        >>> models.export_onnx(net, "segnext.onnx", size=(512, 512))  # doctest: +SKIP
    """
    path = _checked_path(path, ".onnx")
    _require("onnx", "onnxscript")
    module = exported_module(model, output, seed)
    size = checked_size(module.network, size)
    program = trace(module, size, plain=True)
    with _without_noise():
        written = torch.onnx.export(
            program,
            dynamo=True,
            input_names=["images"],
            output_names=[output],
            dynamic_shapes={"images": AXES if size is None else {0: AXES[0]}},
            verbose=False,
        )
    written.model.metadata_props[KEY] = describe("onnx", module.network, output, size, description)
    with _whole_file(path) as temporary:
        written.save(temporary, external_data=False)


def export_program(
    model: SegmentationModel,
    path: str | os.PathLike[str],
    size: tuple[int, int] | None = None,
    output: str = "labels",
    seed: int = 0,
    description: Mapping[str, Any] | None = None,
) -> None:
    """Write a network as a program of torch.export (.pt2) and what it is beside it (.json).

    The program keeps attnops' ops: it runs, as fast as they are, where attnops can be imported, on
    the device that it is moved to, with the backend that is chosen there.

    Args:
        model: as in `export_onnx`; so are the other arguments, and the program's input and output.
        path: of the file, ending in ".pt2".
        size: of the images; None: any.
        output: "labels" or "logits".
        seed: of a Hamburger's bases.
        description: entries for the JSON.

    Raises:
        TypeError, ValueError: as `export_onnx`.

    Example:
        >>> import torch
        >>> from attnops import models
        >>> net = models.create_model("segnext_t", num_classes=19)
        >>> models.export_program(net, "segnext.pt2")  # doctest: +SKIP
        >>> program = torch.export.load("segnext.pt2").module()  # doctest: +SKIP
        >>> labels = program(torch.randn(1, 3, 512, 512))  # doctest: +SKIP
    """
    path = _checked_path(path, ".pt2")
    module = exported_module(model, output, seed)
    size = checked_size(module.network, size)
    program = trace(module, size)
    text = describe("program", module.network, output, size, description)
    with _whole_file(path) as temporary:
        torch.export.save(program, temporary)
    description_file(path).write_text(text, encoding="utf-8")


def export_deployment(
    model: SegmentationModel,
    path: str | os.PathLike[str],
    seed: int = 0,
    description: Mapping[str, Any] | None = None,
) -> None:
    """Write what `deploy` compiles of a network (.pt2) and what it is beside it (.json).

    `load_deployed` takes it without the JSON, `attnops predict` needs that for the classes.

    Args:
        model: as in `export_onnx`.
        path: of the file, ending in ".pt2".
        seed: of a Hamburger's bases.
        description: entries for the JSON.

    Raises:
        RuntimeError: there is no C++ compiler.
        TypeError, ValueError: as `deploy`; or another ending.
    """
    path = _checked_path(path, ".pt2")
    deployed = deploy(model, compile=True, keep_memory=False, seed=seed)
    network = getattr(model, "_orig_mod", model)
    text = describe("deployment", network, "labels", None, description)
    deployed.save(path)
    description_file(path).write_text(text, encoding="utf-8")


def description_file(path: str | os.PathLike[str]) -> Path:
    """The JSON that belongs to a program's file."""
    return Path(path).with_suffix(".json")


def _checked_path(path: str | os.PathLike[str], suffix: str) -> Path:
    path = Path(path)
    if path.suffix != suffix:
        raise ValueError(f"export: {path} must end in {suffix}")
    if not path.parent.is_dir():
        raise ValueError(f"export: {path.parent} is no folder")
    return path


def _require(*packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"export: ONNX needs {' and '.join(missing)}: {INSTALL}")


@contextmanager
def _whole_file(path: Path) -> Iterator[str]:
    """A name to write to; the file gets its own when it is complete."""
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield str(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _without_noise() -> Iterator[None]:
    """PyTorch's exporter warns of its own use of PyTorch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
