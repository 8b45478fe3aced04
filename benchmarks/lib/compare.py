"""Two results of one benchmark, row by row: ``python -m benchmarks.lib.compare OLD.json NEW.json``.

Prints how many times OLD each figure of NEW is. Refuses results of two machines (`harness.comparable`) and of two
benchmarks: their times say nothing about each other.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.lib.harness import comparable

Result = Mapping[str, Any]
SETTINGS = ("rows", "position", "turns", "repeats")  # numbers that say what was measured


def compare(old: Result, new: Result) -> list[dict[str, object]]:
    """Rows that both have, told apart by their words and settings, with new over old of every other number.

    Raises:
        ValueError: different machines or benchmarks, or no row in common.
    """
    comparable(old, new)
    if old.get("benchmark") != new.get("benchmark"):
        raise ValueError(
            f"{old.get('benchmark')!r} and {new.get('benchmark')!r} are two benchmarks; give one's results"
        )
    before = {_key(row): row for row in old["rows"]}
    rows = [_ratios(before[_key(row)], row) for row in new["rows"] if _key(row) in before]
    if not rows:
        raise ValueError("the two results have no row in common; measure the same cases")
    return rows


def _key(row: Result) -> tuple[tuple[str, object], ...]:
    return tuple((key, value) for key, value in row.items() if isinstance(value, str) or key in SETTINGS)


def _ratios(old: Result, new: Result) -> dict[str, object]:
    row: dict[str, object] = dict(_key(new))
    for key, value in new.items():
        if key not in row and isinstance(value, (int, float)) and isinstance(old.get(key), (int, float)) and old[key]:
            row[key] = round(value / old[key], 3)
    return row


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    given = parser.parse_args(arguments)
    try:
        rows = compare(json.loads(given.old.read_text()), json.loads(given.new.read_text()))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for row in rows:
        print(json.dumps(row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
