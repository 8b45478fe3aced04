"""Voices that were heard before: the same recording is not decoded, resampled or encoded a second time.

Owns: recordings by content, the byte budget, one preparation at a time for one recording. Does not know: how a voice is
made of a recording.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

from chatterbox.audio.recordings import Recording
from chatterbox.runtime import forking
from chatterbox.runtime.single_flight import SingleFlight
from chatterbox.voice.conditionals import Conditionals, Reference

DEFAULT_BUDGET = 64 * 2**20  # a published voice takes about 0.2 MiB


class VoiceCache:
    """Conditionals by the content of their recording, the least recently used leave first. Thread-safe.

    A voice with NaN in it is not kept: speaking with it fails, and the next request makes it anew.
    """

    def __init__(self, *, budget_bytes: int = DEFAULT_BUDGET) -> None:
        if budget_bytes < 0:
            raise ValueError(f"budget_bytes must be 0 or more, got {budget_bytes}; 0 keeps nothing")
        self.budget_bytes = budget_bytes
        self.hits = self.misses = 0
        self._voices: OrderedDict[str, Conditionals] = OrderedDict()
        self._flights: SingleFlight[Conditionals] = SingleFlight()
        forking.register(self, VoiceCache._renew)

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        with self._lock:
            return sum(voice.nbytes for voice in self._voices.values())

    def get(
        self,
        reference: Reference,
        make: Callable[[Reference], Conditionals],
        *,
        source_rate: int | None = None,
        recipe: str = "",
    ) -> Conditionals:
        """The voice of a recording, as a copy of the caller's own.

        Args:
            reference: the recording, with ``source_rate`` as `audio.recordings.Recording` has them.
            make: prepares the voice of the recording it is given. Threads that ask for the same recording wait for one
                call; what it raises reaches its caller alone, and one of those that wait for it tries next.
            recipe: names what ``make`` does; voices of one recording by several are several.
        """
        key, reference = identify(reference, source_rate)
        if key is None:
            return make(reference)
        key = f"{key} {recipe}"
        voice = self._known(key)
        if voice is None:
            voice, waited = self._flights.run(key, partial(self._made, key, reference, make))
            with self._lock:
                self.hits += waited
        return voice.clone()

    def clear(self) -> None:
        with self._lock:
            self._voices.clear()

    def _renew(self) -> forking.Lock:
        self._lock = threading.RLock()
        return self._lock

    def _known(self, key: str) -> Conditionals | None:
        with self._lock:
            voice = self._voices.get(key)
            if voice is not None:
                self.hits += 1
                self._voices.move_to_end(key)
            return voice

    def _made(self, key: str, reference: Reference, make: Callable[[Reference], Conditionals]) -> Conditionals:
        voice = self._known(key)  # it may have come since the caller looked
        if voice is not None:
            return voice
        with self._lock:
            self.misses += 1
        voice = make(reference)
        if voice.nbytes <= self.budget_bytes and voice.is_finite:
            with self._lock:
                self._voices[key] = voice
                held = sum(one.nbytes for one in self._voices.values())
                while held > self.budget_bytes:
                    held -= self._voices.popitem(last=False)[1].nbytes
        return voice


def identify(reference: Reference, source_rate: int | None = None) -> tuple[str | None, Reference]:
    """Name by content of a recording, and the recording; None where it cannot be read, which preparing it will report,
    or is a file so large that its voice is made sooner than it is read.

    An open file is read to its end: what comes back stands in for it.
    """
    digest = hashlib.blake2b(digest_size=16)
    try:
        recording = Recording(reference, source_rate)
        for part in recording.content():
            digest.update(part)
    except (OSError, TypeError, ValueError):
        return None, reference
    return digest.hexdigest(), recording.again()
