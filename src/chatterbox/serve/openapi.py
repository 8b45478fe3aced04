"""GET /openapi.json: the routes, as OpenAPI 3.1 has them, for generators of clients and for tests.

Owns: an entry for each route. Does not know: what bodies hold (`schemas`), how a request is answered.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from chatterbox import __version__
from chatterbox.audio.encoding import FORMATS
from chatterbox.serve.access_log import ID_HEADER
from chatterbox.serve.config import ServerConfig
from chatterbox.serve.errors import (
    BAD_REQUEST,
    BUSY,
    CLOSED,
    CONFLICT,
    FAULT,
    FORBIDDEN,
    NOT_FOUND,
    TOO_LARGE,
    UNAUTHORIZED,
)
from chatterbox.serve.health import BEGINNING, FAILING, HEALTHY
from chatterbox.serve.metrics import CONTENT_TYPE
from chatterbox.serve.schemas import FILE, TEXT, TEXT_OR_NULL, WHOLE, WORDS, Schema, listed, named, schemas, table
from chatterbox.serve.security import is_open
from chatterbox.serve.speech import EVENTS_TYPE

OK, CREATED, ACCEPTED = 200, 201, 202
JSON, FORM, BYTES = "application/json", "multipart/form-data", "application/octet-stream"
Content = Mapping[str, Schema]  # by its type
AUDIO: Content = {one.content_type: {} for one in FORMATS.values()}
EVENTS: Content = {EVENTS_TYPE: {}}  # a line of JSON each
REFUSED = (BAD_REQUEST, NOT_FOUND, TOO_LARGE, BUSY, CLOSED)  # a request for speech


@dataclass(frozen=True)
class Operation:
    """What one path answers to some methods.

    ``errors``: statuses beside those that any path may have. ``names``: the field of an answer that names what it made
    in the paths below.
    """

    path: str
    methods: Sequence[str]
    about: str
    answers: Mapping[int, Content]
    errors: Sequence[int] = ()
    body: Content | None = None
    query: Mapping[str, Schema] = field(default_factory=dict)
    names: str | None = None

    def id(self, method: str) -> str:
        return f"{method}_{re.sub(r'[^a-z0-9]+', '_', self.path).strip('_')}"

    def described(self, method: str) -> dict[str, Any]:
        """As OpenAPI has it."""
        always = (FAULT,) if is_open(self.path) and method == "get" else (UNAUTHORIZED, FAULT)
        always = always if method == "get" else (FORBIDDEN, *always)
        errors = {status: _json("Error") for status in (*self.errors, *always)}
        answers = {**errors, **self.answers}
        responses = {str(status): _answer(content) for status, content in sorted(answers.items())}
        if self.names is not None:
            responses[str(min(self.answers))]["links"] = self._links()
        told: dict[str, Any] = {"summary": self.about, "parameters": self._parameters(), "responses": responses}
        told["operationId"] = self.id(method)
        if self.body is not None:
            told["requestBody"] = {"required": True, "content": _content(self.body)}
        return told

    def _links(self) -> dict[str, Any]:
        below = [one for one in OPERATIONS if one.path.startswith(self.path + "/{name}")]
        named = {"parameters": {"name": f"$response.body#/{self.names}"}}
        return {one.id(method): {"operationId": one.id(method), **named} for one in below for method in one.methods}

    def _parameters(self) -> list[dict[str, Any]]:
        within = re.findall(r"\{(\w+)\}", self.path)
        path = [{"name": name, "in": "path", "required": True, "schema": TEXT} for name in within]
        return [*path, *({"name": name, "in": "query", "schema": schema} for name, schema in self.query.items())]


def _json(name: str) -> Content:
    return {JSON: named(name)}


_LONG = "/v1/audio/speech/long"
_JOB = _LONG + "/{name}"
_MOVED = {OK: _json("Job")}
_READY = {JSON: table({"ready": {"type": "boolean"}})}
_HELD = {"model_loaded": {"type": "boolean"}, "device": TEXT_OR_NULL}
_HEALTH = {JSON: table({"status": {"enum": [BEGINNING, HEALTHY, FAILING]}, "version": TEXT, **_HELD})}
_ABOUT = {JSON: table({"server": TEXT, "version": TEXT, "formats": listed({"enum": [*FORMATS]})})}
_MODEL = table({"name": TEXT, "cache": {"type": "object"}})
_STATE = {"streams": WHOLE, "max_input": WHOLE, "models": listed(_MODEL)}
_INFO = {JSON: table({"version": TEXT, "formats": listed({"enum": [*FORMATS]}), **_STATE})}
_OBJECTS = listed({"type": "object"})
_VOICE_FORM: Content = {FORM: table({"voice_name": WORDS, "voice_file": FILE, "language": TEXT}, optional=["language"])}
_NEW_NAME: Content = {kind: table({"new_name": WORDS}) for kind in (JSON, FORM)}
_LEGACY = {
    "legacy": {**TEXT, "description": "true: names alone"},
    "model": {**TEXT, "description": "whose; the first's"},
}


def _told(**fields: Schema) -> Mapping[int, Content]:
    """The answer is an object of these."""
    return {OK: {JSON: table(fields)}}


def _of_travisvn() -> Iterator[Operation]:
    """Routes of travisvn's server, beside speech."""
    voices, refused = "/v1/voices", (NOT_FOUND, CONFLICT)
    one, new = voices + "/{name}", (BAD_REQUEST, CONFLICT, TOO_LARGE)
    language = table({"code": TEXT, "name": TEXT})
    status: Schema = {"enum": ["busy", "idle"]}
    yield Operation(voices, ["get"], "All voices", _told(voices=listed(named("Voice")), count=WHOLE))
    yield Operation(voices, ["post"], "A voice of a recording", {CREATED: _json("NewVoice")}, new, _VOICE_FORM)
    yield Operation(f"{voices}/all-names", ["get"], "Names of all voices", _told(voices=listed(TEXT), count=WHOLE))
    yield Operation(f"{voices}/default", ["get"], "Who speaks where none is named", _told(default_voice=TEXT), refused)
    yield Operation(one, ["get"], "A voice", {OK: _json("Voice")}, (NOT_FOUND,))
    yield Operation(one, ["put"], "Another name for a voice", {OK: _json("Voice")}, (BAD_REQUEST, *refused), _NEW_NAME)
    yield Operation(one, ["delete"], "Forgets a voice", _told(id=TEXT, deleted={"const": True}), refused)
    yield Operation(f"{one}/download", ["get"], "A prepared voice's file", {OK: {BYTES: {}}}, refused)
    yield Operation("/v1/languages", ["get"], "Of the first model", _told(languages=listed(language), count=WHOLE))
    yield Operation("/v1/ping", ["get"], "The process lives", _told(status={"const": "ok"}))
    yield Operation("/v1/memory", ["get"], "Bytes that are held", _told(models=_OBJECTS))
    state = _told(status=status, streams=WHOLE, max_streams=WHOLE, models=_OBJECTS)
    yield Operation("/v1/status", ["get"], "What is being answered", state)


OPERATIONS = (
    Operation(
        "/v1/audio/speech", ["post"], "Speech of a text, while it is made",
        {OK: {**AUDIO, **EVENTS}}, REFUSED, _json("SpeechRequest"),
    ),
    Operation(
        "/v1/audio/speech/batch", ["post"], "Several requests for speech, spoken together",
        {OK: _json("Batch")}, REFUSED, _json("BatchRequest"),
    ),
    Operation(
        "/v1/audio/speech/stream", ["post"], "Speech of a text, as WAV where no format is named",
        {OK: {**AUDIO, **EVENTS}}, REFUSED, _json("SpeechRequest"),
    ),
    *(
        Operation(
            f"/v1/audio/speech/{path}", ["post"], "Speech in the voice of a recording, which is not kept",
            {OK: {**AUDIO, **EVENTS}}, (*REFUSED, TOO_LARGE), {FORM: named("SpeechForm")},
        )
        for path in ("upload", "stream/upload")
    ),
    Operation(
        _LONG, ["post"], "A job that speaks a long text",
        {ACCEPTED: _json("NewJob")}, REFUSED, _json("LongSpeechRequest"), names="job_id",
    ),
    Operation(_LONG, ["get"], "All jobs, the newest first", {OK: _json("Jobs")}, (BAD_REQUEST,)),
    Operation(_JOB, ["get"], "How far a job is", {OK: _json("Job")}, (NOT_FOUND,)),
    Operation(_JOB, ["delete"], "Forgets a job, its text and audio", {OK: _json("DeletedJob")}, (NOT_FOUND,)),
    Operation(_JOB + "/pause", ["put", "post"], "Stops a job within its part", _MOVED, (NOT_FOUND, CONFLICT)),
    Operation(_JOB + "/resume", ["put", "post"], "Goes on with a job", _MOVED, (NOT_FOUND, CONFLICT)),
    Operation(_JOB + "/retry", ["put", "post"], "Goes on with a job that failed", _MOVED, (NOT_FOUND, CONFLICT)),
    Operation(_JOB + "/download", ["get"], "A job's audio", {OK: AUDIO}, (NOT_FOUND, CONFLICT)),
    Operation(_JOB + "/sse", ["get"], "An event at each change of a job", {OK: EVENTS}, (NOT_FOUND,)),
    Operation("/v1/audio/voices", ["get"], "All voices", {OK: _json("Voices")}, (NOT_FOUND,), query=_LEGACY),
    Operation(
        "/v1/audio/voices", ["post"], "A voice of a recording",
        {OK: _json("NewVoice")}, (BAD_REQUEST, NOT_FOUND, CONFLICT, TOO_LARGE), {FORM: named("VoiceForm")}, names="id",
    ),
    Operation(
        "/v1/audio/voices/{name}", ["delete"], "Forgets a voice", {OK: _json("DeletedVoice")}, (NOT_FOUND, CONFLICT)
    ),
    Operation(
        "/v1/audio/voice_consents", ["post"], "A consent to a voice, which is not kept",
        {OK: _json("Consent")}, (BAD_REQUEST, TOO_LARGE), {FORM: named("ConsentForm")},
    ),
    *_of_travisvn(),
    Operation("/v1/audio/models", ["get"], "All models, as Open WebUI asks for them", {OK: _json("AudioModels")}),
    Operation("/v1/models", ["get"], "All models", {OK: _json("Models")}),
    Operation("/v1/models/{name}", ["get"], "A model", {OK: _json("Model")}, (NOT_FOUND,)),
    Operation("/v1/", ["get"], "What this server is", {OK: _ABOUT}),
    Operation("/info", ["get"], "What there is, and what the caches save", {OK: _INFO}),
    Operation("/health", ["get"], "Whether it speaks", {OK: _HEALTH, CLOSED: _HEALTH}),
    Operation("/ready", ["get"], "The first model speaks", {OK: _READY, CLOSED: _READY}),
    Operation("/metrics", ["get"], "For Prometheus", {OK: {CONTENT_TYPE: TEXT}}),
)  # fmt: skip


def description(config: ServerConfig) -> dict[str, Any]:
    """The whole document, of a server with these settings."""
    paths: dict[str, dict[str, Any]] = {}
    for one in OPERATIONS:
        paths.setdefault(one.path, {}).update({method: one.described(method) for method in one.methods})
    keys = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "chatterbox", "version": __version__, "description": "docs/serving.md"},
        "security": [{}, *({name: []} for name in keys)],  # a server on one machine alone may have no keys
        "paths": paths,
        "components": {"schemas": schemas(config), "securitySchemes": keys},
    }


def _answer(content: Content) -> dict[str, Any]:
    headers = {ID_HEADER: {"schema": TEXT}}
    return {"description": "", "headers": headers, "content": _content(content)}


def _content(content: Content) -> dict[str, Any]:
    return {kind: {"schema": schema} for kind, schema in content.items()}
