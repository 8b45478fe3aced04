"""THE MAIN PATH: a request comes in, a waveform goes out. Read this first.

Owns: the order of the steps and the state of a request, which is passed along and never kept. Does not know: where
weights, recordings or overrides come from.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from chatterbox.audio import load_reference
from chatterbox.conditioning import Conditionals, Reference
from chatterbox.config import SPEECH_CODES, START_SPEECH_TOKEN, KVCacheConfig, SamplingConfig, T3Config, check_range
from chatterbox.generation.decode import stream
from chatterbox.generation.guards import check_guard, guard_of
from chatterbox.generation.prefix import PrefixSource
from chatterbox.generation.requests import DecodeRequest
from chatterbox.models.s3gen import S3GEN_SR, S3Gen
from chatterbox.models.s3gen.const import S3GEN_SIL
from chatterbox.models.s3tokenizer import S3_SR, drop_invalid_tokens
from chatterbox.models.t3 import T3
from chatterbox.models.tokenizers import TextTokenizer
from chatterbox.text import speakable
from chatterbox.watermark import PerthWatermarker

logger = logging.getLogger(__name__)

PERTH = PerthWatermarker()
TURBO_SILENCE = 3  # silence tokens behind what Turbo and Nano say, as upstream


@dataclass(frozen=True)
class SpeechRequest:
    """One text to speak in one voice: plain data, nothing of it is changed.

    seed: None draws from torch's global generator, in upstream's order; a number draws from generators of this
    request's own and leaves the global one alone. use_cache: False recomputes the whole sequence at every step.
    cache_policy: of the rows being decoded, a name of `chatterbox.kvcache.POLICIES` or settings.
    language_id: for a multilingual model alone.
    guard: what ends an utterance that goes wrong, of `chatterbox.generation.guards.GUARDS`, or "none".
    """

    text: str
    conditionals: Conditionals
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    exaggeration: float = 0.5
    seed: int | None = None
    use_cache: bool = True
    watermark: bool = True
    cache_policy: str | KVCacheConfig = "static"
    language_id: str | None = None
    guard: str = "light"

    def __post_init__(self) -> None:
        check_guard(self.guard)
        check_range("exaggeration", self.exaggeration, 0.0, 10.0, "0.5 is neutral")
        check_seed(self.seed)


@dataclass(frozen=True)
class SpeechResult:
    """audio: (1, N) float32 on the CPU at ``sample_rate`` Hz. speech_codes: (T,), 25 a second. Times in seconds."""

    audio: Tensor
    sample_rate: int
    speech_codes: Tensor
    tokens_time: float
    audio_time: float

    @property
    def duration(self) -> float:
        return self.audio.shape[-1] / self.sample_rate


def speak(
    t3: T3,
    s3gen: S3Gen,
    tokenizer: TextTokenizer,
    request: SpeechRequest,
    *,
    on_token: Callable[[int], None] | None = None,
    prefixes: PrefixSource | None = None,
    watermarker: PerthWatermarker = PERTH,
) -> SpeechResult:
    """Speak ``request.text``. Safe from several threads.

    ``on_token`` is told how many speech tokens were drawn so far. ``prefixes``, of ``t3``, keeps what a later request
    of the same voice or text need not compute again.

    Raises:
        TypeError: the text is not a string.
        ValueError: the text is longer than the model's positions, or the model lacks what the guard looks at; the
            message says so.
        RuntimeError: the model ended before it said anything, or the watermark cannot be made.
    """
    started = time.perf_counter()
    voice = request.conditionals.with_exaggeration(request.exaggeration)
    tokens = draw_speech_tokens(t3, tokenizer, voice, request, on_token, prefixes)
    if guard := guard_of(request.guard):
        tokens = guard.trim(tokens)  # what the utterance repeated until the guard ended it
    codes = valid_codes(tokens, t3.hp)
    if not len(codes):
        raise RuntimeError("the model ended the utterance before it said anything; try another seed or text")
    if t3.hp.is_gpt:
        codes = F.pad(codes, (0, TURBO_SILENCE), value=S3GEN_SIL)
    tokens_done = time.perf_counter()
    audio = render(s3gen, codes, voice.gen, seed=request.seed, watermarker=watermarker if request.watermark else None)
    return SpeechResult(
        audio=audio,
        sample_rate=S3GEN_SR,
        speech_codes=codes,
        tokens_time=tokens_done - started,
        audio_time=time.perf_counter() - tokens_done,
    )


def draw_speech_tokens(
    t3: T3,
    tokenizer: TextTokenizer,
    voice: Conditionals,
    request: SpeechRequest,
    on_token: Callable[[int], None] | None = None,
    prefixes: PrefixSource | None = None,
) -> Tensor:
    """Speech tokens of the request's text, (N,) on the CPU, as drawn: the stop token and strays included."""
    decode = decode_request(t3, tokenizer, voice, request)
    drawn: list[int] = []
    for token in stream(t3, decode, use_cache=request.use_cache, cache_policy=request.cache_policy, prefixes=prefixes):
        drawn.append(token)
        if on_token is not None:
            on_token(len(drawn))
    if prefixes is not None and request.use_cache:
        logger.info(prefixes.manager.summary())
    return torch.tensor(drawn, dtype=torch.long)


def decode_request(t3: T3, tokenizer: TextTokenizer, voice: Conditionals, request: SpeechRequest) -> DecodeRequest:
    """What T3 is asked for. Raises TypeError if the text is not a string."""
    language = {} if request.language_id is None else {"language_id": request.language_id}
    text_tokens = tokenizer.text_to_tokens(speakable(request.text, tokenizer.rules), **language)[0]  # (S,)
    if not t3.hp.is_gpt:
        text_tokens = F.pad(text_tokens, (1, 0), value=t3.hp.start_text_token)
        text_tokens = F.pad(text_tokens, (0, 1), value=t3.hp.stop_text_token)
    return DecodeRequest(
        t3_cond=voice.t3,
        text_tokens=text_tokens,
        sampling=request.sampling,
        max_new_tokens=min(request.sampling.max_new_tokens, t3.hp.max_speech_tokens),
        seed=request.seed,
        guard=request.guard,
    )


def valid_codes(tokens: Tensor, hp: T3Config) -> Tensor:
    """What S3Gen can render of the drawn tokens (N,): the ids below 6561 between start and stop.

    One stray start token of a Llama model discards what was drawn before it, as upstream. On a second one upstream
    fails; here all codes stay.
    """
    if not hp.is_gpt and int((tokens == START_SPEECH_TOKEN).sum()) <= 1:
        tokens = drop_invalid_tokens(tokens)
    codes = tokens[tokens < SPEECH_CODES]
    return codes[: max(1, len(codes) - hp.num_trailing_noise)]


def render(
    s3gen: S3Gen, codes: Tensor, gen: dict[str, Any], *, seed: int | None, watermarker: PerthWatermarker | None
) -> Tensor:
    """Waveform (1, N), float32 on the CPU at 24 kHz, of speech codes (T,) or (1, T) in the voice of ``gen``."""
    generator = None if seed is None else torch.Generator(device=s3gen.device).manual_seed(seed)
    with torch.inference_mode():
        wav, _ = s3gen.inference(speech_tokens=codes.to(s3gen.device), ref_dict=gen, generator=generator)
        samples = wav.squeeze(0).float().cpu().numpy()
    if watermarker is not None:
        samples = watermarker.apply_watermark(samples, sample_rate=S3GEN_SR)
    return torch.from_numpy(samples).unsqueeze(0)


def convert(
    s3gen: S3Gen,
    recording: Reference,
    gen: dict[str, Any],
    *,
    seed: int | None = None,
    watermarker: PerthWatermarker | None = PERTH,
) -> Tensor:
    """Waveform (1, N), as `render`, that says what ``recording`` says in the voice of ``gen``.

    Raises:
        FileNotFoundError, TypeError, ValueError: as `chatterbox.audio.load_reference`, or a bad seed.
    """
    check_seed(seed)
    wav = load_reference(recording, S3_SR)
    with torch.inference_mode():
        codes, _ = s3gen.tokenizer([wav])  # (1, T)
    return render(s3gen, codes, gen, seed=seed, watermarker=watermarker)


def check_seed(seed: int | None) -> None:
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63):
        raise ValueError(f"seed must be a whole number from 0 to 2**63 - 1 or None, got {seed!r}")
