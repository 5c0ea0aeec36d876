"""What a file is that was taken for a checkpoint, from its first bytes."""

from __future__ import annotations

import json
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

TORCH, SAFETENSORS = "torch", "safetensors"
# torch.save before 1.6 begins with the pickle of this number.
_OLD_TORCH = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_LFS = b"version https://git-lfs.github.com/spec/"
_AGAIN = "the download or the copy was cut short: get the file again"

# First bytes -> what the file is and what to do about it.
_MAGIC = (
    (b"\x1f\x8b", "compressed with gzip: unpack it (gunzip) and give the file inside"),
    (b"\xfd7zXZ\x00", "compressed with xz: unpack it and give the file inside"),
    (b"BZh", "compressed with bzip2: unpack it and give the file inside"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd: unpack it and give the file inside"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it and give the file inside"),
    (b"Rar!", "a RAR archive: unpack it and give the file inside"),
    (b"\x89HDF", "an HDF5 file, as Keras writes: convert its weights to a PyTorch state dict"),
    (b"\x93NUMPY", "a NumPy array: give a state dict, names to tensors"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"%PDF", "a PDF document"),
    (b"GGUF", "a GGUF file of llama.cpp"),
)


class Kind(NamedTuple):
    """How to read a file, or why it cannot be read.

    Attributes:
        reader: `TORCH` or `SAFETENSORS`; None: it is no checkpoint.
        text: what it is and what to do, to stand after "the file is".
    """

    reader: str | None
    text: str = ""


def kind_of(path: Path) -> Kind:
    """What `path`, an existing file, is; its name plays no part."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(1024)
    if not head.strip(b"\x00"):
        what = "empty" if not head else "full of zeros"
        return Kind(None, f"{what} ({size} bytes): {_AGAIN}")
    if head.startswith(b"PK"):
        return _zip(path, size)
    text = _text(path, head)
    if text is not None:
        return Kind(None, text)
    for magic, what in _MAGIC:
        if head.startswith(magic):
            return Kind(None, what)
    if head[257:262] == b"ustar" and tarfile.is_tarfile(path):
        return Kind(
            None,
            "a tar archive: unpack it and give the file inside (PyTorch before 0.1.10 wrote "
            "checkpoints as tar archives: load and save those again with a PyTorch before 2)",
        )
    if _OLD_TORCH in head[:32]:
        return Kind(TORCH)
    safetensors = _safetensors(head, size)
    if safetensors is not None:
        return safetensors
    if head[:1] == b"\x80" and head[1] <= 5:
        return Kind(
            None,
            "a pickle that torch.save did not write: unpickling runs code of the file, so if you "
            "made it, save its weights as a state dict with torch.save",
        )
    return Kind(
        None, f"neither of torch.save nor of safetensors; it begins with the bytes {head[:8]!r}"
    )


def _zip(path: Path, size: int) -> Kind:
    if not zipfile.is_zipfile(path):
        return Kind(None, f"the beginning of a zip archive ({size} bytes): {_AGAIN}")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    inside = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inside or any(name.startswith("code/") for name in inside):
        return Kind(
            None,
            "a TorchScript archive, which holds code: load it with torch.jit.load and give its "
            "state_dict()",
        )
    if "data.pkl" in inside:
        return Kind(TORCH)
    if any(name.endswith((".pt2", "archive_format")) or "/models/" in name for name in names):
        return Kind(
            None,
            "a program of torch.export: load it with torch.export.load and give its state_dict",
        )
    if names and all(name.endswith(".npy") for name in names):
        return Kind(None, "an archive of NumPy arrays: give a state dict, names to tensors")
    return Kind(None, "a zip archive that torch.save did not write: unpack it")


def _text(path: Path, head: bytes) -> str | None:
    """What a text is; None: the file is no text."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(_LFS):
        return (
            "a git-lfs pointer, not the weights themselves: fetch them with `git lfs pull` in "
            "their repository, or download the file itself"
        )
    low = start[:256].lower()
    if low.startswith((b"<!doctype", b"<html", b"<head", b"<script", b"<!--", b"<?xml", b"<error")):
        what = "an XML document" if low.startswith((b"<?xml", b"<error")) else "a web page (HTML)"
        return f"{what}, as servers send instead of a file: download the file itself"
    if low[:1] in (b"{", b"[", b'"') and _is_json(path):
        return "a JSON text (a configuration, or a server's message), not weights"
    try:
        readable = head[:-4].decode() if len(head) == 1024 else head.decode()
    except UnicodeDecodeError:
        return None
    if not all(c.isprintable() or c in "\r\n\t" for c in readable):
        return None
    return f"a text, not weights; it begins with {readable.strip()[:40]!r}"


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes()[: 64 << 20])
    except ValueError:
        return False
    return True


def _safetensors(head: bytes, size: int) -> Kind | None:
    """8 bytes of length, then JSON of that length, then the tensors."""
    if len(head) < 10 or head[8:9] != b"{":
        return None
    length = struct.unpack("<Q", head[:8])[0]
    if length > 100 << 20:  # safetensors' own limit
        return None
    if 8 + length > size:
        return Kind(None, f"the beginning of a safetensors file ({size} bytes): {_AGAIN}")
    return Kind(SAFETENSORS)
