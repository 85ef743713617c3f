import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tflite_bench.elf_file import elf_file
from tflite_bench.elf import _read_header, read_abi
from tflite_bench.failures import BenchmarkError, Failure


@pytest.mark.parametrize(
    "bits, machine, loader, abi",
    [
        (64, 183, "/system/bin/linker64", "arm64-v8a"),
        (64, 183, None, "arm64-v8a"),
        (32, 40, "/system/bin/linker", "armeabi-v7a"),
        (64, 62, "/system/bin/linker64", "x86_64"),
        (32, 3, "/system/bin/linker", "x86"),
    ],
)
def test_the_abi_is_read(tmp_path, bits, machine, loader, abi):
    file = tmp_path / "program"
    file.write_bytes(elf_file(bits=bits, machine=machine, loader=loader))
    assert read_abi(file) == abi


@pytest.mark.parametrize(
    "content, failure, why",
    [
        (None, Failure.MISSING_BINARY, "No such file"),
        (b"", Failure.MISSING_BINARY, "not a program"),
        (b"#!/bin/sh\n" * 100, Failure.MISSING_BINARY, "not a program"),
        (elf_file()[:60], Failure.MISSING_BINARY, "not a program"),
        (elf_file()[:-5], Failure.MISSING_BINARY, "not a program"),
        (elf_file(machine=8), Failure.WRONG_ABI, "ELF machine 8"),
        (elf_file(bits=32), Failure.WRONG_ABI, "32 bits"),
        (
            elf_file(loader="/lib/ld-linux-aarch64.so.1"),
            Failure.WRONG_ABI,
            "for Linux",
        ),
    ],
)
def test_what_android_cannot_start_is_refused(tmp_path, content, failure, why):
    file = tmp_path / "program"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(BenchmarkError, match=why) as caught:
        read_abi(file)
    assert caught.value.failure is failure


def test_a_real_program_is_read_as_readelf_reads_it():
    readelf = shutil.which("readelf")
    if readelf is None or sys.platform != "linux":
        pytest.skip("no readelf here to compare with")
    program = str(Path(sys.executable).resolve())
    said = subprocess.run(
        [readelf, "--wide", "--file-header", "--program-headers", program],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    bits, _, loader = _read_header(Path(program).read_bytes())
    assert f"Class:                             ELF{bits}" in said
    assert (f"[Requesting program interpreter: {loader}]" in said) or loader is None
    assert (loader is None) == ("INTERP" not in said)
