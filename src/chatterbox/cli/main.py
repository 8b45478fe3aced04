"""Arguments to one of the commands.

Owns: the parser, one-line errors, exit codes (0 done, 1 failed, 2 wrong usage, 128 and a signal's number). Does not
know: what a command does.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from chatterbox import __version__
from chatterbox.cli import bench, cache, configs, pack, say, serve, stream, voices
from chatterbox.cli.errors import USAGE, UsageError
from chatterbox.cli.options import Parser, parse
from chatterbox.cli.output import drop_output, flush_output, open_standard_files, printable, tell, warnings_shown
from chatterbox.cli.signals import ending_signals, exit_code
from chatterbox.voice.library import VoiceError

COMMANDS = (say, stream, serve, bench, configs, voices, cache, pack)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    open_standard_files()
    parser, commands = _parser()
    # Settings may stand before, between and behind the options.
    arguments, rest = parse(parser, commands, sys.argv[1:] if argv is None else argv)
    overrides = [*getattr(arguments, "settings", ()), *rest]
    takes_settings = hasattr(arguments, "settings")
    if stray := [item for item in overrides if not takes_settings or item.startswith("-") or "=" not in item]:
        remedy = "; quote the text, and write settings as key=value" * takes_settings
        arguments.parser.error(f"unrecognised argument {stray[0]!r}{remedy}")
    try:
        with ending_signals(), warnings_shown():
            code = arguments.run(arguments, overrides)
            flush_output()
            return code
    except KeyboardInterrupt as error:
        return _fail("interrupted", exit_code(error))
    except BrokenPipeError:
        drop_output()
        return 0  # who reads the output has enough
    except (UsageError, VoiceError) as error:
        return _fail(str(error), USAGE)
    except Exception as error:
        if isinstance(error, OSError):
            drop_output()  # it may be full
        if arguments.debug:
            raise
        explains_itself = str(error) and isinstance(error, (ValueError, TypeError, OSError, RuntimeError))
        return _fail(str(error) if explains_itself else repr(error), 1)


def _parser() -> tuple[Parser, dict[str, Parser]]:
    """The whole, and that of each command by name."""
    parser = Parser(
        prog="chatterbox",
        description="Text to speech with voice cloning.",
        epilog="chatterbox COMMAND -h explains a command. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted "
        "(128 and the number of the signal).",
    )
    parser.add_argument("--version", action="version", version=f"chatterbox-kvcache {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    for command in COMMANDS:
        command.add_to(commands)
    return parser, commands.choices


def _fail(reason: str, code: int) -> int:
    tell("chatterbox: error: " + printable(reason.strip().partition("\n")[0]))
    return code
