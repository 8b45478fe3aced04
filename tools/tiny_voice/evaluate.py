"""The gate of the embedded voice: words, speaker, duration, on held-out sentences, next to its teacher.

``python -m tools.tiny_voice.evaluate -o FILE.json``: every sentence is spoken in one of the four voices, cloned from
a reference recording that training never saw, and by flite itself.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import torch

from chatterbox.evaluation.recognition import edit_distance, recognize, words_of
from chatterbox.tts import ChatterboxTTS
from tools.tiny_voice.corpus import evaluation_set
from tools.tiny_voice.flite import RATE as TEACHER_RATE
from tools.tiny_voice.flite import VOICES
from tools.tiny_voice.recordings import LEAD_SECONDS, TAIL_SECONDS
from tools.tiny_voice.teacher import speak

REFERENCE_TEXT = "My grandmother keeps seven copper kettles beside the window, and every one of them has a story."
SETS = ("known", "unseen")


def spectral_profile(wav: np.ndarray, sample_rate: int) -> np.ndarray:
    """Mean and deviation of 20 cepstra and of log F0: a speaker measure that shares nothing with the model."""
    wav = librosa.resample(np.asarray(wav, np.float32), orig_sr=sample_rate, target_sr=TEACHER_RATE)
    wav, _ = librosa.effects.trim(wav, top_db=30)
    cepstra = librosa.feature.mfcc(y=wav, sr=TEACHER_RATE, n_mfcc=20)[1:]
    f0 = librosa.yin(wav, fmin=60, fmax=400, sr=TEACHER_RATE)
    return np.concatenate([cepstra.mean(1), cepstra.std(1), [40 * np.log(np.median(f0))]])


def evaluate(
    tts: ChatterboxTTS, *, seed: int = 1, limit: int | None = None, report: Callable[[str], None] = print
) -> dict[str, Any]:
    """Figures of both sets; see the module's description."""
    references = {voice: speak(REFERENCE_TEXT, voice)[0] for voice in VOICES}
    profiles = {voice: spectral_profile(wav, TEACHER_RATE) for voice, wav in references.items()}
    at_24k = {v: librosa.resample(w, orig_sr=TEACHER_RATE, target_sr=tts.sr) for v, w in references.items()}
    result: dict[str, Any] = {}
    for name in SETS:
        rows = []
        for index, sentence in enumerate(evaluation_set(name)[:limit]):
            voice = VOICES[index % len(VOICES)]
            wav = tts.generate(sentence, audio_prompt_path=at_24k[voice], seed=seed, watermark=False)[0].numpy()
            taught, _, _ = speak(sentence, voice)
            heard, heard_of_teacher = recognize(wav, tts.sr), recognize(taught, TEACHER_RATE)
            profile = spectral_profile(wav, tts.sr)
            nearest = min(VOICES, key=lambda v: float(np.linalg.norm(profiles[v] - profile)))
            rows.append(
                {
                    "text": sentence,
                    "voice": voice,
                    "heard": " ".join(heard),
                    "words": len(words_of(sentence)),
                    "errors": edit_distance(words_of(sentence), heard),
                    "teacher_errors": edit_distance(words_of(sentence), heard_of_teacher),
                    "nearest_voice": nearest,
                    "seconds": round(len(wav) / tts.sr, 2),
                    "teacher_seconds": round(spoken_seconds(taught), 2),
                }
            )
            report(json.dumps(rows[-1]))
        result[name] = summarize(rows, limit_seconds=tts.sampling.max_new_tokens / 25) | {"sentences": rows}
    return result


def spoken_seconds(wav: np.ndarray) -> float:
    """Length of a teacher recording with its outer silence cut as training does."""
    trimmed, _ = librosa.effects.trim(wav, top_db=40)
    return len(trimmed) / TEACHER_RATE + LEAD_SECONDS + TAIL_SECONDS


def summarize(rows: list[dict[str, Any]], limit_seconds: float) -> dict[str, Any]:
    words = sum(r["words"] for r in rows)
    ratios = [r["seconds"] / r["teacher_seconds"] for r in rows]
    by_voice = {v: [r for r in rows if r["voice"] == v] for v in VOICES}
    return {
        "num_sentences": len(rows),
        "word_error_rate": round(sum(r["errors"] for r in rows) / words, 4),
        "teacher_word_error_rate": round(sum(r["teacher_errors"] for r in rows) / words, 4),
        "word_error_rate_by_voice": {
            v: round(sum(r["errors"] for r in part) / sum(r["words"] for r in part), 4)
            for v, part in by_voice.items()
            if part
        },
        "right_speaker": round(float(np.mean([r["nearest_voice"] == r["voice"] for r in rows])), 4),
        "duration_ratio": round(float(np.mean(ratios)), 4),
        "worst_duration_ratio": [round(min(ratios), 3), round(max(ratios), 3)],
        "at_length_limit": sum(r["seconds"] >= limit_seconds - 0.1 for r in rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.tiny_voice.evaluate", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit", type=int, default=None, help="sentences per set, for a quick look")
    arguments = parser.parse_args()
    tts = ChatterboxTTS.from_pretrained("cpu", model=arguments.model)
    result = evaluate(tts, seed=arguments.seed, limit=arguments.limit)
    result["environment"] = {"python": platform.python_version(), "torch": torch.__version__, "seed": arguments.seed}
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    for name in SETS:
        print(name, json.dumps({k: v for k, v in result[name].items() if k != "sentences"}))


if __name__ == "__main__":
    main()
