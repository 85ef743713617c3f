"""Which Android ABI a program was built for, read from its ELF header.

Offsets and numbers are those of the ELF specification (System V ABI, chapters 4 and 5)
and of its per-processor supplements.
"""

import struct
from pathlib import Path

from tflite_bench.failures import BenchmarkError, Failure

# (bits, e_machine) -> the name that ro.product.cpu.abilist gives it.
ABIS = {
    (32, 40): "armeabi-v7a",
    (64, 183): "arm64-v8a",
    (32, 3): "x86",
    (64, 62): "x86_64",
    (64, 243): "riscv64",
}
PROGRAM_INTERPRETER = 3  # PT_INTERP
ANDROID_LINKERS = ("/system/bin/linker", "/system/bin/linker64")


def read_abi(path: Path) -> str:
    """Return the Android ABI of the program at `path`, such as ``arm64-v8a``.

    Raises:
        BenchmarkError: there is no such file, it is not a program, its processor is
            unknown to Android, or it asks for the loader of another system: the
            programs for Linux lie beside those for Android, under similar names.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BenchmarkError(
            Failure.MISSING_BINARY,
            f"cannot read the benchmark binary {path}: {error.strerror}; "
            "docs/android.md says where to get benchmark_model",
        ) from error
    try:
        bits, machine, interpreter = _read_header(content)
    except (struct.error, ValueError) as error:
        raise BenchmarkError(
            Failure.MISSING_BINARY,
            f"{path} is not a program (no whole ELF header); give the benchmark_model "
            "of docs/android.md, downloaded in full",
        ) from error
    abi = ABIS.get((bits, machine))
    if abi is None:
        raise BenchmarkError(
            Failure.WRONG_ABI,
            f"{path} is for a processor that Android does not have "
            f"({bits} bits, ELF machine {machine})",
        )
    if interpreter is not None and interpreter not in ANDROID_LINKERS:
        raise BenchmarkError(
            Failure.WRONG_ABI,
            f"{path} is a program for Linux (its loader is {interpreter}), not for "
            "Android; take the android build of benchmark_model",
        )
    return abi


def _read_header(content: bytes) -> tuple[int, int, str | None]:
    """Return the bits, the machine and the loader that the program asks for."""
    if len(content) < 52 or content[:4] != b"\x7fELF":
        raise ValueError("no ELF header")
    bits = 64 if content[4] == 2 else 32
    order = "<" if content[5] == 1 else ">"
    (machine,) = struct.unpack_from(f"{order}H", content, 18)
    if bits == 64:
        (start,) = struct.unpack_from(f"{order}Q", content, 32)
        size, count = struct.unpack_from(f"{order}HH", content, 54)
    else:
        (start,) = struct.unpack_from(f"{order}I", content, 28)
        size, count = struct.unpack_from(f"{order}HH", content, 42)
    for index in range(count):
        at = start + index * size
        if struct.unpack_from(f"{order}I", content, at)[0] != PROGRAM_INTERPRETER:
            continue
        if bits == 64:
            (where,) = struct.unpack_from(f"{order}Q", content, at + 8)
            (length,) = struct.unpack_from(f"{order}Q", content, at + 32)
        else:
            (where,) = struct.unpack_from(f"{order}I", content, at + 4)
            (length,) = struct.unpack_from(f"{order}I", content, at + 16)
        name = content[where : where + length]
        if len(name) != length:
            raise ValueError("cut short")
        return bits, machine, name.rstrip(b"\0").decode("ascii", "replace")
    return bits, machine, None
