"""An hour of audio in one stream: does a token, a chunk, the memory cost more at its end than at its beginning?

``python -m benchmarks.streaming.hour -o build/results/streaming_hour.json``, or ``make streaming-hour``: about a
quarter of an hour for each mode on one core. The embedded voice speaks sentences of an endless iterator; audio is
rendered and dropped. Each row is a minute of audio. Rows are written as they are made, and a mode whose rows are all
there is not run again: a broken run goes on with the mode that it was at.

The cache is `sliding` with 512 positions, window 256; the text, as a language model's, arrives in pieces. T3 and S3Gen
work in turn (``decode_ahead=0``), so that the time of each is its own. The watermark is off: its time is constant, and
`benchmarks.streaming.watermark` measures it. Resident memory is read as it is, freed blocks that glibc holds included.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import psutil

from benchmarks.lib.harness import environment, save
from chatterbox import ChatterboxTTS
from chatterbox.config import KVCacheConfig, to_dict
from tools.tiny_voice.corpus import sentences

MIB = 2**20
SEED = 6
MINUTES = {"append": 60, "history": 60, "isolated": 10}
SETTINGS = KVCacheConfig("sliding", max_cache_size=512, window_size=256)
EDGE = 10  # minutes at the beginning and at the end that are compared
Row = dict[str, Any]


def endless() -> Iterator[str]:
    for seed in count(SEED):
        for sentence in sentences(500, seed):
            yield sentence + " "


def speak(tts: ChatterboxTTS, mode: str, minutes: int) -> Iterator[Row]:
    """A row for each minute of audio."""
    process, texts = psutil.Process(), endless()
    stream = tts.generate_stream(
        texts, continuity=mode, seed=SEED, watermark=False, decode_ahead=0, print_metrics=False
    )
    minute, tokens_before = 0, 0
    t3, s3gen, resident = 0.0, [], []
    with closing(stream):
        for _, metrics in stream:
            t3 += metrics.tokens_time
            s3gen.append(1000 * (metrics.gap - metrics.tokens_time))
            resident.append(process.memory_info().rss / MIB)
            if metrics.total_audio_duration < 60 * (minute + 1):
                continue
            tokens = metrics.num_tokens - tokens_before
            minute, tokens_before = minute + 1, metrics.num_tokens
            yield {
                "mode": mode,
                "minute": minute,
                "tokens": tokens,
                "utterances": metrics.utterance + 1,
                "t3_ms_per_token": round(1000 * t3 / tokens, 3),
                "s3gen_ms_per_chunk": round(statistics.median(s3gen), 2),
                "chunks": len(s3gen),
                "resident_mib": round(statistics.median(resident), 1),
                "resident_mib_most": round(max(resident), 1),
            }
            if minute == minutes:
                return
            t3, s3gen, resident = 0.0, [], []


def flatness(rows: Sequence[Row]) -> dict[str, float]:
    """By mode and measure, the median of the last minutes over that of the first, the very first left out."""
    found = {}
    for mode in dict.fromkeys(row["mode"] for row in rows):
        its = [row for row in rows if row["mode"] == mode]
        edge = min(EDGE, max(1, len(its) // 3))
        for name in ("t3_ms_per_token", "s3gen_ms_per_chunk", "resident_mib"):
            first, last = (
                statistics.median(row[name] for row in part) for part in (its[1 : edge + 1] or its, its[-edge:])
            )
            found[f"{mode}_{name}_last_over_first"] = round(last / first, 4)
        found[f"{mode}_minutes"] = len(its)
        found[f"{mode}_tokens"] = sum(row["tokens"] for row in its)
    return found


def result_of(rows: Sequence[Row], about: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "benchmark": "streaming_hour",
        **flatness(rows),
        "edge_minutes": EDGE,
        "settings": to_dict(SETTINGS),
        "rows": list(rows),
        "environment": about,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--modes", nargs="+", default=list(MINUTES), choices=list(MINUTES))
    parser.add_argument("--share", type=float, default=1.0, help="of the minutes, for a quick look")
    arguments = parser.parse_args()
    about = environment()
    known = json.loads(arguments.output.read_text())["rows"] if arguments.output.exists() else []
    for mode in arguments.modes:
        minutes = math.ceil(arguments.share * MINUTES[mode])
        if sum(row["mode"] == mode for row in known) >= minutes:
            continue
        known = [row for row in known if row["mode"] != mode]
        tts = ChatterboxTTS.from_pretrained("cpu", model="tiny", kvcache=SETTINGS)
        for row in speak(tts, mode, minutes):
            known.append(row)
            save(result_of(known, about), arguments.output)
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
