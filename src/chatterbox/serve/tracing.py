"""Spans of OpenTelemetry: one for each request for speech, where a program has installed its SDK.

Owns: names of spans and of what they say. Does not know: who collects them; no text of a user is in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.trace import Span

try:
    from opentelemetry import propagate, trace
except ModuleNotFoundError:
    HAS_API = False
else:
    HAS_API = True

SPAN = "chatterbox.speech"


class SpeechSpan:
    """From a request's admission until its last byte. It costs next to nothing where nobody traces."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        """``headers``: of the request; its caller's own span is the parent."""
        self._span: Span | None = None
        if HAS_API:
            parent = propagate.extract(headers)
            self._span = trace.get_tracer("chatterbox.serve").start_span(SPAN, parent)

    def tell(self, **values: str | float) -> None:
        """Note what is known by now; names get the prefix ``chatterbox.``."""
        if self._span is not None:
            self._span.set_attributes({f"chatterbox.{name}": value for name, value in values.items()})

    def event(self, name: str) -> None:
        """Note that something has happened now."""
        if self._span is not None:
            self._span.add_event(name)

    def fail(self, error: BaseException) -> None:
        """Note that the request failed, and at what kind of error."""
        if self._span is not None:
            self._span.set_status(trace.Status(trace.StatusCode.ERROR, type(error).__name__))

    def end(self) -> None:
        if self._span is not None:
            self._span.end()
