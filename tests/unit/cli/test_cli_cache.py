"""``chatterbox cache``: what is in a folder of prefixes, and that it serves who finds it."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import threading

import pytest

from chatterbox.cli import main
from chatterbox.engine.prefill import Prefiller
from chatterbox.kvcache.prefix.disk import SUFFIX
from chatterbox.runtime.files import replacing
from tests.support.command import command

TEXTS = ("Good morning.", "Good evening.")


@pytest.fixture
def run(capsys):
    """Runs ``chatterbox cache …``: (exit code, standard output, standard error)."""
    return command(capsys, "cache")


@pytest.fixture
def kept(run, small_folder, tmp_path):
    """A folder that two texts of the built-in voice were warmed into."""
    folder = tmp_path / "kept"
    code, out, err = run("warm", *TEXTS, "--model", str(small_folder), "--folder", str(folder))
    assert code == 0 and out.startswith(f"{folder}: 2 texts, "), err
    return folder


def stats(run, folder) -> dict:
    code, out, err = run("stats", "--json", "--folder", str(folder))
    assert code == 0, err
    return json.loads(out)


def test_what_was_warmed_is_not_computed_again(run, kept, small_folder, tmp_path, monkeypatch):
    """`say` finds it, for a text that was warmed and in another process's cache."""
    say = ["say", TEXTS[1], "--model", str(small_folder), "--seed", "1", "-o"]
    assert main([*say, str(tmp_path / "cold.wav")]) == 0
    monkeypatch.setattr(Prefiller, "_run", lambda *_: pytest.fail("computed again"))
    assert main([*say, str(tmp_path / "warm.wav"), f"kvcache.disk_folder={kept}"]) == 0
    assert (tmp_path / "cold.wav").read_bytes() == (tmp_path / "warm.wav").read_bytes()


def test_stats_count_files_positions_and_voices(run, kept, small_folder, reference_wav):
    before = stats(run, kept)
    files = list(kept.iterdir())
    assert before["files"] == len(files) == 4  # the voice, two texts, the longer empty text
    assert before["broken"] == 0 and before["bytes"] == sum(path.stat().st_size for path in files)
    assert [voice["prefixes"] for voice in before["voices"]] == [4]
    assert before["positions"] == before["voices"][0]["positions"] > sum(map(len, TEXTS))
    voice = ["--voice", str(reference_wav), "--model", str(small_folder), f"kvcache.disk_folder={kept}"]
    code, out, _ = run("warm", TEXTS[0], *voice)
    assert code == 0 and "1 texts" in out
    after = stats(run, kept)
    assert [one["prefixes"] for one in after["voices"]] == [3, 4]  # the latest first
    code, out, _ = run("stats", f"kvcache.disk_folder={kept}", "kvcache.disk_mib=7")
    assert code == 0 and out.startswith(f"{kept}: 7 prefixes, ") and " of 7 MiB" in out
    assert [line.split()[1] for line in out.splitlines()[1:]] == ["prefixes", "3", "4"]


def test_warming_twice_computes_nothing(run, kept, small_folder, tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join([*TEXTS, "", "Good night."]))
    command = ["warm", "--texts", str(tmp_path / "texts.txt"), "--model", str(small_folder), "--folder", str(kept)]
    first, second = (run(*command)[1] for _ in range(2))
    assert "3 texts" in first and " 0 of " not in first and "3 texts, 0 of " in second
    assert stats(run, kept)["files"] == 5


def test_export_goes_elsewhere_and_serves_there(run, kept, small_folder, tmp_path, monkeypatch):
    code, out, err = run("export", "-o", str(tmp_path / "kept.tar"), "--folder", str(kept))
    assert code == 0 and "4 prefixes" in out, err
    with tarfile.open(tmp_path / "kept.tar") as archive:
        archive.extractall(tmp_path / "elsewhere", filter="data")
    shutil.rmtree(kept)
    monkeypatch.setattr(Prefiller, "_run", lambda *_: pytest.fail("computed again"))
    say = ["say", TEXTS[0], "--model", str(small_folder), f"kvcache.disk_folder={tmp_path / 'elsewhere'}"]
    assert main([*say, "-o", str(tmp_path / "out.wav")]) == 0


def test_what_is_broken_is_counted_and_not_exported(run, kept, tmp_path):
    damaged, cut = sorted(kept.iterdir())[:2]
    damaged.write_bytes(damaged.read_bytes()[:-4] + b"\0\0\1\0")  # its checksum tells
    cut.write_bytes(cut.read_bytes()[:50])
    (kept / "notes.txt").write_text("not of the cache")
    before = stats(run, kept)
    assert (before["files"], before["broken"]) == (4, 1)
    code, out, err = run("export", "-o", str(tmp_path / "kept.tar"), "--folder", str(kept))
    assert code == 0 and "2 prefixes" in out and "chatterbox: warning: " in err
    with tarfile.open(tmp_path / "kept.tar") as archive:
        assert len(archive.getnames()) == 2
    assert run("clear", "--folder", str(kept))[0] == 0
    assert [path.name for path in kept.iterdir()] == ["notes.txt"]


@pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
def test_export_into_a_pipe(run, kept, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()), daemon=True)
    reader.start()
    assert run("export", "-o", str(tmp_path / "pipe"), "--folder", str(kept))[0] == 0
    reader.join(30)
    with tarfile.open(fileobj=io.BytesIO(read[0])) as archive:
        assert len(archive.getnames()) == 4
    assert (tmp_path / "pipe").is_fifo()


def test_what_is_left_over_is_counted(run, kept):
    """Here it is another program's, which is alive; what nobody writes any more is swept."""
    before = stats(run, kept)
    (kept / ".a.0123456789abcdef.partial").write_bytes(b"half")
    with replacing(kept / "key", ".partial", mode=0o600) as part:
        part.write_bytes(b"1234")
        after = stats(run, kept)
        assert (after["left_over"], after["bytes"]) == (1, before["bytes"] + 4) and before["left_over"] == 0
        assert ", 1 being written or left over" in run("stats", "--folder", str(kept))[1]


def test_clear(run, kept):
    code, out, _ = run("clear", "--folder", str(kept))
    assert code == 0 and out.startswith(f"{kept}: 4 prefixes removed") and list(kept.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stats"], "which folder? give --folder, or kvcache.disk_folder"),
        (["stats", "--folder", "absent"], "folder 'absent' does not exist; chatterbox cache warm makes it"),
        (["clear", "kvcache.disk_folder=absent"], "folder 'absent' does not exist"),
        (["export", "-o", "absent/x.tar", "--folder", "."], "cannot write 'absent/x.tar': its folder does not exist"),
        (["warm"], "nothing to warm"),
        (
            ["warm", "Hello.", "--folder", "x", "--model", "chatterbox", "--device", "foo"],
            "device 'foo' does not exist",
        ),
        (["warm", "Hello.", "kvcache.disk=1"], "kvcache has no setting 'disk'"),
        (["warm", "Hello."], "which folder?"),
        (["stats", "stray"], "unrecognised argument 'stray'"),
        ([], "the following arguments are required: ACTION"),
    ],
)
def test_usage_errors(run, arguments, message):
    code, out, err = run(*arguments)
    assert code == 2 and out == "" and message in err and "Traceback" not in err


@pytest.mark.skipif(os.name != "posix", reason="links of POSIX")
def test_an_archive_holds_files_each_under_its_own_name(run, kept, tmp_path):
    """Not a link to a place that is not there elsewhere, nor a copy that nobody would read."""
    linked, copied, *_ = sorted(kept.iterdir())
    shutil.copy(copied, kept / f"copy{SUFFIX}")
    linked.rename(tmp_path / "elsewhere")
    linked.symlink_to(tmp_path / "elsewhere")
    code, out, err = run("export", "-o", str(tmp_path / "kept.tar"), "--folder", str(kept))
    assert code == 0 and "4 prefixes" in out, err
    with tarfile.open(tmp_path / "kept.tar") as archive:
        assert all(member.isreg() and member.size for member in archive.getmembers())
        assert f"copy{SUFFIX}" not in archive.getnames() and len(archive.getnames()) == 4
