"""Does the watermark survive being put on piece by piece, what does it cost, and are the joints heard?

``python -m benchmarks.streaming.watermark --perth PYTHON -o build/results/watermark_stream.json``: the embedded
voice's speech, marked whole and as streams of several chunk lengths, once also joined without a fade. ``--perth`` names
the Python of an environment with resemble-perth's own code, whose detector then reads the same files.

Detection is from 0 to 1; for excerpts the lowest, and how many are above 0.5. The mark's SNR is against the mark
that whole marking puts on. Clicks are counted at the seams between calls, those of whole marking at the same places.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

from benchmarks.lib.harness import report, summary
from chatterbox import verify_prosody_continuity
from chatterbox.tts import ChatterboxTTS
from chatterbox.watermark.perth import PerthWatermarker, WatermarkStream, read_watermark

TEXTS = (
    "The old mill by the river turns slowly in the morning, and the children walk along the path to school.",
    "She closed the window because the wind was cold, and she sat down beside the fire with a book.",
)
CHUNKS = (0.2, 0.5, 1.0, 2.0)  # seconds
EXCERPTS = (1, 2, 5)
SEED = 1
PERTH = """
import json, sys, soundfile
from perth.perth_net.perth_net_implicit.perth_watermarker import PerthImplicitWatermarker
perth = PerthImplicitWatermarker()
read = lambda path: float(perth.get_watermark(soundfile.read(path, dtype="float32")[0], RATE, round=False))
print(json.dumps([read(path) for path in sys.argv[1:]]))
"""

Reader = Callable[[list[np.ndarray], int], list[float]]


def speech() -> tuple[np.ndarray, int]:
    tts = ChatterboxTTS.from_pretrained("cpu", model="tiny")
    parts = [tts.generate(text, seed=SEED + i, watermark=False)[0].numpy() for i, text in enumerate(TEXTS)]
    return np.concatenate(parts), tts.sr


def streamed(wav: np.ndarray, rate: int, seconds: float, **options: float) -> tuple[list[np.ndarray], list[float]]:
    """What each call handed out, and its milliseconds."""
    stream, size = WatermarkStream(PerthWatermarker(), rate, **options), round(seconds * rate)
    calls: list[Callable[[], np.ndarray]] = [
        lambda start=start: stream.push(wav[start : start + size]) for start in range(0, len(wav), size)
    ]
    pieces, times = [], []
    for call in (*calls, stream.finish):
        started = time.perf_counter()
        pieces.append(call())
        times.append(1000 * (time.perf_counter() - started))
    return pieces, times


def ours(wavs: list[np.ndarray], rate: int) -> list[float]:
    return [read_watermark(wav, rate) for wav in wavs]


def perths(python: str) -> Reader:
    def read(wavs: list[np.ndarray], rate: int) -> list[float]:
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / f"{index}.wav" for index in range(len(wavs))]
            for path, wav in zip(paths, wavs, strict=True):
                soundfile.write(path, wav, rate)  # 16 bits, as users write it
            command = [python, "-W", "ignore", "-c", PERTH.replace("RATE", str(rate)), *map(str, paths)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    return read


def detection(wav: np.ndarray, rate: int, readers: dict[str, Reader]) -> dict[str, object]:
    """By reader: the whole, then for each length of excerpt, every half second, the lowest and how many are found."""
    spans = [(length, start) for length in EXCERPTS for start in range(0, len(wav) - length * rate + 1, rate // 2)]
    cuts = [wav[start : start + length * rate] for length, start in spans]
    found: dict[str, object] = {}
    for name, read in readers.items():
        whole, *scores = read([wav, *cuts], rate)
        found[f"{name}_whole"] = round(whole, 4)
        for length in EXCERPTS:
            those = [score for (its, _), score in zip(spans, scores, strict=True) if its == length]
            found[f"{name}_{length}s_lowest"] = round(min(those), 3)
            found[f"{name}_{length}s_found"] = f"{sum(score > 0.5 for score in those)}/{len(those)}"
    return found


def seams(pieces: list[np.ndarray], whole: np.ndarray, rate: int, fade: float) -> dict[str, object]:
    """Clicks at both ends of the fades, and in whole marking at the same places."""
    starts = np.cumsum([len(piece) for piece in pieces if len(piece)])[:-1]
    wav = np.concatenate(pieces)
    places = np.unique(np.concatenate([starts, np.minimum(starts + round(fade * rate), len(wav) - 1)]))
    ours, same = (verify_prosody_continuity(np.split(audio, places), rate).click for audio in (wav, whole))
    return {
        "seams": ours.seams.count,
        "clicks": ours.above,
        "clicks_same_places_whole": same.above,
        "click_p95_seams": round(ours.seams.p95, 3),
        "click_p95_inside": round(ours.inside.p95, 3),
    }


def ratio_db(signal: np.ndarray, noise: np.ndarray) -> float:
    return round(float(10 * np.log10(np.square(signal).sum() / np.square(noise).sum())), 2)


def measure(wav: np.ndarray, rate: int, readers: dict[str, Reader], repeats: int) -> list[dict[str, object]]:
    marker = PerthWatermarker()
    whole = marker.apply_watermark(wav, rate)
    wav = wav[: len(whole)]
    rows: list[dict[str, object]] = [
        {"case": "unmarked", **detection(wav, rate, readers)},
        {"case": "whole", **detection(whole, rate, readers), "mark_to_speech_db": ratio_db(whole - wav, wav)},
    ]
    cases = {f"{seconds:g} s": (seconds, {}) for seconds in (*CHUNKS, len(wav) / rate)}
    cases["0.2 s, no fade"] = (0.2, {"fade": 1 / rate})
    times: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(repeats + 1):
        for name, (seconds, options) in cases.items():
            spent = streamed(wav, rate, seconds, **options)[1]
            if turn:
                times[name] += spent[: max(1, len(spent) - 2)]  # the last two calls get less than a chunk
    for name, (seconds, options) in cases.items():
        pieces, _ = streamed(wav, rate, seconds, **options)
        out = np.concatenate(pieces)
        row = {"case": name, **detection(out, rate, readers), "samples_lost": len(wav) - len(out)}
        row["mark_snr_db"] = ratio_db(whole - wav, out - whole)
        if seconds < len(wav) / rate:
            row |= seams(pieces, whole, rate, options.get("fade", 0.02))
        row["ms_per_call"] = summary(times[name])["median_ms"]
        row["ms_per_second_of_audio"] = round(row["ms_per_call"] / seconds, 2)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--perth", metavar="PYTHON", help="of an environment with resemble-perth's own code")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    readers: dict[str, Reader] = {"ours": ours}
    if arguments.perth:
        readers["perth"] = perths(arguments.perth)
    wav, rate = speech()
    rows = measure(wav, rate, readers, arguments.repeats)
    about = {"seconds": round(len(wav) / rate, 2), "texts": TEXTS, "seed": SEED, "context": 0.25, "fade": 0.02}
    report("watermark_stream", rows, arguments.output, **about)


if __name__ == "__main__":
    main()
