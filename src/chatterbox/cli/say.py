"""``chatterbox say``: a text, from the command line or a file, into an audio file; a folder of texts into a folder.

Owns: the order of the steps, where the text comes from, the line at the end. Does not know: how speech is made
(`speaker`), how a file is written (`audio_files`), what is left to do of a folder (`folder`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatterbox.cli import best_of, folder
from chatterbox.cli.audio_files import Encoding, checked_audio_path, encoded, encoding, write_audio
from chatterbox.cli.errors import UsageError, as_usage
from chatterbox.cli.options import add_command, add_settings, add_speaker, add_text, configuration
from chatterbox.cli.output import progress, say_line, tell
from chatterbox.cli.pieces import read_text
from chatterbox.cli.sinks import NO_TERMINAL, check_output, to_output_whole
from chatterbox.cli.speaker import load_speaker
from chatterbox.values import whole

if TYPE_CHECKING:
    from chatterbox.synthesis.synthesizer import SpeechResult

STANDARD = "-"  # standard input, or output
EXAMPLES = """
    examples:
      chatterbox say "Hello there." -o hello.wav
      chatterbox say "Hello there." -o hello.mp3 --voice reference.wav --seed 1
      chatterbox say "Hello" -o hello.wav kvcache=sliding kvcache.window_size=256 sampling.temperature=0.6
      chatterbox say --file story.txt -o story.opus
      chatterbox say --file chapters -o audio --format mp3    # a folder; goes on where it stopped
      chatterbox say "Hello there." -o - | aplay
      chatterbox say "Hello there." -o hello.wav --best-of 4 --seed 1
"""


def add_to(commands: Any) -> None:
    parser = add_command(
        commands,
        "say",
        run,
        help="speak a text, or a folder of them, into audio files",
        description="Speak TEXT, or what a file holds, into an audio file; of a folder, each .txt file into one.",
    )
    add_text(
        parser, "say", may_lack=False, help="what to say; any word that is neither option nor setting, or behind --"
    )
    parser.add_argument("-f", "--file", metavar="FILE", help="text to say: a file, - for standard input, or a folder")
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="FILE",
        help="audio file to write (.wav, .flac, .ogg, .opus, .mp3), - for standard output; of a folder, a folder",
    )
    parser.add_argument(
        "--format", metavar="KIND", help="of standard output or a folder's files: wav (default), mp3, ..."
    )
    parser.add_argument("--force", action="store_true", help="of a folder, also what was spoken before")
    parser.add_argument(
        "--best-of",
        metavar="N",
        default="1",
        help=f"speak it with N seeds, --seed and those that follow it, and keep the best: {best_of.CHECK}",
    )
    add_speaker(parser)
    add_settings(parser, "say", examples=EXAMPLES)


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    if arguments.text is None and arguments.file is None:
        arguments.parser.error("the following arguments are required: TEXT, or --file FILE")
    if arguments.text is not None and arguments.file is not None:
        raise UsageError(f"there is a text, {arguments.text[:40]!r}, and --file {arguments.file}: give one of them")
    for flag, name in (("--file", arguments.file), ("-o", arguments.output)):
        if name == "":
            raise UsageError(f"{flag} '' names no file")
    config = configuration(arguments, overrides, "say")
    ending = "wav" if arguments.format is None else arguments.format
    kind = _encoding(ending)
    with as_usage():
        num_takes = whole("--best-of", arguments.best_of, 1, "2 or more keep the best", high=best_of.MOST)
    if arguments.file not in (None, STANDARD) and Path(arguments.file).is_dir():
        return folder.speak(config, Path(arguments.file), arguments.output, ending, arguments.force, num_takes)
    if arguments.force:
        raise UsageError("--force is for a folder of texts; one text is always spoken, leave it out")
    if arguments.format is not None and arguments.output != STANDARD:
        name = f"the name {arguments.output!r} says which kind of file is written"
        raise UsageError(f"--format is for standard output and folders; {name}")
    output = _checked(arguments.output)
    text = arguments.text if arguments.file is None else read_text(arguments.file)
    started = time.perf_counter()
    with progress() as report:
        with closing(load_speaker(config, report)) as speaker:
            result = best_of.speak(speaker, text, num_takes, config.seed, report.tokens)
        samples = result.audio[0].numpy()
        if output is not None:
            write_audio(output, samples, result.sample_rate)
    name = "standard output" if output is None else str(output)
    line = f"{name}: {summary(result, time.perf_counter() - started)}, model {config.model.source}"
    if output is not None:
        say_line(line)
        return 0
    to_output_whole(encoded(samples, result.sample_rate, kind))
    tell(line)
    return 0


def summary(result: SpeechResult, elapsed: float) -> str:
    """What was made, and how fast. ``elapsed``: seconds, with loading."""
    making = result.tokens_time + result.audio_time
    return (
        f"{result.duration:.2f} s of audio in {making:.2f} s (real-time factor {making / result.duration:.2f}; "
        f"{elapsed:.1f} s with loading)"
    )


def _encoding(ending: str) -> Encoding:
    try:
        return encoding(ending)
    except UsageError as error:
        raise UsageError(f"--format {ending!r}: {error}") from None


def _checked(output: str) -> Path | None:
    """Where audio goes, if it can be written there; None is standard output."""
    if output != STANDARD:
        return checked_audio_path(output)
    if check_output():
        raise UsageError(NO_TERMINAL)
    return None
