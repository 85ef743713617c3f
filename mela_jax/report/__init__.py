"""Telling: pages, plots, tables and words from the figures of `evaluation`."""
