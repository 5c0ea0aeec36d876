"""What an exported file says of itself, as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from attnops._version import __version__

from .._model import SegmentationModel
from ..normalization import normalization_of
from ._program import smallest_side

KEY = "attnops"  # of the description in the metadata of an ONNX file
FORMAT = 1
KINDS = ("onnx", "program", "deployment")


def describe(
    kind: str,
    network: SegmentationModel,
    output: str,
    size: tuple[int, int] | None,
    extra: Mapping[str, Any] | None,
) -> str:
    """JSON: the network's name and options, what it takes and gives, and the caller's entries.

    Args:
        kind: of the file, one of `KINDS`.
        network: that is exported.
        output: "labels" or "logits".
        size: of the images; None: any.
        extra: entries of the caller: `attnops predict` reads "info", the names and colours of the
            classes.
    """
    smallest = network.smallest_side
    if kind != "deployment":
        smallest = smallest_side(network, size)
    own = {
        "format": FORMAT,
        "version": __version__,
        "kind": kind,
        "network": network.config,
        "output": output,
        "size": size,
        "smallest_side": smallest,
        "in_channels": network.in_channels,
        "normalization": normalization_of(network).to_dict(),
    }
    # A backbone that is a module has no other form.
    return json.dumps(own | dict(extra or {}), default=lambda value: type(value).__name__)


def read_description(text: str | None, path: object) -> dict[str, Any]:
    """What `describe` gave.

    Args:
        text: the JSON; None: there is none.
        path: of the file, for the error.

    Raises:
        ValueError: no description of ours, or one of a later version.
    """
    try:
        found = json.loads(text or "")
    except ValueError:
        found = None
    if not isinstance(found, dict) or "format" not in found:
        raise ValueError(f"{path} was not written by attnops: it says nothing of its classes")
    if found["format"] > FORMAT:
        raise ValueError(
            f"{path} was written by attnops {found['version']}; update attnops to read it"
        )
    return found
