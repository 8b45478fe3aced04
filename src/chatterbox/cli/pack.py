"""``chatterbox pack``: a model into a folder whose weights take fewer bits.

Owns: its arguments, what it prints. Does not know: files and their form (`chatterbox.checkpoints.packing`).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chatterbox.cli.errors import as_usage
from chatterbox.cli.options import add_command
from chatterbox.cli.output import progress, say_line
from chatterbox.config import PRECISIONS

KINDS = PRECISIONS[2:]  # those that are smaller
MIB = 2**20


def add_to(commands: Any) -> None:
    parser = add_command(
        commands,
        "pack",
        run,
        help="write a model with weights in fewer bits",
        description="Write a folder whose weights take fewer bits: it loads faster, and into less memory.",
        epilog="It loads as any other: --model FOLDER, or from_local(FOLDER, ...). docs/performance.md compares.",
    )
    parser.add_argument("model", metavar="MODEL", help='checkpoint folder, or a name, as "chatterbox", "turbo"')
    parser.add_argument("--precision", choices=KINDS, default="int8", help="of the weights; default int8")
    parser.add_argument("-o", "--output", metavar="FOLDER", help="to write; default MODEL-PRECISION, here for a name")
    parser.add_argument("--t3-model", metavar="FILE", help="T3 file of the folder, or v2, v3, where it has several")


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    from chatterbox.checkpoints import Files, fetch_base, find_model, pack_folder, read_folder

    with as_usage():
        given = Files(t3_model=arguments.t3_model)
    source, precision = arguments.model, arguments.precision
    with progress() as report:
        report.stage("reading the model")
        folder, layout = find_model(source, given)
        default = folder if Path(source).is_dir() else Path(source)
        target = Path(arguments.output or f"{default}-{precision}")
        report.stage(f"packing in {precision}")
        pack_folder(read_folder(folder, (layout,), given, fetch_base), target, precision)
    before, after = (sum(path.stat().st_size for path in one.iterdir() if path.is_file()) for one in (folder, target))
    say_line(f"{target}: {after / MIB:.0f} MiB of {before / MIB:.0f}, {precision}")
    return 0
