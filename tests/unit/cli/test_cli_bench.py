"""``chatterbox bench``: a line for each job, what a failed one leaves, the table and the picture."""

from __future__ import annotations

import json
import logging
import mmap
import os

import pytest
import torch
import yaml

from chatterbox.cli import bench, plots
from chatterbox.cli.config import BenchmarkCommandConfig
from chatterbox.cli.hydra_config import compose_config
from chatterbox.cli.measure import PeakMemory, agreement
from chatterbox.cli.speaker import Speaker
from chatterbox.config import from_dict
from tests.support.command import command
from tests.support.folders import SMALL

SAYS_SO = ("tokens_per_s", "ms_per_token", "first_token_ms", "first_audio_ms", "rtf", "peak_mib")
NUM_TOKENS = SMALL.sampling.max_new_tokens
QUICK = ("benchmark.texts=[Hello.,Good morning.]", "benchmark.repeats=2")

PACKS_SOON = ("kvcache.group_size=4", "kvcache.residual_size=4")


@pytest.fixture
def run(capsys, small_folder):
    """Runs ``chatterbox bench …`` on the small model: (exit code, standard output, standard error)."""
    return command(capsys, "bench", "model=folder", f"model.source={small_folder}")


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "jobs.jsonl").read_text().splitlines()]


def test_a_sweep(run, tmp_path):
    """Hydra's product in its order, a line each with figures, configuration and environment."""
    folder = tmp_path / "sweep"
    code, out, err = run("-m", "kvcache=static,none,compressed", *QUICK, *PACKS_SOON, "-o", str(folder))
    assert code == 0, err
    rows = lines(folder)
    assert [row["job"] for row in rows] == ["kvcache=static", "kvcache=none", "kvcache=compressed"]
    for row in rows:
        assert all(row[name] > 0 for name in SAYS_SO) and row["tokens"] == 2 * NUM_TOKENS
        assert row["environment"]["torch"] == torch.__version__
        config = from_dict(BenchmarkCommandConfig, row["config"])
        assert config == compose_config("benchmark", row["overrides"])
    static, none, compressed = rows
    assert static["token_agreement"] == none["token_agreement"] == 1.0  # the same seed, both exact
    assert static["cache_bytes"] > compressed["cache_bytes"] > none["cache_bytes"] == 0
    assert 0.5 < static["prefix_hits"] < 1.0 and none["prefix_hits"] == 0.0  # the warm-up filled it, two turns found it
    table = out.splitlines()
    assert table[0].split("  ")[0] == "job" and len(table) == 5 and table[-1].startswith(str(folder))
    assert sorted(path.name for path in folder.iterdir()) == ["jobs.jsonl", "plots.png", "table.md"]
    markdown = (folder / "table.md").read_text().splitlines()
    assert len(markdown) == 5 and all(line.count("|") == 11 for line in markdown)
    assert (folder / "plots.png").read_bytes().startswith(b"\x89PNG")


def test_a_job_without_a_sweep_prints_its_line(run):
    code, out, _ = run(*QUICK)
    first, heading, row = out.splitlines()
    job = json.loads(first)
    assert code == 0 and job["token_agreement"] == 1.0 and heading.startswith("job") and row.startswith(job["job"])


def test_a_failed_job_is_a_row(run, tmp_path, monkeypatch):
    """One that cannot be composed, one whose settings do not fit, one that fails while it speaks; the rest goes on."""
    decode = Speaker.decode

    def fails(self, *arguments):
        if self.config.kvcache.policy == "dynamic":
            raise RuntimeError("out of memory\nand much more")
        return decode(self, *arguments)

    monkeypatch.setattr(Speaker, "decode", fails)
    sweep = "kvcache=paged,dynamic,static", "kvcache.window_size=2048,512"
    code, out, err = run("-m", *sweep, *QUICK, "-o", str(tmp_path))
    assert code == 1 and all(line.startswith("chatterbox: warning: ") for line in err.splitlines())
    paged, paged2, dynamic, dynamic2, static, static2 = lines(tmp_path)
    assert all("kvcache has no choice 'paged'" in row["error"] for row in (paged, paged2))
    assert all("window_size must be from 1 to 1023" in row["error"] for row in (dynamic, static))
    assert dynamic2["error"] == "RuntimeError: out of memory"
    assert "error" not in static2 and static2["token_agreement"] == 1.0  # of the first that worked
    assert out.count("(failed)") == out.count(" failed: ") == 5
    assert (tmp_path / "plots.png").is_file()


def test_nothing_of_hydras_is_left(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    handlers = list(logging.getLogger().handlers)
    assert run("-m", "kvcache=static,none", *QUICK)[0] == 0
    assert os.getcwd() == str(tmp_path) and not list(tmp_path.iterdir()) and logging.getLogger().handlers == handlers


def test_weights_are_read_once_for_jobs_that_share_them(run, monkeypatch):
    loads = []
    load = bench.models_of
    monkeypatch.setattr(bench, "models_of", lambda *a: loads.append(a[0].model.source) or load(*a))
    assert run("-m", "seed=range(0,3)", "benchmark=quick")[0] == 0 and len(loads) == 1


def test_without_matplotlib_all_but_the_picture_is_there(run, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "can_plot", lambda: False)
    code, out, _ = run("benchmark=quick", "-o", str(tmp_path))
    assert code == 0 and "brings matplotlib" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["jobs.jsonl", "table.md"]


def test_a_users_own_choice_can_be_swept(run, tmp_path):
    (tmp_path / "own" / "benchmark").mkdir(parents=True)
    values = {"defaults": ["default"], "texts": ["Hi."], "warmup": 0, "repeats": 1}
    (tmp_path / "own" / "benchmark" / "mine.yaml").write_text(yaml.safe_dump(values))
    own = "--config-dir", str(tmp_path / "own")
    code, _, err = run("-m", "benchmark=mine,quick", *own, "-o", str(tmp_path / "out"))
    assert code == 0, err
    assert [row["config"]["benchmark"]["texts"] for row in lines(tmp_path / "out")] == [["Hi."], ["Hello."]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kvcache=static,none"], "kvcache=static,none is several values; chatterbox bench -m runs one after"),
        (["-m", "kvcache=paged,blocked"], "kvcache has no choice 'paged'"),
        (["-m", "cache=static"], "benchmark has no setting 'cache'; it has model, kvcache, engine, s3gen, precision"),
        (["-m", "model=glob(zzz*)"], "this sweep has no job"),
        (["kvcache.policy=paged"], "cache policy 'paged' does not exist"),
        (["-o", __file__], "it is a file"),
        (["--nonsense"], "unrecognised argument '--nonsense'"),
    ],
)
def test_usage_errors(run, arguments, message):
    code, out, err = run(*arguments)
    assert code == 2 and out == "" and message in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("codes", "share"),
    [([[1, 2, 3, 4], [5]], 1.0), ([[1, 2, 9, 4], [5]], 0.8), ([[1, 2], [5]], 0.6), ([[1, 2, 3, 4], [5, 6, 7]], 5 / 7)],
)
def test_agreement(codes, share):
    assert agreement(codes, [[1, 2, 3, 4], [5]]) == pytest.approx(share)


def test_peak_memory_counts_what_is_gone_again():
    memory = PeakMemory(torch.device("cpu"))
    before = memory.mib()
    assert before is not None
    size = 64 * 2**20
    with mmap.mmap(-1, size) as block:  # of the system's own: the allocator may have as much at hand, resident already
        for page in range(0, size, mmap.PAGESIZE):
            block[page] = 1
    assert memory.mib() > before + 48
    assert PeakMemory(torch.device("cpu")).mib() < before + 48  # a new one begins anew


def test_every_panel_is_a_figure_of_a_job(run, tmp_path):
    assert run("benchmark=quick", "-o", str(tmp_path))[0] == 0
    assert plots.PANELS.keys() <= lines(tmp_path)[0].keys() and bench.COLUMNS.keys() <= lines(tmp_path)[0].keys()
