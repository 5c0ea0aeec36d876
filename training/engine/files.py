"""Checkpoint files that are whole or not there, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"
_PARTIAL = ".partial"  # what the name of a file in writing ends with


class _Sink(io.RawIOBase):
    """A file that remembers why a write failed, which torch.save does not say."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.file = open(path, "wb")  # noqa: SIM115  (closed by `close`)
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def to_disk(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())

    def close(self) -> None:
        self.file.close()
        super().close()


def write_checkpoint(content: Any, path: Path, before: Path | None = None) -> None:
    """Save `content` to a file beside `path`, bring it to the disk, then give it that name.

    Args:
        content: what torch.save takes.
        path: of the checkpoint.
        before: a name for what was at `path` until now.

    Raises:
        OSError: it could not be written; what was at `path` is untouched.
    """
    partial = path.with_name(path.name + _PARTIAL)
    sink = None
    try:
        sink = _Sink(partial)
        torch.save(content, sink)
        sink.to_disk()
        sink.close()
        if before is not None and path.exists():
            alias(path, before)
        os.replace(partial, path)
    except BaseException as error:
        failure = sink.error if sink is not None else None
        if sink is not None:
            with contextlib.suppress(OSError):
                sink.close()
        with contextlib.suppress(OSError):
            partial.unlink()
        if failure is not None and not isinstance(error, OSError):
            raise failure from error
        raise
    _names_to_disk(path.parent)


def alias(source: Path, path: Path) -> None:
    """`path` becomes a second name of the file `source`, or a copy where there are no links."""
    partial = path.with_name(path.name + _PARTIAL)
    partial.unlink(missing_ok=True)
    try:
        os.link(source, partial)
    except OSError:
        try:
            shutil.copyfile(source, partial)
            with open(partial, "rb+") as copy:
                os.fsync(copy.fileno())
        except OSError:
            partial.unlink(missing_ok=True)
            raise
    os.replace(partial, path)
    _names_to_disk(path.parent)


def damage(path: Path) -> str | None:
    """Why a checkpoint cannot be used; None: every byte of it is as it was written.

    torch.save writes a zip archive, in which every entry has a checksum.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        return str(error) or type(error).__name__
    return None if bad is None else f"the checksum of {bad} is wrong"


def _names_to_disk(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every file system opens folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
