"""One request from text to audio while it is made: tokens are pushed to a renderer, chunks wait for their reader.

Owns: when a chunk is rendered, what waits, what a reader is told, the end of all of it. Does not know: how tokens are
decoded (`utterances`), what a chunk sounds like (`render`), whose turn it is (`render_queue`).
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import CancelledError
from dataclasses import dataclass

from torch import Tensor

from chatterbox.config import StreamingConfig
from chatterbox.engine.scheduler import Scheduler
from chatterbox.models.s3gen import S3GEN_SR, S3Gen
from chatterbox.models.s3gen.s3gen import require_reference
from chatterbox.models.tokenizers import TextTokenizer
from chatterbox.runtime.openmp import release_idle_threads
from chatterbox.synthesis.aio import on_leave
from chatterbox.synthesis.render import SpeechRenderer, Stopwatch, StreamingMetrics
from chatterbox.synthesis.render_order import RenderJob
from chatterbox.synthesis.render_queue import RenderQueue
from chatterbox.synthesis.request import SynthesisRequest, utterance_seed, with_seed
from chatterbox.synthesis.reshaping import check_streamed, reshape_of
from chatterbox.synthesis.utterances import TokenChunk, Utterances
from chatterbox.synthesis.voice_memory import VoiceMemories
from chatterbox.watermark.perth import Watermarker

logger = logging.getLogger(__name__)

MAX_UNREAD = 2  # chunks that may wait for their reader before rendering pauses
DEFAULTS = StreamingConfig()


@dataclass(frozen=True)
class SpeechChunk:
    """Audio (1, N) float32 on the CPU at 24 kHz, the speech tokens decoded for it so far, what it cost.

    text: of the utterance that its last speech token is of, ``metrics.utterance`` by number.
    """

    audio: Tensor
    speech_tokens: tuple[int, ...]
    metrics: StreamingMetrics
    text: str = ""


@dataclass(frozen=True)
class _Rendered:
    """A chunk that waits for its reader."""

    audio: Tensor
    speech_tokens: tuple[int, ...]
    last: TokenChunk  # the last tokens that it was made of
    started: float  # seconds of `time.perf_counter`, when rendering began


class SpeechStream:
    """Audio of one request, for one reader. `start` it, read `chunks`, `close` it when it is left early."""

    def __init__(
        self,
        scheduler: Scheduler,
        renders: RenderQueue,
        s3gen: S3Gen,
        tokenizer: TextTokenizer,
        request: SynthesisRequest,
        streaming: StreamingConfig | None,
        watermarker: Watermarker,
        memories: VoiceMemories,
        *,
        has_own_seed: bool = False,
    ) -> None:
        """Args:
            streaming: None hands out whole utterances.
            has_own_seed: a request without a seed gets one, even where it is one utterance that would draw from torch's
                global generator in upstream's order.

        Raises:
            TypeError, ValueError: as `Utterances`, the voice lacks something, or as `check_streamed`.
        """
        if streaming is not None:
            check_streamed(request)
        self._watch = Stopwatch()
        self._post = scheduler.post
        self._renders, self._streaming, self._plan = renders, streaming, streaming or DEFAULTS
        voice = request.conditionals.with_exaggeration(request.exaggeration)
        require_reference(voice.gen, s3gen.config.flow)
        self._utterances = Utterances(
            scheduler, tokenizer, request, streaming, on_change=self._go_on, wants=self._wants
        )
        has_own_seed |= bool(memories.options.departures)  # upstream's call draws its noise itself
        if has_own_seed or streaming is not None or not self._utterances.is_one:
            request = with_seed(request)
        self._request = request
        marker = watermarker if request.watermark else None
        self._renderer = SpeechRenderer(s3gen, voice.gen, streaming, marker, reshape_of(request), memories)
        self._is_on_cpu = scheduler.prefixes.t3.device.type == "cpu"
        # An utterance of a text that is still being written may be long in coming: nothing is held back for it.
        self._may_stall = not isinstance(request.text, str)
        self._changed = self._utterances.changed  # guards what follows
        self._unread: deque[_Rendered] = deque()
        self._speech_tokens: list[int] = []  # since the last chunk
        self._last: TokenChunk | None = None
        self._is_started = self._is_rendering = self._is_over = self._is_closed = False
        self._num_told = 0
        self._num_rendered = 0  # chunks, those of which nothing is heard yet among them
        self._num_to_start = self._renderer.num_to_follow  # tokens of two chunks
        self._tells_tokens = False  # whether the reader is to wake up for them
        self._error: BaseException | None = None
        self._plays_until: float | None = None  # seconds of `time.monotonic`
        self._pid = os.getpid()

    def start(self) -> None:
        """Begin to work. Raises what `Scheduler.submit` raises."""
        if self._is_closed:
            return
        self._is_started = True
        if self._streaming is not None and not self._may_stall:
            self._renders.announce(self)  # where the text is late nobody knows when the second chunk follows
        self._utterances.start(self._request)

    def chunks(self, on_token: Callable[[int], None] | None = None) -> Generator[SpeechChunk, None, None]:
        """Chunks as they are there; what goes wrong is raised behind those that came before it.

        ``on_token`` is told how many speech tokens were decoded so far. Leaving early, or Ctrl-C while it waits, closes
        the stream. Closed by another thread, it raises CancelledError.
        """
        try:
            on_leave(self.close)
            self._tells_tokens = on_token is not None
            if not self._is_started:
                self.start()
            while True:
                rendered = self._next(on_token)
                if rendered is None:
                    return
                yield self._chunk(rendered)
                self._watch.resume()
                self._go_on()
        finally:
            self.close()

    def close(self) -> None:
        """Nothing more is wanted: tokens and chunks under way are given up. Twice is harmless."""
        if os.getpid() != self._pid:  # all of it is the parent's
            return
        self._is_closed = True
        # A destructor may call it at any point of any thread, one that holds another lock of those that the holder of
        # this one waits for: it must not wait. Then the engine's thread does it, between two steps.
        if self._changed.acquire(blocking=False):
            try:
                self._close()
            finally:
                self._changed.release()
        else:
            self._post(self._close)

    def _close(self) -> None:
        with self._changed:
            self._unread.clear()
            self._utterances.close()
            self._renders.cancel(self)

    def _next(self, on_token: Callable[[int], None] | None) -> _Rendered | None:
        """The next chunk for the reader; None: there is none any more."""
        if os.getpid() != self._pid:
            raise RuntimeError("a stream cannot be read on in a forked process; start one there")
        release_idle_threads()
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: (
                        self._unread
                        or self._is_over
                        or self._is_closed
                        or (on_token and self._utterances.num_decoded > self._num_told)
                    )
                )
                if self._is_closed:
                    raise CancelledError("the stream was closed while its next chunk was waited for")
                told, self._num_told = self._num_told, self._utterances.num_decoded
                rendered = self._unread.popleft() if self._unread else None
                is_over, error = self._is_over, self._error
                has_room = rendered is not None and len(self._unread) == MAX_UNREAD - 1
            if has_room:  # T3 may wait for that
                self._utterances.wake()
            if on_token is not None:
                for num in range(told + 1, self._num_told + 1):
                    on_token(num)
            if rendered is not None:
                return rendered
            if is_over:
                if error is not None:
                    raise error
                return None

    def _chunk(self, rendered: _Rendered) -> SpeechChunk:
        last = rendered.last
        metrics = self._watch.chunk(
            rendered.audio.shape[1],
            rendered.started,
            num_tokens=last.num_tokens,
            utterance=last.utterance,
            positions_served=last.num_cached,
            positions_computed=last.num_computed,
        )
        return SpeechChunk(rendered.audio, rendered.speech_tokens, metrics, last.text)

    def _wants(self, num_waiting: int) -> bool:
        """Whether T3 should go on while so many tokens wait."""
        if self._streaming is None:
            return True
        is_held = self._is_rendering or len(self._unread) >= MAX_UNREAD
        enough = self._plan.decode_ahead if is_held else math.inf
        if self._is_on_cpu and self._num_rendered < 2:  # rendering shares it: what starts needs next goes first
            if self._is_rendering and not self._num_rendered and self._renders.is_for_none_but(self):
                return False
            # Tokens of which S3Gen gets no speech token do not fill a chunk, however many wait.
            if not self._may_stall and (self._is_rendering or self._due() is not None):
                enough = min(enough, self._num_to_start)
        return num_waiting < enough

    def _go_on(self) -> None:
        """Have the next chunk rendered if it is due; find out if all is over."""
        try:
            job = self._next_job()
            if job is not None:
                self._renders.submit(job)
        except BaseException as error:  # whoever calls this does not know the reader, who waits
            self._end(error)

    def _next_job(self) -> RenderJob | None:
        with self._changed:
            if self._tells_tokens:
                self._changed.notify_all()
            if self._is_rendering or self._is_over or self._is_closed:
                return None
            if self._streaming is not None and len(self._unread) >= MAX_UNREAD:
                return None
            num_tokens = self._due()
            if num_tokens is None:
                if self._utterances.is_over:
                    self._end(self._utterances.error)
                return None
            if self._streaming is not None and self._plays_until is None and not self._may_stall:
                may_start = self._renders.starts(self, self._go_on)
                if not may_start and not self._can_follow:
                    return None
            if self._plan.max_chunk and self._plays_until is not None:
                num_tokens = self._grown(num_tokens, self._plays_until)
            self._is_rendering = True
            deadline = math.inf if self._streaming is None else self._plays_until
            num_tokens += self._renderer.num_seen_again
            return RenderJob(self, self._render, num_tokens, deadline, fail=self._dropped)

    def _grown(self, num_due: int, plays_until: float) -> int:
        """Tokens of the next chunk, of ``num_due`` at least: more where they wait and there is room for them."""
        num_waiting, ends = 0, False
        for num_tokens, ends, is_pause in self._utterances.waiting():
            num_waiting += num_tokens
            if is_pause or (ends and self._ends_a_chunk):
                break
        self._renderer.grow(num_waiting, self._room(plays_until), ends=ends)
        return self._due() or num_due

    def _room(self, plays_until: float) -> int:
        """Tokens that a chunk may have before its listener hears a gap; whoever hears one already is caught up with."""
        left = plays_until - time.monotonic()
        if left <= 0:
            return self._plan.max_chunk or 0
        return self._renders.num_tokens_within(left) - self._renderer.num_seen_again

    def _due(self) -> int | None:
        """Tokens of the next chunk, if it can be rendered."""
        total, missing, ends = 0, self._renderer.num_missing, False
        for num_tokens, ends, is_pause in self._utterances.waiting():
            total += num_tokens
            if total >= missing or is_pause or (ends and self._ends_a_chunk):
                return total
        is_last = self._utterances.is_decoded and not self._utterances.error
        return total if is_last and (total or ends or self._renderer.is_open) else None

    @property
    def _can_follow(self) -> bool:
        """Whether the chunk behind the next can be rendered too, or nobody knows when there will be one."""
        num_tokens = 0
        for num_more, ends, _ in self._utterances.waiting():
            num_tokens += num_more
            if ends or num_tokens >= self._renderer.num_to_follow:
                return True
        return self._utterances.is_decoded

    @property
    def _ends_a_chunk(self) -> bool:
        """Whether the end of an utterance ends a chunk."""
        return self._plan.continuity == "isolated" or self._may_stall

    def _render(self) -> None:
        """Render what is due, up to one chunk, or two where an utterance ends behind it; in the renderer's thread."""
        error: BaseException | None = None
        started = time.perf_counter()
        rendered: list[Tensor] = []
        try:
            while not rendered and not self._is_closed and (chunk := self._utterances.take()) is not None:
                rendered = self._pushed(chunk)
            if not rendered and self._utterances.is_over and self._renderer.is_open and not self._utterances.error:
                rendered = [self._renderer.close()]
        except BaseException as caught:
            error = caught
        with self._changed:
            self._num_rendered += len(rendered)
            for audio in rendered:
                self._deliver(audio, started)
            self._is_rendering = False
            if error is not None:
                self._end(error)
            goes_on = not (self._is_over or self._is_closed or self._utterances.is_decoded)
            if goes_on and rendered and self._streaming is not None and self._plays_until is not None:
                num_tokens = self._renderer.num_missing + self._renderer.num_seen_again
                self._renders.expect(self, num_tokens, self._plays_until)
        self._utterances.wake()
        self._go_on()

    def _dropped(self, error: BaseException) -> None:
        """What was due will not be rendered."""
        with self._changed:
            self._is_rendering = False
            self._end(self._utterances.error or error)

    def _pushed(self, chunk: TokenChunk) -> list[Tensor]:
        """Audio that tokens complete, or a pause with what was said before it."""
        if chunk.pause:
            self._last = chunk
            said = [self._renderer.close()] if self._renderer.is_open else []
            return [*said, self._renderer.silence(chunk.pause)]
        if chunk.tokens and not self._renderer.is_open:
            self._renderer.begin(utterance_seed(self._request.seed, chunk.utterance))
        self._speech_tokens += chunk.tokens
        self._last = chunk
        audio = self._renderer.push(chunk.tokens)
        rendered = [] if audio is None else [audio]
        if chunk.ends and self._renderer.is_open and self._ends_a_chunk:
            is_isolated = self._plan.continuity == "isolated"
            rendered.append(self._renderer.close() if is_isolated else self._renderer.flush())
        return rendered

    def _deliver(self, audio: Tensor, started: float) -> None:
        if not audio.shape[1] or self._is_closed:
            return
        assert self._last is not None
        self._unread.append(_Rendered(audio, tuple(self._speech_tokens), self._last, started))
        self._speech_tokens.clear()
        self._changed.notify_all()
        now = time.monotonic()
        self._plays_until = max(now, self._plays_until or now) + audio.shape[1] / S3GEN_SR

    def _end(self, error: BaseException | None) -> None:
        with self._changed:
            if not self._is_over:
                self._is_over, self._error = True, error
                if self._last is None and error is None:
                    logger.warning("the text ended before it said anything; nothing is spoken")
            self._changed.notify_all()
        self._renders.cancel(self)
        if error is not None:
            self._utterances.close()
