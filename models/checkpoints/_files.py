"""Reading state dicts, however they are wrapped."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ._mapping import MappingError, State, listed

WRAPPERS = ("state_dict", "model", "model_state_dict", "net")
SAFE = ".safetensors"
WEIGHTS = "model.safetensors"


def read_state(source: str | os.PathLike[str] | Mapping[str, Any]) -> State:
    """The tensors of a file, a folder that `save_pretrained` wrote, or a state dict.

    Wrappings ({"state_dict": ...}) and the prefix `module.` of DataParallel are taken off. Files
    are read without running code from them.

    Raises:
        FileNotFoundError: there is no such file.
        MappingError: it is not a state dict, or holds more than tensors and plain values.
    """
    state = source if isinstance(source, Mapping) else _read_file(Path(source))
    for _ in WRAPPERS:
        inner = next((state[k] for k in WRAPPERS if isinstance(state.get(k), Mapping)), None)
        if inner is None:
            break
        state = inner
    strange = [str(key) for key, value in state.items() if not isinstance(value, Tensor)]
    if strange or not state:
        found = f"{listed(strange)} are no tensors" if strange else "it is empty"
        raise MappingError(f"load_checkpoint: expected a state dict, names to tensors; {found}")
    state = {str(key): value for key, value in state.items()}
    while all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state


def _read_file(path: Path) -> Mapping[str, Any]:
    if path.is_dir():
        path = path / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"load_checkpoint: no file {path}")
    if path.suffix == SAFE:
        return _read_safetensors(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise MappingError(
            f"load_checkpoint: {path} holds more than tensors, and is not read for it could run "
            "code. If you trust it, load it with torch.load(..., weights_only=False) and give its "
            f"state dict instead ({str(error).splitlines()[0]})"
        ) from None
    if not isinstance(found, Mapping):
        raise MappingError(f"load_checkpoint: {path} holds a {type(found).__name__}")
    return found


def _read_safetensors(path: Path) -> State:
    try:
        from safetensors.torch import load_file
    except ModuleNotFoundError:
        raise ImportError(
            f'load_checkpoint: {path} needs safetensors: pip install "attnops[models]"'
        ) from None
    return load_file(path)
