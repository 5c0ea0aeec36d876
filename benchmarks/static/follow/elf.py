"""What a cubin says of its kernels beside their code: parameters and constants."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

_PARAMETER, _PARAMETER_BANK = 0x17, 0x0A  # attributes of .nv.info
_SIZED = 4  # the format of attributes that have a size and data


@dataclass
class Layout:
    """Where a kernel's parameters lie in its constant bank: offset and size, in order."""

    base: int = 0
    parameters: dict[int, tuple[int, int]] = field(default_factory=dict)
    constants: dict[int, bytes] = field(default_factory=dict)  # other banks


def layouts(cubin: Path) -> dict[str, Layout]:
    """Of every kernel of a cubin."""
    data = cubin.read_bytes()
    start, entry_size, count, names_index = struct.unpack_from("<Q10xHHH", data, 0x28)
    headers = [struct.unpack_from("<IIQQQQ", data, start + i * entry_size) for i in range(count)]
    names_at = headers[names_index][4]
    found: dict[str, Layout] = {}
    shared: dict[int, bytes] = {}
    for name_offset, _, _, _, offset, size in headers:
        begin = names_at + name_offset
        name = data[begin : data.index(0, begin)].decode()
        body = data[offset : offset + size]
        if name.startswith(".nv.info."):
            _read_info(body, found.setdefault(name.removeprefix(".nv.info."), Layout()))
        elif name.startswith(".nv.constant"):
            bank, _, kernel = name.removeprefix(".nv.constant").partition(".")
            if kernel and bank != "0":
                found.setdefault(kernel, Layout()).constants[int(bank)] = body
            elif not kernel:
                shared[int(bank)] = body
    for layout in found.values():
        layout.constants = shared | layout.constants
    return found


def _read_info(body: bytes, layout: Layout) -> None:
    at = 0
    while at + 4 <= len(body):
        form, attribute, size = struct.unpack_from("<BBH", body, at)
        at += 4
        if form != _SIZED:
            continue
        if attribute == _PARAMETER:
            _, ordinal, offset, flags = struct.unpack_from("<IHHI", body, at)
            layout.parameters[ordinal] = offset, flags >> 18
        elif attribute == _PARAMETER_BANK:
            (layout.base,) = struct.unpack_from("<H", body, at + 4)
        at += size
