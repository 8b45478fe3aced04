"""The process that serves: its socket, how it begins and how it ends.

Owns: uvicorn, the order of the end. Does not know: routes, models.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Sequence

import uvicorn

from chatterbox.serve.access_log import write_lines
from chatterbox.serve.app import Server
from chatterbox.serve.config import ServerConfig
from chatterbox.serve.models import Loading, ModelHub

LOOK_SECONDS = 0.05  # between two looks whether speech under way has ended
CUT_SECONDS = 2.0  # that speech which is cut has to say so


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
    listening, failures = _socket(config.host, config.port), list[Exception]()
    if config.wyoming_port:  # its library binds it, behind what takes long
        _socket(config.wyoming_host, config.wyoming_port).close()
    if config.log_requests:
        write_lines()

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
        server_header=False,
    )
    server = _Process(own, application, config.drain_seconds)
    with contextlib.suppress(KeyboardInterrupt):  # which uvicorn raises again once all is over
        server.run(sockets=[listening])
    if failures:
        raise failures[0]


class _Process(uvicorn.Server):
    """What lets speech under way end before it closes connections: uvicorn itself cuts WebSockets at once."""

    def __init__(self, config: uvicorn.Config, application: Server, seconds: float) -> None:
        """``seconds``: that what is under way has to end."""
        super().__init__(config)
        self._application, self._seconds = application, seconds

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        deadline = time.monotonic() + self._seconds
        self._application.end()
        for listening in self.servers:
            listening.close()
        await self._spoken(deadline)
        if self._application.speaking.num_streams:  # uvicorn would cancel them, and nobody be told why
            await self._application.cut()
            await self._spoken(time.monotonic() + CUT_SECONDS)
        self.config.timeout_graceful_shutdown = max(1, round(deadline - time.monotonic()))
        await super().shutdown(sockets)

    async def _spoken(self, deadline: float) -> None:
        """Wait until nothing is being said, until ``deadline`` at most."""
        while self._application.speaking.num_streams and time.monotonic() < deadline and not self.force_exit:
            await asyncio.sleep(LOOK_SECONDS)


def _socket(host: str, port: int) -> socket.socket:
    """Bound before weights are loaded: who cannot listen is told at once."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise OSError(f"cannot listen at {host}, port {port}: {error.strerror or error}") from None


def _url(host: str, listening: socket.socket) -> str:
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listening.getsockname()[1]}"
