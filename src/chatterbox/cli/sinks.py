"""Where audio goes while it is made: standard output, a player.

Owns: the form of the samples (16 bits, mono, 24 kHz), which player is taken. Does not know:
where audio comes from, files (`audio_files`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from chatterbox.audio.encoding import to_pcm, wav_header
from chatterbox.cli.errors import UsageError

SAMPLE_RATE = 24_000
NO_TERMINAL = "standard output is a terminal, which cannot take audio; redirect or pipe it"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
Sink = Callable[[np.ndarray], None]  # takes (N,) int16 samples

# Programs that play what they read from standard input, in the order they are looked for. ffplay is given a WAV header,
# as its options for raw samples differ between versions.
PLAYERS: dict[str, Sequence[str]] = {
    "ffplay": ("-nodisp", "-autoexit", "-loglevel", "error", "-i", "-"),
    "aplay": ("-q", "-t", "raw", "-f", "S16_LE", "-r", str(SAMPLE_RATE), "-c", "1", "-"),
    "paplay": ("--raw", "--format=s16le", f"--rate={SAMPLE_RATE}", "--channels=1"),
    "pw-play": ("--format=s16", f"--rate={SAMPLE_RATE}", "--channels=1", "-"),
}
TAKES_WAV = ("ffplay",)
pcm = to_pcm  # what goes out
PIPE_HINT = "chatterbox stream ... | PLAYER (16 bits, little-endian, mono, 24000 Hz), or write a file with -o"


def check_output() -> bool:
    """Whether standard output is a terminal. Raises UsageError if it is closed."""
    if sys.stdout is None:
        raise UsageError("standard output is closed; write a file with -o")
    return sys.stdout.isatty()


@contextlib.contextmanager
def naming(what: str) -> Iterator[None]:
    """An error within, of a disk that is full or fails, says what could not be written."""
    import soundfile

    try:
        yield
    except soundfile.LibsndfileError as error:  # it does not know more than "System error"
        raise OSError(f"cannot write {what}: {error.error_string} Is the disk full?") from error
    except OSError as error:
        if error.errno not in _FULL or error.filename is not None:
            raise
        raise OSError(f"cannot write {what}: {error.strerror}") from error


def to_output_whole(content: bytes) -> None:
    """A whole file to standard output. Raises BrokenPipeError when nobody reads on."""
    with naming("to standard output"):
        write_all(sys.stdout.fileno(), content)


@contextlib.contextmanager
def to_output(*, is_wav: bool) -> Iterator[Sink]:
    """Raw samples, or a WAV of unknown length, to standard output. Raises BrokenPipeError when nobody reads on."""
    fd = sys.stdout.fileno()
    with naming("to standard output"):
        if is_wav:
            write_all(fd, wav_header(SAMPLE_RATE))
        yield lambda samples: write_all(fd, samples.tobytes())


@contextlib.contextmanager
def to_player(name: str) -> Iterator[Sink]:
    """One of `PLAYERS`, which goes on until all is heard; it is ended if anything fails.

    Raises:
        RuntimeError: the player failed.
    """
    player = subprocess.Popen([name, *PLAYERS[name]], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert player.stdin is not None
    fd = player.stdin.fileno()
    try:
        if name in TAKES_WAV:
            write_all(fd, wav_header(SAMPLE_RATE))
        yield lambda samples: write_all(fd, samples.tobytes())
    except BrokenPipeError:
        pass  # it has ended: well or badly, as its exit code says
    except BaseException:
        player.terminate()
        raise
    finally:
        player.stdin.close()
        code = player.wait()
    if code:
        raise RuntimeError(f"{name} failed with exit code {code}; instead: {PIPE_HINT}")


def find_player() -> str:
    """The first of `PLAYERS` that is installed. Raises UsageError, which tells how to pipe, if there is none."""
    for name in PLAYERS:
        if shutil.which(name):
            return name
    afplay = " (afplay cannot play what is still being made)" if shutil.which("afplay") else ""
    raise UsageError(f"no player found{afplay}: install one of {', '.join(PLAYERS)}, or pipe: {PIPE_HINT}")


def write_all(fd: int, data: bytes) -> None:
    """All of ``data`` to an open file, however little it takes at once. Raises BrokenPipeError when nobody reads on."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]
