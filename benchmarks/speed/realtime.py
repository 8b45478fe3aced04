"""How near to real time is a stream of the published size on this machine, and what brings it there?

``python -m benchmarks.speed.realtime -o build/results/realtime.json``: folders with synthetic weights as in
`benchmarks.speed.loading`; a process for each case, cases in turn. The voice has a recording of 10 s and is known
(`warm`). Random weights end no utterance, so each says what `SECONDS` allows.

*rtf* is the time that a reader waited over the audio; *dry*: seconds that a player would have been silent, had it begun
with the first chunk; *generate*: of the same audio as a whole, over its seconds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.lib.harness import report
from benchmarks.speed.loading import folder_of, resident

SECONDS = {"english": 4, "turbo": 6, "nano": 8}
TEXT = "Every machine in this room can talk."
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "as published": {"load": {"precision": "float32"}},
    "int8": {"load": {"precision": "int8"}},
    "float32, past": {"load": {"precision": "float32"}, "s3gen": {"memory": "past"}},
    "int8, past": {"load": {"precision": "int8"}, "s3gen": {"memory": "past"}, "stream": {"max_chunk": 100}},
    "realtime": {
        "load": {"precision": "int8"},
        "s3gen": {"memory": "past", "steps": 4, "unguided_steps": 1},
        "stream": {"max_chunk": 100},
    },
}


def measure(folder: Path, setting: str) -> dict[str, float]:
    """Of this process."""
    from benchmarks.speed.s3gen import voice_of
    from chatterbox.config import S3GenOptions
    from chatterbox.tts import ChatterboxTTS
    from chatterbox.tts_turbo import ChatterboxTurboTTS

    given, name = SETTINGS[setting], folder.name
    facade: Any = ChatterboxTTS if name == "english" else ChatterboxTurboTTS
    tts = facade.from_local(folder, "cpu", s3gen_options=S3GenOptions(**given.get("s3gen", {})), **given["load"])
    tts.conds = dataclasses.replace(tts.conds, gen=voice_of(tts.s3gen))
    tts.warm([TEXT])
    said = {"seed": 1, "watermark": False, "guard": "none"}
    list(tts.generate_stream(TEXT, max_new_tokens=20, print_metrics=False, **said))  # what a process does once
    said["max_new_tokens"] = 25 * SECONDS[name]
    begun, audio, dry, lens, metrics = time.perf_counter(), 0.0, 0.0, [], None
    for chunk, metrics in tts.generate_stream(TEXT, print_metrics=False, **said, **given.get("stream", {})):
        now = time.perf_counter()
        if lens:
            dry += max(0.0, now - begun - metrics.latency_to_first_chunk - dry - audio)
        audio += chunk.shape[1] / tts.sr
        lens.append(chunk.shape[1] / tts.sr)
    assert metrics is not None
    memory = resident("VmRSS")
    started = time.perf_counter()
    whole = tts.generate(TEXT, **said)
    return {
        "rtf": round(metrics.rtf, 3),
        "first chunk, s": round(metrics.latency_to_first_chunk, 3),
        "dry, s": round(dry, 2),
        "generate": round((time.perf_counter() - started) / (whole.shape[1] / tts.sr), 3),
        "chunks": len(lens),
        "longest chunk, s": round(max(lens), 2),
        "seconds": round(audio, 2),
        "MiB": memory,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--work", type=Path, default=Path("build/full_size"))
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--models", nargs="+", choices=SECONDS, default=list(SECONDS))
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--one", nargs=2, metavar=("FOLDER", "SETTING"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(Path(arguments.one[0]), arguments.one[1])))
        return
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for _ in range(arguments.turns):
        for model in arguments.models:
            for setting in arguments.settings:
                folder = folder_of(model, arguments.work)
                command = [sys.executable, "-m", __spec__.name, "--one", str(folder), setting]
                ran = subprocess.run(command, check=True, capture_output=True, text=True)
                found.setdefault((model, setting), []).append(json.loads(ran.stdout.splitlines()[-1]))
                print(model, setting, found[model, setting][-1], flush=True)
    rows = [
        {"model": model, "setting": setting} | {key: statistics.median(one[key] for one in turns) for key in turns[0]}
        for (model, setting), turns in found.items()
    ]
    report("realtime", rows, arguments.output, unit="seconds, MiB")


if __name__ == "__main__":
    main()
