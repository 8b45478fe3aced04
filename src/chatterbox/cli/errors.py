"""Errors that a user can mend: which exit code they have.

Owns: `UsageError`, exit code 2; everything else that fails has 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

USAGE = 2


class UsageError(ValueError):
    """The command line asks for something that cannot be."""


@contextmanager
def as_usage(*but: type[Exception]) -> Iterator[None]:
    """A ValueError within is one of usage, unless it is one of ``but``."""
    passed_on: tuple[type[Exception], ...] = (UsageError, *but)
    try:
        yield
    except passed_on:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from None
