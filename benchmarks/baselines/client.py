"""The asking end of `system.py`: a package's process, kept between questions."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OURS, UPSTREAM, FORKED = "chatterbox-kvcache", "chatterbox-tts 0.1.7", "chatterbox-streaming 0.1.2"
MODULES = {
    OURS: "benchmarks.baselines.ours",
    UPSTREAM: "benchmarks.baselines.upstream",
    FORKED: "benchmarks.baselines.forked",
}


def own_packages() -> dict[str, str]:
    """This environment, but another interpreter imports what is installed for it."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


class Baseline:
    """``name`` of `MODULES`, loaded from ``folder`` by the interpreter ``python``."""

    def __init__(
        self, name: str, python: str, folder: str | Path, *, module: str = "", source: Path | None = None
    ) -> None:
        """Args:
        module: to run in place of the one in `MODULES`.
        source: folder with a package to import in place of the one that is installed.
        """
        self.name = name
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed on exit
        path = [str(ROOT), *([] if source is None else [str(source)])]
        self._process = subprocess.Popen(
            [python, "-m", module or MODULES[name], str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=own_packages() | {"PYTHONPATH": os.pathsep.join(path)},
        )

    def ask(self, name: str, **arguments: Any) -> dict[str, Any]:
        """The answer to a question. Raises RuntimeError with what the process last said if it has none."""
        try:
            print(json.dumps({"ask": name, **arguments}), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        answer = json.loads(line) if line else {"error": f"it ended with code {self._process.wait()}\n{self._said()}"}
        if "error" in answer:
            raise RuntimeError(f"{self.name} has no answer to {name!r}: {answer['error']}")
        return answer

    def _said(self) -> str:
        self._log.seek(0)
        return self._log.read()[-2000:]

    def __enter__(self) -> Baseline:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has died
            self._process.stdin.close()
        self._process.wait()
        self._log.close()
