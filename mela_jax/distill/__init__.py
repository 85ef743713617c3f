"""Soft losses: what a student learns from a teacher, one file per kind."""
