"""Latency of a phone file on the host and on Android."""
