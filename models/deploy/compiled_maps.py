"""A compiled graph, loaded from its package, with its constants where processors like them."""

from __future__ import annotations

import tempfile
import threading
import zipfile
from pathlib import Path

import torch
from torch import Tensor

RUNNERS = 8  # calls at the same time, once PyTorch does not keep Python's lock meanwhile; more wait
LINE = 64  # bytes of a line of the caches


class CompiledMaps:
    """The compiled graph of a package, images -> maps, for several threads at once.

    A graph runs one call at a time, so there are some of them, which share the weights.

    Args:
        path: of the package.
    """

    def __init__(self, path: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="attnops-") as folder:
            library = _extracted(path, Path(folder))
            self._runner = torch._C._aoti.AOTIModelContainerRunnerCpu(str(library), RUNNERS)
        _align_constants(self._runner)
        # Nobody waits inside: a waiting call could keep from a running one what its ops need.
        self._turns = threading.Semaphore(RUNNERS)

    def __call__(self, images: Tensor) -> Tensor:
        with self._turns:
            return self._runner.run([images])[0]


def _extracted(package: Path, folder: Path) -> Path:
    """The library of a package, which it needs no longer once it is loaded, with what is beside it
    that it reads.
    """
    with zipfile.ZipFile(package) as archive:
        names = [name for name in archive.namelist() if Path(name).suffix in (".so", ".json")]
        archive.extractall(folder, names)
        (library,) = (name for name in names if name.endswith(".so"))
    return folder / library


def _align_constants(runner: torch._C._aoti.AOTIModelContainerRunnerCpu) -> None:
    """Have constants begin with lines of the caches.

    Where a package is loaded they are copied into one block of malloc's, which begins 16 bytes
    behind a page if it is large: every vector and every row of a tile that is read of them would
    lie in two lines.
    """
    constants = runner.extract_constants_map(False)
    if all(value.is_mkldnn or value.data_ptr() % LINE == 0 for value in constants.values()):
        return
    copies = {name: _copy(value) for name, value in constants.items()}
    names = runner.get_constant_names_to_original_fqns()
    copies = {name: copies[original] for name, original in names.items()}
    del constants
    runner.update_constant_buffer(copies, True, True, True)
    runner.swap_constant_buffer()
    runner.free_inactive_constant_buffer()


def _copy(value: Tensor) -> Tensor:
    """A copy in memory of PyTorch's, which is aligned, with the same strides."""
    if value.is_mkldnn:
        return value.clone()
    storage = value.untyped_storage().clone()
    return value.new_empty(0).set_(storage, value.storage_offset(), value.shape, value.stride())
