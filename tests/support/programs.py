"""Programs that tests run in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys

LASTS = 120.0  # seconds that one may take


def run(program: str, **environment: str) -> str:
    """What ``program`` prints; it must end well."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program],
        capture_output=True,
        text=True,
        timeout=LASTS,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
