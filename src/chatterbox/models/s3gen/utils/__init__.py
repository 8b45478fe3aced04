"""Upstream's import paths."""
