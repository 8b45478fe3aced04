"""What all benchmarks share: where they ran, medians of turns, a table, one JSON file."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch


def environment() -> dict[str, str | int]:
    """Hardware, versions and commit that a figure belongs to."""
    here = Path(__file__).parent
    command = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(command, capture_output=True, text=True, cwd=here, check=False)
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "threads": torch.get_num_threads(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit.stdout.strip() or "unknown",
    }


def in_turns(cases: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each case, run A B C A B C … after one turn that does not count. What slows a turn slows all."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(repeats + 1):
        for name, case in cases.items():
            synchronize()
            started = time.perf_counter()
            case()
            synchronize()
            if turn:
                times[name].append(1000 * (time.perf_counter() - started))
    return times


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def summary(times: Sequence[float]) -> dict[str, float]:
    """Median and quartiles, rounded."""
    low, median, high = statistics.quantiles(times, n=4) if len(times) > 1 else [times[0]] * 3
    return {"median_ms": round(median, 3), "quartiles_ms": [round(low, 3), round(high, 3)], "repeats": len(times)}


def report(name: str, rows: Sequence[Mapping[str, object]], output: Path | None, **about: object) -> None:
    """Print ``rows`` as a table and the whole result as one JSON line; write it to ``output``."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns] + [[_shown(row.get(column, "")) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    result = {"benchmark": name, **about, "rows": list(rows), "environment": environment()}
    print(json.dumps(result))
    if output is not None:
        output.write_text(json.dumps(result, indent=1) + "\n")


def _shown(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
