"""What a caller has set for torch changes no bit of what comes out, and breaks nothing."""

from __future__ import annotations

import copy
import functools
import gc
import io
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch
from torch import Tensor

from chatterbox.runtime.torch_context import own_context
from chatterbox.tts import ChatterboxTTS
from chatterbox.tts_turbo import ChatterboxTurboTTS
from chatterbox.vc import ChatterboxVC
from chatterbox.voice.conditionals import Conditionals, prepare_conditionals, prepare_target_voice
from chatterbox.watermark.perth import PerthWatermarker
from tests.support.folders import recording
from tests.support.small import SMALL_GPT2, build, make_request

SHORT, LONG = "Hello there.", "Hello there. It is I. " * 2
VOICE, LONG_VOICE = recording(2.0, pitch=230.0), recording(6.0, pitch=230.0)


@contextmanager
def process_wide(set_it: Callable, value: object, before: object) -> Iterator[None]:
    set_it(value)
    try:
        yield
    finally:
        set_it(before)


CONTEXTS: dict[str, Callable[[], AbstractContextManager]] = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "float64 by default": lambda: process_wide(torch.set_default_dtype, torch.float64, torch.float32),
    "bfloat16 by default": lambda: process_wide(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "inference mode": torch.inference_mode,
    "no grad": torch.no_grad,
    "grad": torch.enable_grad,
    "deterministic": lambda: process_wide(torch.use_deterministic_algorithms, True, False),
    "another device by default": lambda: process_wide(torch.set_default_device, "meta", None),
    "in a device": lambda: torch.device("meta"),
}
UNDER = pytest.mark.parametrize("context", CONTEXTS)


def forget() -> None:
    """Clear all that the package has computed once for the process, but for its hooks, which are put in once."""
    for found in gc.get_objects():
        if type(found) is functools._lru_cache_wrapper:
            module = str(found.__module__)
            if module.startswith("chatterbox.") and not module.startswith("chatterbox.runtime."):
                found.cache_clear()


MADE: dict[str, list[Tensor]] = {}  # without any context, by who makes it


def check_the_same(context: str, make: Callable[[], list[Tensor]]) -> None:
    expected = MADE[make.__qualname__] = MADE.get(make.__qualname__) or make()
    forget()
    with CONTEXTS[context]():
        found = make()
    again = make()
    for others in (found, again):  # what was computed in the context serves outside
        assert len(others) == len(expected)
        for one, other in zip(expected, others, strict=True):
            assert one.dtype == other.dtype and one.device == other.device and torch.equal(one, other)
            assert other.is_inference() == one.is_inference()


def tensors_of(voice: Conditionals) -> list[Tensor]:
    return [one for part in (vars(voice.t3), voice.gen) for one in part.values() if isinstance(one, Tensor)]


def spoken(tts: ChatterboxTTS, text: object = SHORT, **options) -> list[Tensor]:
    return [audio for audio, _ in tts.generate_stream(text, seed=3, chunk_size=3, print_metrics=False, **options)]


@UNDER
def test_generate(small_tts: ChatterboxTTS, turbo: ChatterboxTurboTTS, context):
    def make() -> list[Tensor]:
        for tts in (small_tts, turbo):
            tts.clear_cache()  # or its voices and prefixes would be those of before
        torch.manual_seed(1)
        return [
            small_tts.generate(SHORT),
            small_tts.generate(SHORT, seed=3, use_cache=False),
            small_tts.generate(SHORT, seed=3, audio_prompt_path=VOICE),
            turbo.generate(SHORT, seed=3, audio_prompt_path=LONG_VOICE),
            *small_tts.generate_batch([SHORT, LONG], seed=3),
        ]

    check_the_same(context, make)


@UNDER
def test_streams(small_tts: ChatterboxTTS, context):
    def make() -> list[Tensor]:
        small_tts.clear_cache()
        small_tts.warm([SHORT])
        pieces = iter(["Hello ", "there. ", "It is I."])
        return [
            *spoken(small_tts),
            *spoken(small_tts, pieces),
            *(audio for how in ("history", "append") for audio in spoken(small_tts, LONG, continuity=how)),
        ]

    check_the_same(context, make)


@UNDER
def test_a_stream_that_begins_outside_and_is_read_within(small_tts: ChatterboxTTS, context):
    expected, stream = spoken(small_tts), small_tts.generate_stream(SHORT, seed=3, chunk_size=3, print_metrics=False)
    with CONTEXTS[context]():
        within = small_tts.generate_stream(SHORT, seed=3, chunk_size=3, print_metrics=False)
        found = [audio for audio, _ in stream]
    for others in (found, [audio for audio, _ in within]):
        assert len(others) == len(expected) and all(map(torch.equal, expected, others))


@UNDER
def test_voices_and_conversion(small_tts: ChatterboxTTS, vc: ChatterboxVC, context):
    def make() -> list[Tensor]:
        prepared = prepare_conditionals(small_tts.s3gen, small_tts.ve, VOICE, hp=small_tts.t3.hp)
        other = ChatterboxTTS(small_tts.t3, small_tts.s3gen, small_tts.ve, small_tts.tokenizer, "cpu")
        other.prepare_conditionals(VOICE, exaggeration=0.7)
        target = prepare_target_voice(small_tts.s3gen, VOICE)
        return [
            *tensors_of(prepared),
            *tensors_of(other.conds),
            *(one for one in target.values() if isinstance(one, Tensor)),
            vc.generate(recording(1.0, 16_000), seed=3),
            vc.generate(recording(1.0, 16_000), VOICE, seed=3, watermark=False),
        ]

    check_the_same(context, make)


@UNDER
def test_tokens(t3, context):
    other, asked, asked_other = build(SMALL_GPT2), make_request(0), make_request(0, SMALL_GPT2)

    def make() -> list[Tensor]:
        texts = {"t3_cond": asked.t3_cond, "text_tokens": asked.text_tokens, "seed": 3, "max_new_tokens": 9}
        first, cache = t3.inference(**texts, return_cache=True)
        more = t3.inference(**texts, past_key_values=cache, cache_offset=t3.hp.cond_len)
        turbo = other.inference_turbo(asked_other.t3_cond, asked_other.text_tokens, seed=3, max_gen_len=9)
        return [first, more, t3.inference(**texts, use_cache=False), turbo]

    check_the_same(context, make)


@UNDER
def test_loading(small_folder, turbo_folder, context):
    def make() -> list[Tensor]:
        tensors = []
        for cls, folder in ((ChatterboxTTS, small_folder), (ChatterboxTurboTTS, turbo_folder)):
            tts = cls.from_local(folder, "cpu")
            for part in (tts.t3, tts.s3gen, tts.ve):
                tensors += [*part.state_dict().values(), *part.buffers()]
            tensors += [*tensors_of(tts.conds), tts.generate(SHORT, seed=3)]
        vc = ChatterboxVC.from_local(small_folder, "cpu")
        return [*tensors, vc.generate(recording(1.0, 16_000), seed=3)]

    check_the_same(context, make)


def test_a_model_loaded_in_inference_mode_can_be_trained(small_folder):
    with torch.inference_mode():
        tts = ChatterboxTTS.from_local(small_folder, "cpu")
        tts.generate(SHORT, seed=3)
    t3 = tts.t3.requires_grad_(True)
    ids = torch.tensor([[255, 5, 6, 0]])
    text_loss, _ = t3.loss(
        t3_cond=tts.conds.t3,
        text_tokens=ids,
        text_token_lens=torch.tensor([4]),
        speech_tokens=torch.tensor([[5, 6, 7]]),
        speech_token_lens=torch.tensor([3]),
    )
    text_loss.backward()
    assert t3.text_head.weight.grad.abs().sum() > 0


def test_a_voice_made_in_inference_mode_is_used_outside(small_tts: ChatterboxTTS, tmp_path):
    with torch.inference_mode():
        voice = prepare_conditionals(small_tts.s3gen, small_tts.ve, VOICE, hp=small_tts.t3.hp)
        louder, cloned = voice.with_exaggeration(0.7), voice.clone()
        held = io.BytesIO()
        voice.save(held)
        held.seek(0)
        loaded = Conditionals.load(held)
    for one in (voice, louder, cloned, loaded, copy.deepcopy(voice)):
        assert not any(tensor.is_inference() for tensor in tensors_of(one))
    for name in ("voice.pt", "voice.safetensors"):
        voice.save(tmp_path / name)
        assert all(map(torch.equal, tensors_of(voice), tensors_of(Conditionals.load(tmp_path / name))))
    tensors_of(copy.deepcopy(voice))[0].mul_(2)
    small_tts.generate_batch([SHORT], [voice], seed=3)


def test_speech_made_in_inference_mode_may_be_changed(small_tts: ChatterboxTTS, vc: ChatterboxVC):
    with torch.inference_mode():
        made = [small_tts.generate(SHORT, seed=3), vc.generate(recording(1.0, 16_000)), *spoken(small_tts)]
    for audio in made:
        audio.mul_(0.5)


def test_a_mark_is_the_same_under_autocast():
    samples = recording(1.0)
    plain = PerthWatermarker().apply_watermark(samples, sample_rate=24_000)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (PerthWatermarker().apply_watermark(samples, sample_rate=24_000) == plain).all()


def test_the_caller_has_its_own_again():
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.device("meta"), torch.inference_mode():
        with own_context():
            assert not torch.is_autocast_enabled("cpu") and not torch.is_inference_mode_enabled()
            assert torch.empty(0).device.type == "cpu"
        assert torch.is_autocast_enabled("cpu") and torch.is_inference_mode_enabled()
        assert torch.empty(0).device.type == "meta"


def test_less_precise_products_are_the_users_choice(small_tts: ChatterboxTTS):
    """It is the whole process's, and may change bits; it breaks nothing."""
    expected = small_tts.generate(SHORT, seed=3)
    before = torch.get_float32_matmul_precision()
    with process_wide(torch.set_float32_matmul_precision, "medium", before):
        found = small_tts.generate(SHORT, seed=3)
    assert found.isfinite().all() and found.dtype == expected.dtype
    assert torch.equal(small_tts.generate(SHORT, seed=3), expected)
