"""``chatterbox cache``: what voices and texts have computed before, as far as it is on disk (``kvcache.disk_folder``).

Owns: what is told about the folder, the archive. Does not know: files' names and form (`kvcache.prefix.disk`).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import re
import tarfile
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatterbox.cli.errors import UsageError
from chatterbox.cli.options import Parser, add_command, add_settings, add_speaker, configuration
from chatterbox.cli.output import checked_path, progress, say_line, table
from chatterbox.cli.pieces import read_text
from chatterbox.runtime.files import whole

if TYPE_CHECKING:
    from chatterbox.cli.config import SayCommandConfig
    from chatterbox.kvcache.prefix.disk import DiskEntry, DiskTier

MIB = 2**20

_SETTING = re.compile(r"[+~]?[\w./]+=")  # among texts: no word before an equals sign is followed by a space

EXAMPLES = """
    examples:
      chatterbox cache warm "Good morning." "Good evening." --voice reference.wav --folder kept
      chatterbox say "Good morning, all." -o hello.wav --voice reference.wav kvcache.disk_folder=kept
      chatterbox cache export --folder kept -o kept.tar    # elsewhere: tar -xf kept.tar -C FOLDER
"""


def add_to(commands: Any) -> None:
    parser = commands.add_parser(
        "cache",
        help="look at, fill, pack up and clear what is kept on disk",
        description="What T3 has computed for voices and texts, kept in a folder: --folder or kvcache.disk_folder.",
        epilog="chatterbox cache ACTION -h explains an action.",
    )
    actions = parser.add_subparsers(required=True, metavar="ACTION", title="actions")
    stats = _add_action(actions, "stats", run_stats, "what is there", only=("kvcache",))
    stats.add_argument("--json", action="store_true", help="print it as JSON")
    warm = _add_action(actions, "warm", run_warm, "compute ahead of time what texts of a voice begin with")
    warm.add_argument("--texts", metavar="FILE", help="a file of texts, one a line")
    add_speaker(warm)
    export = _add_action(actions, "export", run_export, "pack what is whole into an archive", only=("kvcache",))
    export.add_argument("-o", "--output", required=True, metavar="FILE.tar", help="archive to write")
    _add_action(actions, "clear", run_clear, "remove it", only=("kvcache",))


def _add_action(actions: Any, name: str, run: Any, about: str, *, only: Sequence[str] = ()) -> Parser:
    parser = add_command(actions, name, run, help=about, description=about[0].upper() + about[1:] + ".")
    parser.add_argument("--folder", metavar="FOLDER", help="as kvcache.disk_folder=FOLDER")
    if name == "warm":
        parser.add_argument("text", nargs="*", metavar="TEXT", help="a text, or the prefix of texts to come")
    add_settings(parser, "say", only=only, examples=EXAMPLES)
    return parser


def run_stats(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    config, disk = _opened(arguments, overrides)
    entries, num_files = disk.entries(), len(disk.files())
    voices = _by_voice(entries)
    about = {
        "folder": str(disk.folder),
        "files": num_files,
        "broken": num_files - len(entries),
        "left_over": len(disk.left_overs()),
        "bytes": disk.nbytes,
        "budget_bytes": disk.budget_bytes,
        "positions": sum(entry.num_positions for entry in entries),
        "voices": voices,
    }
    if arguments.json:
        print(json.dumps(about))
        return 0
    broken = f", {about['broken']} of them broken" if about["broken"] else ""
    broken += f", {about['left_over']} being written or left over" if about["left_over"] else ""
    say_line(f"{disk.folder}: {num_files} prefixes{broken}, {disk.nbytes / MIB:.1f} of {config.kvcache.disk_mib} MiB")
    rows = [("voice", "prefixes", "positions", "MiB", "last used")]
    for voice in voices:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(voice["last_use"]))
        rows.append((voice["voice"], voice["prefixes"], voice["positions"], f"{voice['bytes'] / MIB:.1f}", used))
    print("\n".join(table(rows)))
    return 0


def _by_voice(entries: Sequence[DiskEntry]) -> list[dict[str, Any]]:
    """Totals of each voice, the latest used first. A voice is a hash of its content, and of the weights."""
    from chatterbox.kvcache.prefix.disk import voice_of

    groups: dict[str, list[DiskEntry]] = defaultdict(list)
    for entry in entries:
        groups[voice_of(entry.key)].append(entry)
    return [
        {
            "voice": voice,
            "prefixes": len(of_voice),
            "positions": sum(entry.num_positions for entry in of_voice),
            "bytes": sum(entry.nbytes for entry in of_voice),
            "last_use": max(entry.last_use for entry in of_voice),
        }
        for voice, of_voice in groups.items()
    ]


def run_warm(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    from chatterbox.cli.speaker import load_speaker

    settings = [item for item in arguments.text if _SETTING.match(item)]
    texts = [item for item in arguments.text if not _SETTING.match(item)]
    if arguments.texts is not None:
        texts += [line for line in read_text(arguments.texts).splitlines() if line.strip()]
    if not texts:
        raise UsageError("nothing to warm: give texts, or a file of them with --texts")
    config = _with_folder(configuration(arguments, [*settings, *overrides], "say"), arguments)
    with progress() as report:
        with closing(load_speaker(config, report)) as speaker:
            for done, text in enumerate(texts):
                report.bar(done, len(texts), text[:40])
                speaker.synthesizer.warm([speaker.request(text)])
        stats = speaker.synthesizer.prefixes.manager.snapshot()
    asked = stats.cached_tokens + stats.tokens_computed
    say_line(
        f"{config.kvcache.disk_folder}: {len(texts)} texts, {stats.tokens_computed} of {asked} positions "
        f"computed, the rest was there; {stats.disk_bytes / MIB:.1f} of {config.kvcache.disk_mib} MiB"
    )
    return 0


def run_export(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    output = checked_path(arguments.output)
    _, disk = _opened(arguments, overrides)
    entries = disk.entries()
    with progress() as report, whole(output) as part, tarfile.open(part, "w|", dereference=True) as archive:
        num_packed = 0
        for done, entry in enumerate(reversed(entries)):  # reading is a use: the order stays
            report.bar(done, len(entries), entry.path.name[:20])
            if not disk.holds(entry) or disk.load(entry.key) is None:  # whole, by its checksum
                continue
            with contextlib.suppress(FileNotFoundError):  # another process made room
                archive.add(entry.path, entry.path.name)
                num_packed += 1
    say_line(f"{output}: {num_packed} prefixes, {output.stat().st_size / MIB:.1f} MiB; tar -xf unpacks it")
    return 0


def run_clear(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    _, disk = _opened(arguments, overrides)
    num_files, nbytes = len(disk.files()), disk.nbytes
    disk.clear()
    num_kept = len(disk.files())
    say_line(f"{disk.folder}: {num_files - num_kept} prefixes removed, {(nbytes - disk.nbytes) / MIB:.1f} MiB")
    if num_kept:
        raise PermissionError(f"{num_kept} files of {disk.folder} may not be removed: they are another user's")
    return 0


def _with_folder(config: SayCommandConfig, arguments: argparse.Namespace) -> SayCommandConfig:
    """``config`` with a folder on disk. Raises UsageError if there is none."""
    folder = config.kvcache.disk_folder if arguments.folder is None else arguments.folder
    if folder is None:
        raise UsageError("which folder? give --folder, or kvcache.disk_folder")
    return dataclasses.replace(config, kvcache=dataclasses.replace(config.kvcache, disk_folder=folder))


def _opened(arguments: argparse.Namespace, overrides: Sequence[str]) -> tuple[SayCommandConfig, DiskTier]:
    """The configuration and its folder, which must exist."""
    from chatterbox.kvcache.prefix.disk import DiskTier

    config = _with_folder(configuration(arguments, overrides, "say"), arguments)
    folder = config.kvcache.disk_folder or ""
    if not Path(folder).is_dir():
        raise UsageError(f"folder {folder!r} does not exist; chatterbox cache warm makes it")
    return config, DiskTier(folder, budget_bytes=config.kvcache.disk_mib * MIB)
