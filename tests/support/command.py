"""The ``chatterbox`` command as a function."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from chatterbox.cli import main

Run = Callable[..., tuple[int, str, str]]


def command(capsys: pytest.CaptureFixture[str], *first: str) -> Run:
    """Runs ``chatterbox FIRST …``: (exit code, standard output, standard error)."""

    def call(*arguments: str) -> tuple[int, str, str]:
        try:
            code = main([*first, *arguments])
        except SystemExit as exit_:
            code = exit_.code
        return code, *capsys.readouterr()

    return call
