"""Benchmarks: each prints a ratio measured in turn in one run."""
