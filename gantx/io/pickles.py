"""Checks pickles and files of torch.save before they are opened: what they announce, the file must hold.

A pickle of a few bytes can announce gigabytes, or nest a tuple within itself so often that hashing it takes
forever. The instructions are therefore read without running them: nothing is built here.
"""

from __future__ import annotations

import mmap
import pickletools
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from gantx.io import archives

Buffer = bytes | mmap.mmap
LARGEST_TREE = 10_000_000  # elements of an object, each counted as often as it is reached
DEEPEST = 1000  # levels of tuples, lists and dictionaries within one another
ALLOWANCE = 2**26  # bytes by which a zip may unpack to more than it has: TorchScript compresses its code
_TEXT = 2**16  # bytes of a name or number that ends with its line
_PICKLES_OF_LEGACY = (
    5  # in a file of torch.save before PyTorch 1.6: magic number, version, system, data, keys
)
_MARK = pickletools.markobject
_OPCODES = {ord(opcode.code): opcode for opcode in pickletools.opcodes}
_LENGTHS = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}


class _Size(NamedTuple):
    """How many elements an object has in all, and how deep they are within one another."""

    elements: int = 1
    depth: int = 0


def check_pickle(data: Buffer, start: int = 0) -> int:
    """Check one pickle.

    Args:
        data: that contains it.
        start: its first byte.

    Returns:
        The position after its last byte.

    Raises:
        ValueError: it is cut off, announces more than there is, or nests too much.
    """
    position, stack, memo = start, list[_Size | None](), dict[int, _Size]()
    while True:
        if position >= len(data):
            raise ValueError("it is cut off")
        opcode = _OPCODES.get(data[position])
        if opcode is None:
            raise ValueError(f"byte {position:,} is no instruction of a pickle")
        argument, position = _argument(data, position + 1, opcode.arg)
        if opcode.name == "STOP":
            return position
        _follow(opcode, argument, stack, memo)


def _argument(data: Buffer, position: int, kind: Any) -> tuple[int | None, int]:
    """The argument of an instruction as a number, where it is an index of the memo; and where it ends."""
    if kind is None:
        return None, position
    if kind.n == pickletools.UP_TO_NEWLINE:
        lines = 2 if kind.name == "stringnl_noescape_pair" else 1
        begin = position
        for _ in range(lines):
            end = data.find(b"\n", position, position + _TEXT)
            if end < 0:
                raise ValueError("a line is cut off or too long")
            position = end + 1
        text = data[begin : position - 1]
        return int(text) if lines == 1 and len(text) < 20 and text.isdigit() else None, position
    if kind.n >= 0:
        length, end = kind.n, position + kind.n
        number = int.from_bytes(data[position:end], "little")
    else:
        width = _LENGTHS[kind.n]
        length = int.from_bytes(data[position : position + width], "little")
        number, end = None, position + width + length
    if end > len(data):
        raise ValueError(f"it announces {length:,} bytes where {max(0, len(data) - position):,} are left")
    return number, end


def _follow(opcode: Any, argument: int | None, stack: list[_Size | None], memo: dict[int, _Size]) -> None:
    """What an instruction does to the sizes of the objects on the stack; None is a mark on it."""
    name = opcode.name
    if name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
        if not stack or stack[-1] is None:
            raise ValueError("it is damaged: nothing to remember")
        index = len(memo) if name == "MEMOIZE" else argument
        if index is None or index > 2 * len(memo) + 1000:
            raise ValueError("it numbers more objects than it can contain")
        memo[index] = stack[-1]
        return
    if name in ("GET", "BINGET", "LONG_BINGET"):
        if argument is None or argument not in memo:
            raise ValueError("it is damaged: it refers to an object that is not there")
        stack.append(memo[argument])
        return
    if name == "MARK":
        stack.append(None)
        return
    if name == "DUP":
        if not stack:
            raise ValueError("it is damaged: nothing to repeat")
        stack.append(stack[-1])
        return
    taken = _taken(opcode.stack_before, stack)
    if len(opcode.stack_after) == 0:
        return
    elements = 1 + sum(part.elements for part in taken)
    depth = 1 + max((part.depth for part in taken), default=-1)
    if elements > LARGEST_TREE or depth > DEEPEST:
        raise ValueError("its objects contain one another too often or too deep")
    stack.extend([_Size(elements, depth)] * len(opcode.stack_after))


def _taken(before: list[Any], stack: list[_Size | None]) -> list[_Size]:
    """Remove from the stack what an instruction takes: a number of objects, or all down to the last mark."""
    taken: list[_Size] = []
    wanted = len(before)
    if _MARK in before:
        while stack and stack[-1] is not None:
            taken.append(stack.pop())  # type: ignore[arg-type]
        if not stack:
            raise ValueError("it is damaged: a mark is missing")
        stack.pop()
        wanted = before.index(_MARK)
    for _ in range(wanted):
        if not stack or stack[-1] is None:
            raise ValueError("it is damaged: an object is missing")
        taken.append(stack.pop())  # type: ignore[arg-type]
    return taken


def check_torch_file(file: BinaryIO | Path) -> None:
    """Check a file of torch.save or TorchScript: a zip, or from before PyTorch 1.6 a series of pickles.

    Args:
        file: its path, or the open file.

    Raises:
        ValueError: it is damaged, or announces more than it can contain.
        OSError: it cannot be read.
    """
    if isinstance(file, Path):
        with file.open("rb") as opened:
            check_torch_file(opened)
        return
    size = file.seek(0, 2)
    file.seek(0)
    if file.read(4) != b"PK\x03\x04":
        file.seek(0)
        data = _mapped(file)
        position = 0
        for _ in range(_PICKLES_OF_LEGACY):
            position = check_pickle(data, position)
        file.seek(0)
        return
    with archives.open_zip(file) as archive:
        if archive.comment:  # where it could hide a second directory
            raise ValueError("a zip with a comment, which torch.save does not write")
        if (unpacked := archives.unpacked_bytes(archive)) > size + ALLOWANCE:
            raise ValueError(f"{size:,} bytes that unpack to {unpacked:,}")
        for entry in archive.infolist():
            if entry.filename.endswith((".pkl", ".pickle")):
                check_pickle(archives.read_entry(archive, entry))
    file.seek(0)


def _mapped(file: BinaryIO) -> Buffer:
    """The content of a file, mapped where it is one on the disk."""
    try:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):  # in memory, or empty
        return file.read()
