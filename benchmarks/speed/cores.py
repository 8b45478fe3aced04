"""Two cores for one chunk of audio, or one core for each of two? The embedded voice's S3Gen.

``python -m benchmarks.speed.cores -o build/results/cores.json``, a minute: a chunk of 25 speech tokens behind a
context of 50 and the voice, flow and vocoder, in four ways in turn: alone on one core, alone on all, two at once with
a core each, and eight in one batch on all (flow only: the vocoder of streams has rows of different lengths). ``ms``: of
a chunk, the time of all over their number; ``times_one_core``: the median of the turns' ratios, and its interval.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.lib.harness import report
from benchmarks.lib.heard import Row, paired
from chatterbox.runtime.openmp import alone
from chatterbox.tts import ChatterboxTTS

CONTEXT, NEW, AHEAD = 50, 25, 3  # speech tokens
BATCH = 8
ONE_CORE = "one core"


class Chunk:
    """What one chunk of the embedded voice takes."""

    def __init__(self) -> None:
        tts = ChatterboxTTS.from_pretrained("cpu", model="tiny")
        assert tts.conds is not None
        self._s3gen, self._voice = tts.s3gen, tts.conds.gen
        generator = torch.Generator().manual_seed(0)
        vocabulary, num_mels = tts.s3gen.config.flow.vocab_size, tts.s3gen.config.flow.num_mels
        self._tokens = torch.randint(vocabulary, (BATCH, CONTEXT + NEW + AHEAD), generator=generator)
        self._noise = torch.randn(1, num_mels, 2000, generator=generator)
        self._mel = torch.randn(1, num_mels, 2 * NEW + 14, generator=generator)  # with what the vocoder sees beside

    def flow(self, rows: int = 1) -> None:
        self._s3gen.flow_inference(self._tokens[:rows], ref_dict=self._voice, z=self._noise)

    @torch.inference_mode()
    def vocoder(self) -> None:
        vocoder = self._s3gen.mel2wav
        vocoder.decode(self._mel, vocoder.source(vocoder.f0_predictor(self._mel)))


def on_one_core(work: Callable[[], None]) -> None:
    with alone():
        work()


def concurrently(work: Callable[[], None], count: int) -> None:
    threads = [threading.Thread(target=on_one_core, args=(work,)) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def measure(work: Callable[[], None], batched: Callable[[], None] | None, turns: int) -> list[Row]:
    cores = torch.get_num_threads()
    ways: dict[str, tuple[Callable[[], None], int]] = {
        ONE_CORE: (lambda: on_one_core(work), 1),
        f"{cores} cores": (work, 1),
        f"{cores} at once, a core each": (lambda: concurrently(work, cores), cores),
    }
    if batched is not None:
        ways[f"{BATCH} in a batch, {cores} cores"] = (batched, BATCH)
    seen: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(turns + 2):  # the first two do not count
        for way, (run, count) in ways.items():
            began = time.perf_counter()
            run()
            if turn >= 2:
                seen[way].append((time.perf_counter() - began) / count)
    return [
        {
            "way": way,
            "ms": round(1000 * sorted(seconds)[len(seconds) // 2], 1),
            "times_one_core": 1 if way == ONE_CORE else paired(seconds, seen[ONE_CORE]),
            "turns": turns,
        }
        for way, seconds in seen.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--turns", type=int, default=40)
    arguments = parser.parse_args()
    chunk = Chunk()
    rows = [{"part": "flow", **row} for row in measure(chunk.flow, lambda: chunk.flow(BATCH), arguments.turns)]
    rows += [{"part": "vocoder", **row} for row in measure(chunk.vocoder, None, arguments.turns)]
    report("cores", rows, arguments.output)


if __name__ == "__main__":
    main()
