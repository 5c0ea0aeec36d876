"""A trained network from its checkpoint."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from typing import Any

import torch

from attnops.models import SegmentationModel, create_model
from attnops.models.normalization import Normalization

from ..data.info import DataInfo

KEY = "attnops"  # of what a checkpoint holds besides Lightning's entries
PREFIX = "network."  # of the network's keys in a checkpoint's state dict


def load_trained(path: str | os.PathLike[str]) -> tuple[SegmentationModel, DataInfo]:
    """The network that a checkpoint of `attnops train` holds, in evaluation mode on the CPU.

    Built by the name and options in the file, with the averaged weights where the run kept some.
    `normalization` of the network is what it was trained with.

    Args:
        path: a `.ckpt` file.

    Returns:
        The network, and names and colours of its classes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or no checkpoint of `attnops train`.
    """
    checkpoint = read_checkpoint(path)
    entry = checkpoint[KEY]
    network = network_of(entry)
    state = checkpoint["state_dict"]  # the averaged weights, where there are any
    weights = {key[len(PREFIX) :]: x for key, x in state.items() if key.startswith(PREFIX)}
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{path}: its weights do not fit its own description: {error}") from error
    return network.eval(), DataInfo.from_dict(entry["info"])


def network_of(entry: Mapping[str, Any]) -> SegmentationModel:
    """The network that a checkpoint's entry `KEY` describes, with fresh weights."""
    options = dict(entry["network"])
    if "pretrained" in options:  # its weights are in the file
        options["pretrained"] = False
    network = create_model(options.pop("name"), **options)
    network.normalization = Normalization.from_dict(entry["normalization"])
    network.ignore_index = entry["info"]["ignore_index"]
    return network


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """All of a checkpoint of `attnops train`, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or another kind of file.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load has no exceptions of its own
        reason = (str(error).strip().splitlines() or [repr(error)])[0]
        if isinstance(error, pickle.UnpicklingError):  # torch's text is about its own arguments
            reason = "it holds no plain tensors and values"
        raise ValueError(
            f"{path} cannot be read as a checkpoint ({reason}); it is damaged or another kind of "
            "file. Take previous.ckpt beside it"
        ) from error
    if not isinstance(checkpoint, dict) or KEY not in checkpoint:
        raise ValueError(
            f"{path} is no checkpoint of `attnops train`; weights alone are loaded by "
            "attnops.models.create_model and load_checkpoint"
        )
    return checkpoint
