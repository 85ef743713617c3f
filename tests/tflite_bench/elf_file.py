"""Small ELF files: a header, and a loader where one is asked for."""

import struct


def elf_file(
    *, bits: int = 64, machine: int = 183, loader: str | None = "/system/bin/linker64"
) -> bytes:
    """Return a program of `machine` that asks for `loader`; it holds no code."""
    name = b"" if loader is None else loader.encode() + b"\0"
    count = 0 if loader is None else 1
    ident = b"\x7fELF" + bytes([2 if bits == 64 else 1, 1, 1]) + bytes(9)
    if bits == 64:
        head = struct.pack(
            "<HHIQQQIHHHHHH", 3, machine, 1, 0, 64, 0, 0, 64, 56, count, 0, 0, 0
        )
        segment = struct.pack("<IIQQQQQQ", 3, 4, 64 + 56, 0, 0, len(name), len(name), 1)
    else:
        head = struct.pack(
            "<HHIIIIIHHHHHH", 3, machine, 1, 0, 52, 0, 0, 52, 32, count, 0, 0, 0
        )
        segment = struct.pack("<IIIIIIII", 3, 52 + 32, 0, 0, len(name), len(name), 4, 1)
    return ident + head + (segment + name if count else b"")
