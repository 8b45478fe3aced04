"""The teacher `flite`: a program that says a text and reports when each phone ends."""

from __future__ import annotations

import os
import subprocess
import tempfile
import wave
from collections.abc import Iterator, Sequence

import numpy as np

from tools.tiny_voice.speech import Speech

RATE = 16_000
VOICES = ("slt", "rms", "awb", "kal16")


def say(texts: Sequence[str], voice: str) -> Iterator[Speech]:
    """Each text in turn. Raises RuntimeError where flite is missing or fails."""
    for text in texts:
        yield _say(text, voice)


def _say(text: str, voice: str) -> Speech:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "a.wav")
        command = ["flite", "-voice", voice, "-psdur", "-o", path, "-t", text]
        try:
            report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        except FileNotFoundError as error:
            raise RuntimeError("the program flite is missing: apt-get install flite") from error
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f"flite failed on {text!r}: {error.stderr.strip()}") from error
        with wave.open(path) as file:
            if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (RATE, 1, 2):
                raise RuntimeError(f"flite voice {voice!r} must write 16 kHz mono 16-bit: use Debian's flite")
            samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
    pairs = [item.rsplit(":", 1) for item in report.split()]
    if not pairs:
        raise RuntimeError(f"flite reported no phones for {text!r}")
    ends = np.minimum(np.array([end for _, end in pairs], dtype=np.float32), len(samples) / RATE)
    ends[-1] = len(samples) / RATE  # kal16 announces 0.12 s of final silence that it does not write
    return Speech([phone for phone, _ in pairs], ends, samples, RATE)
