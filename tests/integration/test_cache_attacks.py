"""What others do to a cache folder: no request fails, hangs or says anything else for it."""

from __future__ import annotations

import dataclasses
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from chatterbox.engine.decode import generate
from chatterbox.engine.prefill import Prefiller
from chatterbox.kvcache import Segment
from chatterbox.kvcache.prefix.disk import SUFFIX, DiskTier
from chatterbox.kvcache.prefix.manager import GlobalKVCacheManager
from chatterbox.models.t3 import T3
from tests.support.attacks import ROOT, killed, open_folder, unprivileged
from tests.support.decoding import stream
from tests.support.small import REQUESTS, SMALL, build

REQUEST = dataclasses.replace(REQUESTS[0], max_new_tokens=6)
posix = pytest.mark.skipif(os.name != "posix", reason="modes, pipes and signals of POSIX")


@pytest.fixture(scope="module")
def t3() -> T3:
    return build(SMALL)


@pytest.fixture(scope="module")
def expected(t3) -> list[int]:
    return generate(t3, REQUEST, use_cache=False).tolist()


@pytest.fixture(scope="module")
def kept(t3, tmp_path_factory) -> Path:
    """A folder with the prefixes of the request. Read only."""
    folder = tmp_path_factory.mktemp("kept")
    source(t3, folder).acquire(REQUEST).release()
    assert len(list(folder.iterdir())) == 3
    return folder


def source(t3: T3, folder: Path) -> Prefiller:
    return Prefiller(t3, GlobalKVCacheManager(budget_bytes=2**20, disk=DiskTier(folder)))


def spoken(t3: T3, folder: Path) -> tuple[list[int], dict[str, float]]:
    """Tokens and counters of one request in a new process's cache."""
    prefixes = source(t3, folder)
    return list(stream(t3, REQUEST, prefixes=prefixes)), prefixes.manager.stats()


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_200_bit_flips(kept, tmp_path):
    """Each is a miss, or of no consequence: the segment that was stored, or none."""
    (path, *_) = sorted(kept.iterdir())
    (entry,) = [one for one in DiskTier(kept).entries() if one.path.name == path.name]
    key, whole, rng, num_misses = entry.key, path.read_bytes(), random.Random(0), 0
    stored = DiskTier(kept).load(key)
    for place in [*range(0, 64), *(rng.randrange(8 * len(whole)) for _ in range(136))]:
        content = bytearray(whole)
        content[place // 8] ^= 1 << place % 8
        (tmp_path / path.name).write_bytes(content)
        loaded = DiskTier(tmp_path).load(key)
        num_misses += loaded is None
        assert loaded is None or (torch.equal(loaded.keys, stored.keys) and torch.equal(loaded.values, stored.values))
    assert num_misses >= 190


def foreign(segment: Segment) -> dict[str, Segment]:
    """What a file with the right key and checksum may hold."""
    keys, values = segment.keys, segment.values
    spoilt = values.clone()
    spoilt[0, 0, 0, 0] = float("nan")
    return {
        "fewer layers": Segment(keys[:1], values[:1], 0),
        "more layers": Segment(torch.cat([keys, keys]), torch.cat([values, values]), 0),
        "other heads": Segment(keys[:, :1], values[:, :1], 0),
        "other width": Segment(keys[..., :8], values[..., :8], 0),
        "half precision": Segment(keys.half(), values.half(), 0),
        "whole numbers": Segment(keys.int(), values.int(), 0),
        "values of another shape": Segment(keys, values[:, :, :-1], 0),
        "three dimensions": Segment(keys[0], values[0], 0),
        "another start": Segment(keys, values, 2),
        "fewer positions": Segment(keys[:, :, :-1], values[:, :, :-1], 0),
        "more positions": Segment(keys.repeat(1, 1, 2, 1), values.repeat(1, 1, 2, 1), 0),
        "no positions": Segment(keys[:, :, :0], values[:, :, :0], 0),
        "nan": Segment(keys, spoilt, 0),
    }


@pytest.mark.parametrize("kind", foreign(Segment(torch.zeros(2, 2, 4, 16), torch.zeros(2, 2, 4, 16), 0)))
def test_foreign_files_with_right_checksums(t3, expected, kept, tmp_path, kind, caplog):
    """All of the folder's files at once; the empty text's may have more positions, which is right."""
    disk = DiskTier(shutil.copytree(kept, tmp_path / "kept"))
    for entry in disk.entries():
        disk.store(entry.key, foreign(disk.load(entry.key))[kind])
    with caplog.at_level(logging.WARNING):
        tokens, stats = spoken(t3, disk.folder)
    assert tokens == expected and stats["disk_hits"] == (kind == "more positions")  # the empty text's alone
    assert 2 <= len(warnings(caplog)) <= 3 and all("prefix cache: " in one for one in warnings(caplog))
    caplog.clear()
    assert spoken(t3, disk.folder)[0] == expected  # what was found is replaced by then
    assert spoken(t3, disk.folder)[1]["disk_hits"] >= 2 and warnings(caplog) == []


@posix
@pytest.mark.parametrize("mode", ["no files", "unreadable", "readable"])
def test_folders_of_others(t3, expected, kept, mode, caplog):
    with open_folder() as folder:
        for path in kept.iterdir() if mode != "no files" else ():
            shutil.copy(path, folder)
            (folder / path.name).chmod(0o444 if mode == "readable" else 0)
        folder.chmod(0o555)
        before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
        with caplog.at_level(logging.WARNING), unprivileged():
            tokens, stats = spoken(t3, folder)
            assert tokens == expected and (stats["disk_hits"] == 3) == (mode == "readable")
        assert before.keys() == {path.name for path in folder.iterdir()}
    about = {"no files": ["cannot write to"], "unreadable": ["cannot be read", "cannot write to"], "readable": []}[mode]
    assert len(warnings(caplog)) == len(about)
    assert all(part in warning for part, warning in zip(about, warnings(caplog), strict=True))


@posix
@pytest.mark.parametrize("kind", ["file", "fifo", "under a file", "not to be made"])
def test_no_folder_where_one_should_be(t3, expected, tmp_path, kind, caplog):
    place = tmp_path / "kept"
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "not to be made":
        place = Path("/proc/self/kept")
    else:
        place.write_text("mine")
    folder = place / "below" if kind == "under a file" else place
    with caplog.at_level(logging.WARNING):
        tokens, stats = spoken(t3, folder)
        assert (tokens, stats["disk_hits"], stats["disk_bytes"]) == (expected, 0, 0)
        assert DiskTier(folder).entries() == [] and DiskTier(folder).clear() is None
    assert all("cannot write to" in one for one in warnings(caplog)) and len(warnings(caplog)) == 3  # one a tier


@posix
@pytest.mark.parametrize("kind", ["fifo", "folder", "link to a fifo", "link to nothing", "device", "itself"])
def test_names_taken_by_what_is_no_file(t3, expected, kept, tmp_path, kind, caplog):
    """A pipe would be waited for without end."""
    for path in kept.iterdir():
        taken = tmp_path / "kept" / path.name
        taken.parent.mkdir(exist_ok=True)
        if kind == "folder":
            taken.mkdir()
        elif kind == "fifo":
            os.mkfifo(taken)
        else:
            target = {"link to a fifo": tmp_path / "fifo", "device": Path("/dev/zero"), "itself": taken}.get(kind)
            if kind == "link to a fifo" and not target.exists():
                os.mkfifo(target)
            taken.symlink_to(target or tmp_path / "nothing")
    with caplog.at_level(logging.WARNING):
        tokens, stats = spoken(t3, tmp_path / "kept")
        assert tokens == expected and stats["disk_hits"] == 0
        assert len(DiskTier(tmp_path / "kept").entries()) in (0, 3)  # a link may be replaced, a folder may not
    assert len(warnings(caplog)) == (kind != "link to nothing")
    assert not (tmp_path / "nothing").exists()


KILLED = """
import torch
from pathlib import Path
from chatterbox.kvcache import Segment
from chatterbox.kvcache.prefix.disk import DiskTier
import chatterbox.runtime.files as files
{die}
part = torch.ones(2, 2, 4, 16)
DiskTier({folder!r}).store("key", Segment(part, -part, 0))
"""
MOMENTS = {
    "before a byte is written": "Path.write_bytes = die",
    "when half is written": "Path.write_bytes = lambda path, data: (path.open('wb', 0).write(data[:900]), die())",
    "when all is written": "files.os.replace = die",
}


@posix
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_writers_leave_nothing_for_long(tmp_path, moment):
    killed(KILLED.format(die=MOMENTS[moment], folder=str(tmp_path)))
    (left,) = tmp_path.iterdir()
    assert left.suffix == ".partial" and len(left.name) > 32
    (tmp_path / "tmp_a1b2c3d.partial").write_bytes(b"of an earlier version")
    (tmp_path / "mine.partial").write_bytes(b"stays")
    disk = DiskTier(tmp_path)
    assert disk.load("key") is None and disk.nbytes == 0
    assert [path.name for path in tmp_path.iterdir()] == ["mine.partial"]


@posix
def test_what_is_being_written_is_counted_and_not_swept(tmp_path, monkeypatch):
    seen = []

    def meanwhile(path, data):
        with path.open("wb") as file:
            file.write(data)
        other = DiskTier(tmp_path)
        seen.append((path.exists(), other.nbytes == len(data), path.stat().st_mode & 0o777))

    monkeypatch.setattr(Path, "write_bytes", meanwhile)
    part = torch.ones(2, 2, 4, 16)
    assert DiskTier(tmp_path).store("key", Segment(part, -part, 0)) and seen == [(True, True, 0o600)]
    assert torch.equal(DiskTier(tmp_path).load("key").keys, part)


def test_names_under_way_cannot_be_planted(tmp_path, monkeypatch):
    """Even if the name were known, the link there is not followed."""
    tokens = iter(["0" * 16, "1" * 16])
    monkeypatch.setattr("secrets.token_hex", lambda _: next(tokens))
    (tmp_path / "victim").write_text("mine")
    disk, part = DiskTier(tmp_path / "kept"), torch.ones(2, 2, 4, 16)
    (disk.folder / f".{disk._path('key').name[:50]}.{'0' * 16}.partial").symlink_to(tmp_path / "victim")
    assert disk.store("key", Segment(part, -part, 0)) and disk.load("key") is not None
    assert (tmp_path / "victim").read_text() == "mine"


def test_16_threads_on_one_folder(tmp_path):
    """A budget of four files: whoever loads gets what was stored, or nothing, and the folder stays within it."""
    part = torch.arange(2 * 2 * 4 * 16, dtype=torch.float32).reshape(2, 2, 4, 16)
    disk = DiskTier(tmp_path, budget_bytes=4 * (2 * part.nbytes + 600))

    def work(index: int) -> int:
        own, num_hits = DiskTier(tmp_path, budget_bytes=disk.budget_bytes), 0
        for turn in range(12):
            number = (index + turn) % 8
            own.store(f"key {number}", Segment(part + number, part, 0))
            loaded = own.load(f"key {(number + 1) % 8}")
            assert loaded is None or torch.equal(loaded.keys, part + (number + 1) % 8)
            num_hits += loaded is not None
        return num_hits

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(work, range(16))) > 0
    assert disk.nbytes <= disk.budget_bytes and disk.left_overs() == []
    assert all(path.name.endswith(SUFFIX) for path in tmp_path.iterdir())


def test_two_processes_on_one_cache(t3, expected, tmp_path):
    """Both write the same prefixes at once, over and over; a third finds them whole."""
    program = (
        "import sys\nfrom tests.integration.test_cache_attacks import *\n"
        "t3, folder = build(SMALL), Path(sys.argv[1])\n"
        "for _ in range(5):\n    print(*spoken(t3, folder)[0])\n    DiskTier(folder).clear()\n"
        "spoken(t3, folder)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    both = [subprocess.Popen(command, **pipes) for _ in range(2)]
    for process in both:
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0 and "Traceback" not in err, err
        assert [list(map(int, line.split())) for line in out.splitlines()] == [expected] * 5
    tokens, stats = spoken(t3, tmp_path)
    assert tokens == expected and stats["disk_hits"] == 3


def test_a_huge_file_with_a_cache_files_name_is_not_read(tmp_path):
    disk = DiskTier(tmp_path, budget_bytes=2**20)
    with open(disk._path("key"), "wb") as file:
        file.truncate(2**40)
    assert disk.load("key") is None and disk.entries() == []


def test_a_folder_that_was_removed_is_made_again(t3, expected, tmp_path, caplog):
    prefixes = source(t3, tmp_path / "kept")
    (tmp_path / "kept").rmdir()
    assert list(stream(t3, REQUEST, prefixes=prefixes)) == expected and warnings(caplog) == []
    assert spoken(t3, tmp_path / "kept")[1]["disk_hits"] == 3


@posix
@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_signals_while_a_prefix_is_written(tmp_path, kind):
    program = KILLED.format(
        die=f"import signal\nPath.write_bytes = lambda *_: os.kill(os.getpid(), {int(kind)})\n"
        "signal.signal(signal.SIGTERM, signal.default_int_handler)",
        folder=str(tmp_path),
    )
    done = subprocess.run([sys.executable, "-c", "import os\n" + program], capture_output=True, text=True, timeout=120)
    assert done.returncode and "KeyboardInterrupt" in done.stderr and list(tmp_path.iterdir()) == []
