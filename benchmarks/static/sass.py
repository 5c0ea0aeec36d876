"""Reading a cubin: instructions with their source lines and control bits, registers, spills."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

_INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Za-z0-9_.]+)\s*(.*?)\s*;")
_WORD = re.compile(r"/\* (0x[0-9a-f]+) \*/")
_LINE = re.compile(r'//## File "([^"]+)", line (\d+)')
_LABEL = re.compile(r"^(\.L_\S+|\$\S+):")


@dataclass
class Instruction:
    """One machine instruction.

    `control` is (stall cycles, barrier written, barrier read, barriers waited for), as the
    compiler put it.
    """

    address: int
    predicate: str
    name: str
    operands: str
    file: str
    line: int
    control: tuple[int, int, int, int] = (1, 7, 7, 0)

    @property
    def base(self) -> str:
        return self.name.split(".")[0]


@dataclass
class Function:
    """A kernel's machine code; `labels` maps names to indices of instructions."""

    name: str
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)


def short_path(path: str) -> str:
    """The last folder and the name of a source file: "nmf/forward.py"."""
    return "/".join(Path(path).parts[-2:])


def tool(name: str, *arguments: str, cwd: Path | None = None) -> str:
    """What one of the CUDA tools in Triton's package prints."""
    import triton  # where it is missing, `attnops bench report` still shows committed results

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    command = [str(tools / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=cwd).stdout


def _control_bits(word: int) -> tuple[int, int, int, int]:
    return (word >> 41) & 15, (word >> 46) & 7, (word >> 49) & 7, (word >> 52) & 63


def read(cubin: Path) -> list[Function]:
    """The functions of a cubin that hold instructions.

    Raises:
        subprocess.CalledProcessError: nvdisasm cannot read it.
    """
    functions: dict[str, Function] = {}
    current, file, number, instruction = None, "", 0, None
    for line in tool("nvdisasm", "-c", "-gi", "-hex", str(cubin)).splitlines():
        if line.startswith(".text."):
            name = line[6:].rstrip(": ")
            current, instruction = functions.setdefault(name, Function(name)), None
            continue
        if current is None:
            continue
        if place := _LINE.search(line):
            file, number = short_path(place[1]), int(place[2])
        elif label := _LABEL.match(line):
            current.labels[label[1]] = len(current.instructions)
        elif found := _INSTRUCTION.match(line):
            address, predicate = int(found[1], 16), (found[2] or "").strip()
            instruction = Instruction(address, predicate, found[3], found[4], file, number)
            current.instructions.append(instruction)
        elif instruction is not None and (word := _WORD.search(line)):
            # An instruction has 16 bytes: the upper half, on a line of its own, holds the control.
            instruction.control = _control_bits(int(word[1], 16))
            instruction = None
    return [function for function in functions.values() if function.instructions]


def resources(cubin: Path) -> dict[str, tuple[int, int]]:
    """Registers a thread and bytes of static shared memory of every kernel of a cubin."""
    found = re.findall(
        r"Function (\S+):\s+REG:(\d+) \S+ SHARED:(\d+)", tool("cuobjdump", "-res-usage", str(cubin))
    )
    return {name: (int(registers), int(shared)) for name, registers, shared in found}
