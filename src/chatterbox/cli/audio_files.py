"""Audio files: which kinds can be written, and how.

Owns: kinds by name, as far as the installed libsndfile writes them; whole files or none, and what is written through (a
pipe, a device). Does not know: where audio comes from, standard output (`sinks`).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatterbox.audio.encoding import wav_header
from chatterbox.cli.errors import UsageError
from chatterbox.cli.output import checked_path
from chatterbox.cli.sinks import SAMPLE_RATE, Sink, naming, write_all
from chatterbox.runtime.files import for_soundfile, is_written_through, whole

if TYPE_CHECKING:
    import numpy as np

BLOCK_LEN = 2**16  # samples at once: an encoder may need memory for all that it is given
USUAL = ("wav", "flac", "ogg", "opus", "mp3")
_IN_PARTS = ("SD2",)  # of a second file beside, without which it cannot be read
_FORMATS = {"OPUS": ("OGG", "OPUS"), "OGA": ("OGG", "VORBIS"), "AIF": ("AIFF", None)}  # the rest is called as it is


@dataclass(frozen=True)
class Encoding:
    """A format of libsndfile, and its subtype; None is the usual one."""

    format: str
    subtype: str | None

    @property
    def is_wav(self) -> bool:
        return self.format == "WAV"


def encoding(kind: str) -> Encoding:
    """What "wav", "mp3" or another ending of a file's name means. Raises UsageError where it cannot be written."""
    import soundfile

    form, subtype = _FORMATS.get(kind.upper(), (kind.upper(), None))
    if form in _IN_PARTS or not soundfile.check_format(form, subtype):
        there = [f".{one}" for one in USUAL if soundfile.check_format(*_FORMATS.get(one.upper(), (one.upper(), None)))]
        lack = f"libsndfile {soundfile.__libsndfile_version__} writes none here: " * (kind.lower() in USUAL)
        raise UsageError(f"{lack}the name must end in {', '.join(there)} or another audio format")
    return Encoding(form, subtype)


def encoding_of(path: Path) -> Encoding:
    """What the name of ``path`` says; WAV for a pipe or device whose name says nothing. Raises UsageError."""
    if not path.suffix and is_written_through(path):
        return Encoding("WAV", None)
    return encoding(path.suffix[1:])


def checked_audio_path(path: str | Path) -> Path:
    """``path``, if an audio file of its kind can be written there; asked before the work is done."""
    path = Path(path)
    try:
        encoding_of(path)
    except UsageError as error:
        raise UsageError(f"cannot write {str(path)!r}: {error}") from None
    return checked_path(path)


def write_audio(path: Path, samples: np.ndarray, sample_rate: int) -> None:
    """Samples (N,) as a file of the kind that the name says."""
    kind = encoding_of(path)
    with naming(repr(str(path))):
        if is_written_through(path):
            _write_through(path, encoded(samples, sample_rate, kind))
            return
        with whole(path) as part:
            _encode(part, samples, sample_rate, kind)


def encoded(samples: np.ndarray, sample_rate: int, kind: Encoding) -> bytes:
    """Samples (N,) as the content of a file."""
    content = io.BytesIO()
    _encode(content, samples, sample_rate, kind)
    return content.getvalue()


@contextlib.contextmanager
def to_file(path: Path) -> Iterator[Sink]:
    """An audio file of the kind that the name says. It is there when all is written, and not if anything fails.

    A pipe or device gets a WAV (of unknown length) as it is made, and what is of another kind at the end.

    Raises:
        ValueError: nothing was written.
    """
    kind, frames = encoding_of(path), 0
    with naming(repr(str(path))), contextlib.ExitStack() as opened:
        if not is_written_through(path):
            file = opened.enter_context(_sound(opened.enter_context(whole(path)), SAMPLE_RATE, kind))
            yield file.write
            frames = file.frames
        elif kind.is_wav:
            through = opened.enter_context(path.open("wb", buffering=0))
            write_all(through.fileno(), wav_header(SAMPLE_RATE))

            def write(samples: np.ndarray) -> None:
                nonlocal frames
                frames += len(samples)
                write_all(through.fileno(), samples.tobytes())

            yield write
        else:
            content = io.BytesIO()
            with _sound(content, SAMPLE_RATE, kind) as file:
                yield file.write
                frames = file.frames
            _write_through(path, content.getvalue())
        if not frames:
            raise ValueError(f"nothing was said, and {path} is not written; give a text with words")


def _encode(target: Path | io.BytesIO, samples: np.ndarray, sample_rate: int, kind: Encoding) -> None:
    with _sound(target, sample_rate, kind) as file:
        for start in range(0, len(samples), BLOCK_LEN):
            file.write(samples[start : start + BLOCK_LEN])


def _sound(target: Path | io.BytesIO, sample_rate: int, kind: Encoding) -> Any:
    import soundfile

    file = for_soundfile(target) if isinstance(target, Path) else target
    return soundfile.SoundFile(file, "w", sample_rate, 1, kind.subtype, format=kind.format)


def _write_through(path: Path, content: bytes) -> None:
    with path.open("wb", buffering=0) as file:
        write_all(file.fileno(), content)
