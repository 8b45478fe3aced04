"""The process that serves: its socket, how it begins and how it ends.

Owns: uvicorn, the order of the end. Does not know: routes, models.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Sequence

import uvicorn

from chatterbox.serve.app import Server
from chatterbox.serve.config import ServerConfig
from chatterbox.serve.models import Loading, ModelHub


def serve(
    loadings: Sequence[Loading], config: ServerConfig, keys: Sequence[str], started: Callable[[str], None]
) -> None:
    """Answer until SIGTERM or an interrupt; then answers under way have `ServerConfig.drain_seconds` to end.

    Args:
        started: told the address once the first model speaks.

    Raises:
        OSError: the address cannot be listened at.
        CheckpointError, ValueError: the first model cannot be loaded.
    """
    listening, failures = _socket(config), list[Exception]()

    def failed(error: Exception) -> None:
        failures.append(error)
        server.should_exit = True

    def ready() -> None:
        started(_url(config.host, listening))

    application = Server(ModelHub(loadings, config), config, keys, on_ready=ready, on_failure=failed)
    own = uvicorn.Config(
        application.app,
        host=config.host,
        port=config.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=max(1, round(config.drain_seconds)),
        server_header=False,
    )
    server = _Process(own, application.end)
    with contextlib.suppress(KeyboardInterrupt):  # which uvicorn raises again once all is over
        server.run(sockets=[listening])
    if failures:
        raise failures[0]


class _Process(uvicorn.Server):
    """What calls ``end`` before it waits for answers under way."""

    def __init__(self, config: uvicorn.Config, end: Callable[[], None]) -> None:
        super().__init__(config)
        self._end = end

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._end()
        await super().shutdown(sockets)


def _socket(config: ServerConfig) -> socket.socket:
    """Bound before weights are loaded: who cannot listen is told at once."""
    try:
        family = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((config.host, config.port), family=family, backlog=2048)
    except OSError as error:
        raise OSError(f"cannot listen at {config.host}, port {config.port}: {error.strerror or error}") from None


def _url(host: str, listening: socket.socket) -> str:
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listening.getsockname()[1]}"
