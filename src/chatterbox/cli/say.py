"""``chatterbox say``: a text into an audio file.

Owns: the order of the steps, the line at the end. Does not know: how speech is made (`speaker`), how a file is written
(`output`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from chatterbox.cli.options import add_command, add_settings, add_speaker, configuration
from chatterbox.cli.output import checked_audio_path, progress, write_audio
from chatterbox.cli.speaker import load_speaker

EXAMPLES = """
    examples:
      chatterbox say "Hello there." -o hello.wav
      chatterbox say "Hello there." -o hello.wav --voice reference.wav --seed 1
      chatterbox say "Hello" -o hello.wav kvcache=sliding kvcache.window_size=256 sampling.temperature=0.6
"""


def add_to(commands: Any) -> None:
    parser = add_command(
        commands, "say", run, help="speak a text into an audio file", description="Speak TEXT into an audio file."
    )
    parser.add_argument("text", metavar="TEXT", help="what to say")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="audio file to write (.wav, .flac, .ogg)")
    add_speaker(parser)
    add_settings(parser, "say", examples=EXAMPLES)


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    config = configuration(arguments, overrides, "say")
    output = checked_audio_path(arguments.output)
    started = time.perf_counter()
    with progress() as report:
        with closing(load_speaker(config, report)) as speaker:
            result = speaker.speak(arguments.text, report.tokens)
        write_audio(output, result.audio[0].numpy(), result.sample_rate)
    elapsed = time.perf_counter() - started
    making = result.tokens_time + result.audio_time
    print(
        f"{output}: {result.duration:.2f} s of audio in {making:.2f} s (real-time factor "
        f"{making / result.duration:.2f}; {elapsed:.1f} s with loading), model {config.model.source}"
    )
    return 0
