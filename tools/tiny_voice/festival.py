"""The teacher `festival`: its voice slt by hidden Markov models, and what its front end makes of a text."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import librosa
import numpy as np
import soundfile

from tools.tiny_voice.speech import Speech

RATE = 24_000  # the voice speaks at 32 kHz
VOICES = ("slt-hts",)
MOST_TEXTS = 100  # of a process

_PROGRAM = """
(voice_cmu_us_slt_arctic_hts)
(define (chatterbox_segment segment)
  (let ((syllable (item.relation.parent segment 'SylStructure)))
    (format t "%s\\t%f\\t%s\\t%s\\n" (item.name segment) (item.feat segment 'end)
      (if syllable (item.feat syllable 'stress) "0")
      (if syllable (item.name (item.relation.parent syllable 'SylStructure)) ""))))
(define (chatterbox_report utterance)
  (format t "=\\n")
  (mapcar chatterbox_segment (utt.relation.items utterance 'Segment)))
(define (chatterbox_say text path)
  (let ((utterance (utt.synth (eval (list 'Utterance 'Text text)))))
    (chatterbox_report utterance)
    (utt.save.wave utterance path 'riff)))
(define (chatterbox_read text)
  (let ((utterance (eval (list 'Utterance 'Text text))))
    (mapcar (lambda (module) (module utterance))
      (list Text Token_POS Token POS Phrasify Word Pauses Intonation PostLex))
    (chatterbox_report utterance)))
"""


class Segment(NamedTuple):
    """A phone as the front end sees it."""

    phone: str
    end: float  # seconds; 0 where the text was only read
    is_stressed: bool  # its syllable is
    word: str  # empty in pauses


def say(texts: Sequence[str], voice: str) -> Iterator[Speech]:
    """Each text in turn, by the only voice. Raises RuntimeError where festival or the voice is missing or fails."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"{folder}/{i}.wav" for i in range(len(texts))]
        calls = [f'(chatterbox_say "{_quoted(text)}" "{path}")' for text, path in zip(texts, paths, strict=True)]
        for segments, path in zip(_run(calls, texts), paths, strict=True):
            wav, rate = soundfile.read(path, dtype="float32")
            wav = librosa.resample(wav, orig_sr=rate, target_sr=RATE)
            ends = np.minimum(np.array([segment.end for segment in segments], np.float32), len(wav) / RATE)
            ends[-1] = len(wav) / RATE
            samples = np.clip(np.round(wav * 32768), -32768, 32767).astype(np.int16)
            yield Speech([segment.phone for segment in segments], ends, samples, RATE)


def read(texts: Sequence[str]) -> list[list[Segment]]:
    """What the front end makes of each text: phones, stress, words. Raises RuntimeError as :func:`say`."""
    return _run([f'(chatterbox_read "{_quoted(text)}")' for text in texts], texts)


def _run(calls: Sequence[str], texts: Sequence[str]) -> list[list[Segment]]:
    """A process for each few, as it keeps memory for every text and dies in the end."""
    portions = range(0, len(calls), MOST_TEXTS)
    return [found for i in portions for found in _run_portion(calls[i : i + MOST_TEXTS], texts[i : i + MOST_TEXTS])]


def _run_portion(calls: Sequence[str], texts: Sequence[str]) -> list[list[Segment]]:
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "say.scm"
        script.write_text("\n".join([_PROGRAM, *calls]) + "\n")
        try:
            done = subprocess.run(["festival", "--batch", str(script)], capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise RuntimeError(
                "the program festival is missing: apt-get install festival festvox-us-slt-hts"
            ) from error
    reports = done.stdout.split("=\n")[1:]
    if done.returncode or len(reports) != len(texts):
        text = texts[min(len(reports), len(texts) - 1)]
        raise RuntimeError(f"festival ended with {done.returncode} at {text!r}: {done.stderr.strip()[:200]}")
    return [_segments(report) for report in reports]


def _quoted(text: str) -> str:
    return text.replace("\\", "").replace('"', "")


def _segments(report: str) -> list[Segment]:
    rows = [line.split("\t") for line in report.splitlines() if line]
    return [Segment(phone, float(end), stress == "1", word) for phone, end, stress, word in rows]
