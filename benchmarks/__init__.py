"""Benchmarks: each script answers one question with figures measured in one run."""

import time

STARTED = time.perf_counter()
