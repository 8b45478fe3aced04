"""What does loading take, and what stays? Seconds and resident memory of a process by model and precision.

``python -m benchmarks.speed.loading -o build/results/loading.json``: folders of published size with synthetic weights,
written below ``--work`` where they are missing (5 GiB), plain and packed in int8. A process for each case, in turn; the
files are in the page cache. Then one utterance in the built-in voice, which no recording comes into.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.lib.harness import report

CASES = (("nano", "float32"), ("nano", "int8"), ("nano-int8", "auto"))
CASES += tuple((name.replace("nano", "english"), precision) for name, precision in CASES)


def folder_of(name: str, work: Path) -> Path:
    """A model's folder, written if it is missing."""
    folder = work / name
    if folder.is_dir():
        return folder
    from chatterbox.checkpoints import PUBLISHED, pack_folder, read_folder
    from tests.support.folders import write_folder

    if name.endswith("-int8"):
        pack_folder(read_folder(folder_of(name.removesuffix("-int8"), work)), folder, "int8")
        return folder
    layout = PUBLISHED["chatterbox" if name == "english" else name]
    write_folder(folder, layout.config, layout=layout)
    (folder / "config.json").unlink()  # as published
    return folder


def measure(folder: Path, precision: str) -> dict[str, float]:
    """Of this process."""
    import torch

    from chatterbox.tts import ChatterboxTTS
    from chatterbox.tts_turbo import ChatterboxTurboTTS

    facade: Any = ChatterboxTurboTTS if folder.name.startswith("nano") else ChatterboxTTS
    imported, started = resident("VmRSS"), time.perf_counter()
    tts = facade.from_local(folder, "cpu", precision=precision)
    seconds, loaded, peak = time.perf_counter() - started, resident("VmRSS"), resident("VmHWM")
    tts.generate("Hello.", seed=1, max_new_tokens=10, watermark=False)
    return {
        "seconds": round(seconds, 2),
        "MiB before": imported,
        "MiB loaded": loaded,
        "MiB at most": peak,
        "MiB after speech": resident("VmRSS"),
        "threads": torch.get_num_threads(),
    }


def resident(name: str) -> int:
    """MiB of this process, of /proc."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith(name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--work", type=Path, default=Path("build/full_size"))
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--one", nargs=2, metavar=("FOLDER", "PRECISION"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(Path(arguments.one[0]), arguments.one[1])))
        return
    found: dict[tuple[str, str], list[dict[str, float]]] = {case: [] for case in CASES}
    for _ in range(arguments.turns):
        for name, precision in CASES:
            command = [sys.executable, "-m", __spec__.name, "--one", str(folder_of(name, arguments.work)), precision]
            ran = subprocess.run(command, check=True, capture_output=True, text=True)
            found[name, precision].append(json.loads(ran.stdout))
    rows = [
        {"folder": name, "precision": precision}
        | {key: statistics.median(one[key] for one in turns) for key in turns[0]}
        for (name, precision), turns in found.items()
    ]
    report("loading", rows, arguments.output, unit="seconds, MiB")


if __name__ == "__main__":
    main()
