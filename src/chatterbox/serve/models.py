"""The models that a server speaks with: each by its name, loaded when it is first asked for.

Owns: names, which model and voice a call means, how a call becomes a request. Does not know: HTTP, formats.
"""

from __future__ import annotations

import dataclasses
import gc
import io
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from chatterbox.config import KVCacheConfig, SpeechOptions, StreamingConfig
from chatterbox.engine.guards import check_guard
from chatterbox.models.tokenizers.languages import LANGUAGES, base_language, check_language
from chatterbox.serve.config import ServerConfig
from chatterbox.serve.errors import CONFLICT, NOT_FOUND, ApiError, api_error
from chatterbox.serve.fields import OPENAI_MODELS, OPENAI_VOICES, SpeechCall
from chatterbox.synthesis.request import SynthesisRequest
from chatterbox.values import shown
from chatterbox.voice.library import BUILT_IN, VoiceError, VoiceLibrary, describe, family, load_prepared, name_of

logger = logging.getLogger(__name__)

ENGLISH = "en"
MOST_PREPARED = 256  # voices of the library that a model holds in memory, some 0.3 MiB each; others are read again

if TYPE_CHECKING:
    from chatterbox.checkpoints import LoadedModels
    from chatterbox.synthesis.synthesizer import Synthesizer
    from chatterbox.voice.conditionals import Conditionals


@dataclass(frozen=True)
class Defaults:
    """How a model speaks where a call says nothing."""

    options: SpeechOptions = field(default_factory=SpeechOptions)
    sampling: Mapping[str, Any] = field(default_factory=dict)  # in place of the checkpoint's own
    kvcache: KVCacheConfig = field(default_factory=KVCacheConfig)
    streaming: StreamingConfig = field(default_factory=StreamingConfig)
    language: str | None = None


class _Prepared(NamedTuple):
    """A voice of the library. ``changed``: its file's time in ns. ``language``: that it speaks unless told."""

    changed: int
    conditionals: Conditionals
    language: str | None


class ServedModel:
    """One model for all calls, and the voices that it can speak in."""

    def __init__(
        self,
        name: str,
        models: LoadedModels,
        synthesizer: Synthesizer,
        library: VoiceLibrary | None,
        defaults: Defaults,
    ) -> None:
        self.name, self.synthesizer, self.defaults = name, synthesizer, defaults
        self._models, self._library = models, library
        self._prepared: dict[str, _Prepared] = {}  # by name
        self._lock = threading.Lock()

    def request(self, call: SpeechCall, voice: str | None) -> SynthesisRequest:
        """What ``call`` asks of this model, in a voice of `voice_name`; None is that of the call's recording.

        Raises:
            ValueError: a value that does not fit; the message begins with its name.
            VoiceError: there is no such voice, or it is another model's.
            ApiError: the recording cannot be heard.
        """
        own = self.defaults
        options = {**vars(own.options), **call.options}
        check_guard(options["guard"], self.synthesizer.t3.hp)
        heard = self._voice(voice) if call.recording is None else self._heard(call.recording)
        return SynthesisRequest(
            text=call.text,
            conditionals=heard.conditionals,
            sampling=dataclasses.replace(self._models.config.sampling, **{**own.sampling, **call.sampling}),
            cache_policy=own.kvcache if call.kvcache is None else dataclasses.replace(own.kvcache, policy=call.kvcache),
            language_id=self.language(call.language, heard.language),
            **options,
        )

    def voices(self) -> list[str]:
        """Names of all voices, the model's own first."""
        own = [BUILT_IN] if self._models.conds is not None else []
        return [*own, *(self._library.names() if self._library is not None else ())]

    def voice_name(self, asked: str | None, default: str | None) -> str:
        """The voice that a call means: OpenAI's names are the default's, unless a voice has been given one of them.

        A recording's name may stand for the voice that was made of it, as in other servers; no path does.

        Raises:
            VoiceError: there is none of that name.
        """
        there = self.voices()
        if asked in there:
            return str(asked)
        if asked is not None and not {"/", "\\"} & set(asked) and name_of(asked) in there:
            return name_of(asked)
        usual = default or (there[0] if there else None)
        if asked is None or asked.lower() in (*OPENAI_VOICES, "default"):
            if usual is None:
                raise VoiceError(f"model {self.name} has no voice of its own, and none was added; upload one")
            return usual
        raise VoiceError(f"there is no voice {shown(asked)}; there are {', '.join(there) or 'none'}")

    @property
    def languages(self) -> list[str]:
        """Codes of those that it speaks."""
        own = self._models.language
        if own is None and self.synthesizer.t3.hp.is_multilingual:
            return list(LANGUAGES)
        return [own or ENGLISH]

    @property
    def family(self) -> str:
        """What voices of this model have in common."""
        return family(self._models)

    def close(self) -> None:
        self.synthesizer.close()

    def language(self, asked: str | None, voice: str | None = None) -> str | None:
        """That a text is in, as a request names it: a model of one language is told none but its own.

        ``voice``: what its voice speaks, where nothing is asked for. Raises ValueError: the model does not speak it.
        """
        own, tokenizer = self._models.language, self._models.tokenizer
        if own is None and self.synthesizer.t3.hp.is_multilingual:
            usual = voice or self.defaults.language or ENGLISH
            return check_language(asked or usual, getattr(tokenizer, "has_language", None))
        speaks = own or ENGLISH
        if asked is not None and base_language(asked) != base_language(speaks):
            raise ValueError(f"language must be {speaks}, which model {self.name} speaks alone, got {shown(asked)}")
        return own

    def _heard(self, recording: bytes) -> _Prepared:
        """The voice of a file's bytes, which is prepared once for as long as it is remembered."""
        try:
            return _Prepared(0, self.synthesizer.conditionals(io.BytesIO(recording)), None)
        except ValueError as error:
            raise ApiError(str(error), param="voice_file", code="invalid_audio") from error

    def _voice(self, voice: str | None) -> _Prepared:
        if voice in (None, BUILT_IN):
            assert self._models.conds is not None
            return _Prepared(0, self._models.conds, None)
        assert self._library is not None and voice is not None
        path = self._library.path(voice)
        try:
            changed = path.stat().st_mtime_ns
            with self._lock:
                known = self._prepared.get(voice)
                if known is None or known.changed != changed:
                    made, there = load_prepared(path, self._models), self._library.names()
                    known = _Prepared(changed, made, describe(path).get("language"))
                    self._prepared = {name: one for name, one in self._prepared.items() if name in there}
                self._prepared.pop(voice, None)
                self._prepared[voice] = known  # the last one is whoever spoke last
                if len(self._prepared) > MOST_PREPARED:
                    del self._prepared[next(iter(self._prepared))]
        except VoiceError:
            raise
        except (OSError, ValueError) as error:
            if not path.exists():  # removed meanwhile
                raise VoiceError(f"there is no voice {voice!r} any more") from None
            logger.warning("voice %r cannot be read: %s", voice, error)  # with its folder, which no client is told
            message = f"the file of voice {voice!r} is no whole voice; remove it and add it again"
            raise ApiError(message, CONFLICT, param="voice", code="voice_is_broken") from None
        return known


class Asked(NamedTuple):
    """A call, as the model that it means is asked. ``voice``: its name; None: the call has a recording instead.

    ``warnings``: what is not done as asked, one line each.
    """

    model: ServedModel
    request: SynthesisRequest
    voice: str | None
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Loading:
    """How a model of some name is made; ``make`` takes seconds."""

    name: str
    make: Callable[[], ServedModel]


class ModelHub:
    """Models by name. The first is the default; each is loaded once, when it is first asked for. Thread-safe."""

    def __init__(self, loadings: Sequence[Loading], config: ServerConfig) -> None:
        self._loadings: Mapping[str, Loading] = {one.name: one for one in loadings}
        self._config, self._loaded = config, dict[str, ServedModel]()
        self._locks = {name: threading.Lock() for name in self._loadings}
        self._uses, self._last_used = Counter[str](), dict[str, float]()
        self._counting = threading.Lock()

    @property
    def names(self) -> list[str]:
        return list(self._loadings)

    @property
    def loaded(self) -> list[ServedModel]:
        return [*self._loaded.copy().values()]

    def named(self, asked: str | None) -> tuple[str, list[str]]:
        """The name that a call means, and warnings: OpenAI's names, and others unless told, are the default's.

        Raises:
            ApiError: there is no such model.
        """
        default = self.names[0]
        if asked is None or asked in self._loadings:
            return asked or default, []
        if asked in OPENAI_MODELS:
            return default, []
        if self._config.strict:
            raise self._unknown(asked)
        return default, [f"there is no model {asked!r}; {default} answered"]

    def known(self, asked: str | None) -> str:
        """As `named`, for what no other model may do in place of the one that is named."""
        name, warnings = self.named(asked)
        if asked is not None and warnings:
            raise self._unknown(asked)
        return name

    def _unknown(self, asked: str) -> ApiError:
        message = f"there is no model {asked!r}; there are {', '.join(self.names)}"
        return ApiError(message, NOT_FOUND, param="model", code="model_not_found")

    def asked(self, call: SpeechCall) -> Asked:
        """What a call means: its model, which may have to be loaded, its voice, its request.

        Raises:
            ApiError: there is no such model or voice, or a value does not fit.
        """
        name, warnings = self.named(call.model)
        model = self.get(name)
        try:
            is_named = call.recording is None
            voice = model.voice_name(call.voice, self._config.default_voice) if is_named else None
            return Asked(model, model.request(call, voice), voice, (*call.warnings, *warnings))
        except Exception as error:
            raise api_error(error, call.given) from error

    def get(self, name: str) -> ServedModel:
        """A model of `named`, which may have to be loaded."""
        with self._locks[name]:
            if name not in self._loaded:
                self._loaded[name] = self._loadings[name].make()
            self._last_used[name] = time.monotonic()
            return self._loaded[name]

    @contextmanager
    def used(self, name: str) -> Iterator[None]:
        """As long as it is held, `unload_idle` leaves the model alone."""
        with self._counting:
            self._uses[name] += 1
        try:
            yield
        finally:
            with self._counting:
                self._uses[name] -= 1
                self._last_used[name] = time.monotonic()

    def unload_idle(self, seconds: float) -> list[str]:
        """Give back the memory of models that nobody has used for so long; who asks loads them again. Their names."""
        given_back = []
        for name in self.names:
            with self._locks[name]:
                if name not in self._loaded or self._uses[name] or time.monotonic() - self._last_used[name] < seconds:
                    continue
                self._loaded.pop(name).close()
                given_back.append(name)
        if given_back:
            gc.collect()
        return given_back

    def close(self) -> None:
        """End all that is under way."""
        for model in self.loaded:
            model.close()


def library_of(config: ServerConfig) -> VoiceLibrary | None:
    """The folder of voices by name; None: this user has no home, and none was given."""
    from chatterbox.voice.library import default_folder

    folder = default_folder() if config.voices is None else Path(config.voices).expanduser()
    return None if folder is None else VoiceLibrary(folder)
