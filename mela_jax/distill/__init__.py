"""Soft losses: what a student learns from its teacher, one file per kind of knowledge."""
