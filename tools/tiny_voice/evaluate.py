"""What the embedded voice is worth: every meter on held-out texts of each kind, and what emotion does.

``python -m tools.tiny_voice.evaluate -o FILE.json`` needs the teacher's program and `make quality-env`. The texts are
spoken by the built-in voice; its teacher says the same for comparison, and is measured too with ``--teacher``. A set
takes about five minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import torch

from chatterbox.checkpoints import CheckpointError
from chatterbox.evaluation.meters import METERS, RATE, Score, Spoken, at_rate, interval, scores_of
from chatterbox.evaluation.prosody import pitch
from chatterbox.runtime.files import whole
from chatterbox.synthesis.request import SynthesisRequest
from chatterbox.text.in_words import in_words
from chatterbox.tts import ChatterboxTTS
from tools.arguments import whole_number
from tools.tiny_voice.corpus import EVALUATION_SETS, evaluation_set
from tools.tiny_voice.speech_tokens import NUM_SYMBOLS, SILENCE, SYMBOL_NAMES, to_symbols
from tools.tiny_voice.teacher import VOICES, speak
from tools.tiny_voice.tiny import BUILT_IN_VOICE

REFERENCE_TEXT = "My grandmother keeps seven copper kettles beside the window, and every one of them has a story."
EMOTIONS, NUM_EMOTIONAL = (0.25, 0.5, 0.75, 1.0), 20
SEED = 1
ENVIRONMENT = {"python": platform.python_version(), "torch": torch.__version__}


def spectral_profile(wav: np.ndarray, sample_rate: int) -> np.ndarray:
    """Mean and deviation of 20 cepstra and of log F0: a speaker measure that shares nothing with the model."""
    wav = librosa.resample(np.asarray(wav, np.float32), orig_sr=sample_rate, target_sr=RATE)
    wav, _ = librosa.effects.trim(wav, top_db=30)
    cepstra = librosa.feature.mfcc(y=wav, sr=RATE, n_mfcc=20)[1:]
    f0 = librosa.yin(wav, fmin=60, fmax=400, sr=RATE)
    return np.concatenate([cepstra.mean(1), cepstra.std(1), [40 * np.log(np.median(f0))]])


def phones_of(names: Sequence[str]) -> list[str]:
    """Phones without pauses, those that go on named once."""
    return [name for name, _ in groupby(name for name in names if name != SILENCE)]


def named_phones(speech_tokens: Sequence[int]) -> list[str]:
    """The phones that speech tokens stand for."""
    tokens = np.array([token for token in speech_tokens if token < NUM_SYMBOLS**2], dtype=np.int64)
    return phones_of([SYMBOL_NAMES.get(symbol, SILENCE) for symbol in to_symbols(tokens)])


@dataclass
class Speaker:
    """The built-in voice of ``tts``, and who taught it."""

    tts: ChatterboxTTS
    teacher: str

    def __post_init__(self) -> None:
        self.reference = speak(REFERENCE_TEXT, self.teacher)[0]

    def say(self, text: str, exaggeration: float = 0.5) -> tuple[np.ndarray, list[int]]:
        """What is heard, at `RATE`, and the speech tokens of all its parts in a row."""
        tts = self.tts
        assert tts.conds is not None
        request = SynthesisRequest(text, tts.conds, tts.sampling, exaggeration=exaggeration, seed=SEED, watermark=False)
        result = tts.synthesizer.speak(request)
        return at_rate(result.audio[0].numpy(), result.sample_rate), result.speech_tokens.tolist()

    def spoken(self, text: str) -> Spoken:
        words = in_words(text)
        taught, phones, _ = speak(words, self.teacher)
        wav, speech_tokens = self.say(text)
        return Spoken(words, wav, taught, self.reference, (phones_of(phones), named_phones(speech_tokens)))


def of_teacher(spoken: Spoken) -> Spoken:
    """What the teacher itself says, to be measured in the same way."""
    assert spoken.phones is not None and spoken.teacher is not None
    wanted, _ = spoken.phones
    return Spoken(spoken.text, spoken.teacher, spoken.teacher, spoken.speaker, (wanted, wanted))


def summary(scores: dict[str, list[Score]]) -> dict[str, list[float]]:
    """Value and 95% interval of each meter."""
    return {name: [round(x, 4) for x in interval(these)[:3]] for name, these in scores.items()}


def evaluate(speaker: Speaker, name: str, limit: int | None, names: Sequence[str], *, teacher: bool) -> dict[str, Any]:
    """Figures of one set, and the scores of each text."""
    spoken = [speaker.spoken(text) for text in evaluation_set(name)[:limit]]
    scores = scores_of(spoken, names)
    rows = [
        {
            "text": one.text,
            "seconds": round(len(one.wav) / RATE, 2),
            "teacher_seconds": round(len(one.teacher) / RATE, 2) if one.teacher is not None else None,
            **{meter: [round(float(x), 4) for x in these[i]] for meter, these in scores.items()},
        }
        for i, one in enumerate(spoken)
    ]
    result: dict[str, Any] = {"texts": len(spoken), "figures": summary(scores)}
    if teacher:
        result["teacher"] = summary(scores_of([of_teacher(one) for one in spoken], names))
    return result | {"rows": rows}


def emotion(speaker: Speaker, limit: int | None) -> dict[str, dict[str, float]]:
    """Seconds against the least exaggeration, and the deviation of F0 in semitones, by exaggeration."""
    texts = evaluation_set("everyday")[: min(NUM_EMOTIONAL, limit or NUM_EMOTIONAL)]
    said = {value: [speaker.say(text, value)[0] for text in texts] for value in EMOTIONS}
    whole = {value: sum(map(len, wavs)) for value, wavs in said.items()}
    return {
        f"{value:g}": {
            "seconds_against_least": round(whole[value] / whole[EMOTIONS[0]], 4),
            "f0_deviation_semitones": round(float(np.mean([_f0_deviation(wav) for wav in wavs])), 3),
        }
        for value, wavs in said.items()
    }


def _f0_deviation(wav: np.ndarray) -> float:
    f0 = pitch(wav, np.arange(0, len(wav) - RATE // 20, RATE // 100), RATE, (60.0, 400.0))
    return float(np.std(12 * np.log2(f0[~np.isnan(f0)])))


def write(result: dict[str, Any], output: Path) -> None:
    """The file, whole or not at all."""
    with whole(output) as part:
        part.write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.tiny_voice.evaluate", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--voice", choices=VOICES, default=BUILT_IN_VOICE, help="who taught the built-in voice")
    parser.add_argument("--sets", nargs="+", choices=EVALUATION_SETS, default=EVALUATION_SETS)
    parser.add_argument("--meters", nargs="+", choices=METERS, default=list(METERS))
    parser.add_argument("--limit", type=whole_number(1, 1000), help="texts per set, for a quick look")
    parser.add_argument("--teacher", action="store_true", help="measure the teacher's own speech too")
    arguments = parser.parse_args()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)  # before hours of work
    try:
        speaker = Speaker(ChatterboxTTS.from_pretrained("cpu", model=arguments.model), arguments.voice)
    except CheckpointError as error:
        parser.error(str(error))
    about: dict[str, Any] = {"command": shlex.join(["python", "-m", "tools.tiny_voice.evaluate", *sys.argv[1:]])}
    about |= {"environment": ENVIRONMENT, "seed": SEED, "voice": arguments.voice}
    result: dict[str, Any] = {**about, "sets": {}}
    for name in arguments.sets:
        found = evaluate(speaker, name, arguments.limit, arguments.meters, teacher=arguments.teacher)
        result["sets"][name] = found
        print(name, json.dumps({key: value for key, value in found.items() if key != "rows"}), flush=True)
        write(result, arguments.output)  # what is measured is kept, whatever ends the rest
    result["emotion"] = emotion(speaker, arguments.limit)
    print("emotion", json.dumps(result["emotion"]))
    write(result, arguments.output)


if __name__ == "__main__":
    main()
