"""Does memory grow with the number of calls? Many generations in one process, resident memory after each.

``python -m benchmarks.speed.memory -o build/results/memory.json``: sentences of varied length with the embedded
voice. The figure that counts is the resident memory after the last call over that after the first ``--warmup`` calls.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
from pathlib import Path

import psutil

from benchmarks.lib.harness import environment, save
from chatterbox import ChatterboxTTS
from tools.tiny_voice.corpus import evaluation_set

MIB = 2**20


def measure(calls: int, warmup: int, model: str) -> dict:
    """Resident memory in MiB after each of ``calls`` generations."""
    tts = ChatterboxTTS.from_pretrained("cpu", model=model)
    sentences = evaluation_set("known") + evaluation_set("unseen")
    process = psutil.Process()
    resident = []
    for index in range(calls):
        tts.generate(sentences[index % len(sentences)], seed=index)
        gc.collect()
        resident.append(process.memory_info().rss / MIB)
    # The median of ten calls: one reading is as accidental as the sentence it follows.
    before = statistics.median(resident[warmup - 10 : warmup])
    after = statistics.median(resident[-10:])
    return {
        "calls": calls,
        "warmup_calls": warmup,
        "resident_mib_after_warmup": round(before, 1),
        "resident_mib_at_end": round(after, 1),
        "ratio": round(after / before, 4),
        "resident_mib": [round(r, 1) for r in resident],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--warmup", type=int, default=30)
    parser.add_argument("--model", default="tiny")
    arguments = parser.parse_args()
    result = measure(arguments.calls, arguments.warmup, arguments.model)
    result["environment"] = environment()
    save(result, arguments.output)
    print(json.dumps({k: v for k, v in result.items() if k != "resident_mib"}))


if __name__ == "__main__":
    main()
