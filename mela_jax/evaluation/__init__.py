"""Scores in, figures with intervals, plots and a report out; NumPy only, no JAX."""
