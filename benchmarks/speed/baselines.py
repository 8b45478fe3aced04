"""Ours against the packages it replaces: the same weights, texts and threads, in turn, in one run.

``python -m benchmarks.speed.baselines --peer PYTHON --streaming PYTHON -o build/results/peer.json``, or ``make
bench-peer``: an hour on two cores; ``--quick`` takes minutes. The interpreters are of `make peer-env` (chatterbox-tts
0.1.7) and `make streaming-env` (chatterbox-streaming 0.1.2, for the streamed cases). Each package is a process of its
own that stays; every turn asks each in the same order, A B A B …, and a ratio is taken turn by turn: above 1 ours takes
less. The checkpoint has the published size and synthetic weights, so no one speaks and lengths are bounded; ours and
chatterbox-tts draw the same tokens from the same seed. Every turn brings a recording that no one has heard before, so
what ours keeps between calls helps it only within a turn, and where a measure says that the voice is known.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.baselines.client import FORKED, OURS, UPSTREAM, Baseline
from benchmarks.baselines.folder import REFERENCE_SECONDS, full_size_folder, new_recordings
from benchmarks.lib.harness import ROOT, comparable, environment, ratio, report, write

DISTRIBUTIONS = {OURS: "chatterbox-kvcache", UPSTREAM: "chatterbox-tts", FORKED: "chatterbox-streaming"}
TEXTS = (
    "Every machine in this room can talk.",
    "The little one here speaks without a network.",
    "Nobody asked it to, and yet it does.",
    "Listen to how the last word falls.",
    "A second voice would sound the same.",
    "We counted the seconds until it began.",
    "It had been waiting for a sentence like this.",
    "Some words take longer than others.",
    "The window is open and the street is loud.",
    "He read the letter twice before he answered.",
    "There was tea on the table, still warm.",
    "They left before the rain had stopped.",
    "What she meant was never written down.",
    "All trains to the north are late today.",
    "The garden behind the house has two gates.",
    "Please keep the door closed in winter.",
    "One of the lamps has burned for a year.",
    "It is not far from here to the sea.",
    "His brother plays the organ on Sundays.",
    "And that is where the story ends.",
)
RUN = ("command", "environment")  # what `report` says itself
Series = Iterator[tuple[str, str, float]]  # measure and its unit, system, value


@dataclass(frozen=True)
class Size:
    """How much is asked, and how often."""

    turns: int  # of the short cases
    long_turns: int  # of those that render speech
    t3_tokens: int
    s3gen_tokens: tuple[int, ...]
    tokens: int  # speech tokens of a text
    texts: int  # of the case with several
    stream_tokens: int
    chunk_size: int = 25

    def as_json(self) -> dict[str, object]:
        """As it is read back from a result, so that the two can be compared."""
        return {**asdict(self), "s3gen_tokens": list(self.s3gen_tokens)}


QUICK = Size(turns=3, long_turns=2, t3_tokens=24, s3gen_tokens=(25,), tokens=50, texts=3, stream_tokens=50)
FULL = Size(turns=9, long_turns=3, t3_tokens=100, s3gen_tokens=(25, 100), tokens=75, texts=10, stream_tokens=150)


def conditioning(systems: Mapping[str, Baseline], size: Size, reference: str) -> Series:
    new, known = "conditioning of a new recording (ms)", "conditioning of a known recording (ms)"
    yield new, OURS, systems[OURS].ask("conditioning", reference=reference)["ms"]
    theirs = systems[UPSTREAM].ask("conditioning", reference=reference)["ms"]
    yield new, UPSTREAM, theirs
    yield known, OURS, systems[OURS].ask("conditioning", reference=reference)["ms"]
    yield known, UPSTREAM, theirs


def t3(systems: Mapping[str, Baseline], size: Size, reference: str) -> Series:
    first_new, first_known = "T3, first token of a new voice (ms)", "T3, first token of a known voice (ms)"
    _take_voice(systems, reference, OURS, UPSTREAM)
    new = systems[OURS].ask("t3", text=TEXTS[0], tokens=size.t3_tokens)
    theirs = systems[UPSTREAM].ask("t3", text=TEXTS[0], tokens=size.t3_tokens)
    known = systems[OURS].ask("t3", text=TEXTS[1], tokens=size.t3_tokens)
    theirs_again = systems[UPSTREAM].ask("t3", text=TEXTS[1], tokens=size.t3_tokens)
    yield first_new, OURS, new["first_ms"]
    yield first_new, UPSTREAM, theirs["first_ms"]
    yield first_known, OURS, known["first_ms"]
    yield first_known, UPSTREAM, theirs_again["first_ms"]
    yield "T3, a further token (ms)", OURS, statistics.median(new["steps_ms"] + known["steps_ms"])
    yield "T3, a further token (ms)", UPSTREAM, statistics.median(theirs["steps_ms"] + theirs_again["steps_ms"])


def s3gen(systems: Mapping[str, Baseline], size: Size, reference: str) -> Series:
    for speech_tokens in size.s3gen_tokens:
        for name in (OURS, UPSTREAM):
            yield (
                f"S3Gen, {speech_tokens} speech tokens (ms)",
                name,
                systems[name].ask("s3gen", speech_tokens=speech_tokens)["ms"],
            )


def generate(systems: Mapping[str, Baseline], size: Size, reference: str) -> Series:
    yield from _spoken(systems, f"generate, one text of {size.tokens} tokens", TEXTS[:1], size, reference)


def several(systems: Mapping[str, Baseline], size: Size, reference: str) -> Series:
    yield from _spoken(systems, f"{size.texts} texts in a row in one voice", TEXTS[: size.texts], size, reference)


def several_named(systems: Mapping[str, Baseline], size: Size, reference: str) -> Series:
    what = f"{size.texts} texts in a row, each naming its recording"
    yield from _spoken(systems, what, TEXTS[: size.texts], size, reference, name_it=True)


def _spoken(
    systems: Mapping[str, Baseline], what: str, texts: Sequence[str], size: Size, reference: str, name_it: bool = False
) -> Series:
    if not name_it:
        _take_voice(systems, reference, OURS, UPSTREAM)
    named = reference if name_it else None
    for name in (OURS, UPSTREAM):
        answer = systems[name].ask("generate", texts=texts, tokens=size.tokens, reference=named)
        yield f"{what} (ms)", name, answer["ms"]
        yield f"{what}, peak memory (MiB)", name, answer["peak_mib"]
        yield f"{what}, peak above memory before (MiB)", name, answer["peak_mib"] - answer["before_mib"]
        yield f"{what}, audio said (ms)", name, sum(answer["samples"]) / 24


def stream(systems: Mapping[str, Baseline], size: Size, reference: str) -> Series:
    _take_voice(systems, reference, OURS, FORKED)
    for name in (OURS, FORKED):
        asked = {"tokens": size.stream_tokens, "chunk_size": size.chunk_size}
        answer = systems[name].ask("stream", text=TEXTS[0], **asked, seed=1)
        arrived, seconds = answer["arrived_ms"], sum(answer["samples"]) / 24_000
        yield "streamed, first audio after (ms)", name, arrived[0]
        yield (
            "streamed, longest gap between chunks (ms)",
            name,
            max(after - before for before, after in itertools.pairwise(arrived)),
        )
        yield "streamed, all of it after (ms)", name, answer["ms"]
        yield "streamed, ms a second of audio (ms)", name, answer["ms"] / seconds


def _take_voice(systems: Mapping[str, Baseline], reference: str, *names: str) -> None:
    for name in names:
        systems[name].ask("conditioning", reference=reference)


def imports(pythons: Mapping[str, str]) -> Series:
    for name, python in pythons.items():
        for statement in ("import chatterbox", "from chatterbox.tts import ChatterboxTTS"):
            code = f"import time; t = time.perf_counter(); {statement}; print(1000 * (time.perf_counter() - t))"
            done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, cwd=Path.home())
            yield f"`{statement}` (ms)", name, float(done.stdout.splitlines()[-1])


def in_turns(turns: int, warm_up: int, turn: Callable[[], Series]) -> dict[str, dict[str, list[float]]]:
    """Values by measure and system, of the turns after ``warm_up``."""
    values: dict[str, dict[str, list[float]]] = {}
    for index in range(warm_up + turns):
        for measure, system, value in turn():
            if index >= warm_up:
                values.setdefault(measure, {}).setdefault(system, []).append(value)
    return values


def rows_of(values: Mapping[str, Mapping[str, Sequence[float]]]) -> list[dict[str, object]]:
    """A row for each measure and system; a peer's has how many times ours it takes."""
    rows = []
    for measure, by_system in values.items():
        for system, series in by_system.items():
            row: dict[str, object] = {
                "measure": measure.rpartition(" (")[0],
                "system": system,
                "unit": measure.rpartition("(")[2].rstrip(")"),
                "median": round(statistics.median(series), 2),
                "lowest": round(min(series), 2),
                "highest": round(max(series), 2),
                "turns": len(series),
            }
            if system != OURS and "above memory before" not in measure:  # which may be 0
                row |= {f"times_ours_{key}": value for key, value in ratio(series, by_system[OURS]).items()}
            rows.append(row)
    return rows


def cases_of(size: Size, pythons: Mapping[str, str]) -> dict[str, tuple[Callable[..., Series], int, int]]:
    """What is measured at a size, by name, with its turns and those before them that do not count."""
    cases: dict[str, tuple[Callable[..., Series], int, int]] = {
        "conditioning": (conditioning, size.turns, 1),
        "t3": (t3, size.turns, 1),
        "s3gen": (s3gen, size.turns - 1, 1),
        "generate": (generate, size.long_turns, 0),
        "several": (several, size.long_turns, 0),
        "named": (several_named, size.long_turns if size is FULL else 0, 0),
        "stream": (stream, size.long_turns, 0),
        "imports": (lambda *_: imports(pythons), 3, 1),
    }
    return {name: case for name, case in cases.items() if case[1]}


def measure(pythons: Mapping[str, str], folder: Path, size: Size, only: Sequence[str]) -> Iterator[dict[str, Any]]:
    """All that `report` is told, after each case anew: what breaks off leaves what it had."""
    started, rows, failed = time.perf_counter(), [], {}
    references = map(str, new_recordings(folder))
    installed = {name: installation(name, python) for name, python in pythons.items()}
    with ExitStack() as stack:
        systems = {name: stack.enter_context(Baseline(name, python, folder)) for name, python in pythons.items()}
        about = {name: system.ask("about") for name, system in systems.items()}
        if len({(one["threads"], one["torch"]) for one in about.values()}) > 1:
            raise RuntimeError(f"not all run alike: {about}; set OMP_NUM_THREADS and install one torch")
        for name, (case, turns, warm_up) in cases_of(size, pythons).items():
            if only and name not in only:
                continue
            try:
                rows += rows_of(in_turns(turns, warm_up, lambda case=case: case(systems, size, next(references))))
            except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                failed[name] = str(error).strip().splitlines()[-1]
            done = time.perf_counter() - started
            print(f"{done:6.0f} s  {name}  {failed.get(name, '')}", file=sys.stderr, flush=True)
            yield {
                "threads_of_all": about[OURS]["threads"],
                "size": size.as_json(),
                "reference_seconds": REFERENCE_SECONDS,
                "loading": {name: _loading(one) for name, one in about.items()},
                "installed": installed,
                "failed": dict(failed),
                "cases": list(only),
                "seconds": round(done),
                "rows": list(rows),
            }


def installation(name: str, python: str) -> dict[str, Any]:
    script = ROOT / "benchmarks" / "baselines" / "installed.py"
    return json.loads(subprocess.check_output([python, str(script), DISTRIBUTIONS[name]], text=True))


def merged(old: Mapping[str, Any], new: dict[str, Any], machine: Mapping[str, object]) -> dict[str, Any]:
    """``new``, of some cases, with the rows of the others from ``old``.

    Raises:
        ValueError: ``old`` was measured on another machine, or at another size.
    """
    comparable(old, {"environment": machine})
    require_size(old, new["size"])
    measures = {row["measure"] for row in new["rows"]}
    kept = [row for row in old["rows"] if row["measure"] not in measures]
    failed = {case: why for case, why in old["failed"].items() if case not in new["cases"]}
    again = [*old.get("measured_again", ()), {"cases": new["cases"], "commit": machine["commit"]}]
    return {**old, "rows": kept + new["rows"], "failed": failed | new["failed"], "measured_again": again}


def require_size(old: Mapping[str, Any], size: Mapping[str, object]) -> None:
    """Raise ValueError if ``old`` was measured at another size, as it is in the JSON."""
    if old["size"] != size:
        raise ValueError(
            f"the result that is there was measured at another size, {old['size']}; measure all of it again"
        )


def known_result(output: Path | None, size: Mapping[str, object]) -> dict[str, Any]:
    """What was measured before, of which some is to be measured again; nothing where there is no result yet.

    Raises:
        ValueError: it is of another machine, or another size.
    """
    if output is None or not output.is_file():
        return {}
    known: dict[str, Any] = json.loads(output.read_text())
    comparable(known, {"environment": environment()})
    require_size(known, size)
    return known


def _loading(about: Mapping[str, Any]) -> dict[str, object]:
    measured = {key: round(about[key], 1) for key in ("loading_ms", "loaded_mib", "loading_peak_mib")}
    return {**{key: about[key] for key in ("transformers", "numpy")}, **measured}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--peer", metavar="PYTHON", default=str(ROOT / ".venv-peer/bin/python"))
    parser.add_argument("--streaming", metavar="PYTHON", default=str(ROOT / ".venv-streaming/bin/python"))
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "full-size", help="checkpoint; made if absent")
    parser.add_argument("--quick", action="store_true", help="minutes instead of an hour")
    parser.add_argument("--only", nargs="*", default=(), metavar="CASE", help="some; others stay as -o has them")
    arguments = parser.parse_args()
    given = {OURS: sys.executable, UPSTREAM: arguments.peer, FORKED: arguments.streaming}
    # Not resolved: a virtual environment's interpreter is a link, and found by where the link is.
    pythons = {name: str(Path(python).absolute()) for name, python in given.items()}
    for name, python in pythons.items():
        if not Path(python).is_file():
            parser.error(f"{python} does not exist; make peer-env and make streaming-env install {name}")
    size, output = QUICK if arguments.quick else FULL, arguments.output
    if unknown := set(arguments.only) - (known := cases_of(size, pythons)).keys():
        parser.error(f"no such case at this size: {', '.join(sorted(unknown))}; choose from {', '.join(known)}")
    is_partial = bool(arguments.only) and output is not None and output.is_file()
    old = json.loads(output.read_text()) if is_partial else {}
    if old:  # before anything is measured in vain
        try:
            require_size(old, size.as_json())
        except ValueError as error:
            parser.error(str(error))
    folder = full_size_folder(arguments.folder)
    rows, about = [], {}
    for found in measure(pythons, folder, size, arguments.only):
        torch.set_num_threads(found.pop("threads_of_all"))
        if old:
            found = merged(old, found, environment())
        rows = found["rows"]
        about = {key: value for key, value in found.items() if key not in ("benchmark", "rows", "cases", *RUN)}
        write("peer", rows, output, **{"quick": arguments.quick, **about})
    report("peer", rows, output, **{"quick": arguments.quick, **about})


if __name__ == "__main__":
    main()
