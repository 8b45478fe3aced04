"""Samples to bytes of an audio format while they arrive: each push gives what can be played by then.

Owns: the formats, how each is told to hold nothing back, PyAV. Does not know: where samples come from and bytes go.

PCM and WAV need nothing. The others are PyAV's (extra `serve`), which has FFmpeg within. A format's own delay is what
its frames need: 20 ms of Opus, 60 of MP3, 100 of AAC.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Protocol

import numpy as np

UNKNOWN_LEN = 0xFFFFFFFF  # bytes of a WAV that goes on, as players read it
HEADER_LEN = 44  # bytes of a WAV's
PIECE_MS = 20  # of audio that a codec is handed at a time: it gives what it has after each


class Encoder(Protocol):
    """One stream of audio. `push` samples in -1..1, then `finish`."""

    def push(self, samples: np.ndarray) -> bytes:
        """Bytes that (N,) samples complete; there may be none."""

    def finish(self) -> bytes:
        """The last bytes."""

    def close(self) -> None:
        """Nothing more is wanted. Twice is harmless."""


@dataclass(frozen=True)
class AudioFormat:
    """How a stream of a format is made, and what a browser calls it."""

    content_type: str
    container: str | None = None  # FFmpeg's name; None: PCM, with or without a header
    codec: str = ""
    bit_rate: int | None = None
    container_options: Mapping[str, str] = field(default_factory=dict)
    codec_options: Mapping[str, str] = field(default_factory=dict)


FORMATS: dict[str, AudioFormat] = {
    # Bodies may be joined, as LibreChat does, so there is neither a table of contents nor a tag before an MP3.
    "mp3": AudioFormat(
        "audio/mpeg", "mp3", "libmp3lame", 128_000, {"write_xing": "0", "id3v2_version": "0"}, {"reservoir": "0"}
    ),
    # A page for each frame, else FFmpeg holds a second back.
    "opus": AudioFormat("audio/ogg", "ogg", "libopus", 64_000, {"page_duration": "20000", "flush_packets": "1"}),
    "aac": AudioFormat("audio/aac", "adts", "aac", 96_000),
    "flac": AudioFormat("audio/flac", "flac", "flac", codec_options={"frame_size": "480"}),
    "wav": AudioFormat("audio/wav"),
    "pcm": AudioFormat("audio/pcm"),
}


class EncodingError(ValueError):
    """A format that there is not, or that needs a package which is not installed."""


def encoder_of(name: str, sample_rate: int, num_samples: int | None = None) -> Encoder:
    """Of mono audio. ``num_samples``: of all that will be pushed, for a WAV's header; None: nobody knows.

    Raises EncodingError if the format cannot be had.
    """
    if name not in FORMATS:
        raise EncodingError(f"format must be one of {', '.join(FORMATS)}, got {name!r}")
    if FORMATS[name].container is None:
        return _Pcm(wav_header(sample_rate, num_samples) if name == "wav" else b"")
    if not has_codecs():
        raise EncodingError(
            f"format {name} needs PyAV: pip install 'chatterbox-kvcache[serve]'; wav and pcm need nothing"
        )
    return _Codec(FORMATS[name], sample_rate)


def has_codecs() -> bool:
    """Whether PyAV is installed."""
    import importlib.util

    return importlib.util.find_spec("av") is not None


def available() -> list[str]:
    """Names of the formats that can be had."""
    return [name for name, one in FORMATS.items() if one.container is None or has_codecs()]


def to_pcm(samples: np.ndarray) -> np.ndarray:
    """(N,) samples in -1..1 as whole numbers of 16 bits, little-endian."""
    return (np.clip(samples, -1.0, 1.0) * 32767).round().astype("<i2")


class _Pcm:
    """16-bit samples behind a header."""

    def __init__(self, header: bytes) -> None:
        self._header = header

    def push(self, samples: np.ndarray) -> bytes:
        header, self._header = self._header, b""
        return header + to_pcm(samples).tobytes()

    def finish(self) -> bytes:
        return self.push(np.zeros(0, np.float32))

    def close(self) -> None:
        pass


def wav_header(sample_rate: int, num_samples: int | None = None) -> bytes:
    """Of a mono WAV; None: of unknown length, as players and sox read it from a pipe."""
    size = UNKNOWN_LEN if num_samples is None or 2 * num_samples > UNKNOWN_LEN - HEADER_LEN else 2 * num_samples
    form = struct.pack("<HHIIHH", 1, 1, sample_rate, 2 * sample_rate, 2, 16)  # PCM, mono
    riff_size = size if size == UNKNOWN_LEN else size + HEADER_LEN - 8
    parts = (b"RIFF", struct.pack("<I", riff_size), b"WAVEfmt ", struct.pack("<I", len(form)), form)
    return b"".join((*parts, b"data", struct.pack("<I", size)))


def with_its_length(wav: bytes) -> bytes:
    """A WAV that was made piece by piece, all of which is there now."""
    (sample_rate,) = struct.unpack("<I", wav[24:28])
    return wav_header(sample_rate, (len(wav) - HEADER_LEN) // 2) + wav[HEADER_LEN:]


class _Codec:
    """A format of FFmpeg's."""

    def __init__(self, form: AudioFormat, sample_rate: int) -> None:
        import av

        self._rate, self._pending, self._num_samples = sample_rate, _Pending(), 0
        self._piece_len = sample_rate * PIECE_MS // 1000
        self._container: Any = av.open(
            self._pending, "w", format=form.container, options=dict(form.container_options), buffer_size=256
        )
        stream: Any = self._container.add_stream(form.codec, rate=sample_rate, options=dict(form.codec_options))
        stream.layout = "mono"
        if form.bit_rate is not None:
            stream.bit_rate = form.bit_rate
        self._stream = stream
        self._make_frame = av.AudioFrame.from_ndarray

    def push(self, samples: np.ndarray) -> bytes:
        pcm = to_pcm(samples)
        for start in range(0, len(pcm), self._piece_len):
            self._encode(pcm[start : start + self._piece_len])
        return self._pending.take()

    def finish(self) -> bytes:
        if self._container is None:
            return b""
        if not self._num_samples:  # a container without a frame is refused by players
            self._encode(np.zeros(self._piece_len, "<i2"))
        self._container.mux(self._stream.encode(None))
        self.close()
        return self._pending.take()

    def close(self) -> None:
        container, self._container = self._container, None
        if container is not None:
            container.close()

    def _encode(self, pcm: np.ndarray) -> None:
        frame = self._make_frame(pcm[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = self._rate, self._num_samples, Fraction(1, self._rate)
        self._num_samples += len(pcm)
        self._container.mux(self._stream.encode(frame))


class _Pending:
    """A file that FFmpeg writes to, and that is emptied now and then. It cannot go back."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        taken, self._parts = b"".join(self._parts), []
        return taken
