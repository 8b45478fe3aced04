"""How requests ended, and whether the server may end them so.

Owns: what an answer is judged by, counts of many, memory before and after. Does not know: HTTP, who asks what.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WARM = 60.0  # seconds behind which memory should stay as it is
AROUND = 3  # readings whose median is the memory at a moment
HELD = (
    "chatterbox_streams", "chatterbox_engine_running", "chatterbox_engine_on_hold", "chatterbox_engine_waiting",
    "chatterbox_engine_parked", "chatterbox_engine_rows", "chatterbox_cache_leases",
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """One request that is over.

    kind: what was asked. status: of the answer, 0 where there was none. earned: statuses that the request may have.
    fault: what is wrong behind the status: a body that was cut, an error in events, no end.
    """

    kind: str
    status: int
    earned: tuple[int, ...] = (200,)
    fault: str = ""

    @property
    def is_earned(self) -> bool:
        return self.status in self.earned and not self.fault

    def __str__(self) -> str:
        return f"{self.kind}: {self.status}" + (f", {self.fault}" if self.fault else "")


def counted(outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    """A row for each kind: how many by status, and how many were not earned."""
    by_kind: dict[str, list[Outcome]] = {}
    for one in outcomes:
        by_kind.setdefault(one.kind, []).append(one)
    rows = []
    for kind, all_of_it in sorted(by_kind.items()):
        statuses = Counter(one.status for one in all_of_it)
        told = ", ".join(f"{status or 'none'}: {count}" for status, count in sorted(statuses.items()))
        wrong = sum(not one.is_earned for one in all_of_it)
        rows.append({"table": "answers", "asked": kind, "times": len(all_of_it), "statuses": told, "not_earned": wrong})
    return rows


def grown(readings: Sequence[tuple[float, float]], warm: float = WARM) -> dict[str, float]:
    """Resident MiB once ``warm`` seconds are over, half-way from there, and at the end; the growth in per cent.

    ``readings``: seconds since the start, and MiB. Raises ValueError: none is from behind `warm` seconds.
    """
    after = [mib for seconds, mib in readings if seconds >= warm]
    if not after:
        raise ValueError(f"no reading is from behind {warm:g} seconds; measure longer")
    half = len(after) // 2
    before, midst, end = (statistics.median(some) for some in (after[:AROUND], after[half:][:AROUND], after[-AROUND:]))
    figures = {"mib_after_warm_up": before, "mib_half_way": midst, "mib_at_end": end}
    growth = 100 * (end / before - 1)
    return {**{name: round(mib, 1) for name, mib in figures.items()}, "growth_percent": round(growth, 2)}


def held(metrics: Mapping[str, float]) -> dict[str, float]:
    """Rows, requests and leases that the server holds now, by a short name. Raises KeyError: it does not tell one."""
    return {name.removeprefix("chatterbox_"): metrics[name] for name in HELD}
