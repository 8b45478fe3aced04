"""Many streams at once: how soon each begins, how long its player waits, how much audio a second comes of all.

``python -m benchmarks.speed.streams -o build/results/streams.json``, or ``make bench-streams``: half an hour on
two cores, ten minutes without ``published``; ``--quick`` tries it out. Sections can be run one by one and keep the
others' rows; the result is written after each of a section's cases, and ``measured_in`` has the environment of each:

- ``tiny``: the embedded voice, 1 to 16 streams at once; eight threads of `generate` against one after another and
  against `generate_batch`.
- ``fifth``: the embedded voice, four streams under way, a fifth joins: the others' gaps between chunks.
- ``one``: one stream alone and one `generate` alone, against another checkout's package (``--against SRC``).
- ``tokens``: T3 of the published size at position 100, 1 to 8 guided streams in one engine.
- ``mix``: decode steps of 16 requests of different lengths on four places.
- ``published``: T3 and S3Gen of the published size with audio, 1 to 4 streams, against chatterbox-tts 0.1.7 and
  chatterbox-streaming 0.1.2 (``--peer``, ``--streaming``: their interpreters, of `make peer-env streaming-env`).

A player starts with 100 ms of audio and plays in real time; ``waited_seconds`` is how long all players of a turn stood
still after that. Ratios are of turns A B A B, with the 95% interval of their median.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.baselines.client import FORKED, UPSTREAM
from benchmarks.lib.harness import ROOT, environment, report, write
from benchmarks.speed.baselines import known_result
from benchmarks.speed.decode_streams import mix, tokens
from benchmarks.speed.published_streams import published
from benchmarks.speed.tiny_streams import fifth, one, tiny

Row = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """How much is asked, and how often."""

    streams: tuple[int, ...]  # of the embedded voice, at once
    turns: int  # of those
    threads: int  # of `generate`
    paired_turns: int  # where a few per cent are claimed
    fifth_turns: int
    decoded_streams: tuple[int, ...]  # of T3 alone
    steps: int  # of T3 alone, in each turn
    published_streams: tuple[int, ...]
    published_turns: int
    published_tokens: int  # of a call; chatterbox-streaming loses what fills no chunk
    chunk_size: int = 25

    def as_json(self) -> dict[str, object]:
        """As it is read back from a result, so that the two can be compared."""
        return json.loads(json.dumps(asdict(self)))


FULL = Size((1, 2, 4, 8, 16), 5, 8, 20, 12, (1, 2, 4, 8), 5, (1, 2, 4), 2, 25)
QUICK = Size((1, 2), 1, 2, 2, 1, (1, 2), 2, (1, 2), 1, 10, chunk_size=10)
SECTIONS: dict[str, Callable[[Size, argparse.Namespace], Iterator[list[Row]]]] = {
    "tiny": lambda size, asked: tiny(size.streams, size.turns, size.threads, size.paired_turns),
    "fifth": lambda size, asked: fifth(size.fifth_turns),
    "one": lambda size, asked: one(asked.against, size.paired_turns),
    "tokens": lambda size, asked: tokens(size.decoded_streams, size.steps, size.paired_turns, asked.peer),
    "mix": lambda size, asked: mix(),
    "published": lambda size, asked: published(
        asked.folder,
        {UPSTREAM: asked.peer, FORKED: asked.streaming},
        size.published_streams,
        size.published_turns,
        size.published_tokens,
        size.chunk_size,
    ),
}
NEEDS_PEERS = ("tokens", "published")


def with_rows(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """``new`` tables in place of those of the same name."""
    tables = {row["table"] for row in new}
    return [row for row in old if row["table"] not in tables] + list(new)


def chosen_sections(asked: argparse.Namespace) -> list[str]:
    """Those named, or all that can be measured with what is given. Raises ValueError if one named cannot."""
    pythons = {"--peer": asked.peer, "--streaming": asked.streaming}
    absent = [f"{name} {python}" for name, python in pythons.items() if not Path(python).is_file()]
    chosen = asked.only or [name for name in SECTIONS if name != "one" or asked.against]
    if absent and set(chosen) & set(NEEDS_PEERS):
        raise ValueError(f"{absent[0]} does not exist; make peer-env streaming-env installs it")
    if "one" in chosen and (asked.against is None or not (asked.against / "chatterbox").is_dir()):
        raise ValueError(
            f"--against {asked.against} has no package chatterbox; name the src folder of another checkout"
        )
    return list(chosen)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--peer", metavar="PYTHON", default=str(ROOT / ".venv-peer/bin/python"))
    parser.add_argument("--streaming", metavar="PYTHON", default=str(ROOT / ".venv-streaming/bin/python"))
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "full-size", help="checkpoint; made if absent")
    parser.add_argument("--against", type=Path, metavar="SRC", help="src folder of another checkout, for section one")
    parser.add_argument("--quick", action="store_true", help="the smallest sizes, whose figures mean nothing")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), help="the other sections' rows stay as they are")
    return parser


def measure(asked: argparse.Namespace, chosen: Sequence[str], known: dict[str, Any], size: Size) -> None:
    """Run sections, and write the result after each of their cases."""
    rows, measured = list(known.get("rows", ())), dict(known.get("measured_in", {}))
    failed = dict(known.get("failed", {}))
    for section in chosen:
        failed.pop(section, None)
        try:
            for new in SECTIONS[section](size, asked):
                rows, measured[section] = with_rows(rows, new), environment()
                about = {"size": size.as_json(), "measured_in": measured, "failed": failed}
                write("streams", rows, asked.output, **about)
        except (RuntimeError, OSError, ValueError) as error:
            failed[section] = str(error).strip().splitlines()[-1]
        print(f"{section}: {failed.get(section, 'done')}", file=sys.stderr, flush=True)
    about = {"size": size.as_json(), "measured_in": measured, "failed": failed}
    report("streams", rows, asked.output, **about)


def main() -> None:
    parser = arguments()
    asked = parser.parse_args()
    # Not resolved: a virtual environment's interpreter is a link, and found by where the link is.
    asked.peer, asked.streaming = (str(Path(python).absolute()) for python in (asked.peer, asked.streaming))
    size = QUICK if asked.quick else FULL
    known: dict[str, Any] = {}
    try:
        chosen = chosen_sections(asked)
        if asked.only:
            known = known_result(asked.output, size.as_json())
    except ValueError as error:
        parser.error(str(error))
    measure(asked, chosen, known, size)


if __name__ == "__main__":
    main()
