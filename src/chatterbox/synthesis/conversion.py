"""Voice conversion: what one recording says, in the voice of another.

Owns: whole recordings up to 30 s, windows beyond, silence. Does not know: where weights and recordings come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chatterbox.audio.recordings import CONVERSION, AudioInput, Recording, Survey
from chatterbox.config import StreamingConfig
from chatterbox.models.s3gen import S3Gen
from chatterbox.models.s3gen.stream import waveform_len
from chatterbox.models.s3tokenizer import S3_SR
from chatterbox.models.s3tokenizer.stream import WINDOW_SECONDS, SpeechTokenStream, num_tokens
from chatterbox.runtime.openmp import release_idle_threads
from chatterbox.runtime.replaceable import replacement
from chatterbox.runtime.torch_context import own_context
from chatterbox.synthesis.render import SpeechRenderer
from chatterbox.synthesis.synthesizer import render_speech_tokens
from chatterbox.values import seed_of
from chatterbox.watermark.perth import PerthWatermarker, Watermarker

PERTH = PerthWatermarker()
WINDOWS = StreamingConfig(first_chunk=250, chunk_size=250, context_window=50)  # S3Gen has less of it than of 30 s
PIECE_LEN = 25  # speech tokens that the renderer is given at once: a chunk has no more than that too many


@own_context()
def convert(
    s3gen: S3Gen,
    recording: AudioInput,
    gen: Mapping[str, Any],
    *,
    sample_rate: int | None = None,
    seed: int | None = None,
    watermarker: Watermarker | None = PERTH,
) -> Tensor:
    """Waveform (1, N), float32 on the CPU at 24 kHz, that says what ``recording`` says in the voice of ``gen``.

    Up to 30 s are converted at once. A longer recording is read, heard and rendered in windows, whose memory does not
    grow with it, and needs a seed: None draws one from torch's global generator. Silence becomes silence. N is 960 for
    each 40 ms begun, less the 480 that a voice with a surplus mel frame takes.

    Raises:
        FileNotFoundError, TypeError, ValueError: as `chatterbox.audio.recordings.Recording.survey`, or a bad seed.
    """
    seed = seed_of(seed)
    source = Recording(recording, sample_rate, CONVERSION)
    survey = source.survey()
    num_samples = survey.num_samples_at(S3_SR)
    if survey.is_silent:
        return torch.zeros(1, waveform_len(s3gen, gen, num_tokens(num_samples)), dtype=torch.float32)
    if num_samples > WINDOW_SECONDS * S3_SR and replacement(s3gen, "inference") is None:
        return _in_windows(s3gen, source, survey, gen, seed, watermarker)
    with torch.inference_mode():
        speech_tokens, _ = s3gen.tokenizer([source.load(S3_SR)])  # (1, T)
    return render_speech_tokens(s3gen, speech_tokens, gen, seed=seed, watermarker=watermarker)


def _in_windows(
    s3gen: S3Gen,
    source: Recording,
    survey: Survey,
    gen: Mapping[str, Any],
    seed: int | None,
    watermarker: Watermarker | None,
) -> Tensor:
    renderer = SpeechRenderer(s3gen, gen, WINDOWS, watermarker)
    renderer.begin(int(torch.randint(2**62, (1,))) if seed is None else seed)
    wav = np.zeros(waveform_len(s3gen, gen, num_tokens(survey.num_samples_at(S3_SR))), np.float32)
    end = 0
    for chunk in _chunks(renderer, _speech_tokens(s3gen, source, survey)):
        wav[end : end + chunk.shape[1]] = chunk[0].numpy()
        end += chunk.shape[1]
    assert end == len(wav), f"{end} samples of {len(wav)}"
    release_idle_threads()
    return torch.from_numpy(wav)[None]


def _chunks(renderer: SpeechRenderer, speech_tokens: Iterator[list[int]]) -> Iterator[Tensor]:
    """Audio (1, N) of what the renderer completes, and the rest."""
    for tokens in speech_tokens:
        for start in range(0, len(tokens), PIECE_LEN):
            chunk = renderer.push(tokens[start : start + PIECE_LEN])
            if chunk is not None:
                yield chunk
    yield renderer.close()


def _speech_tokens(s3gen: S3Gen, source: Recording, survey: Survey) -> Iterator[list[int]]:
    stream = SpeechTokenStream(s3gen.tokenizer)
    for block in source.resampled(survey, S3_SR):
        yield stream.push(block)
    yield stream.finish()
