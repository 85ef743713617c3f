"""Latency of a phone file on the host and on Android. Not built yet."""
