"""Streaming with the embedded voice: is it the same speech, how soon, how steadily, at what cost, how well joined?

``python -m benchmarks.streaming.streaming -o build/results/streaming.json``, or ``make bench-streaming``: a
quarter of an hour on two cores; ``--quick`` takes two minutes. Sections can be run one by one and keep the others'
rows; ``measured_in`` has the environment of each:

- ``equivalence``: tokens and length of streams against whole speech; log-mel distance to whole audio of the same
  speech_tokens and noise, and, as a floor, between whole audios of two noises; the click measure at seams and inside.
- ``schedule``: time to first audio, gaps, a simulated player, T3's part; one setting differs from the defaults at once.
- ``long``: texts of 5, 20, 100 utterances with caches on and off, with time, hits and memory.
- ``continuity``: 20 paragraphs, sentence by sentence, in each of the three modes.

The comparison with chatterbox-streaming 0.1.2 at the published size is `benchmarks.speed.baselines`, what a prefix is
worth there `benchmarks.kvcache.prefill`, an hour in one stream `benchmarks.streaming.hour`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.lib.harness import environment, report
from benchmarks.streaming.audio import audio_equivalence, continuity, equivalence
from benchmarks.streaming.times import NO_PREFIX, NOTHING, ON, long_texts, schedules
from chatterbox import ChatterboxTTS

Row = dict[str, Any]
SECTIONS = {
    "equivalence": ("tokens", "audio"),
    "schedule": ("schedule",),
    "long": ("long texts",),
    "continuity": ("continuity",),
}


def measure(section: str, quick: bool) -> list[Row]:
    tts = ChatterboxTTS.from_pretrained("cpu", model="tiny")
    run: dict[str, Callable[[], list[Row]]] = {
        "equivalence": lambda: equivalence(tts, 4 if quick else 40) + audio_equivalence(tts, 3 if quick else 20),
        "schedule": lambda: schedules(tts, 1 if quick else 4, 1 if quick else 2),
        "long": lambda: long_texts([(3, 1)] if quick else [(5, 3), (20, 2), (100, 1)]),
        "continuity": lambda: continuity(tts, 2 if quick else 20),
    }
    return run[section]()


def targets(rows: list[Row]) -> dict[str, float]:
    """What issue and report ask for: of the default schedule, the longest text, times of one in several turns."""
    found: dict[str, float] = {}
    schedule = [row for row in rows if row["table"] == "schedule"]
    if schedule:
        found |= {name: schedule[0][name] for name in ("t3_gap_ms", "t3_gap_p95_ms", "first_audio_ms", "underruns")}
    texts = [row for row in rows if row["table"] == "long texts"]
    if texts:
        longest = _longest(texts)
        streamed = longest["one stream", ON]
        found |= {
            "hit_rate": streamed["hit_rate"],
            "voices_found": streamed["voices_found"],
            "hit_rate_append": longest["one stream, append", ON]["hit_rate"],
            "growth_kib_per_utterance": streamed["growth_kib_per_utterance"],
        }
        timed = _longest([row for row in texts if row["turns"] > 1] or texts)
        for kept, name in ((NOTHING, "nothing_kept"), (NO_PREFIX, "no_prefix_cache")):
            if ("a call an utterance", kept) in timed:
                found[f"less_time_than_{name}"] = timed["a call an utterance", kept]["less_time_with_caches"]
    return found


def _longest(texts: list[Row]) -> dict[tuple[str, str], Row]:
    """Rows of the longest text, by way and what is kept."""
    most = max(row["utterances"] for row in texts)
    return {(row["way"], row["kept"]): row for row in texts if row["utterances"] == most}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), help="the other sections' rows stay as they are")
    arguments = parser.parse_args()
    chosen = arguments.only or list(SECTIONS)
    is_there = arguments.only and arguments.output and arguments.output.exists()
    known = json.loads(arguments.output.read_text()) if is_there else {}
    rows, measured = list(known.get("rows", ())), dict(known.get("measured_in", {}))
    for section in chosen:
        new = measure(section, arguments.quick)
        rows = sorted([row for row in rows if row["table"] not in SECTIONS[section]] + new, key=_place)
        measured[section] = environment()
        about = {"targets": targets(rows), "model": "tiny", "quick": arguments.quick, "measured_in": measured}
        report("streaming", rows, arguments.output, **about)


def _place(row: Row) -> int:
    return [table for tables in SECTIONS.values() for table in tables].index(row["table"])


if __name__ == "__main__":
    main()
