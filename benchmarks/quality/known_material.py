"""What each meter can tell apart, on material whose order is known: a meter that cannot is not to be used.

``python -m benchmarks.quality.known_material -o meters.json`` needs flite (Debian package) and `make quality-env`.
Forty sentences of flite's slt as they are; with white noise at 10 dB; as flite's rms says them; silent; and with their
words in another order. A meter passes an order if the interval of the difference, over sentences, is on one side of 0.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.lib.harness import command, environment, save
from chatterbox.evaluation.meters import METERS, RATE, Score, Spoken, interval, scores_of
from tools.arguments import whole_number
from tools.tiny_voice.corpus import evaluation_set
from tools.tiny_voice.evaluate import REFERENCE_TEXT
from tools.tiny_voice.teacher import speak

VOICE, OTHER = "slt", "rms"
NUM_SENTENCES, NOISE_DB = 40, 10.0
WORDS = ("noise", "silence", "shuffled words")
SOUND = ("noise",)
# The material that is worse than clean speech, for each meter.
WORSE = {
    "whisper": WORDS,
    "pocketsphinx": WORDS,
    "audio_phones": WORDS,
    "phone_errors": ("shuffled words",),
    "speaker": ("another speaker", "silence"),
    "dnsmos": SOUND,
    "dnsmos_p808": SOUND,
    "distillmos": SOUND,
}


def materials(num_sentences: int) -> dict[str, list[Spoken]]:
    """By name, the same sentences in the same order."""
    rng = np.random.default_rng(0)
    speaker = speak(REFERENCE_TEXT, VOICE)[0]
    made: dict[str, list[Spoken]] = {name: [] for name in ("clean", "another speaker", *WORDS)}
    for text in evaluation_set("known")[:num_sentences]:
        wav, phones, _ = speak(text, VOICE)
        other, _, _ = speak(text, OTHER)
        shuffled, wrong_phones, _ = speak(" ".join(rng.permutation(text.split())), VOICE)
        noise = rng.standard_normal(len(wav)) * np.sqrt(np.square(wav).mean() / 10 ** (NOISE_DB / 10))
        clean = Spoken(text, wav, other, speaker, (phones, phones))
        made["clean"].append(clean)
        made["noise"].append(replace(clean, wav=np.clip(wav + noise, -1, 1).astype(np.float32)))
        made["another speaker"].append(replace(clean, wav=other))
        made["silence"].append(replace(clean, wav=np.zeros_like(wav)))
        made["shuffled words"].append(replace(clean, wav=shuffled, phones=(phones, wrong_phones)))
    return made


def advantage(clean: Sequence[Score], worse: Sequence[Score], higher_is_better: bool) -> list[Score]:
    """By how much clean speech is better, a score for each sentence."""
    sign = 1 if higher_is_better else -1
    return [Score(sign * (a.total - b.total), a.weight) for a, b in zip(clean, worse, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality.known_material", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--sentences", type=whole_number(2, NUM_SENTENCES), default=NUM_SENTENCES)
    arguments = parser.parse_args()
    made = materials(arguments.sentences)
    result: dict[str, object] = {
        "command": command(),
        "environment": environment(),
        "rate": RATE,
        "sentences": arguments.sentences,
    }
    rows = {}
    for name, meter in METERS.items():
        scores = {material: scores_of(spoken, [name])[name] for material, spoken in made.items()}
        better = {
            worse: interval(advantage(scores["clean"], scores[worse], meter.higher_is_better)) for worse in WORSE[name]
        }
        rows[name] = {
            "values": {material: [round(x, 4) for x in interval(these)] for material, these in scores.items()},
            "clean_is_better_by": {worse: [round(x, 4) for x in figure] for worse, figure in better.items()},
            "passes": all(figure.low > 0 for figure in better.values()),
        }
        print(name, json.dumps(rows[name]), flush=True)
    save(result | {"meters": rows}, arguments.output)
    failed = [name for name, row in rows.items() if not row["passes"]]
    if failed:
        raise SystemExit(f"not to be used, as they cannot tell known material apart: {', '.join(failed)}")


if __name__ == "__main__":
    main()
