"""The ``chatterbox`` command, one module for each of its commands; `main` is the entry point."""

from chatterbox.cli.main import main

__all__ = ["main"]
