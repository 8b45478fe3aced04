"""``chatterbox stream``: a text, or what arrives on standard input, heard while it is made.

Owns: the order of the steps, which text and which way out is meant, the line at the end. Does not know: how speech is
made (`speaker`), how text is read (`pieces`), how audio is written or played (`sinks`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, closing
from typing import TYPE_CHECKING, Any

from chatterbox.cli.audio_files import checked_audio_path, to_file
from chatterbox.cli.errors import UsageError
from chatterbox.cli.options import add_command, add_settings, add_speaker, add_text, configuration
from chatterbox.cli.output import Progress, printable, progress, tell
from chatterbox.cli.pieces import InputPieces
from chatterbox.cli.signals import ending_signals
from chatterbox.cli.sinks import NO_TERMINAL, Sink, check_output, find_player, pcm, to_output, to_player
from chatterbox.cli.speaker import Speaker, load_speaker

if TYPE_CHECKING:
    from chatterbox.synthesis.render import StreamingMetrics

STANDARD = "-"  # standard input, or output
EXAMPLES = """
    examples:
      chatterbox stream "Hello there." | aplay -f S16_LE -r 24000
      llm "Tell me a story." | chatterbox stream | aplay -f S16_LE -r 24000
      chatterbox stream -o story.wav streaming=smooth < story.txt
      chatterbox stream "Hello there." --wav -o - streaming.chunk_size=50 > hello.wav
"""


def add_to(commands: Any) -> None:
    parser = add_command(
        commands,
        "stream",
        run,
        help="speak while text arrives and audio is made",
        description="Speak TEXT, or what arrives on standard input, while it is made: 16-bit little-endian mono "
        "samples at 24000 Hz to standard output. A terminal gets none: there, a player is started. Exit codes: 0 all "
        "is said, or the reader of the output had enough; 1 failed; 2 wrong usage; 130 interrupted.",
    )
    add_text(
        parser,
        "stream",
        may_lack=True,
        help="what to say (behind -- if it begins with -); none, or -: standard input",
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="audio file (.wav, .flac, .mp3); - is standard output")
    parser.add_argument("--wav", action="store_true", help="on standard output, a WAV (of unknown length)")
    add_speaker(parser)
    add_settings(parser, "stream", examples=EXAMPLES)


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    text = arguments.text
    config = configuration(arguments, overrides, "stream")
    out, sink = _way_out(arguments)
    pieces = None if text not in (None, STANDARD) else InputPieces(_input_fd())
    with (
        progress() as report,
        ending_signals(pieces.stop if pieces else lambda: None),
        closing(load_speaker(config, report)) as speaker,
    ):
        if pieces is not None and sys.stdin.isatty():
            report.clear()
            tell("type; each line is spoken, and an end of file (Ctrl-D) ends it")
        metrics = _spoken(speaker, text if pieces is None else pieces, sink, report)
    tell(printable(f"{out}: {metrics.summary()}, model {config.model.source}"))
    return 0


def _spoken(
    speaker: Speaker, text: str | Iterable[str], sink: AbstractContextManager[Sink], report: Progress
) -> StreamingMetrics:
    """Say it into the sink; what it has cost."""
    from chatterbox.synthesis.render import StreamingMetrics

    metrics = StreamingMetrics()
    report.stage("speaking" if isinstance(text, str) else "waiting for text")
    with sink as write, closing(speaker.stream(text)) as chunks:
        for chunk in chunks:
            write(pcm(chunk.audio[0].numpy()))
            metrics = chunk.metrics
            report.stage(f"speaking: {metrics.total_audio_duration:.1f} s, real-time factor {metrics.rtf:.2f}")
    return metrics


def _way_out(arguments: argparse.Namespace) -> tuple[str, AbstractContextManager[Sink]]:
    """What the line at the end calls it, and where audio goes; checked before anything is loaded."""
    output = arguments.output
    if output not in (None, STANDARD):
        if arguments.wav:
            raise UsageError(f"--wav is for standard output; the name {output!r} says which kind of file is written")
        path = checked_audio_path(output)
        return str(path), to_file(path)
    if not check_output():
        return "standard output", to_output(is_wav=arguments.wav)
    if output == STANDARD or arguments.wav:
        raise UsageError(NO_TERMINAL)
    player = find_player()
    return player, to_player(player)


def _input_fd() -> int:
    if sys.stdin is None:
        raise UsageError("standard input is closed; give a TEXT")
    return sys.stdin.fileno()
