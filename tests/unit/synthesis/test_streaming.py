"""Speech while it is made equals speech as a whole: tokens, samples, and what a stream tells of itself."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import re
import time
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from chatterbox import ChatterboxTTS
from chatterbox.base import SpeechModel
from chatterbox.config import KVCacheConfig, StreamingConfig
from chatterbox.models.s3gen.stream import FILTER_HELD_FRAMES
from chatterbox.mtl_tts import ChatterboxMultilingualTTS
from chatterbox.synthesis.render import RELEASE_LEN, SpeechRenderer, StreamingMetrics, chunk_lens
from chatterbox.synthesis.render_queue import RenderQueue
from chatterbox.synthesis.request import SynthesisRequest, utterance_seed
from chatterbox.synthesis.speech_stream import SpeechChunk
from chatterbox.synthesis.synthesizer import collect
from chatterbox.synthesis.token_filter import SpeechTokenFilter
from chatterbox.tts_turbo import ChatterboxTurboTTS
from chatterbox.watermark.perth import read_watermark
from tests.support.speaking import say_instead, speak, speak_batch, speak_stream
from tests.support.waiting import wait_for

TEXT = "The quick brown fox jumps over the lazy dog."
SENTENCES = ["The old man walked to the river.", "Nobody saw him again.", "He was gone by noon, they say."]
LONG = " ".join(SENTENCES * 2)


@pytest.fixture(scope="module")
def tiny() -> ChatterboxTTS:
    return ChatterboxTTS.from_pretrained("cpu", model="tiny")


@pytest.fixture(scope="module", params=["english", "multilingual", "turbo"])
def model(request: pytest.FixtureRequest) -> SpeechModel:
    folder = request.getfixturevalue(
        {"english": "small", "multilingual": "mtl", "turbo": "turbo"}[request.param] + "_folder"
    )
    kinds = {"english": ChatterboxTTS, "multilingual": ChatterboxMultilingualTTS, "turbo": ChatterboxTurboTTS}
    return kinds[request.param].from_local(folder, "cpu")


def language_of(tts: SpeechModel) -> tuple[str, ...]:
    return ("en",) if isinstance(tts, ChatterboxMultilingualTTS) else ()


def request_of(tts: SpeechModel, text=TEXT, max_new_tokens: int = 30, **changes) -> SynthesisRequest:
    sampling = dataclasses.replace(tts.sampling, max_new_tokens=max_new_tokens)
    request = SynthesisRequest(
        text, tts.conds, sampling, seed=3, watermark=False, language_id=(*language_of(tts), None)[0]
    )
    return dataclasses.replace(request, **changes)


def test_max_new_tokens_of_a_call(model: SpeechModel) -> None:
    """Random weights end no utterance before its limit, and Turbo adds silence behind it."""
    language, options = language_of(model), {"seed": 3, "watermark": False}
    whole = model.generate("Hello.", *language, max_new_tokens=None, **options)
    assert torch.equal(whole, model.generate("Hello.", *language, **options))
    options["max_new_tokens"] = 5
    samples = whole.shape[1] - (model.sampling.max_new_tokens - 5) * 960
    assert samples < whole.shape[1]
    assert model.generate("Hello.", *language, **options).shape[1] == samples
    assert [audio.shape[1] for audio in model.generate_batch(["Hello.", "Hi."], *language, **options)] == [samples] * 2
    chunks = model.generate_stream("Hello.", *language, print_metrics=False, **options)
    assert sum(audio.shape[1] for audio, _ in chunks) == samples
    with pytest.raises(ValueError, match="max_new_tokens must be a whole number from 1, got -1; 1000 is 40 s"):
        model.generate_stream("Hello.", *language, max_new_tokens=-1)


def parts(tts: SpeechModel) -> tuple:
    return tts.t3, tts.s3gen, tts.tokenizer


def chunks_of(tts: SpeechModel, request: SynthesisRequest, **streaming) -> list[SpeechChunk]:
    return list(speak_stream(*parts(tts), request, StreamingConfig(**streaming)))


@pytest.mark.parametrize("settings", [{}, {"chunk_size": 4, "first_chunk": 1}, {"context_window": 0, "chunk_size": 7}])
@pytest.mark.parametrize("decode_ahead", [0, 2, 250])
def test_streamed_tokens_are_the_whole_ones(model: SpeechModel, settings: dict, decode_ahead: int) -> None:
    request = request_of(model)
    whole = speak(*parts(model), request)
    said = chunks_of(model, request, decode_ahead=decode_ahead, **settings)
    assert [token for chunk in said for token in chunk.speech_tokens] == whole.speech_tokens.tolist()
    assert collect(said).audio.shape == whole.audio.shape and whole.audio.shape[1] > 0
    assert len(said) > 1


@pytest.mark.parametrize("continuity", ["isolated", "history", "append"])
def test_a_thread_changes_nothing(tiny: ChatterboxTTS, continuity: str) -> None:
    request = request_of(tiny, LONG, 60)
    alone, ahead = (chunks_of(tiny, request, continuity=continuity, decode_ahead=num) for num in (0, 250))
    assert len(alone) == len(ahead)
    for one, other in zip(alone, ahead, strict=True):
        assert torch.equal(one.audio, other.audio) and one.speech_tokens == other.speech_tokens


@pytest.mark.parametrize("continuity", ["isolated", "history", "append"])
def test_pieces_of_text_however_cut_are_the_text(tiny: ChatterboxTTS, continuity: str) -> None:
    cuts = [re.findall(r".{1,5}", LONG), list(LONG), [LONG]]
    said = [collect(chunks_of(tiny, request_of(tiny, iter(cut), 60), continuity=continuity)) for cut in cuts]
    for other in said[1:]:
        assert torch.equal(said[0].audio, other.audio)
    if continuity == "isolated":  # what is spoken sentence by sentence is each sentence's own speech
        alone = [speak(*parts(tiny), request_of(tiny, SENTENCES[0], 60)).speech_tokens]
        assert said[0].speech_tokens[: len(alone[0])].tolist() == alone[0].tolist()


def test_any_length_is_its_utterances_one_after_the_other(tiny: ChatterboxTTS) -> None:
    long = " ".join(SENTENCES * 3)
    whole = speak(*parts(tiny), request_of(tiny, long, 100))
    said = chunks_of(tiny, request_of(tiny, long, 100))
    assert whole.speech_tokens.tolist() == [token for chunk in said for token in chunk.speech_tokens]
    assert len({chunk.metrics.utterance for chunk in said}) > 1
    assert whole.audio.shape == (1, 960 * len(whole.speech_tokens)) == collect(said).audio.shape


def test_a_text_of_one_utterance_keeps_upstreams_random_numbers(small_tts: ChatterboxTTS) -> None:
    torch.manual_seed(4)
    first = small_tts.generate(TEXT, watermark=False)
    after = torch.get_rng_state()
    torch.manual_seed(4)
    assert torch.equal(small_tts.generate(TEXT, watermark=False), first)
    assert torch.equal(torch.get_rng_state(), after)


def test_streams_without_a_seed_decode_one(tiny: ChatterboxTTS) -> None:
    def say(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return collect(chunks_of(tiny, request_of(tiny, "Hello there.", seed=None))).audio

    assert torch.equal(say(1), say(1)) and not torch.equal(say(1), say(2))


class TestContinuity:
    def decoded(
        self, tts: ChatterboxTTS, monkeypatch: pytest.MonkeyPatch, **streaming
    ) -> tuple[list, list[SpeechChunk]]:
        """Requests to T3, in order, and the chunks."""
        seen = say_instead(monkeypatch, lambda *_: None)
        return seen, chunks_of(tts, request_of(tts, " ".join(SENTENCES), 60), **streaming)

    def test_isolated_knows_nothing(self, tiny: ChatterboxTTS, monkeypatch: pytest.MonkeyPatch) -> None:
        seen, _ = self.decoded(tiny, monkeypatch)
        assert [one.forced for one in seen] == [None] * len(seen)

    def test_history_gives_text_and_speech_of_the_sentence_before(
        self, tiny: ChatterboxTTS, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen, said = self.decoded(tiny, monkeypatch, continuity="history")
        assert len(seen) == len(SENTENCES) and seen[0].forced is None
        speech_tokens = [token for chunk in said for token in chunk.speech_tokens]
        start = 0
        for one, text in zip(seen[1:], SENTENCES, strict=False):
            given = one.forced.tokens.tolist()
            assert speech_tokens[start : start + len(given)] == given  # all that the sentence before was heard to say
            start += len(given)
            assert one.forced.text_len == len(tiny.tokenizer.text_to_tokens(text)[0]) + 1
            assert len(one.text_tokens) > one.forced.text_len
        assert seen[1].text_tokens.tolist()[: seen[1].forced.text_len] == seen[0].text_tokens.tolist()[:-1]

    def test_history_that_is_too_long_is_left_out(self, tiny: ChatterboxTTS, monkeypatch: pytest.MonkeyPatch) -> None:
        seen, _ = self.decoded(tiny, monkeypatch, continuity="history", history_len=5)
        assert [one.forced for one in seen] == [None] * len(SENTENCES)

    def test_append_continues_one_sequence(self, tiny: ChatterboxTTS) -> None:
        request = request_of(tiny, " ".join(SENTENCES), 60)
        said = chunks_of(tiny, request, continuity="append")
        last = said[-1].metrics
        served = last.positions_served / (last.positions_served + last.positions_computed)
        assert last.cache_hit_rate == served > 0.5  # all that was said before stays in the cache

    def test_a_window_forgets_and_goes_on(self, tiny: ChatterboxTTS) -> None:
        settings = KVCacheConfig(policy="sliding", max_cache_size=160, window_size=40)
        request = request_of(tiny, LONG, 60, cache_policy=settings)
        assert collect(chunks_of(tiny, request, continuity="append")).duration > 4

    def test_one_stream_of_audio_has_one_beginning(self, tiny: ChatterboxTTS) -> None:
        """Isolated utterances each begin with 20 ms of silence; the other modes have no such gap between sentences."""
        renderer = SpeechRenderer(tiny.s3gen, tiny.conds.gen, None, None)
        for index in range(2):
            renderer.begin(index)
            renderer.push([5] * 10)
            wav = renderer.close()
            assert wav.shape == (1, 9600)
            assert (wav[0, RELEASE_LEN:480] == 0).all()

    def test_append_needs_a_cache(self, tiny: ChatterboxTTS) -> None:
        with pytest.raises(ValueError, match='continuity "append" needs a cache'):
            chunks_of(tiny, request_of(tiny, use_cache=False), continuity="append")


def test_the_end_of_an_utterance_fades_into_the_next(tiny: ChatterboxTTS) -> None:
    """The last sample falls to 0 within 10 ms instead of at once."""
    renderer = SpeechRenderer(tiny.s3gen, tiny.conds.gen, None, None)
    renderer.begin(1)
    renderer.push([2000] * 12)
    last = float(renderer.close()[0, -1])
    renderer._last = 0.5  # as if it had ended loud
    renderer.begin(2)
    renderer.push([2000] * 12)
    start = renderer.close()[0, :480]
    assert abs(last) < 1 and start[0] == 0.5 and start[RELEASE_LEN - 1] == 0.0
    assert (start.diff().abs() < 0.5 / RELEASE_LEN * 1.1).all()


def test_chunks_double_until_they_are_as_long_as_asked() -> None:
    def first(num: int, **settings) -> list[int]:
        return list(itertools.islice(chunk_lens(StreamingConfig(**settings)), num))

    assert first(4) == [10, 20, 25, 25]
    assert first(5, first_chunk=3, chunk_size=20) == [3, 6, 12, 20, 20]
    assert first(2, first_chunk=50, chunk_size=20) == [20, 20]


def test_chunks_are_as_long_as_the_schedule_says(tiny: ChatterboxTTS) -> None:
    said = chunks_of(tiny, request_of(tiny, TEXT, 100), first_chunk=10, chunk_size=25)
    lens = [chunk.audio.shape[1] for chunk in said]
    assert lens[:3] == [(20 - FILTER_HELD_FRAMES) * 480, 20 * 960, 25 * 960]
    assert sum(lens) == 960 * sum(len(chunk.speech_tokens) for chunk in said)


def lens_of(said: Sequence[SpeechChunk]) -> list[int]:
    """In speech tokens."""
    return [chunk.audio.shape[1] / 960 for chunk in said]


@pytest.mark.parametrize("is_late", [False, True], ids=["time is left", "nothing is left to hear"])
def test_chunks_grow_to_what_is_decoded(is_late: bool, tiny: ChatterboxTTS, monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer chunks of the same speech tokens, none longer than `max_chunk`."""
    request = request_of(tiny, " ".join(SENTENCES), 200)
    usual = chunks_of(tiny, request)
    clock = itertools.count(step=1000) if is_late else itertools.repeat(0)
    times = SimpleNamespace(monotonic=lambda: next(clock), perf_counter=time.perf_counter)
    monkeypatch.setattr("chatterbox.synthesis.speech_stream.time", times)
    monkeypatch.setattr(RenderQueue, "num_tokens_within", lambda *_: 0 if is_late else 10**6)
    stream = tiny.synthesizer.stream(request, StreamingConfig(max_chunk=60, decode_ahead=1000))
    said = [next(stream)]
    wait_for(lambda: not tiny.synthesizer.scheduler.stats()["rows"])  # T3 is ahead
    said += stream
    assert len(said) < len(usual)
    assert max(lens_of(said)) > 26 and max(lens_of(said)) <= 60 + FILTER_HELD_FRAMES / 2
    assert [t for chunk in said for t in chunk.speech_tokens] == [t for chunk in usual for t in chunk.speech_tokens]
    assert collect(said).audio.shape == collect(usual).audio.shape


def test_chunks_do_not_grow_without_the_time(tiny: ChatterboxTTS, monkeypatch: pytest.MonkeyPatch) -> None:
    request = request_of(tiny, " ".join(SENTENCES), 200)
    usual = chunks_of(tiny, request)
    monkeypatch.setattr(RenderQueue, "num_tokens_within", lambda *_: 0)
    stopped = SimpleNamespace(monotonic=lambda: 0.0, perf_counter=time.perf_counter)  # so nobody is ever late
    monkeypatch.setattr("chatterbox.synthesis.speech_stream.time", stopped)
    hurried = chunks_of(tiny, request, max_chunk=60)
    assert [chunk.audio.shape for chunk in hurried] == [chunk.audio.shape for chunk in usual]
    assert all(torch.equal(one.audio, other.audio) for one, other in zip(hurried, usual, strict=True))


def test_a_chunk_that_grows_takes_the_end_of_its_utterance_with_it(small_tts: ChatterboxTTS) -> None:
    renderer = SpeechRenderer(small_tts.s3gen, small_tts.conds.gen, StreamingConfig(max_chunk=60), None)
    renderer.begin(1)
    assert renderer.push([2000] * 13) is not None and renderer.num_missing == 20
    for num_waiting, room, ends, missing in (
        (15, 99, False, 20),  # less than it is due anyway
        (40, 10, False, 20),  # no time
        (40, 99, False, 40),
        (30, 99, False, 40),  # it has been promised more
        (45, 99, True, 48),  # nothing is held back of them
        (90, 99, False, 60),
    ):
        renderer.grow(num_waiting, room, ends=ends)
        assert renderer.num_missing == missing


@pytest.mark.parametrize("first_chunk", [1, 2, 3, 4, 5])
def test_first_chunks_of_which_nothing_is_heard_yet(tiny: ChatterboxTTS, first_chunk: int) -> None:
    """S3Gen holds back some frames, which may be more than such chunks have."""
    options = {"seed": 1, "fade_duration": 0.1, "print_metrics": False}
    said = [wav for wav, _ in tiny.generate_stream(TEXT, first_chunk=first_chunk, **options)]
    assert sum(wav.shape[1] for wav in said) == tiny.generate(TEXT, seed=1).shape[1]


def test_tokens_without_a_code_fill_no_chunk(tiny: ChatterboxTTS, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many of them wait, T3 goes on."""
    push = SpeechTokenFilter.push
    monkeypatch.setattr(
        SpeechTokenFilter,
        "push",
        lambda speech_tokens, token: push(speech_tokens, 6561 + token % 2 if len(speech_tokens.decoded) % 9 else token),
    )
    said = list(tiny.generate_stream(TEXT, seed=1, first_chunk=1, chunk_size=1, print_metrics=False))
    assert len(said) > 1


class TestMetrics:
    def test_names_are_those_of_chatterbox_streaming(self) -> None:
        names = [field.name for field in dataclasses.fields(StreamingMetrics)]
        assert names[:5] == [
            "latency_to_first_chunk",
            "rtf",
            "total_generation_time",
            "total_audio_duration",
            "chunk_count",
        ]
        empty = StreamingMetrics()
        assert (empty.latency_to_first_chunk, empty.rtf, empty.chunk_count) == (None, None, 0)

    def test_of_each_chunk(self, tiny: ChatterboxTTS) -> None:
        said = list(tiny.generate_stream(LONG, seed=1, print_metrics=False))
        all_metrics = [metrics for _, metrics in said]
        assert [metrics.chunk_count for metrics in all_metrics] == list(range(1, len(said) + 1))
        seconds = np.cumsum([wav.shape[1] / tiny.sr for wav, _ in said])
        np.testing.assert_allclose([metrics.total_audio_duration for metrics in all_metrics], seconds)
        waited = np.cumsum([metrics.gap for metrics in all_metrics])
        np.testing.assert_allclose([metrics.total_generation_time for metrics in all_metrics], waited)
        np.testing.assert_allclose([metrics.rtf for metrics in all_metrics], waited / seconds)
        assert {metrics.latency_to_first_chunk for metrics in all_metrics} == {all_metrics[0].gap}
        assert all(0 <= metrics.tokens_time <= metrics.gap for metrics in all_metrics)
        assert [m.num_tokens for m in all_metrics] == sorted(m.num_tokens for m in all_metrics)
        assert all_metrics[-1].utterance == 1

    def test_a_warm_voice_is_served(self, small_folder) -> None:
        tts = ChatterboxTTS.from_local(small_folder, "cpu")
        cold, warm = (list(tts.generate_stream(TEXT, seed=1, print_metrics=False))[-1][1] for _ in range(2))
        assert cold.positions_computed > 0 and warm.cache_hit_rate > 0.9 > cold.cache_hit_rate

    def test_are_printed_if_asked_for(self, small_tts: ChatterboxTTS, capfd) -> None:
        list(small_tts.generate_stream(TEXT, seed=1, print_metrics=False))
        assert capfd.readouterr() == ("", "")
        list(small_tts.generate_stream(TEXT, seed=1))
        printed, told = capfd.readouterr()
        assert printed == "" and re.fullmatch(r"0\.\d+ s of audio in \d chunks, .* of prefixes from the cache\n", told)


class TestFacade:
    def test_positional_arguments_of_chatterbox_streaming(self) -> None:
        """Names, order and defaults of 0.1.2, read from its signature."""
        expected = {
            "text": inspect.Parameter.empty,
            "audio_prompt_path": None,
            "exaggeration": 0.5,
            "cfg_weight": 0.5,
            "temperature": 0.8,
            "chunk_size": 25,
            "context_window": 50,
            "fade_duration": 0.02,
            "print_metrics": True,
        }
        ours = list(inspect.signature(ChatterboxTTS.generate_stream).parameters.values())[1:]
        positional = [one for one in ours if one.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
        assert {one.name: one.default for one in positional} == expected

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"chunk_size": 0}, "chunk_size must be a whole number of speech tokens from 1, got 0"),
            ({"context_window": -1}, "context_window must be a whole number of speech tokens from 0, got -1"),
            ({"fade_duration": 0.5}, r"fade_duration must be a number from 0 to 0.1, got 0.5"),
            ({"continuity": "smooth"}, "continuity must be one of isolated, history, append, got 'smooth'"),
            ({"temperature": -1.0}, "temperature must be a number from 0 to 10"),
            ({"guard": "heavy"}, "guard must be one of"),
        ],
    )
    def test_bad_settings_are_told_at_the_call(self, small_tts: ChatterboxTTS, options: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            small_tts.generate_stream(TEXT, **options)

    def test_every_model_streams(self, model: SpeechModel) -> None:
        language = language_of(model)
        said = list(model.generate_stream(TEXT, *language, seed=1, chunk_size=1, first_chunk=1, print_metrics=False))
        whole = model.generate(TEXT, *language, seed=1)
        assert sum(wav.shape[1] for wav, _ in said) == whole.shape[1] and len(said) > 1
        assert all(wav.dtype == torch.float32 and wav.shape[0] == 1 for wav, _ in said)

    def test_a_batch_is_its_texts_alone(self, model: SpeechModel, reference_wav) -> None:
        if model.t3.hp.min_recording_seconds:  # longer than the recording
            voices: list = [None, model.conds]
        else:
            voices = [None, str(reference_wav)]
        language = language_of(model)
        said = model.generate_batch([TEXT, LONG], *language, voices, seed=5, watermark=False)
        for index, (text, voice) in enumerate(zip([TEXT, LONG], voices, strict=True)):
            options = {"audio_prompt_path": voice} if isinstance(voice, str) else {}
            alone = model.generate(text, *language, seed=utterance_seed(5, index), watermark=False, **options)
            torch.testing.assert_close(said[index], alone, atol=1e-4, rtol=1e-3)

    def test_bad_batches(self, small_tts: ChatterboxTTS) -> None:
        for texts in (None, 5, b"Hello.", {"Hello.": None}):
            with pytest.raises(TypeError, match="texts must be a list, one entry a text, got "):
                small_tts.generate_batch(texts)
        for voices in (5, "ab"):
            with pytest.raises(TypeError, match="voices must be a list, one entry a text, got "):
                small_tts.generate_batch(["Hello.", "World."], voices)
        with pytest.raises(TypeError, match="text must be a string or an iterable of strings, got ndarray"):
            small_tts.generate(np.array("Hello."))
        with pytest.raises(TypeError, match="texts must be a list of strings, got the string 'Hello"):
            small_tts.generate_batch("Hello.")
        with pytest.raises(ValueError, match="2 texts need as many voices, got 1"):
            small_tts.generate_batch(["a", "b"], [None])
        assert small_tts.generate_batch([]) == []

    def test_each_text_of_a_batch_has_its_own_policy(self, small_tts: ChatterboxTTS) -> None:
        requests = [
            request_of(small_tts),
            request_of(small_tts, use_cache=False),
            request_of(small_tts, cache_policy="dynamic"),
        ]
        said = speak_batch(*parts(small_tts), requests)
        assert all(torch.equal(one.speech_tokens, said[0].speech_tokens) for one in said[1:])


def test_the_whole_stream_is_watermarked(tiny: ChatterboxTTS) -> None:
    said = [wav for wav, _ in tiny.generate_stream(" ".join(SENTENCES), seed=1, print_metrics=False)]
    plain = [wav for wav, _ in tiny.generate_stream(" ".join(SENTENCES), seed=1, print_metrics=False, watermark=False)]
    marked, unmarked = torch.cat(said, dim=1)[0].numpy(), torch.cat(plain, dim=1)[0].numpy()
    assert marked.shape == unmarked.shape
    assert read_watermark(marked, tiny.sr) > 0.9 > 0.5 > read_watermark(unmarked, tiny.sr)


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("", [""]),
        (" \n ", []),
        ("🙂" * 3000, []),
        ("?!", []),
        ("Hello " + "🙂" * 3000, ["Hello " + "🙂" * 3000]),  # they take no tokens
        ("a", ["a"]),
        ("  hello there ", ["  hello there "]),
    ],
)
def test_texts_of_little(tiny: ChatterboxTTS, text: str, spoken: list[str]) -> None:
    request = request_of(tiny, text)
    assert tiny.synthesizer.utterances(request) == spoken
    assert speak(*parts(tiny), request).duration > 0.1
