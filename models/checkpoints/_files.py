"""Reading what a file holds, without running code from it."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ._kinds import SAFETENSORS, kind_of
from ._mapping import MappingError, State
from ._unpickle import HarmfulPickle, StandIn, read_quietly

WEIGHTS = "model.safetensors"


def read_source(source: str | os.PathLike[str] | Mapping[str, Any]) -> Mapping[str, Any]:
    """What a file, a folder that `save_pretrained` wrote, or a mapping holds, as it stands there.

    Raises:
        TypeError: it is none of these.
        FileNotFoundError: there is no such file.
        MappingError: the file cannot be read, or holds no names to tensors; the message says what
            it is.
    """
    if isinstance(source, Mapping):
        return source
    if isinstance(source, nn.Module):
        raise TypeError("load_checkpoint: expected a file or a state dict; give its state_dict()")
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(
            f"load_checkpoint: expected a path or a state dict, got a {type(source).__name__}"
        )
    path = _existing(source)
    kind = kind_of(path)
    if kind.reader is None:
        raise MappingError(f"load_checkpoint: {path} is {kind.text}")
    found = _read_safetensors(path) if kind.reader == SAFETENSORS else _read_torch(path)
    if isinstance(found, StandIn):
        raise MappingError(
            f"load_checkpoint: {path} holds a whole {found.full_name}, as torch.save(model) writes "
            "it, whose code is not run; save model.state_dict() instead, where the model is made"
        )
    if not isinstance(found, Mapping):
        raise MappingError(
            f"load_checkpoint: {path} holds a {type(found).__name__}, expected a state dict"
        )
    return found


def _existing(source: str | os.PathLike[str]) -> Path:
    path = Path(source)
    if path.is_file():
        return path
    if not path.exists():
        hint = ""
        if str(source).lower().startswith(("http://", "https://", "s3://", "gs://")):
            hint = ", which is an address: download the file and give its path"
        raise FileNotFoundError(f"load_checkpoint: no file {source}{hint}")
    if not path.is_dir():
        raise MappingError(f"load_checkpoint: {path} is neither a file nor a folder")
    if (path / WEIGHTS).is_file():
        return path / WEIGHTS
    others = sorted(inside.name for inside in path.iterdir())[:6]
    hint = f"give one of its files: {', '.join(others)}" if others else "it is empty"
    if ".metadata" in others:
        hint = (
            "it is a checkpoint of torch.distributed: convert it with "
            "torch.distributed.checkpoint.format_utils.dcp_to_torch_save"
        )
    raise FileNotFoundError(f"load_checkpoint: the folder {path} has no {WEIGHTS}; {hint}")


def _read_torch(path: Path) -> Any:
    try:
        try:
            with path.open("rb") as file:  # newer torch.load goes by the name of a path
                return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            return read_quietly(path)  # there is more in it than tensors
    except HarmfulPickle as error:
        raise MappingError(
            f"load_checkpoint: {path} calls {error} when it is unpickled, which no checkpoint "
            "needs and could do harm; it was not run. Do not open the file with other tools, and "
            "get the weights from where you trust them"
        ) from None
    except (OSError, MemoryError):
        raise
    except Exception as error:  # whatever a broken file leads to
        if "TORCH_FORCE_WEIGHTS_ONLY_LOAD" in os.environ and "pickle_module" in str(error):
            raise MappingError(
                f"load_checkpoint: {path} holds more than tensors, and the environment's "
                "TORCH_FORCE_WEIGHTS_ONLY_LOAD keeps PyTorch from reading around it: unset that"
            ) from None
        raise _broken(path, "torch.save", error) from None


def _read_safetensors(path: Path) -> State:
    try:
        from safetensors.torch import load_file
    except ModuleNotFoundError:
        raise ImportError(
            f'load_checkpoint: {path} needs safetensors: pip install "attnops[models]"'
        ) from None
    try:
        return load_file(path)
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raise _broken(path, SAFETENSORS, error) from None


def _broken(path: Path, kind: str, error: Exception) -> MappingError:
    reason = (str(error).strip().splitlines() or [""])[0][:200]
    if "weights_only" in reason:  # PyTorch's advice, which is no way to read a broken file
        reason = "it cannot be unpickled"
    return MappingError(
        f"load_checkpoint: {path} is a broken {kind} file ({path.stat().st_size} bytes), damaged "
        f"or cut short: get it again ({type(error).__name__}: {reason})"
    )
