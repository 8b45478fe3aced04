"""The body of a request for speech: OpenAI's fields, and those that this model has beside them.

Owns: names, aliases, what is refused, ignored or mapped, with a warning. Does not know: HTTP, models.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from chatterbox.audio.encoding import FORMATS
from chatterbox.config import SPEECH_RANGES, SamplingConfig, SpeechOptions
from chatterbox.serve.config import ServerConfig
from chatterbox.serve.errors import ApiError, api_error
from chatterbox.text.cleaning import clean
from chatterbox.values import shown, switch

OPENAI_VOICES = (
    "alloy", "ash", "ballad", "cedar", "coral", "echo", "fable", "marin", "nova", "onyx", "sage", "shimmer", "verse",
)  # fmt: skip
OPENAI_MODELS = ("tts-1", "tts-1-hd", "gpt-4o-mini-tts", "gpt-4o-mini-tts-2025-12-15")
STREAM_FORMATS = ("audio", "sse")
SPEED, OPENAI_SPEED = SPEECH_RANGES["speed"][:2], (0.25, 4.0)  # what can be spoken, and what is taken for it
OPTIONS = {one.name for one in dataclasses.fields(SpeechOptions)} - {"use_cache", "watermark"}
SAMPLING = {one.name for one in dataclasses.fields(SamplingConfig)}
OWN = {"input", "model", "voice", "response_format", "stream_format", "instructions", "language", "kvcache", "stream"}
# Of other servers' clients: how a text is cut.
UNUSED = {
    "streaming_chunk_size", "streaming_strategy", "streaming_buffer_size", "streaming_quality", "split_text",
    "chunk_size",
}  # fmt: skip
KNOWN = OPTIONS | SAMPLING | OWN | UNUSED
ALIASES = {"language_id": "language", "speed_factor": "speed", "cache_policy": "kvcache", "text": "input"}


@dataclass(frozen=True)
class SpeechCall:
    """A body as it is understood.

    ``given``: names of its fields, as errors name them. ``warnings``: what was not done as asked, one line each.
    ``recording``: a file's bytes, whose voice it is that speaks. ``is_collected``: nobody hears it before its end.
    """

    text: str
    model: str | None = None
    voice: str | None = None
    format: str = "mp3"
    is_sse: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    language: str | None = None
    kvcache: str | None = None
    given: frozenset[str] = field(default=frozenset(), compare=False)
    warnings: tuple[str, ...] = ()
    recording: bytes | None = field(default=None, repr=False)
    is_collected: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether utterances are handed out whole: what is asked for cannot be had, or is not, before their end."""
        return self.is_collected or self.options.get("speed", 1.0) != 1.0 or self.options.get("loudness") is not None


def speech_call(
    body: Any, config: ServerConfig, *, max_input: int | None = None, usual_format: str = "mp3"
) -> SpeechCall:
    """``body`` of JSON, or of a form; ``max_input`` in place of the configuration's, for a job.

    Raises:
        ApiError: with the field that is wrong.
    """
    if not isinstance(body, Mapping):
        raise ApiError("the body must be a JSON object", code="invalid_json")
    extra = body.get("extra_params")  # as vLLM-Omni's clients send more fields
    given = {**(extra if isinstance(extra, Mapping) else {}), **body}
    given.pop("extra_params", None)
    given = {ALIASES.get(name, name): value for name, value in given.items() if value is not None}
    _check_names(given, config)
    warnings: list[str] = []
    text = _text(given.get("input"), max_input or config.max_input)
    if not any(map(str.isalnum, text)):
        warnings.append("input has nothing to speak; a moment of silence stands for it")
    if "instructions" in given:
        warnings.append("instructions have no effect: this model cannot follow them")
    return SpeechCall(
        text=text,
        model=_name("model", given.get("model")),
        voice=_voice(given.get("voice")),
        format=_one_of("response_format", given.get("response_format", usual_format), tuple(FORMATS)),
        is_sse=_one_of("stream_format", given.get("stream_format", "audio"), STREAM_FORMATS) == "sse",
        options=_options(given, warnings),
        sampling={name: given[name] for name in SAMPLING & given.keys()},
        language=_name("language", given.get("language")),
        kvcache=_name("kvcache", given.get("kvcache")),
        is_collected=not _switch("stream", given.get("stream", True)),
        given=frozenset(given),
        warnings=tuple(warnings),
    )


def _check_names(given: Mapping[str, Any], config: ServerConfig) -> None:
    unknown = sorted(name for name in given if name not in KNOWN)
    if unknown and config.strict:
        raise ApiError(f"there is no field {unknown[0]!r}", param=unknown[0], code="unknown_parameter")


def _text(text: Any, most: int) -> str:
    if not isinstance(text, str) or not text.strip():
        raise ApiError(f"input must be a text to speak, got {shown(text)}", param="input", code="invalid_value")
    if len(text) > most:
        raise ApiError(
            f"input has {len(text)} characters, more than {most}; send it in parts",
            param="input",
            code="string_above_max_length",
        )
    return clean(text, "none")  # halves of characters, which JSON may hold, are in no text


def _name(field_name: str, value: Any) -> str | None:
    if value is None or (isinstance(value, str) and value.strip()):
        return None if value is None else value.strip()
    raise ApiError(f"{field_name} must be a name, got {shown(value)}", param=field_name, code="invalid_value")


def _voice(value: Any) -> str | None:
    """OpenAI's clients send a name, or an object with the id of one."""
    return _name("voice", value.get("id") if isinstance(value, Mapping) else value)


def _switch(field_name: str, value: Any) -> bool:
    try:
        return switch(field_name, value)
    except (TypeError, ValueError) as error:
        raise api_error(error, (field_name,)) from error


def _one_of(field_name: str, value: Any, choices: tuple[str, ...]) -> str:
    if value not in choices:
        message = f"{field_name} must be one of {', '.join(choices)}, got {shown(value)}"
        raise ApiError(message, param=field_name, code="invalid_value")
    return str(value)


def _options(given: Mapping[str, Any], warnings: list[str]) -> dict[str, Any]:
    options = {name: given[name] for name in OPTIONS & given.keys()}
    try:
        speed = float(options.get("speed", 1.0))
        is_taken = OPENAI_SPEED[0] <= speed <= OPENAI_SPEED[1]
        options["speed"] = min(max(speed, SPEED[0]), SPEED[1]) if is_taken else speed
    except (TypeError, ValueError, OverflowError):  # `SpeechOptions` says what is wrong
        return options
    if options["speed"] != speed:
        warnings.append(f"speed {speed:g} was taken as {options['speed']:g}, the nearest that can be spoken")
    return options
