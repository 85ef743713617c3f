"""Large memory pages for a process that computes on the CPU."""

import os
import sys

_TUNABLE = "glibc.malloc.hugetlb"


def use_huge_pages() -> None:
    """Start this program again with an allocator that asks for huge pages.

    XLA's CPU backend allocates the buffers of a step anew each time, gigabytes of them,
    and the kernel hands them out in pages of 4 KiB: on 2 cores a third or more of a
    training step went into page faults (MobileNetV3-Small at 128 px, batch 64: 222
    images/s before, 361 after). glibc reads its tunables only when a process starts, so
    the program replaces itself, once. Elsewhere than on Linux, and where the tunable is
    already set, nothing happens; an older glibc (before 2.35) ignores it.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if not sys.platform.startswith("linux") or _TUNABLE in tunables:
        return
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, [tunables, f"{_TUNABLE}=1"]))
    # orig_argv, not argv: it still has `-m package.module` and the interpreter's flags.
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
