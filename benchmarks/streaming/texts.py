"""What the streaming benchmarks say: sentences, texts of a number of utterances, paragraphs, recordings of a voice.

Owns: the texts, always the same. Does not know: what is measured.
"""

from __future__ import annotations

from itertools import count
from pathlib import Path

import torch
from torch import Tensor

from chatterbox import ChatterboxTTS
from chatterbox.synthesis.request import SynthesisRequest
from tools.tiny_voice.corpus import evaluation_set, sentences

PARAGRAPHS = Path(__file__).parent / "paragraphs.txt"
RECORDING_SECONDS = 5
NOISE = 1e-4  # full scale is 1: a recording that no cache knows, of the same voice


def paragraphs() -> list[str]:
    """Twenty of four to six sentences, one a line: `sentences` of seed 60 that have no digits."""
    return PARAGRAPHS.read_text().splitlines()


def single_texts(num_texts: int) -> list[str]:
    """Of one utterance each, evenly from both evaluation sets."""
    texts = evaluation_set("known") + evaluation_set("unseen")
    return [texts[index * len(texts) // num_texts] for index in range(num_texts)]


def text_of(tts: ChatterboxTTS, num_utterances: int) -> str:
    """A text of so many utterances, sentence by sentence from the corpus."""
    said: list[str] = []
    pool = iter(sentences(20 + 4 * num_utterances, seed=61))
    while len(parts_of(tts, " ".join(said))) < num_utterances:
        said.append(next(pool))
    return " ".join(said)


def parts_of(tts: ChatterboxTTS, text: str) -> list[str]:
    """Its utterances, as they are spoken in "isolated"."""
    if not text:
        return []
    return tts.synthesizer.utterances(SynthesisRequest(text, tts.conds, tts.sampling))


class Recordings:
    """Recordings of one voice: always the same one, or each one new."""

    def __init__(self, tts: ChatterboxTTS) -> None:
        wav = torch.cat([tts.generate(text, seed=7, watermark=False) for text in single_texts(3)], dim=1)
        self.known: Tensor = wav[0, : RECORDING_SECONDS * tts.sr]
        self._seeds = count(1)

    def new(self) -> Tensor:
        generator = torch.Generator().manual_seed(next(self._seeds))
        return self.known + NOISE * torch.randn(self.known.shape, generator=generator)
