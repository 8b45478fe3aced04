"""What all text-to-speech façades share: a loaded model, its voice, its caches.

Owns: the parts of a model, which voice a call without one gets, what is kept between calls. Does not know: upstream's
signatures, which are the subclasses'.
"""

from __future__ import annotations

import abc
import copy
import dataclasses
import inspect
import logging
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_type_hints

import torch
from torch import Tensor

from chatterbox.audio.recordings import rates_of
from chatterbox.checkpoints import Files, Layout, LoadedModels, fetch_base, folder_at, load_models, resolve_device
from chatterbox.config import (
    EngineConfig,
    KVCacheConfig,
    PrecisionConfig,
    S3GenOptions,
    SamplingConfig,
    SpeechOptions,
    StreamingConfig,
    exaggeration_of,
    precision_config,
)
from chatterbox.engine.guards import check_guard
from chatterbox.engine.scheduler import EngineClosedError
from chatterbox.kvcache import GlobalKVCacheManager, cache_config
from chatterbox.models.config import T3Config
from chatterbox.models.s3gen import S3GEN_SR, S3Gen
from chatterbox.models.s3tokenizer import S3_SR
from chatterbox.models.t3 import T3
from chatterbox.models.tokenizers import TextTokenizer
from chatterbox.models.voice_encoder import VoiceEncoder
from chatterbox.models.weights_watch import state_of
from chatterbox.runtime.notice import Notice
from chatterbox.runtime.reloadable import Reloadable
from chatterbox.runtime.replaceable import replaceable, replacement
from chatterbox.synthesis.aio import astream
from chatterbox.synthesis.render import StreamingMetrics
from chatterbox.synthesis.request import SynthesisRequest, utterance_seed
from chatterbox.synthesis.reshaping import check_streamed
from chatterbox.synthesis.synthesizer import Synthesizer, SynthesizerConfig
from chatterbox.values import seed_of, shown, switch
from chatterbox.voice.conditionals import DEC_COND_SECONDS, Conditionals, Hearing, Reference
from chatterbox.watermark.perth import watermarker_of

if TYPE_CHECKING:
    from typing_extensions import Self  # typing has it from Python 3.11 on

logger = logging.getLogger(__name__)

ENGINE, S3GEN = EngineConfig(), S3GenOptions()
FILTER = "drop_invalid_tokens"  # a function that upstream's `generate` calls
Method = TypeVar("Method", bound=Callable[..., Any])
_SAMPLING, _SPEECH, _STREAMING = (
    frozenset(one.name for one in dataclasses.fields(config))
    for config in (SamplingConfig, SpeechOptions, StreamingConfig)
)


def by_name(arguments: type) -> Callable[[Method], Method]:
    """A method that takes the fields of a `TypedDict` by name, as ``**options``, shows them in its signature, and no
    other.

    Their defaults are those of `SpeechOptions` and `StreamingConfig`; None is the checkpoint's own.
    """
    hints, keyword = get_type_hints(arguments), inspect.Parameter.KEYWORD_ONLY
    defaults = {**vars(StreamingConfig), **vars(SpeechOptions), "norm_loudness": True, "sample_rate": None}
    spelled = [inspect.Parameter(name, keyword, default=defaults.get(name), annotation=hints[name]) for name in hints]

    def shown(method: Method) -> Method:
        signature = inspect.signature(method)
        own = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
        known = {*(one.name for one in own), *hints}

        @wraps(method)
        def checked(*places: Any, **names: Any) -> Any:
            if unknown := names.keys() - known:
                taken = ", ".join(name for name in (*(one.name for one in own[2:]), *hints))
                raise TypeError(f"{method.__name__} got an unexpected argument {min(unknown)!r}; it takes {taken}")
            return method(*places, **names)

        shows: Any = checked
        shows.__signature__ = signature.replace(parameters=[*own, *spelled])
        shows.__annotations__ = {key: kind for key, kind in method.__annotations__.items() if key != "options"} | hints
        return cast(Method, checked)

    return shown


class ModelDefault(float):
    """A published model's value in a signature; left in place, it stands for the loaded checkpoint's own setting."""


class _Part:
    """A part of the model under upstream's name; assigning it makes later calls use the new one."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, model: SpeechModel | None, owner: type | None = None) -> Any:
        return self if model is None else getattr(model.synthesizer, self._name)

    def __set__(self, model: SpeechModel, value: Any) -> None:
        model.synthesizer.replace(self._name, value)


class _Notices:
    """What a model's user is told once; a call assigns nothing to the model itself."""

    def __init__(self, facade: str) -> None:
        self.voice = Notice(
            "conds is not the voice of the last recording: one that is given to generate is of that call alone. "
            "chatterbox-tts would go on with it; to do so call prepare_conditionals(recording)"
        )
        self.filter = Notice(f"the replaced {facade}.{FILTER} is not called: speech tokens are chosen as they come")


class SpeechModel(abc.ABC):
    """Text to speech with voice cloning.

    One instance serves several threads: speaking changes nothing here. ``conds`` is the voice used when a call names
    none; only `prepare_conditionals` and the caller assign it, and a call works on the value it found at its start.
    """

    published: SamplingConfig  # the published model's own settings
    facade: str  # the module of upstream's names for it: programs replace functions there
    t3, s3gen, ve = _Part("t3"), _Part("s3gen"), _Part("voice_encoder")
    tokenizer, watermarker = _Part("tokenizer"), _Part("watermarker")
    ENC_COND_LEN = T3Config.prompt_seconds * S3_SR  # samples of a recording that T3 hears, where a program changes it
    DEC_COND_LEN = DEC_COND_SECONDS * S3GEN_SR  # and S3Gen
    _published_lens = (ENC_COND_LEN, DEC_COND_LEN)

    def __init__(
        self,
        t3: T3,
        s3gen: S3Gen,
        ve: VoiceEncoder,
        tokenizer: TextTokenizer,
        device: str | torch.device,
        conds: Conditionals | None = None,
        *,
        sampling: SamplingConfig | None = None,
        kvcache: str | KVCacheConfig = "static",
        engine: EngineConfig = ENGINE,
        s3gen_options: S3GenOptions = S3GEN,
        cache: GlobalKVCacheManager | None = None,
    ) -> None:
        """Args:
            sampling: the checkpoint's own settings; None is the published model's.
            kvcache: what T3 keeps, settings or the name of a policy.
            engine: how requests share steps, and what their rows may take.
            s3gen_options: what S3Gen remembers, and in how many steps it solves.
            cache: a manager that several models share, in place of one made of the settings.

        Raises:
            ValueError: ``kvcache`` names what does not exist.
        """
        self.sr = S3GEN_SR
        self.device = device
        self._notices = _Notices(self.facade)
        self.conds = conds
        self.layout: Layout | None = None  # of the folder that it was loaded from
        self.sampling = self.published if sampling is None else sampling
        config = SynthesizerConfig(cache_config(kvcache), engine, s3gen_options)
        watermarker = watermarker_of(sys.modules[self.facade])
        self._model = Reloadable(Synthesizer(t3, s3gen, tokenizer, ve, config, manager=cache, watermarker=watermarker))

    @classmethod
    def _load(
        cls,
        ckpt_dir: str | Path,
        device: str | torch.device,
        layouts: Sequence[Layout],
        given: Files,
        *,
        local_files_only: bool = False,
        precision: str | PrecisionConfig = "auto",
        **options: Any,
    ) -> Self:
        """``options`` are the constructor's."""
        load = partial(
            load_models,
            folder_at(ckpt_dir).absolute(),
            resolve_device(device),
            layouts,
            given,
            precision=precision_config(precision),
            fetch_base=partial(fetch_base, local_files_only=local_files_only),
        )
        m = load()
        parts = (m.t3, m.s3gen, m.voice_encoder, m.tokenizer, str(m.device), m.conds)
        tts = cls(*parts, sampling=m.config.sampling, **options)
        tts.layout = m.layout
        tts._model.load_by(partial(_synthesizer_by, load), _state_of)
        return tts

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickles, as spawned workers get them, and copies: they have threads and caches of their own."""
        config = self.synthesizer.config
        parts = (self.t3, self.s3gen, self.ve, self.tokenizer, self.device)
        options = {"sampling": self.sampling, "kvcache": config.kvcache, "engine": config.engine}
        options["s3gen_options"] = config.s3gen
        own = {name: value for name, value in vars(self).items() if name not in ("_model", "_notices")}
        return _rebuilt, (type(self), parts, options), {**own, "watermarker": self.watermarker}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Another model on the same weights, with a voice, threads and caches of its own."""
        other = copy.copy(self)
        other.conds = copy.deepcopy(self._conds, memo)
        return other

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)

    @property
    def conds(self) -> Conditionals | None:
        """The voice of calls that name none; only `prepare_conditionals` and the caller assign it."""
        self._notices.voice.tell()
        return self._conds

    @conds.setter
    def conds(self, voice: Conditionals | None) -> None:
        self._conds = voice
        self._notices.voice.is_due = False

    @replaceable
    def prepare_conditionals(
        self, wav_fpath: Reference, exaggeration: float = 0.5, *, sample_rate: int | None = None
    ) -> None:
        """Make the voice of a recording the one that later calls use.

        Args:
            wav_fpath: a file, its bytes, (rate, samples), a dict of both, or samples at ``sample_rate``.
            sample_rate: in Hz; None is 24 kHz.

        Raises:
            FileNotFoundError, TypeError, ValueError: the recording cannot be used; the message says why.
        """
        self.conds = self._voice_of(wav_fpath, exaggeration_of(exaggeration), sample_rate=sample_rate)

    def warm(
        self,
        texts: Sequence[str] = ("",),
        audio_prompt_path: Reference | None = None,
        exaggeration: float = 0.5,
        *,
        language_id: str | None = None,
        pin: bool = False,
        sample_rate: int | None = None,
    ) -> None:
        """Compute ahead of time what texts of a voice begin with, so that the first request finds it.

        Args:
            texts: whole texts, or how texts to come begin.
            audio_prompt_path: recording of the voice; None is ``conds``.
            language_id: for a multilingual model alone; None is the model's own language, if it has one.
            pin: keep the voice's own part on the device, whatever else comes.
            sample_rate: of the recording, as `prepare_conditionals`.

        Raises:
            TypeError, ValueError: as `generate`.
        """
        exaggeration, pin = exaggeration_of(exaggeration), switch("pin", pin)
        voice = self._conditionals(audio_prompt_path, exaggeration, sample_rate=sample_rate)
        voice = voice.with_exaggeration(exaggeration)
        punctuate = replacement(sys.modules[self.facade], "punc_norm")
        language = language_id or self._own_language
        options: dict[str, Any] = {"exaggeration": exaggeration, "language_id": language, "punctuate": punctuate}
        requests = [SynthesisRequest(text, voice, self.sampling, **options) for text in texts]
        self.synthesizer.warm(requests, pin=pin)

    def get_cache_hit_rate(self) -> float:
        """Share of T3's prefix positions that did not have to be computed, 0 to 1."""
        return self.synthesizer.prefixes.manager.hit_rate

    def cache_stats(self) -> dict[str, float]:
        """Counters of the prefix cache by name: tokens, bytes and milliseconds; see docs/kvcache.md."""
        return self.synthesizer.prefixes.manager.stats()

    def clear_cache(self) -> None:
        """Forget all recordings, and all voices' and texts' prefixes."""
        self.synthesizer.clear()

    def weights_changed(self) -> None:
        """Compute everything anew after weights were changed in a way that is not noticed; see docs/kvcache.md."""
        self.synthesizer.weights_changed()

    def unload(self) -> None:
        """Give back the memory of weights, rows and caches, and end the threads. Whatever uses the model next loads it
        again, on the same device, from where it was loaded; ``conds``, settings and ``watermarker`` are kept.

        Requests under way end with `EngineClosedError`. Of several threads the first that speaks loads, others wait.

        Raises:
            RuntimeError: it was built from parts, or changed since it was loaded, as by a part that was assigned.
        """
        self._model.give_up(_kept, Synthesizer.close)

    def close(self) -> None:
        """End all that is under way with an error, and the model's threads; it speaks no more. Twice is harmless."""
        self._model.close(Synthesizer.close, _refused)

    @property
    def synthesizer(self) -> Synthesizer:
        """What speaks; loaded again where it was unloaded."""
        return self._model.get()

    @abc.abstractmethod
    def generate_stream(
        self, text: str | Iterable[str], *arguments: Any, **options: Any
    ) -> Iterator[tuple[Tensor, StreamingMetrics]]:
        """Audio (1, N) of a text while it is made, and what it has cost; the arguments are each model's own."""

    def agenerate_stream(self, *arguments: Any, **options: Any) -> AsyncIterator[tuple[Tensor, StreamingMetrics]]:
        """`generate_stream` for an event loop, which goes on while speech is made. Close it, as with ``aclosing``.

        The text may also be an asynchronous iterator of pieces. Other arguments, and what is raised, as there.
        """
        return astream(self.generate_stream, *arguments, **options)

    def _generate(self, text: str, reference: Reference | Conditionals | None, **options: Any) -> Tensor:
        """(1, N) float32; ``options`` are `_request`'s."""
        self._note_whose_voice(reference)
        return self.synthesizer.speak(self._request(text, reference, options)).audio

    def _generate_stream(
        self, text: str | Iterable[str], reference: Reference | None, print_metrics: bool, **options: Any
    ) -> Iterator[tuple[Tensor, StreamingMetrics]]:
        """Audio (1, N) float32 and what it cost, chunk by chunk; ``options`` are `_request`'s and of `StreamingConfig`.

        ``print_metrics``: one line to stderr at the end.
        """
        self._note_whose_voice(reference)
        streaming = StreamingConfig(**{name: options.pop(name) for name in _STREAMING & options.keys()})
        prints = switch("print_metrics", print_metrics, True)
        request = self._request(text, reference, options)
        check_streamed(request)
        return self._chunks(request, streaming, prints)

    def _note_whose_voice(self, reference: Reference | Conditionals | None) -> None:
        if _is_own(reference):
            self._notices.voice.tell()
        elif not isinstance(reference, Conditionals):
            self._notices.voice.is_due = True

    def _chunks(
        self, request: SynthesisRequest, streaming: StreamingConfig, print_metrics: bool
    ) -> Iterator[tuple[Tensor, StreamingMetrics]]:
        metrics = StreamingMetrics()
        with closing(self.synthesizer.stream(request, streaming)) as chunks:
            for chunk in chunks:
                metrics = chunk.metrics
                yield chunk.audio, metrics
        if print_metrics:
            print(metrics.summary(), file=sys.stderr)

    def _generate_batch(
        self, texts: Sequence[str], voices: Sequence[Reference | Conditionals | None] | None, **options: Any
    ) -> list[Tensor]:
        """(1, N_i) float32 of each text; ``options`` are `_request`'s."""
        if isinstance(texts, str):
            raise TypeError(f"texts must be a list of strings, got the string {texts[:40]!r}; generate takes one")
        texts, voices = _listed("texts", texts), None if voices is None else _listed("voices", voices)
        if voices is not None and len(voices) != len(texts):
            raise ValueError(f"{len(texts)} texts need as many voices, got {len(voices)}; None stands for conds")
        seed = seed_of(options.get("seed"))
        chosen = [None] * len(texts) if voices is None else voices
        seeds = (utterance_seed(seed, index) for index in range(len(texts)))
        rates = rates_of([_recording_of(voice) for voice in chosen], options.get("sample_rate"))
        requests = [
            self._request(text, voice, {**options, "seed": seed, "sample_rate": rate})
            for text, voice, seed, rate in zip(texts, chosen, seeds, rates, strict=True)
        ]
        return [result.audio for result in self.synthesizer.speak_batch(requests)]

    def _request(
        self, text: str | Iterable[str], reference: Reference | Conditionals | None, options: Mapping[str, Any]
    ) -> SynthesisRequest:
        """A request with ``options``: fields of `SamplingConfig` and `SpeechOptions`, ``language_id``,
        ``norm_loudness``, ``sample_rate``.

        Where one of sampling is None or a `ModelDefault`, the checkpoint's counts.
        """
        self._notices.filter.is_due = FILTER in vars(sys.modules[self.facade])
        self._notices.filter.tell()
        speech = SpeechOptions(**{name: options[name] for name in _SPEECH & options.keys()})
        sampling = {name: options[name] for name in _SAMPLING & options.keys()}
        sampling = {name: value for name, value in sampling.items() if not isinstance(value, ModelDefault | None)}
        own = dataclasses.replace(self.sampling, **sampling)
        check_guard(speech.guard, self.t3.hp)  # before a recording is prepared
        norm_loudness = switch("norm_loudness", options.get("norm_loudness"), True)
        return SynthesisRequest(
            text,
            self._conditionals(reference, speech.exaggeration, norm_loudness, options.get("sample_rate")),
            own,
            self.synthesizer.config.kvcache,
            options.get("language_id") or self._own_language,
            replacement(sys.modules[self.facade], "punc_norm"),
            **vars(speech),
        )

    @property
    def _own_language(self) -> str | None:
        """That a text is in where a call names none."""
        return None if self.layout is None else self.layout.language

    def _conditionals(
        self,
        reference: Reference | Conditionals | None,
        exaggeration: float,
        norm_loudness: bool = True,
        sample_rate: int | None = None,
    ) -> Conditionals:
        recording = _recording_of(reference)
        [sample_rate] = rates_of([recording], sample_rate)
        if isinstance(reference, Conditionals):
            return reference
        if recording is not None and replacement(self, "prepare_conditionals") is not None:
            arguments: dict[str, Any] = {"norm_loudness": norm_loudness} if self.t3.hp.norm_loudness else {}
            if sample_rate is not None:
                arguments["sample_rate"] = sample_rate
            self.prepare_conditionals(recording, exaggeration=exaggeration, **arguments)
            recording = None
        if recording is not None:
            return self._voice_of(recording, exaggeration, norm_loudness, sample_rate)
        if self._conds is None:
            raise ValueError("no voice yet: pass audio_prompt_path, or call prepare_conditionals first")
        return self._conds

    def _voice_of(
        self, reference: Reference, exaggeration: float, norm_loudness: bool = True, sample_rate: int | None = None
    ) -> Conditionals:
        lens = zip((self.ENC_COND_LEN, self.DEC_COND_LEN), self._published_lens, strict=True)
        enc_cond_len, dec_cond_len = (None if length == published else length for length, published in lens)
        hearing = Hearing(sample_rate, norm_loudness, enc_cond_len, dec_cond_len)
        voice = self.synthesizer.conditionals(reference, hearing)
        return voice.with_exaggeration(exaggeration)


def _listed(name: str, values: Any) -> list[Any]:
    if isinstance(values, str | bytes | bytearray | Mapping) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a list, one entry a text, got {shown(values)}; put it in one")
    return list(values)


def _is_own(reference: Reference | Conditionals | None) -> bool:
    """Whether a call names no recording; upstream takes "" for none."""
    return reference is None or (isinstance(reference, str) and not reference)


def _recording_of(reference: Reference | Conditionals | None) -> Reference | None:
    return None if isinstance(reference, Conditionals) or _is_own(reference) else reference


def _kept(synthesizer: Synthesizer) -> dict[str, Any]:
    """What another one needs of it."""
    return {"config": synthesizer.config, "watermarker": synthesizer.watermarker}


def _synthesizer_by(load: Callable[[], LoadedModels], kept: Mapping[str, Any]) -> Synthesizer:
    m = load()
    return Synthesizer(m.t3, m.s3gen, m.tokenizer, m.voice_encoder, **kept)


def _state_of(synthesizer: Synthesizer) -> object:
    return state_of(synthesizer.t3, synthesizer.s3gen, synthesizer.tokenizer, synthesizer.voice_encoder)


def _refused(kept: Mapping[str, Any]) -> Synthesizer:
    raise EngineClosedError("the model was closed; load it anew")


def _rebuilt(cls: type[SpeechModel], parts: Sequence[Any], options: Mapping[str, Any]) -> SpeechModel:
    return cls(*parts, **options)
