"""A folder of texts into a folder of audio: ``chatterbox say --file FOLDER -o FOLDER``.

Owns: which text becomes which file, what is left to do. Does not know: how speech is made (`speaker`).

Files are written whole or not at all, so that what is there is done: a text whose audio is as new as it is left out.
Audio is as old as the moment its text was read, so that a text that is changed while it is spoken is said again.
"""

from __future__ import annotations

import contextlib
import os
import time
from contextlib import closing
from pathlib import Path

from chatterbox.cli import best_of
from chatterbox.cli.audio_files import write_audio
from chatterbox.cli.config import SayCommandConfig
from chatterbox.cli.errors import UsageError
from chatterbox.cli.output import printable, progress, say_line, tell
from chatterbox.cli.pieces import read_text
from chatterbox.cli.speaker import load_speaker

SUFFIX = ".txt"


def speak(config: SayCommandConfig, texts: Path, output: str, kind: str, is_forced: bool, num_takes: int = 1) -> int:
    """Speak each text that is left to do, in the order of names; 1 if any failed, while the others were spoken.

    Args:
        kind: ending of the files' names.
        is_forced: also what was spoken before.
        num_takes: of each text, of which the best is kept.

    Raises:
        UsageError: there is no text, two would be one file, or ``output`` cannot be a folder.
    """
    target, paths = Path(output), sorted(path for path in texts.iterdir() if _is_text(path))
    if not paths:
        raise UsageError(f"folder {str(texts)!r} holds no {SUFFIX} file")
    if output == "-" or (target.exists() and not target.is_dir()):
        raise UsageError(f"{str(texts)!r} is a folder; -o {output} must be one too")
    jobs = [(path, target / f"{path.stem}.{kind}") for path in paths]
    text_of: dict[Path, Path] = {}
    for path, audio in jobs:
        if (other := text_of.setdefault(audio, path)) is not path:
            raise UsageError(f"{other.name!r} and {path.name!r} would both be {str(audio)!r}; rename one of them")
    target.mkdir(parents=True, exist_ok=True)
    left = [job for job in jobs if is_forced or not _is_done(*job)]
    num_failed = _spoken(config, left, num_takes) if left else 0
    there = f", {len(jobs) - len(left)} were there (--force says them again)" if len(left) < len(jobs) else ""
    say_line(f"{target}: {len(left) - num_failed} of {len(jobs)} texts spoken{there}, {num_failed} failed")
    return int(num_failed > 0)


def _is_text(path: Path) -> bool:
    """By its name, and no hidden file, folder or pipe. A link that leads nowhere is one: it fails by its name."""
    is_named = path.suffix.lower() == SUFFIX and not path.name.startswith(".")
    return is_named and (path.is_file() or not path.exists())


def _is_done(text: Path, audio: Path) -> bool:
    return audio.is_file() and text.is_file() and audio.stat().st_mtime >= text.stat().st_mtime


def _spoken(config: SayCommandConfig, jobs: list[tuple[Path, Path]], num_takes: int) -> int:
    """How many failed."""
    num_failed = 0
    with progress() as report, closing(load_speaker(config, report)) as speaker:
        for done, (text, audio) in enumerate(jobs):
            report.bar(done, len(jobs), printable(text.name))
            try:
                read_at = time.time()
                result = best_of.speak(speaker, read_text(text), num_takes, config.seed)
                write_audio(audio, result.audio[0].numpy(), result.sample_rate)
                with contextlib.suppress(OSError):  # of a pipe or device that is another's
                    os.utime(audio, (read_at, read_at))
            except UsageError:
                raise  # of a setting, and so of all texts
            except (ValueError, RuntimeError, OSError) as error:
                num_failed += 1
                report.clear()
                reason = str(error).partition("\n")[0]
                tell("chatterbox: error: " + printable(reason if str(text) in reason else f"{text}: {reason}"))
                continue
            report.clear()
            say_line(f"{audio}: {result.duration:.2f} s of audio")
    return num_failed
