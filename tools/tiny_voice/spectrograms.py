"""One sentence by the teacher and by exported folders, as spectrograms: ``python -m tools.tiny_voice.spectrograms``.

``-o picture.png NAME=FOLDER ...``; a folder of an earlier commit comes from ``git worktree add`` or ``git archive``.
"""

from __future__ import annotations

import argparse

import librosa
import numpy as np
from matplotlib.figure import Figure

from chatterbox.tts import ChatterboxTTS
from tools.tiny_voice.evaluate import REFERENCE_TEXT
from tools.tiny_voice.teacher import SAMPLE_RATE, speak
from tools.tiny_voice.tiny import BUILT_IN_VOICE

SECONDS = (0.2, 0.75)
WIDE, HOP = 0.006, 0.0005  # seconds: pulses stand apart
DECIBELS = (-100, -30)


def draw(waves: dict[str, tuple[np.ndarray, int]]) -> Figure:
    """A row for each waveform (N,) and its rate, of what `SECONDS` are from its beginning."""
    figure = Figure(figsize=(10, 2.4 * len(waves)), layout="constrained")
    for axes, (name, (wav, rate)) in zip(
        figure.subplots(len(waves), 1, squeeze=False)[:, 0], waves.items(), strict=True
    ):
        wav = wav[int(SECONDS[0] * rate) : int(SECONDS[1] * rate)]
        window, hop = int(WIDE * rate), int(HOP * rate)
        spectrum = np.abs(librosa.stft(wav, n_fft=window, hop_length=hop)) / window
        level = librosa.amplitude_to_db(spectrum, ref=1.0, top_db=None)
        extent = (*SECONDS, 0.0, rate / 2000)
        axes.imshow(level, origin="lower", aspect="auto", extent=extent, vmin=DECIBELS[0], vmax=DECIBELS[1])
        axes.set_title(name, fontsize="small")
        axes.set_ylim(0, 12)
        axes.set_ylabel("kHz")
    axes.set_xlabel("s")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.tiny_voice.spectrograms", description=__doc__)
    parser.add_argument("-o", "--output", required=True)
    parser.add_argument("folders", nargs="+", metavar="NAME=FOLDER")
    arguments = parser.parse_args()
    waves = {f"{BUILT_IN_VOICE}, the teacher": (speak(REFERENCE_TEXT, BUILT_IN_VOICE)[0], SAMPLE_RATE)}
    for item in arguments.folders:
        name, _, folder = item.partition("=")
        tts = ChatterboxTTS.from_pretrained("cpu", model=folder)
        waves[name] = (tts.generate(REFERENCE_TEXT, seed=1, watermark=False)[0].numpy(), tts.sr)
    draw(waves).savefig(arguments.output, dpi=80)


if __name__ == "__main__":
    main()
