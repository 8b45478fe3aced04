"""Which prefixes should a full prefix cache keep? 500 voices, their popularity a Zipf law, no model.

``python -m benchmarks.kvcache.eviction -o build/results/eviction.json``: the manager is driven as `Prefiller`
drives it (what is new of a voice in one pass with its texts; else a text, and the empty text of the same length), with
segments of the published model's proportions at 1/64 of its width and budgets to match. A pass costs what it costs the
published T3 on two CPU cores, a fixed part and one per position, both solved from results/prefill.json; a clock of the
simulation's own makes the run the same everywhere.

``steady``: popularity never changes. ``shifting``: every 2,000 requests half of the voices change their ranks, as a day
goes by. Every request asserts, while its leases are held and inside each fill, that what all tiers hold
is within the budget. Two more runs are at the full width and read the process's memory: one asserts the same, one has
a limit for the process instead.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import psutil
import torch

from benchmarks.lib.harness import ROOT, report
from chatterbox.config import PressureConfig, to_dict
from chatterbox.kvcache import GlobalKVCacheManager, MemoryMonitor, Segment, make_monitor
from chatterbox.kvcache.prefix.manager import Lease, PrefillResult
from chatterbox.kvcache.prefix.memory_pressure import return_free_memory
from chatterbox.kvcache.prefix.tiers import PREFIX_EVICTION
from chatterbox.kvcache.prefix.tree import NO_TEXT, Label

COSTS = ROOT / "benchmarks" / "results" / "prefill.json"
Costs = tuple[float, float]  # milliseconds of a prefill, and of each of its positions
MB = 10**6
NUM_VOICES, ZIPF = 500, 1.1
COND_LEN = 33  # positions before the emotion
WIDTH = 30 * 1024  # key elements of a position of the published model; as many values; two bytes each
SCALE = 64
NUM_OPENINGS, STOCK_SHARE = 60, 0.25  # texts begin alike, and a quarter of them is said again and again
SHIFT_EVERY, SHIFT_SHARE = 2_000, 0.5


@dataclass(frozen=True)
class Budgets:
    device_mb: int
    host_mb: int = 0
    total_mb: int | None = None
    host_codec: str = "none"

    @property
    def total(self) -> int:
        return (self.device_mb + self.host_mb if self.total_mb is None else self.total_mb) * MB


SHARED = Budgets(192, 256, 256, "int8")  # one budget of 256 MB over device and host memory
BUDGETS = [Budgets(128), Budgets(256), Budgets(512), Budgets(1024), SHARED]


class Workload:
    """Requests (voice, emotion and text labels), the same for a seed."""

    def __init__(self, *, shifting: bool, seed: int = 0) -> None:
        self.rng, self.shifting = random.Random(seed), shifting
        self.ranks = list(range(NUM_VOICES))
        self.voice_weights = zipf(NUM_VOICES)
        self.opening_weights = zipf(NUM_OPENINGS)
        self.openings = [self._tokens(self.rng.randint(5, 30)) for _ in range(NUM_OPENINGS)]
        self.stock = [opening + self._tokens(self.rng.randint(5, 60)) for opening in self.openings]

    def requests(self, count: int) -> Iterator[tuple[str, list[Label]]]:
        for index in range(count):
            if self.shifting and index and index % SHIFT_EVERY == 0:
                self._shift()
            (place,) = self.rng.choices(self.ranks, cum_weights=self.voice_weights)
            (topic,) = self.rng.choices(range(NUM_OPENINGS), cum_weights=self.opening_weights)
            is_stock = self.rng.random() < STOCK_SHARE
            text = self.stock[topic] if is_stock else self.openings[topic] + self._tokens(self.rng.randint(20, 100))
            emotion = self.rng.choices((0.5, 0.25, 0.75), (0.8, 0.1, 0.1))[0]
            yield f"voice {place}", [("emotion", emotion), *text]

    def _tokens(self, num: int) -> list[int]:
        return [self.rng.randrange(2, 700) for _ in range(num)]

    def _shift(self) -> None:
        places = self.rng.sample(range(NUM_VOICES), int(SHIFT_SHARE * NUM_VOICES))
        moved = self.rng.sample(places, len(places))
        old = list(self.ranks)
        for source, target in zip(places, moved, strict=True):
            self.ranks[target] = old[source]


class Simulation:
    """One manager, driven by a workload, on a clock that prefills advance."""

    def __init__(
        self, costs: Costs, budgets: Budgets, policy: str, *, scale: int, monitor: MemoryMonitor | None = None
    ) -> None:
        self.now_ms, self.uncached_ms, self.peak, self.budgets, self.scale = 0.0, 0.0, 0, budgets, scale
        self.fixed_ms, self.position_ms = costs
        self.ms_of_new: float | None = None  # of a position of the request's one pass, if its voice is new
        self.manager = GlobalKVCacheManager(
            budget_bytes=budgets.device_mb * MB // scale,
            host_bytes=budgets.host_mb * MB // scale,
            total_bytes=budgets.total // scale,
            host_codec=budgets.host_codec,
            eviction_policy=policy,
            monitor=monitor,
            clock=lambda: self.now_ms / 1000,
        )

    def run(self, requests: Iterator[tuple[str, list[Label]]]) -> None:
        for voice, labels in requests:
            end, base = COND_LEN + len(labels), labels[:1]
            self.uncached_ms += self._pass_ms(2 * end)
            self.ms_of_new = None
            with self._acquire(voice, base, rows=2, pass_end=end):
                leases = [self._acquire(voice, row) for row in (labels, base + [NO_TEXT] * (len(labels) - 1))]
            self._require_budget()
            for lease in leases:
                lease.release()
        self.manager.check_integrity()

    def _pass_ms(self, num_positions: int) -> float:
        return self.fixed_ms + self.position_ms * num_positions

    def _acquire(self, voice: str, labels: list[Label], rows: int = 1, pass_end: int | None = None) -> Lease:
        """``pass_end``: what is new of a voice is computed in one pass of both rows with the texts that follow it."""

        def fill(known: Sequence[Segment]) -> PrefillResult:
            self._require_budget()
            start, end = sum(map(len, known)), COND_LEN + len(labels)
            ms_per_position = self.ms_of_new
            if ms_per_position is None:
                num_positions = rows * ((pass_end or end) - start)
                self.now_ms += (ms := self._pass_ms(num_positions))
                ms_per_position = ms / num_positions
            if pass_end:
                self.ms_of_new = ms_per_position
            keys = torch.ones(1, 1, end - start, WIDTH // self.scale, dtype=torch.bfloat16)
            return PrefillResult(Segment(keys, keys.clone(), start), ms_per_position * rows * (end - start))

        return self.manager.acquire(voice, labels, fill)

    def _require_budget(self) -> None:
        held = self.manager.nbytes
        self.peak = max(self.peak, held)
        if held * self.scale > self.budgets.total:
            raise RuntimeError(f"{held} bytes in all tiers, budget {self.budgets.total // self.scale}")


def zipf(count: int) -> list[float]:
    """Cumulative weights 1 / rank ** ZIPF."""
    return list(accumulate(1 / rank**ZIPF for rank in range(1, count + 1)))


def prefill_costs(measured: Path) -> Costs:
    """Milliseconds of a prefill and of each of its positions, from the medians of what `prefill` measured."""
    measured = json.loads(measured.read_text())
    times = {row["case"]: row["median_ms"] for row in measured["rows"]}
    whole = times["known voice, new text"] - times["known voice and text"]
    half = times["known voice, half of the text known"] - times["known voice and text"]
    position_ms = (whole - half) / (measured["text_tokens"] / 2)
    return whole - position_ms * measured["text_tokens"], position_ms


def simulate(costs: Costs, name: str, budgets: Budgets, policy: str, count: int) -> dict[str, object]:
    simulation = Simulation(costs, budgets, policy, scale=SCALE)
    simulation.run(Workload(shifting=name == "shifting").requests(count))
    return row_of(name, simulation, policy, count)


def row_of(name: str, simulation: Simulation, policy: str, count: int) -> dict[str, object]:
    """computed_ms is of a request; saved is the share of the milliseconds that it takes where nothing is kept."""
    budgets, stats = simulation.budgets, simulation.manager.stats()
    return {
        "workload": name,
        "device_mb": budgets.device_mb,
        "host_mb": budgets.host_mb,
        "total_mb": budgets.total // MB,
        "policy": policy,
        "hit_rate": round(stats["hit_rate"], 4),
        "computed_ms": round(stats["prefill_ms"] / count, 1),
        "saved": round(1 - stats["prefill_ms"] / simulation.uncached_ms, 4),
        "evictions": int(stats["evictions"]),
        "peak_mb": round(simulation.peak * simulation.scale / MB, 1),
    }


def full_size(costs: Costs, budgets: Budgets, count: int) -> dict[str, object]:
    """The published model's width: what the tiers hold, and what the process does, with what glibc has not returned."""
    process = psutil.Process()
    before = process.memory_info().rss
    simulation = Simulation(costs, budgets, "cost", scale=1)
    simulation.run(Workload(shifting=False).requests(count))
    grew = process.memory_info().rss - before
    return_free_memory()
    trimmed = process.memory_info().rss - before
    return {
        **row_of("steady", simulation, "cost", count),
        "requests": count,
        "process_grew_mb": round(grew / MB, 1),
        "process_grew_trimmed_mb": round(trimmed / MB, 1),
    }


def under_pressure(costs: Costs, count: int, allowed_mb: int = 800) -> dict[str, object]:
    """The same with a budget beyond what the process may take: the monitor, on the system's figures, holds it there."""
    process = psutil.Process()
    gc.collect()  # the run before is a cycle
    return_free_memory()
    before = process.memory_info().rss
    limit = PressureConfig(soft_mib=256, hard_mib=128, process_mib=(before + allowed_mb * MB) // 2**20, interval_ms=20)
    simulation = Simulation(costs, Budgets(5 * allowed_mb), "cost", scale=1, monitor=make_monitor(limit))
    peak = 0
    for request in Workload(shifting=False).requests(count):
        simulation.run(iter([request]))
        peak = max(peak, process.memory_info().rss - before)
    stats = simulation.manager.stats()
    return {
        "requests": count,
        "budget_mb": 5 * allowed_mb,
        "process_may_grow_mb": allowed_mb,
        "process_grew_at_most_mb": round(peak / MB, 1),
        "cache_holds_mb": round(simulation.manager.nbytes / MB, 1),
        "hit_rate": round(stats["hit_rate"], 4),
        **{name: int(value) for name, value in stats.items() if name.startswith("pressure")},
        "settings": to_dict(limit),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--costs", type=Path, default=COSTS, help="a result of `prefill`")
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--full-size-requests", type=int, default=1_000)
    arguments = parser.parse_args()
    costs = prefill_costs(arguments.costs)
    whole = full_size(costs, SHARED, arguments.full_size_requests)  # first: the heap is as it was
    pressure = under_pressure(costs, arguments.full_size_requests)
    rows = [
        simulate(costs, name, budgets, policy, arguments.requests)
        for name in ("steady", "shifting")
        for budgets in BUDGETS
        for policy in sorted(PREFIX_EVICTION)
    ]
    fixed_ms, position_ms = costs
    report(
        "eviction",
        rows,
        arguments.output,
        requests=arguments.requests,
        voices=NUM_VOICES,
        zipf=ZIPF,
        fill_ms={"fixed": round(fixed_ms, 1), "position": round(position_ms, 2)},
        full_size=whole,
        under_pressure=pressure,
        asserted="all tiers together within the budget, inside every fill and under every request's leases",
    )


if __name__ == "__main__":
    main()
