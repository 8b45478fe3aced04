"""What bodies and answers hold, as JSON Schema.

Owns: which fields there are, beside those that `fields` and the configuration have, whose names, bounds, choices and
meanings are read off them. Does not know: paths, statuses.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from chatterbox.audio.encoding import FORMATS
from chatterbox.config import CLEANINGS, SAMPLING_COUNTS, SAMPLING_RANGES, SPEECH_RANGES, SamplingConfig, SpeechOptions
from chatterbox.engine.guards import GUARDS, NO_GUARD
from chatterbox.kvcache import POLICIES
from chatterbox.serve.batch import MAX_ITEMS
from chatterbox.serve.config import ServerConfig
from chatterbox.serve.fields import OPENAI_SPEED, OPTIONS, SAMPLING, STREAM_FORMATS, UNUSED
from chatterbox.serve.jobs import STATES
from chatterbox.values import MOST

Schema = dict[str, Any]
_KINDS = {float: "number", int: "integer", bool: "boolean", str: "string"}
_SPOKEN = r"\S"  # something beside white space
_CHOICES = {"cleaning": CLEANINGS, "guard": (*GUARDS, NO_GUARD)}
TEXT: Schema = {"type": "string"}
WORDS: Schema = {**TEXT, "pattern": _SPOKEN}
NAME: Schema = {"type": ["string", "null"], "pattern": _SPOKEN}
TEXT_OR_NULL: Schema = {"type": ["string", "null"]}
WHOLE: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
TIME: Schema = {"type": "integer", "description": "seconds since 1970"}
FILE: Schema = {"type": "string", "contentMediaType": "application/octet-stream"}


def schemas(config: ServerConfig) -> dict[str, Schema]:
    """All by their names. ``config``: how long a text may be, whether fields that are not known are refused."""
    return {
        "SpeechRequest": _speech(config, config.max_input),
        "LongSpeechRequest": _speech(config, config.max_job_input),
        "SpeechForm": _form(_speech(config, config.max_input)),
        "BatchRequest": table({"items": {**listed(named("SpeechRequest")), "minItems": 1, "maxItems": MAX_ITEMS}}),
        "VoiceForm": table(
            {"name": WORDS, "audio_sample": FILE, "consent": TEXT, "model": TEXT}, optional=["consent", "model"]
        ),
        "ConsentForm": table({"name": WORDS, "language": WORDS, "recording": FILE}),
        **ANSWERS,
    }


def table(properties: Mapping[str, Schema], *, optional: Sequence[str] = ()) -> Schema:
    """An object; all of its fields are there but those of ``optional``."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": dict(properties), "required": required}


def listed(of: Schema) -> Schema:
    return {"type": "array", "items": of}


def named(name: str) -> Schema:
    """One of `schemas`."""
    return {"$ref": f"#/components/schemas/{name}"}


def _form(speech: Schema) -> Schema:
    """Fields of a request for speech as a form has them, and a recording."""
    fields = {name: TEXT for name in speech["properties"] if name not in ("extra_params", "instructions")}
    fields |= {"input": speech["properties"]["input"], "voice_file": FILE}
    return table(fields, optional=[name for name in fields if name != "input"])


_VOICE = {"id": TEXT, "object": {"const": "audio.voice"}, "name": TEXT, "type": {"const": "audio_sample"}}
_JOB = {
    "job_id": TEXT,
    "object": {"const": "audio.speech.job"},
    "status": {"enum": [*STATES]},
    "created_at": TIME,
    "total_chunks": {**WHOLE, "description": "parts that are spoken one by one"},
    "completed_chunks": WHOLE,
    "progress": {**NUMBER, "minimum": 0, "maximum": 1},
    "duration_seconds": {**NUMBER, "description": "of audio so far"},
    "response_format": {"enum": [*FORMATS]},
    "error": TEXT_OR_NULL,
    "status_url": TEXT,
    "sse_url": TEXT,
    "download_url": TEXT,
}
_COUNTS = {"total": WHOLE, "succeeded": WHOLE, "failed": WHOLE}
_SPOKEN_ITEM = {
    "index": WHOLE,
    "status": {"const": "success"},
    "audio_data": {**TEXT, "contentEncoding": "base64"},
    "response_format": {"enum": [*FORMATS]},
    "media_type": TEXT,
    "warnings": listed(TEXT),
}
_ERROR = {"message": TEXT, "type": TEXT, "param": TEXT_OR_NULL, "code": TEXT_OR_NULL}
_FAILED_ITEM = {"index": WHOLE, "status": {"const": "error"}, "error": table(_ERROR)}
ANSWERS: dict[str, Schema] = {
    "Error": table({"error": table(_ERROR)}),
    "Batch": table({"results": listed({"anyOf": [table(_SPOKEN_ITEM), table(_FAILED_ITEM)]}), **_COUNTS}),
    "Job": table(_JOB),
    "NewJob": table({**_JOB, "warnings": {**listed(TEXT), "description": "what is not done as asked"}}),
    "Jobs": table({"jobs": listed(named("Job"))}),
    "DeletedJob": table({"job_id": TEXT, "deleted": {"const": True}}),
    "Voice": table(_VOICE),
    "NewVoice": table({**_VOICE, "created_at": TIME}),
    "Voices": table({"voices": listed({"anyOf": [named("Voice"), TEXT]})}),
    "DeletedVoice": table({"id": TEXT, "object": {"const": "audio.voice.deleted"}, "deleted": {"const": True}}),
    "Consent": table(
        {"id": TEXT, "object": {"const": "audio.voice_consent"}, "created_at": TIME, "name": TEXT, "language": TEXT}
    ),
    "Model": table({"id": TEXT, "object": {"const": "model"}, "created": TIME, "owned_by": TEXT}),
    "Models": table({"object": {"const": "list"}, "data": listed(named("Model"))}),
    "AudioModels": table({"models": listed(table({"id": TEXT, "name": TEXT}))}),
}


def _speech(config: ServerConfig, most: int) -> Schema:
    voice = {"anyOf": [NAME, table({"id": NAME}), {"type": "null"}]}
    own: dict[str, Schema] = {
        "input": {"type": "string", "minLength": 1, "maxLength": most, "pattern": _SPOKEN, "description": "the text"},
        "model": {**NAME, "description": "a name of /v1/models; OpenAI's names are the first model's"},
        "voice": {**voice, "description": "a name of /v1/audio/voices; OpenAI's names are the default's"},
        "response_format": _one_of([*FORMATS], "of the audio; the default is mp3"),
        "stream_format": _one_of(STREAM_FORMATS, "audio, or events that hold it in base64"),
        "stream": {
            "type": ["boolean", "null"],
            "description": "false: utterances are made whole, for whoever does not hear them before",
        },
        "instructions": {"description": "ignored, with a warning"},
        "language": {**NAME, "description": "code of the text's language"},
        "kvcache": _one_of(sorted(POLICIES), "policy of the key-value cache"),
        "extra_params": {"description": "an object of fields, which those beside it take precedence over"},
    }
    unused = {name: {"description": "of other servers' clients; ignored"} for name in sorted(UNUSED)}
    fields = {**own, **_options(SamplingConfig), **_options(SpeechOptions), **unused}
    known = table(fields, optional=[name for name in fields if name != "input"])
    return {**known, "additionalProperties": not config.strict}


def _options(owner: type) -> dict[str, Schema]:
    """Of a configuration those that a request may name; null is the model's own."""
    hints, found = typing.get_type_hints(owner), dict[str, Schema]()
    for one in dataclasses.fields(owner):
        if one.name not in OPTIONS | SAMPLING:
            continue
        if one.name in _CHOICES:
            found[one.name] = _one_of(_CHOICES[one.name], one.metadata["about"])
            continue
        kinds = {_KINDS[kind] for kind in typing.get_args(hints[one.name]) or [hints[one.name]] if kind in _KINDS}
        found[one.name] = {"type": [*sorted(kinds), "null"], "description": one.metadata["about"], **_bounds(one.name)}
    return found


def _bounds(name: str) -> Schema:
    if name == "top_p":
        return {"exclusiveMinimum": 0, "maximum": SAMPLING_RANGES[name][1]}
    if name == "speed":  # what cannot be spoken is taken as the nearest that can
        return {"minimum": OPENAI_SPEED[0], "maximum": OPENAI_SPEED[1]}
    if name in SAMPLING_COUNTS:
        return {"minimum": SAMPLING_COUNTS[name][0], "maximum": MOST}
    within = (SAMPLING_RANGES | SPEECH_RANGES).get(name)
    return {} if within is None else {"minimum": within[0], "maximum": within[1]}


def _one_of(choices: Sequence[str], about: str) -> Schema:
    return {"enum": [*choices, None], "description": about}
