"""The ``chatterbox`` command.

Owns: arguments, progress, the output file, exit codes (0 done, 1 failed, 2 wrong usage).
Does not know: how speech is made.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import sys
import time
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from chatterbox.config import SamplingConfig, SayConfig, from_dict, to_dict

if TYPE_CHECKING:
    from chatterbox.pipeline import SpeechResult

USAGE = 2


class UsageError(ValueError):
    """The command line asks for something that cannot be."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)  # settings may stand before, between and behind the options
    overrides = [*arguments.settings, *rest]
    if stray := [item for item in overrides if item.startswith("-") or "=" not in item]:
        parser.error(f"unrecognised argument {stray[0]!r}; quote the text, and write settings as key=value")
    try:
        return _say(arguments, overrides)
    except KeyboardInterrupt:
        return _fail("interrupted", 1)
    except UsageError as error:
        return _fail(str(error), USAGE)
    except Exception as error:
        if arguments.debug:
            raise
        explains_itself = str(error) and isinstance(error, (ValueError, TypeError, OSError, RuntimeError))
        return _fail(str(error) if explains_itself else repr(error), 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="chatterbox", description="Text to speech with voice cloning.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    say = commands.add_parser(
        "say",
        help="speak a text into an audio file",
        description="Speak TEXT into an audio file.",
        epilog=f"Settings as key=value: {', '.join(_settings(SayConfig))}. "
        "Choices: kvcache (static, sliding, evicting, compressed, headwindow, dynamic, none), "
        "sampling (checkpoint, greedy), "
        "kvcache.eviction (attention, prosody, recency, silence, or a sum of them), "
        "guard (light, alignment, none: what ends a text gone wrong). "
        "Example: chatterbox say Hello -o hello.wav sampling.temperature=0.5",
    )
    say.add_argument("text", metavar="TEXT", help="what to say")
    say.add_argument("-o", "--output", required=True, metavar="FILE", help="audio file to write (.wav, .flac, .ogg)")
    say.add_argument("--voice", metavar="FILE", help="recording of the voice to speak in (default: the built-in voice)")
    say.add_argument(
        "--model",
        metavar="MODEL",
        help="tiny (default, works offline), chatterbox, multilingual, turbo, nano or a checkpoint folder",
    )
    say.add_argument("--language", metavar="CODE", help="language of the text, for a multilingual model: fr, zh, ...")
    say.add_argument("--seed", type=int, metavar="N", help="the same seed says it the same way")
    say.add_argument("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, mps or auto (default)")
    say.add_argument("--debug", action="store_true", help="show a traceback when something fails")
    say.add_argument("settings", nargs="*", metavar="key=value", help="settings, listed below")
    return parser


def _settings(config: type, prefix: str = "") -> Iterator[str]:
    """Names of all settings, those of tables within with a dot."""
    for name, kind in typing.get_type_hints(config).items():
        table = SamplingConfig if prefix + name == "sampling" else kind
        if dataclasses.is_dataclass(table):
            yield from _settings(table, f"{prefix}{name}.")
        else:
            yield prefix + name


def _say(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    config = _configuration(arguments, overrides)
    output = _checked_output(Path(arguments.output))
    started = time.perf_counter()
    with _progress() as report:
        result = _speak(arguments.text, config, report)
        _write(output, result)
    elapsed = time.perf_counter() - started
    making = result.tokens_time + result.audio_time
    print(
        f"{output}: {result.duration:.2f} s of audio in {making:.2f} s (real-time factor "
        f"{making / result.duration:.2f}; {elapsed:.1f} s with loading), model {config.model.source}"
    )
    return 0


def _configuration(arguments: argparse.Namespace, overrides: Sequence[str]) -> SayConfig:
    from chatterbox.compose import ConfigError, compose_say

    try:
        config = compose_say(overrides)
    except ConfigError as error:
        raise UsageError(str(error)) from None
    model = {"source": arguments.model, "device": arguments.device}
    model = dataclasses.replace(config.model, **{key: value for key, value in model.items() if value is not None})
    given = {"voice": arguments.voice, "seed": arguments.seed, "language": arguments.language}
    return dataclasses.replace(config, model=model, **{key: value for key, value in given.items() if value is not None})


def _speak(text: str, config: SayConfig, report: _Progress) -> SpeechResult:
    from chatterbox.checkpoints import CheckpointError, find_model, load_models, resolve_device
    from chatterbox.conditioning import prepare_conditionals
    from chatterbox.generation.guards import check_guard
    from chatterbox.generation.prefix import PrefixSource
    from chatterbox.kvcache import check_names
    from chatterbox.models.tokenizers.languages import check_language
    from chatterbox.pipeline import SpeechRequest, speak

    report.stage("loading the model")
    try:
        device = resolve_device(config.model.device)
        check_names(config.kvcache)
        language = check_language(config.language)
        check_guard(config.guard)
        folder, layout = find_model(config.model.source, local_files_only=config.model.local_files_only)
    except CheckpointError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from None
    if (language is not None) != (layout.config.t3.is_multilingual):
        remedy = "name one with --language" if language is None else f"leave out --language {language}"
        kind = "speaks 23 languages" if language is None else "speaks English alone"
        raise UsageError(f"model {config.model.source} {kind}; {remedy}")
    models = load_models(folder, device, layout)
    voice = models.conds
    if config.voice is not None:
        report.stage("listening to the voice")
        voice = prepare_conditionals(models.s3gen, models.voice_encoder, config.voice, hp=models.config.t3)
    if voice is None:
        raise UsageError(f"model {config.model.source} has no built-in voice; give a recording with --voice")
    try:
        request = SpeechRequest(
            text=text,
            conditionals=voice,
            sampling=from_dict(SamplingConfig, {**to_dict(models.config.sampling), **config.sampling}, "sampling"),
            exaggeration=config.exaggeration,
            seed=config.seed,
            use_cache=config.use_cache,
            watermark=config.watermark,
            cache_policy=config.kvcache,
            language_id=language,
            guard=config.guard,
        )
        check_guard(config.guard, models.t3.hp)
    except ValueError as error:
        raise UsageError(str(error)) from None
    prefixes = PrefixSource(models.t3, config.kvcache)
    return speak(models.t3, models.s3gen, models.tokenizer, request, on_token=report.tokens, prefixes=prefixes)


def _checked_output(path: Path) -> Path:
    """``path``, if a file of its kind can be written there; asked before the work is done."""
    import soundfile

    kinds = soundfile.available_formats()
    if path.suffix[1:].upper() not in kinds:
        raise UsageError(f"cannot write {str(path)!r}: the name must end in .wav, .flac, .ogg or another audio format")
    if path.is_dir():
        raise UsageError(f"cannot write {str(path)!r}: it is a folder")
    if not path.parent.is_dir():
        raise UsageError(f"cannot write {str(path)!r}: its folder does not exist")
    return path


def _write(path: Path, result: SpeechResult) -> None:
    """Write beside the target and rename, so that ``path`` is a whole file or what it was before."""
    import soundfile

    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        soundfile.write(part, result.audio[0].numpy(), result.sample_rate, format=path.suffix[1:].upper())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


class _Progress:
    """What is being done, on one line of a terminal; silent elsewhere."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()

    def stage(self, text: str) -> None:
        if self._shown:
            print(f"\r\033[K{text} ...", end="", file=sys.stderr, flush=True)

    def tokens(self, count: int) -> None:
        if count % 5 == 1:
            self.stage(f"speaking: {count / 25:.1f} s")

    def clear(self) -> None:
        if self._shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _progress() -> Iterator[_Progress]:
    report = _Progress()
    try:
        yield report
    finally:
        report.clear()


def _fail(reason: str, code: int) -> int:
    print("chatterbox: error: " + reason.strip().partition("\n")[0], file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
