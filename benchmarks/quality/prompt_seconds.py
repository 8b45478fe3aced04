"""How much of a voice's recording must S3Gen integrate to sound like it?

``python -m benchmarks.quality.prompt_seconds -o build/results/prompt_seconds.json`` needs flite and `make quality-env`;
a quarter of an hour on one core. The judging flow (`benchmarks.quality.judging_flow`), fed with true speech tokens in
the voices that it has learnt, each by a recording of ten seconds of which ``s3gen.prompt_seconds`` leaves the first.
The x-vector hears all of it in every case, as it does in use. *Speaker* is Resemblyzer's similarity with the whole
recording.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.lib.harness import command, environment, save
from benchmarks.quality.judging_flow import SEED, Case, judging_s3gen, mel_of, true_speech_tokens, wav_of
from chatterbox.evaluation.meters import Spoken, at_rate, interval, scores_of
from chatterbox.text.in_words import in_words
from tools.arguments import whole_number
from tools.tiny_voice.corpus import evaluation_set
from tools.tiny_voice.teacher import SAMPLE_RATE, speak

VOICES = ("rms", "slt", "awb", "kal16")
RECORDING_SECONDS = 10.0
PROMPT_SECONDS = (0.5, 1.0, 2.0, 4.0, 6.0, RECORDING_SECONDS)
METERS = ("speaker", "whisper")


def recording(voice: str) -> np.ndarray:
    """Ten seconds of ``voice``, (N,) at `SAMPLE_RATE`, of texts that are not among those that are measured."""
    said = [speak(text, voice)[0] for text in evaluation_set("known")[:8]]
    return np.concatenate(said)[: round(RECORDING_SECONDS * SAMPLE_RATE)]


def measure(num_texts: int) -> list[dict[str, Any]]:
    """A row for each number of seconds, over all voices."""
    s3gen, texts = judging_s3gen(), [in_words(text) for text in evaluation_set("everyday")[:num_texts]]
    spoken: dict[float, list[Spoken]] = {seconds: [] for seconds in PROMPT_SECONDS}
    for voice in VOICES:
        heard = recording(voice)
        with torch.inference_mode():
            gen = s3gen.embed_ref(heard, SAMPLE_RATE)
        speaker = at_rate(heard, SAMPLE_RATE)
        for text, tokens in zip(texts, true_speech_tokens(texts, voice), strict=True):
            for seconds, made in spoken.items():
                mel = mel_of(s3gen, tokens, gen, Case(prompt_seconds=seconds))
                made.append(Spoken(text, wav_of(s3gen, mel), speaker=speaker))
        print(voice, "is made", flush=True)
    rows = []
    for seconds, made in spoken.items():
        figures = {name: [round(x, 4) for x in interval(these)[:3]] for name, these in scores_of(made, METERS).items()}
        rows.append({"seconds": seconds, "utterances": len(made), **figures})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality.prompt_seconds", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--texts", type=whole_number(1, 40), default=10, help="of each voice")
    asked = parser.parse_args()
    about = {"benchmark": "prompt_seconds", "seed": SEED, "voices": list(VOICES)}
    save(about | {"command": command(), "environment": environment(), "rows": measure(asked.texts)}, asked.output)


if __name__ == "__main__":
    main()
