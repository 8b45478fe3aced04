"""What does importing this package cost? Fresh processes in turn with one that imports torch alone.

``python -m benchmarks.speed.import_time -o build/results/import_time.json``: milliseconds of a whole process, with
the interpreter's own start, and how many times that is ``import torch`` of the same turn.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from functools import partial
from pathlib import Path

from benchmarks.lib.harness import in_turns, ratio, report, summary

BASE = "import torch"
STATEMENTS = (
    "pass",
    BASE,
    "import chatterbox",
    "from chatterbox import ChatterboxTTS",
    "from chatterbox import ChatterboxMultilingualTTS, ChatterboxTTS, ChatterboxTurboTTS, ChatterboxVC",
    "from chatterbox.kvcache import GlobalKVCacheManager",
    "import chatterbox.cli.main",
)


def execute(statement: str) -> None:
    subprocess.run([sys.executable, "-c", statement], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    times = in_turns({statement: partial(execute, statement) for statement in STATEMENTS}, arguments.repeats)
    rows = [
        {"statement": statement, **summary(taken), **{f"torch_{k}": v for k, v in ratio(taken, times[BASE]).items()}}
        for statement, taken in times.items()
    ]
    report("import_time", rows, arguments.output, unit="milliseconds of a process")


if __name__ == "__main__":
    main()
