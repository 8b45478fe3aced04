"""`torch.set_default_dtype` is process-wide and the caller's: models load and compute to the same bits under any."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from chatterbox.audio import recordings
from chatterbox.kvcache import POLICIES, KVCache, policy
from chatterbox.models.s3gen import fbank
from chatterbox.models.s3gen.stream import S3GenStream
from chatterbox.models.t3 import T3
from chatterbox.tts import ChatterboxTTS
from chatterbox.voice.conditionals import prepare_conditionals
from chatterbox.watermark import perth as watermark
from tests.support.folders import recording
from tests.support.small import make_request

CACHED = (recordings.mel_filters, recordings._sinc_kernel, fbank.kaldi_mel_filters, watermark._window)
Check = Callable[[Callable[[], object]], None]  # of a function
TOKENS = torch.arange(0, 1000, 25)


@pytest.fixture(params=[torch.float64, torch.bfloat16], ids=["float64", "bfloat16"])
def same_bits(request: pytest.FixtureRequest) -> Iterator[Check]:
    """Checks that a function returns the same bits, of the same dtypes, under torch's default dtype and another."""

    def check(compute: Callable[[], object]) -> None:
        torch.manual_seed(0)
        expected = compute()
        forget()
        torch.set_default_dtype(request.param)
        torch.manual_seed(0)
        found = compute()
        torch.set_default_dtype(torch.float32)
        torch.testing.assert_close(found, expected, rtol=0.0, atol=0.0, equal_nan=False)

    yield check
    torch.set_default_dtype(torch.float32)
    forget()


def forget() -> None:
    """What is computed once is computed anew."""
    for function in CACHED:
        function.cache_clear()


def reference(tts: ChatterboxTTS) -> dict[str, Tensor | None]:
    assert tts.conds is not None
    return tts.conds.gen


def test_a_voice(small_tts: ChatterboxTTS, same_bits: Check) -> None:
    def compute() -> list[dict[str, object]]:
        conds = prepare_conditionals(small_tts.s3gen, small_tts.ve, recording(3.0), hp=small_tts.t3.hp)
        parts = (vars(conds.t3), conds.gen, vars(conds.with_exaggeration(0.7).t3))
        return [{key: value for key, value in part.items() if value is not None} for part in parts]

    same_bits(compute)


def test_the_voice_encoder_and_the_speech_tokenizer(small_tts: ChatterboxTTS, same_bits: Check) -> None:
    wav = recording(2.0, rate=22_050)
    same_bits(lambda: small_tts.ve.embeds_from_wavs([wav], sample_rate=22_050))
    same_bits(lambda: small_tts.s3gen.tokenizer([torch.from_numpy(recording(2.0, rate=16_000))]))


def test_the_text_tokenizer(small_tts: ChatterboxTTS, same_bits: Check) -> None:
    same_bits(lambda: small_tts.tokenizer.text_to_tokens("Hello."))


@torch.inference_mode()
def test_s3gen(small_tts: ChatterboxTTS, same_bits: Check) -> None:
    same_bits(lambda: small_tts.s3gen.inference(TOKENS, ref_dict=reference(small_tts)))


def test_a_stream_of_s3gen(small_tts: ChatterboxTTS, same_bits: Check) -> None:
    def compute() -> list[Tensor]:
        stream = S3GenStream(small_tts.s3gen, reference(small_tts), seed=3, context_len=4)
        return [stream.push(TOKENS[:2]), *map(stream.push, TOKENS[2:].split(12)), stream.finish()]

    same_bits(compute)


def test_the_watermark(same_bits: Check) -> None:
    wav = recording(1.0)
    same_bits(lambda: watermark.apply_watermark(wav, 24_000))
    same_bits(lambda: np.float64(watermark.read_watermark(watermark.apply_watermark(wav, 24_000), 24_000)))


@torch.inference_mode()
def test_t3(t3: T3, same_bits: Check) -> None:
    request = make_request(1)

    def compute() -> list[Tensor]:
        prefix = t3.prepare_conditioning(request.t3_cond)
        text = t3.embed_text(request.text_tokens[None])
        return [prefix, t3.predict_speech(t3.tfmr(torch.cat([prefix, text], dim=1)))]

    same_bits(compute)


@pytest.mark.parametrize("use_cache", [True, False])
def test_tokens(t3: T3, use_cache: bool, same_bits: Check) -> None:
    request = make_request(1)
    draw = partial(t3.inference, t3_cond=request.t3_cond, text_tokens=request.text_tokens, max_new_tokens=12)
    for seed in (5, None):
        same_bits(lambda seed=seed: draw(use_cache=use_cache, stop_on_eos=False, seed=seed))


@torch.inference_mode()
@pytest.mark.parametrize("name", sorted(POLICIES.keys() - {"none"}))
def test_a_cache(t3: T3, name: str, same_bits: Check) -> None:
    """Of any policy, under a default dtype of the caller's from its construction to its last step."""
    make, config = policy(name), t3.hp.backbone
    assert make is not None
    embeds = torch.randn(2, 30, config.hidden_size, generator=torch.Generator().manual_seed(0))

    def compute() -> list[Tensor]:
        cache: KVCache = make(config.num_layers, 2, config.num_heads, config.head_dim, 40)
        outputs = [t3.tfmr(piece, cache) for piece in embeds.split([20, *[1] * 10], dim=1)]
        segment = cache.segment(1, 0, 30)
        return [*outputs, segment.keys, segment.values]

    same_bits(compute)


def test_loading(small_folder: Path, same_bits: Check) -> None:
    def compute() -> list[dict[str, Tensor]]:
        tts = ChatterboxTTS.from_local(small_folder, "cpu")
        modules: tuple[nn.Module, ...] = (tts.t3, tts.s3gen, tts.ve)
        return [dict([*module.named_parameters(), *module.named_buffers()]) for module in modules]

    same_bits(compute)
