"""The description of the routes: it names them all, and is true of what they answer.

`make test-openapi` has schemathesis make requests of it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route

from chatterbox.audio.encoding import FORMATS
from chatterbox.serve.config import ServerConfig
from chatterbox.serve.fields import KNOWN, UNUSED
from chatterbox.voice.library import VoiceLibrary
from tests.integration.test_serve import Running, served, upload

DESCRIBED = ("/v1", "/health", "/ready", "/info", "/metrics")
NOT_DESCRIBED = {
    ("/v1", "get"),  # the same as /v1/
    *((f"/v1/{name}", "get") for name in ("health", "ready", "info")),  # the same without /v1
    ("/v1/tts", "post"),  # devnen's
}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("voices")
    config = ServerConfig(
        voices=str(folder), jobs=str(folder / "jobs"), max_upload_mib=1, max_input=40, max_job_input=60
    )
    one = Running(served(VoiceLibrary(folder)), config)
    yield one
    one.close()


@pytest.fixture(scope="module")
def described(running: Running) -> dict[str, Any]:
    return json.loads(running.ask("GET", "/openapi.json")[2])


def test_every_route_is_described_and_no_other(running: Running, described: dict[str, Any]) -> None:
    there = {
        (route.path.replace(":path}", "}"), method.lower())
        for route in running.app.app.routes
        if isinstance(route, Route) and route.path.startswith(DESCRIBED)
        for method in route.methods or ()
        if method != "HEAD"
    }
    assert there >= NOT_DESCRIBED
    told = {(path, method) for path, operations in described["paths"].items() for method in operations}
    assert told == there - NOT_DESCRIBED
    names = [one["operationId"] for operations in described["paths"].values() for one in operations.values()]
    assert len(set(names)) == len(names)


def test_fields_of_a_request_are_those_that_are_read(described: dict[str, Any]) -> None:
    """Their bounds and choices as the configuration has them."""
    schemas = described["components"]["schemas"]
    speech, long = (schemas[name] for name in ("SpeechRequest", "LongSpeechRequest"))
    fields = speech["properties"]
    assert fields.keys() == KNOWN | {"extra_params"} and speech["additionalProperties"] is True
    assert (fields["input"]["maxLength"], long["properties"]["input"]["maxLength"]) == (40, 60)
    assert fields["response_format"]["enum"] == [*FORMATS, None]
    assert (fields["temperature"]["minimum"], fields["temperature"]["maximum"]) == (0, 10)
    assert fields["seed"]["type"] == ["integer", "null"] and "description" in fields["seed"]
    assert all(field.keys() & {"type", "enum", "anyOf"} for name, field in fields.items() if name not in FREE)


FREE = {"instructions", "extra_params", *UNUSED}  # what they hold is not looked at, or is fields again


def test_answers_have_the_fields_that_are_described(running: Running, described: dict[str, Any]) -> None:
    def check(method: str, path: str, body: Any = None, *, of: str = "", status: int = 200) -> dict[str, Any]:
        got, _, data = running.ask(method, path, body)
        answer = json.loads(data)
        schema = described["paths"][of or path][method.lower()]["responses"][str(status)]["content"]["application/json"]
        assert got == status and agrees(answer, schema, described)
        return answer

    for path in ("/v1/models", "/v1/audio/models", "/v1/audio/voices", "/v1/", "/info", "/health", "/ready"):
        check("GET", path)
    check("GET", "/v1/models/tiny", of="/v1/models/{name}")
    items = [{"input": "Hi."}, {"input": ""}]
    batch = check("POST", "/v1/audio/speech/batch", {"items": items, "response_format": "pcm"})
    assert [one["status"] for one in batch["results"]] == ["success", "error"]
    path = "/v1/audio/speech/long"
    job = check("POST", path, {"input": "Hi."}, status=202)
    check("GET", path)
    check("GET", job["status_url"], of=path + "/{name}")
    check("DELETE", job["status_url"], of=path + "/{name}")
    check("DELETE", job["status_url"], of=path + "/{name}", status=404)
    voice = upload(running, "Mary", running.speak(input="Hello there, this is a voice.", response_format="wav")[2])
    told = described["paths"]["/v1/audio/voices"]["post"]["responses"]["200"]["content"]["application/json"]
    assert agrees(voice, told, described)
    check("DELETE", "/v1/audio/voices/Mary", of="/v1/audio/voices/{name}")


KINDS: dict[str, Any] = {
    "any": object, "string": str, "integer": int, "number": (int, float), "boolean": bool, "object": dict,
    "null": type(None),
}  # fmt: skip


def agrees(value: Any, schema: dict[str, Any], described: dict[str, Any]) -> bool:
    """Whether fields, constants and choices are as described, at any depth."""
    schema = schema.get("schema", schema)
    if "$ref" in schema:
        return agrees(value, described["components"]["schemas"][schema["$ref"].rpartition("/")[2]], described)
    if "anyOf" in schema:
        return any(agrees(value, one, described) for one in schema["anyOf"])
    if "properties" in schema:
        known = schema["properties"]
        return isinstance(value, dict) and value.keys() == known.keys() and all(
            agrees(value[name], known[name], described) for name in known
        )  # fmt: skip
    if "items" in schema:
        return isinstance(value, list) and all(agrees(one, schema["items"], described) for one in value)
    wanted = schema.get("type", "any")
    return (
        value == schema.get("const", value)
        and value in schema.get("enum", [value])
        and isinstance(value, tuple(KINDS[one] for one in (wanted if isinstance(wanted, list) else [wanted])))
    )


# Numbers may be digits in a string, and what a model speaks and can hear is not the description's.
NOT_CHECKED = "positive_data_acceptance,negative_data_rejection"
FOLLOWED = "/v1/audio/speech/long/{name}/sse"  # lasts as long as all jobs before it


@pytest.mark.schemathesis
def test_schemathesis_finds_nothing(running: Running, tmp_path: Path) -> None:
    """No request makes the server fail, and answers are as they are described."""
    command = [
        sys.executable, "-m", "schemathesis.cli",
        "run", f"http://127.0.0.1:{running.port}/openapi.json", "--phases", "coverage,fuzzing,stateful",
        "--max-examples", "20", "--max-time", "120", "--request-timeout", "120", "--suppress-health-check", "all",
        "--exclude-checks", NOT_CHECKED, "--exclude-path", FOLLOWED, "--continue-on-failure", "--warnings", "off",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=900, check=False)
    assert done.returncode == 0, done.stdout
