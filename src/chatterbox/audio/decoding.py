"""Audio files, block by block.

Owns: opening a file, what its container gets wrong, formats that soundfile lacks. soundfile is imported where it is
used and called directly: librosa, that wraps it, costs seconds to import. Does not know: what a recording is for, how
much of it is used.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np

from chatterbox.runtime.files import for_soundfile

AudioFile = str | os.PathLike[str] | BinaryIO

_BLOCK_FRAMES = 1 << 12  # a file that was cut off loses no more than one
_MAX_STREAM_BYTES = 1 << 30  # of what can be read only once
_WHOLE = 0.98  # of the frames that a header promises; it may be an estimate
_HEADER_BYTES = 1024  # a file without samples has no more
_UNKNOWN_LEN = 0x7F000000  # bytes: a header that says as much or more was written before the length was known
_PROMISES = (  # in libsndfile's log: what a header promises, and what is there
    re.compile(r"^ *(?:data|SSND|Data Size) *: (?P<promised>\d+) \(should be (?P<there>\d+)\)", re.MULTILINE),
    re.compile(r"frame count (?P<there>\d+) does not match value from 'ds64' chunk of (?P<promised>\d+)"),
)
_OGG_PAGE, _OGG_LAST = b"OggS", 4  # flag of a page that is the last of its stream
_OGG_MAX_PAGE = 1 << 16  # bytes, about


@contextmanager
def decoder(file: AudioFile, name: str, on_cut: Callable[[float], None]) -> Iterator[tuple[int, Iterator[np.ndarray]]]:
    """Rate in Hz of an audio file, from its beginning, and its samples, float32 (n, C) each.

    ``on_cut`` is told after how many seconds a file ends that promises more.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not audio.
    """
    import soundfile

    if isinstance(file, (str, os.PathLike)):
        _check_path(file, name)
    else:
        file.seek(0)
    try:
        source = soundfile.SoundFile(for_soundfile(file) if isinstance(file, (str, os.PathLike)) else file)
    except (soundfile.SoundFileError, TypeError) as error:
        other = _other_decoder(file) if isinstance(file, (str, os.PathLike)) else None
        if other is None:
            reason = getattr(error, "error_string", str(error))
            raise ValueError(f"{name} cannot be read as audio ({reason}); convert it to WAV or FLAC") from error
        with other:
            yield other.samplerate, _other_blocks(other, on_cut)
        return
    with source:
        yield source.samplerate, _blocks(source, file, on_cut)


def can_be_rewound(file: Any, name: str) -> BinaryIO:
    """``file``, open in binary mode, or what it held where it can be read only once.

    Raises:
        TypeError: it is open as text or for writing alone, or reads asynchronously.
        ValueError: it was closed, or can be read only once and does not end within 1 GiB.
    """
    if isinstance(file, io.TextIOBase):
        raise TypeError(f"{name} is a file open as text; open it in binary mode")
    if getattr(file, "closed", False) is True:
        raise ValueError(f"{name} is a file that was closed; open it again")
    if isinstance(file, io.IOBase) and not file.readable():
        raise TypeError(f"{name} is a file open for writing alone; open it in binary mode for reading")
    if hasattr(file, "seekable"):
        if file.seekable():
            return file
    elif hasattr(file, "seek"):  # SpooledTemporaryFile before Python 3.11
        file.seek(0)
    return read_once(file, name)


def read_once(file: Any, name: str) -> BinaryIO:
    """What ``file`` holds from where it stands on; raises as `can_be_rewound`."""
    content = file.read(_MAX_STREAM_BYTES + 1) if isinstance(file, io.IOBase) else file.read()
    if not isinstance(content, (bytes, bytearray)):
        if hasattr(content, "close"):
            content.close()  # a coroutine that nobody awaits
        raise TypeError(f"{name} is a file that reads {type(content).__name__}, not bytes; open it in binary mode")
    if len(content) > _MAX_STREAM_BYTES:
        raise ValueError(f"{name} does not end within {_MAX_STREAM_BYTES} bytes; save it to a file first")
    return io.BytesIO(content)


def why_empty(file: AudioFile) -> str:
    """What is wrong with a file that holds no samples, as the rest of a sentence; "" if it is just empty."""
    size = os.path.getsize(file) if isinstance(file, (str, os.PathLike)) else file.seek(0, os.SEEK_END)
    if size <= _HEADER_BYTES:
        return ""
    return f"has {size} bytes, but its header says length 0 or it was cut off: it was not written to its end"


def _check_path(path: str | os.PathLike[str], name: str) -> None:
    if not os.path.exists(path):
        raise FileNotFoundError(f"{name} does not exist; give the path of an audio file")
    if os.path.isdir(path):
        raise ValueError(f"{name} is a folder; give the path of an audio file")


def _blocks(source: Any, file: AudioFile, on_cut: Callable[[float], None]) -> Iterator[np.ndarray]:
    import soundfile

    num_read = 0
    try:
        while len(block := source.read(_BLOCK_FRAMES, dtype="float32", always_2d=True)):
            num_read += len(block)
            yield block
    except soundfile.SoundFileError:  # what follows is damaged
        on_cut(num_read / source.samplerate)
        return
    if num_read and (num_read < _WHOLE * source.frames or _lacks_its_end(source, file)):
        on_cut(num_read / source.samplerate)


def _lacks_its_end(source: Any, file: AudioFile) -> bool:
    """Whether the file promises more than libsndfile has found in it, which then counts what is there."""
    found = next(filter(None, (pattern.search(source.extra_info) for pattern in _PROMISES)), None)
    if found is not None:
        promised = int(found["promised"])
        return int(found["there"]) < _WHOLE * promised and promised < _UNKNOWN_LEN
    if source.format != "OGG":
        return False
    pages = _end_of(file, _OGG_MAX_PAGE)
    last = pages.rfind(_OGG_PAGE)
    return 0 <= last < len(pages) - 5 and not pages[last + 5] & _OGG_LAST


def _end_of(file: AudioFile, num_bytes: int) -> bytes:
    if isinstance(file, (str, os.PathLike)):
        with open(file, "rb") as opened:
            return _end_of(opened, num_bytes)
    file.seek(max(file.seek(0, os.SEEK_END) - num_bytes, 0))
    return file.read(num_bytes)


def _other_decoder(path: str | os.PathLike[str]) -> Any:
    """What audioread finds on the machine for m4a, aac and the like; None if nothing can."""
    try:
        import audioread
    except ImportError:
        return None
    try:
        return audioread.audio_open(os.fspath(path))
    except (audioread.DecodeError, EOFError, OSError):
        return None


def _other_blocks(source: Any, on_cut: Callable[[float], None]) -> Iterator[np.ndarray]:
    import audioread

    rest, num_read = b"", 0
    try:
        for data in source:
            data = rest + bytes(data)
            whole = len(data) // (2 * source.channels) * 2 * source.channels
            rest = data[whole:]
            block = np.frombuffer(data[:whole], "<i2").reshape(-1, source.channels)
            num_read += len(block)
            yield (block / 2.0**15).astype(np.float32)
    except (audioread.DecodeError, EOFError, OSError):
        on_cut(num_read / source.samplerate)
