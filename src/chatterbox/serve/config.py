"""What a server may be told, beside the models and how they speak.

Owns: the settings and their checks. Does not know: HTTP, models.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatterbox.config import option
from chatterbox.values import Fields, shown

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class ServerConfig:
    """``chatterbox serve``. docs/serving.md."""

    host: str = option(LOOPBACK, "address that is listened at; another than this machine's own needs keys")
    port: int = option(8000, "0 takes a free one")
    wyoming_port: int | None = option(None, "of Wyoming, for Home Assistant; 10200 is usual, null is none")
    wyoming_host: str = option(LOOPBACK, "address of Wyoming, which knows no keys: whoever reaches it may speak")
    models: tuple[str, ...] = option((), 'more models beside the one of group model: "turbo", "turbo:int8", a folder')
    default_voice: str | None = option(
        None, "of requests that name none, or a name of OpenAI's; null is the model's own"
    )
    voices: str | None = option(None, "folder of voices by name; null is that of `chatterbox voices`")
    jobs: str | None = option(None, "folder of long texts and their audio; null is in the user's data folder")
    max_job_input: int = option(1_000_000, "characters of a long text at most")
    key_file: str | None = option(None, "keys that clients must send, one a line; or CHATTERBOX_API_KEY")
    open_lists: bool = option(True, "lists of models and voices, and health, need no key")
    no_keys: bool = option(False, "allow another address than this machine's own without keys")
    strict: bool = option(False, "refuse models and fields that are not known; else they are answered with a warning")
    max_input: int = option(50_000, "characters of one request at most; OpenAI takes 4096")
    max_upload_mib: int = option(20, "of a recording that is uploaded at most")
    max_streams: int = option(64, "requests that are answered at once, those that wait among them; one more gets 429")
    key_streams: int | None = option(None, "of them, those of one key at most; null is all")
    key_rate: int | None = option(None, "requests for speech that one key may make in a minute; null is any number")
    origins: tuple[str, ...] = option((), "web pages of other origins that may call: https://example.org; * is any")
    hosts: tuple[str, ...] = option((), "names that the server is called by; none given is any")
    preload: bool = option(False, "load all models when the server starts, not only the first")
    warm: tuple[str, ...] = option((), "voices whose first request finds all that is known of a voice computed")
    unload_seconds: float | None = option(
        None, "a model that nobody uses for so long gives its memory back, and is loaded when it is asked for again"
    )
    log_requests: bool = option(False, "a line of JSON on standard error for each request, without its text")
    drain_seconds: float = option(30.0, "that answers under way have to end when the server is told to stop")

    def __post_init__(self) -> None:
        own = Fields(self)
        own.word("host", f"{LOOPBACK} is this machine alone, 0.0.0.0 all of its addresses")
        own.word("wyoming_host", f"{LOOPBACK} is this machine alone, 0.0.0.0 all of its addresses")
        own.whole("port", 0, "8000 is usual", high=65_535)
        own.whole_or_none("wyoming_port", 0, "null listens at none", high=65_535)
        for name in ("max_input", "max_job_input", "max_upload_mib", "max_streams"):
            own.whole(name, 1)
        for name in ("key_streams", "key_rate"):
            own.whole_or_none(name, 1, "null is any number")
        for name in ("open_lists", "no_keys", "strict", "preload", "log_requests"):
            own.switch(name)
        own.number("drain_seconds", 0.0, 3600.0, "in seconds")
        if self.unload_seconds is not None:
            own.number("unload_seconds", 1.0, 1e7, "in seconds; null keeps models loaded")
        for name in ("models", "origins", "hosts", "warm"):
            own.put(name, _words(name, getattr(self, name)))
        own.word_or_none("default_voice", "null is the model's own")

    @property
    def is_local(self) -> bool:
        """Whether none but this machine can call."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def keys_of(config: ServerConfig, variable: str | None) -> tuple[str, ...]:
    """Keys that clients may send. ``variable``: of the environment, several with commas.

    Raises:
        ValueError: none, where others than this machine can call; a file without a key, or that cannot be read.
    """
    keys = [key.strip() for key in (variable or "").split(",")]
    if config.key_file is not None:
        try:
            lines = Path(config.key_file).expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise ValueError(f"key_file {config.key_file} cannot be read: {reason}") from None
        found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not found:
            raise ValueError(f"key_file {config.key_file} has no key; write one a line")
        keys += found
    keys = [key for key in keys if key]
    if not keys and not config.is_local and not config.no_keys:
        raise ValueError(
            f"others can call {config.host}, so a key is needed: set CHATTERBOX_API_KEY, or server.key_file=FILE; "
            "server.no_keys=true serves anybody"
        )
    return tuple(keys)


def _words(name: str, values: Any) -> tuple[str, ...]:
    if isinstance(values, str) or not all(isinstance(one, str) and one for one in values):
        raise ValueError(f"{name} must be a list of names, got {shown(values)}")
    return tuple(values)
