"""A server as its users have it: a process of its own at a free port of this machine.

Owns: how it is started, ended and killed, its log, its memory. Does not know: what it is asked.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from benchmarks.lib.harness import ROOT

START_SECONDS, END_SECONDS = 300.0, 60.0
MIB = 2**20
_URL = re.compile(r"http://[0-9.:]+")


class Process:
    """A server that speaks: ``url``. Leaving a ``with`` block ends it."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
        """``command``: prints its address once it speaks. ``log``: gets all that it prints.

        Raises:
            RuntimeError: it has ended, or does not speak within `START_SECONDS`.
        """
        self._log = log
        with log.open("ab") as file:
            file.truncate(0)
            own = os.environ | {"PYTHONPATH": str(ROOT / "src")} if environment is None else environment
            self._process = subprocess.Popen(command, stdout=file, stderr=file, env=own, cwd=ROOT)
        self.url = self._spoken_at(time.monotonic() + START_SECONDS)

    def _spoken_at(self, until: float) -> str:
        while time.monotonic() < until and self._process.poll() is None:
            if found := _URL.search(self.said()):
                return found.group()
            time.sleep(0.02)
        self.kill()
        raise RuntimeError(f"no server speaks: {self.said()[-2000:] or 'it said nothing'}")

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    @property
    def resident_mib(self) -> float:
        return float(psutil.Process(self.pid).memory_info().rss) / MIB

    def said(self) -> str:
        return self._log.read_text(errors="replace")

    def kill(self) -> None:
        """At once, as a machine that loses power."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """As it is asked to end. Raises RuntimeError: it does not."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise RuntimeError(f"the server did not end within {END_SECONDS:g} s of SIGTERM") from None

    def __enter__(self) -> Process:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self.is_alive:
            self.kill() if error is not None else self.stop()


def served(folder: Path, *settings: str, model: str = "tiny") -> Process:
    """``chatterbox serve`` with voices, jobs and log in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    folders = [f"server.{name}={folder / name}" for name in ("voices", "jobs")]
    command = [sys.executable, "-m", "chatterbox.cli", "serve", "--port", "0", "--model", model, *folders, *settings]
    return Process(command, folder / "server.log")
