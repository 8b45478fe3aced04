"""A request's utterances to speech tokens: each is prepared, submitted, filtered, and handed on in the text's order.

Owns: when the next utterance is submitted and what it knows of the one before, tokens that nobody has taken yet. Does
not know: audio, how tokens are decoded, how the text was split.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial

from torch import Tensor

from chatterbox.config import KVCacheConfig, StreamingConfig
from chatterbox.engine.policy_engine import Continuation
from chatterbox.engine.scheduler import Scheduler
from chatterbox.kvcache import cache_config
from chatterbox.models.t3 import T3
from chatterbox.models.tokenizers import TextTokenizer
from chatterbox.runtime.torch_context import own_context
from chatterbox.synthesis.request import SynthesisRequest, decode_request, text_tokens_of, utterances_of
from chatterbox.synthesis.token_filter import SpeechTokenFilter
from chatterbox.text import Utterance

logger = logging.getLogger(__name__)

SILENCE = 0.25  # seconds, of a text with nothing to speak
MAX_CONCURRENT = 4  # utterances of one request that share steps, where none has to know another
DEFAULTS = StreamingConfig()


@dataclass(frozen=True)
class TokenChunk:
    """Speech tokens that can be rendered, in order, and what their utterance has cost so far."""

    tokens: list[int]
    utterance: int
    ends: bool  # the utterance is over
    num_tokens: int  # decoded so far, of this utterance and those before
    num_cached: int  # positions before decoded tokens, likewise: found in memory
    num_computed: int  # and computed
    pause: float = 0.0  # seconds of silence; such a chunk has no tokens, and what was said before it is over
    text: str = ""  # of the utterance


@dataclass(eq=False)
class _Waiting:
    """What has its place in the text's order."""

    text = ""
    index: int
    chunks: deque[tuple[list[int], bool, int]] = field(default_factory=deque)  # tokens, ends, decoded so far
    pause: float = 0.0
    num_decoded: int = 0
    num_cached: int = 0
    num_computed: int = 0
    cancel: Callable[[], None] | None = None


@dataclass(eq=False, kw_only=True)
class _Utterance(_Waiting):
    """One utterance on its way; the sink of its tokens."""

    owner: Utterances
    text: str
    limit: int
    filter: SpeechTokenFilter

    @property
    def place(self) -> str:
        """Which it is, as a log may tell it: none of its words."""
        return f"utterance {self.index + 1}, of {len(self.text)} characters,"

    @property
    def is_eager(self) -> bool:
        return self.owner.is_eager

    @property
    def is_full(self) -> bool:
        return self.owner.is_full

    def begin(self, num_cached: int, num_computed: int) -> None:
        self.num_cached, self.num_computed = num_cached, num_computed

    def push(self, tokens: list[int]) -> None:
        with self.owner.changed:
            for token in tokens:
                self.num_decoded += 1
                self.chunks.append((self.filter.push(token), False, self.num_decoded))
        self.owner.on_change()

    def finish(self) -> None:
        self.owner.finished(self)

    def fail(self, error: BaseException) -> None:
        self.owner.fail(error, self.index)


class Utterances:
    """Tokens of a request's utterances, in the text's order. Safe from several threads.

    Whoever takes them says, by ``wants``, how many that wait are enough for now.
    """

    @own_context()
    def __init__(
        self,
        scheduler: Scheduler,
        tokenizer: TextTokenizer,
        request: SynthesisRequest,
        streaming: StreamingConfig | None,
        *,
        on_change: Callable[[], None],
        wants: Callable[[int], bool] | None = None,
    ) -> None:
        """Args:
            streaming: None hands on whole utterances.
            on_change: called, in any thread, when there is something to take, or an end.
            wants: whether more tokens are wanted while so many wait; None: always.

        Raises:
            TypeError: the text is neither a string nor pieces of one.
            ValueError: "append" without a cache.
        """
        self._scheduler, self._request, self._streaming = scheduler, request, streaming
        self._plan, self.on_change, self._wants = streaming or DEFAULTS, on_change, wants or _wants_all
        self._is_streamed = streaming is not None and wants is not None  # else nobody renders meanwhile
        self._t3: T3 = scheduler.prefixes.t3
        self._policy = policy_of(request)
        self._voice = request.conditionals.with_exaggeration(request.exaggeration)
        self._tokens_of: Callable[[str], Tensor] = lru_cache(64)(
            partial(text_tokens_of, tokenizer, request, hp=self._t3.hp)
        )
        self._continuation: Continuation | None = None
        if self._plan.continuity == "append":
            self._continuation = scheduler.continuation(self._policy)
        self.texts = utterances_of(self._t3, request, self._tokens_of, by_sentence=self._plan.continuity != "isolated")
        if self.texts == [] and streaming is None:
            self.texts = [nothing_to_speak()]
        self._left: Iterator[Utterance] = iter(self.texts)
        self._max_concurrent = MAX_CONCURRENT if streaming is None and self._plan.continuity == "isolated" else 1
        self._under_way: deque[_Waiting] = deque()  # in the text's order
        self._previous: tuple[str, list[int]] | None = None  # text and tokens, where the next utterance knows of them
        self._num_submitted = self._num_decoding = 0
        self._totals = [0, 0, 0]  # tokens, positions cached and computed of the utterances that are over
        self._text_is_over = self._is_closed = False
        self.error: BaseException | None = None
        self._error_at = 0  # the utterance that it came at: those before are handed on
        self.changed = threading.Condition(threading.RLock())

    @property
    def is_one(self) -> bool:
        """Whether the text is one utterance, and known to be."""
        return isinstance(self.texts, list) and sum(not is_silence(one) for one in self.texts) == 1

    @property
    def num_waiting(self) -> int:
        """Tokens that were decoded and not taken."""
        return sum(len(one.chunks) for one in self._under_way)

    @property
    def is_eager(self) -> bool:
        return self._wants(self.num_waiting)

    @property
    def is_full(self) -> bool:
        return self._streaming is not None and self.num_waiting > 2 * self._plan.decode_ahead

    @property
    def num_decoded(self) -> int:
        """Tokens decoded so far."""
        return self._totals[0] + sum(one.num_decoded for one in self._under_way)

    @property
    def is_decoded(self) -> bool:
        """Whether no more tokens will come than those that wait."""
        return self._text_is_over and not self._num_decoding

    @property
    def is_over(self) -> bool:
        """Whether there is nothing to take any more, now or later."""
        if self.error is not None:
            return not self._under_way or self._under_way[0].index >= self._error_at
        return self._text_is_over and not self._under_way

    def start(self, request: SynthesisRequest | None = None) -> None:
        """Submit the first utterances. ``request``: in place of the one given before, with another seed."""
        self._request = request or self._request
        if isinstance(self.texts, list):
            self._submit_more()
            self.on_change()  # a pause, or nothing, may be all of it
        else:
            threading.Thread(target=self._feed, name="chatterbox-text", daemon=True).start()

    def waiting(self) -> Iterator[tuple[int, bool, bool]]:
        """Of what waits, in order: how many tokens can be rendered, whether an utterance is over with them, and whether
        it is a pause."""
        for one in self._under_way:
            for tokens, ends, _ in one.chunks:
                yield len(tokens), ends, one.pause > 0
            if not (one.chunks and one.chunks[-1][1]):
                return

    def take(self) -> TokenChunk | None:
        """The next tokens; None: there are none now."""
        with self.changed:
            if not self._under_way or not self._under_way[0].chunks:
                return None
            one = self._under_way[0]
            was_eager = self.is_eager
            tokens, ends, num_decoded = one.chunks.popleft()
            num_tokens, num_cached, num_computed = self._totals
            num_cached, num_computed = num_cached + one.num_cached, num_computed + one.num_computed
            num_tokens += num_decoded
            chunk = TokenChunk(tokens, one.index, ends, num_tokens, num_cached, num_computed, one.pause, one.text)
            if ends:
                self._under_way.popleft()
                self._totals = [chunk.num_tokens, num_cached, num_computed]
            wakes = self.is_eager and not was_eager
        if wakes:
            self._scheduler.wake()
        return chunk

    def wake(self) -> None:
        """What ``wants`` says has changed."""
        self._scheduler.wake()

    def close(self) -> None:
        """Nothing more is wanted: what is under way leaves within a step."""
        with self.changed:
            if self._is_closed:
                return
            self._is_closed = True
            cancels = [one.cancel for one in self._under_way if one.cancel is not None]
            for one in self._under_way:
                one.cancel = None
            # They refer to whoever reads, who refers to this.
            self.on_change, self._wants = _nothing, _wants_all
            self.changed.notify_all()
        for cancel in cancels:
            cancel()
        if self._continuation is not None:
            self._scheduler.forget(self._continuation)

    def fail(self, error: BaseException, index: int | None = None) -> None:
        """End with an error at an utterance, behind all that comes before it; None is the next one."""
        with self.changed:
            if self.error is None or (index is not None and index < self._error_at):
                self.error, self._error_at = error, self._num_submitted if index is None else index
            self.changed.notify_all()
        self.on_change()

    def finished(self, one: _Utterance) -> None:
        """All tokens of an utterance are decoded."""
        with self.changed:
            self._warn_if_cut(one)
            one.chunks.append((one.filter.finish(), True, one.num_decoded))
            if not one.filter.kept:
                logger.warning("%s came out silent; try another seed", one.place)
            if self._plan.continuity == "history":
                kept = one.filter.kept
                self._previous = (one.text, kept) if 0 < len(kept) <= self._plan.history_len else None
            self._num_decoding -= 1
            one.cancel = None
            self.changed.notify_all()
        if isinstance(self.texts, list):
            self._submit_more()
        self.on_change()

    def _warn_if_cut(self, one: _Utterance) -> None:
        decoded = one.filter.decoded
        if len(decoded) == one.limit and decoded[-1] != self._t3.hp.stop_speech_token:
            logger.warning("%s was cut off at max_new_tokens %d; raise it", one.place, one.limit)

    def _submit_more(self) -> None:
        """Submit what is left of a text that is known, so far as utterances may share steps."""
        try:
            with self.changed:
                while self._num_decoding < self._max_concurrent and not self._is_closed and self.error is None:
                    one = next(self._left, None)
                    if one is None:
                        self._text_is_over = True
                        return
                    self._submit(one)
        except BaseException as error:
            self.fail(error)

    def _feed(self) -> None:
        """Submit what a text that is still being written gives, one utterance after the other."""
        try:
            for one in self._left:
                with self.changed:
                    self.changed.wait_for(lambda: not self._num_decoding or self._is_closed or self.error is not None)
                    if self._is_closed or self.error is not None:
                        return
                    self._submit(one)
                if is_silence(one):
                    self.on_change()
            with self.changed:
                self._text_is_over = True
            self.on_change()
        except BaseException as error:
            self.fail(error)
        finally:
            with suppress(Exception):  # whoever reads has the tokens, or the error that came first
                getattr(self._left, "close", lambda: None)()

    @own_context()
    def _submit(self, spoken: Utterance) -> None:
        index, text = self._num_submitted, spoken.text
        if spoken.pause:
            silence: tuple[list[int], bool, int] = ([], True, 0)
            self._under_way.append(_Waiting(index, deque([silence]), spoken.pause))
        if is_silence(spoken):
            return
        decode = decode_request(
            self._t3, self._voice, self._request, self._tokens_of, text, previous=self._previous, index=index
        )
        token_filter = SpeechTokenFilter(self._t3.hp, self._request.guard, streaming=self._streaming is not None)
        one = _Utterance(index, owner=self, text=text, limit=decode.max_new_tokens or 0, filter=token_filter)
        self._num_submitted += 1
        self._num_decoding += 1
        self._under_way.append(one)
        try:
            one.cancel = self._scheduler.submit(
                decode,
                one,
                policy=self._policy,
                continuation=self._continuation,
                is_queued=index == 0,
                is_streamed=self._is_streamed,
            )
        except BaseException:
            self._under_way.remove(one)
            self._num_decoding -= 1
            self._num_submitted -= 1
            raise


def policy_of(request: SynthesisRequest) -> KVCacheConfig:
    """The cache policy of a request's rows."""
    return cache_config(request.cache_policy) if request.use_cache else KVCacheConfig(policy="none")


def nothing_to_speak() -> Utterance:
    """What stands for a text without a word that is spoken whole."""
    logger.warning("the text has nothing that can be spoken; %g s of silence stand for it", SILENCE)
    return Utterance("", SILENCE)


def is_silence(one: Utterance) -> bool:
    """Whether it has no words: an empty text alone is upstream's request for some."""
    return not one.text and one.pause > 0


def _nothing() -> None:
    return None


def _wants_all(num_waiting: int) -> bool:
    return True


class TokenReader:
    """Iterates what `Utterances` has, as it comes."""

    def __init__(self) -> None:
        self._changed = threading.Condition()

    def notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def read(self, utterances: Utterances) -> Iterator[TokenChunk]:
        """All of it; left early, it closes it. Raises what went wrong behind what came before."""
        try:
            utterances.start()
            while True:
                chunk = utterances.take()
                if chunk is not None:
                    yield chunk
                elif utterances.is_over:
                    break
                else:
                    with self._changed:
                        self._changed.wait_for(lambda: utterances.is_over or any(True for _ in utterances.waiting()))
            if utterances.error is not None:
                raise utterances.error
        finally:
            utterances.close()
