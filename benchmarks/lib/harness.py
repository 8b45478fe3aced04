"""What all benchmarks share: where they ran, medians of turns, ratios with their spread, a table, one JSON file.

Owns: what a result says about its machine, and the refusal to compare those of two. Does not know: what is measured.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
MACHINE = ("device", "cpu", "cores", "threads", "vector_instructions")  # what two results must share to be compared


def environment() -> dict[str, str | int]:
    """Hardware, versions and commit that a figure belongs to."""
    command = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": _version("transformers"),
        "chatterbox": _version("chatterbox-kvcache"),
        "commit": commit.stdout.strip() or "unknown",
    }


def cpu_name() -> str:
    """The processor's name as it gives it itself, or its architecture where the system does not say."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def comparable(a: Mapping[str, object], b: Mapping[str, object]) -> None:
    """Pass if two results, as `report` writes them, were measured on machines alike.

    Raises:
        ValueError: they were not, or one does not say; names what differs.
    """
    one, other = (result.get("environment") or {} for result in (a, b))
    for field in MACHINE:
        if field not in one or field not in other:
            raise ValueError(f"a result does not say its {field}, so nothing can be compared with it; run it again")
        if one[field] != other[field]:
            raise ValueError(
                f"the results are of different machines, {field} {one[field]!r} and {other[field]!r}; "
                "compare what ran in turn in one run"
            )


def in_turns(cases: Mapping[str, Callable[[], object]], repeats: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Milliseconds of each case, run A B C A B C … after ``warm_up`` turns that do not count.

    What slows a turn slows all of it.
    """
    times: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(warm_up + repeats):
        for name, case in cases.items():
            synchronize()
            started = time.perf_counter()
            case()
            synchronize()
            if turn >= warm_up:
                times[name].append(1000 * (time.perf_counter() - started))
    return times


def ratio(a: Sequence[float], b: Sequence[float]) -> dict[str, object]:
    """How many times ``a`` is ``b``, turn by turn: the median of the turns' ratios, and the least and greatest.

    Raises:
        ValueError: the two were not measured in the same turns.
    """
    if not a or len(a) != len(b):
        raise ValueError(f"a ratio needs both cases in every turn, got {len(a)} and {len(b)} of them")
    ratios = [one / other for one, other in zip(a, b, strict=True)]
    return {"ratio": round(statistics.median(ratios), 3), "range": [round(min(ratios), 3), round(max(ratios), 3)]}


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
    print(json.dumps(write(name, rows, output, **about)))


def write(name: str, rows: Sequence[Mapping[str, object]], output: Path | None, **about: object) -> dict[str, object]:
    """The result that `report` prints, written to ``output``; a long run calls it after each of its parts."""
    result = {"benchmark": name, **about, "rows": list(rows), "command": command(), "environment": environment()}
    if output is not None:
        save(result, output)
    return result


def save(result: Mapping[str, object], output: Path) -> None:
    """Write a result to the file ``output``, whole or not at all, and the folders that it is in."""
    output.parent.mkdir(parents=True, exist_ok=True)
    part = output.with_name(f"{output.name}.part")
    part.write_text(json.dumps(result, indent=1) + "\n")
    part.replace(output)


def command() -> str:
    """The command that makes this result, without where on the disk anything lies."""
    script, *arguments = sys.argv
    module = ".".join(Path(script).with_suffix("").parts[-2:])
    shown = [Path(argument).name if Path(argument).is_absolute() else argument for argument in arguments]
    return " ".join(["python", "-m", f"benchmarks.{module}", *shown])


def _shown(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
