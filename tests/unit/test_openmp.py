"""OpenMP's idle threads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TASKS = Path("/proc/self/task")
COMPUTE_AND_WAIT = """
import os, threading, torch
from chatterbox.openmp import release_idle_threads

def threads():
    return len(os.listdir("/proc/self/task"))

torch.set_num_threads(4)
before = threads()

def compute():
    torch.ones(1 << 20).sigmoid()

def work():
    compute()
    team = threads()
    release_idle_threads()
    print(before, team, threads(), torch.get_num_threads())
    compute()
    print(threads() - team)

worker = threading.Thread(target=work)
worker.start()
worker.join()
"""


def python(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout


@pytest.mark.skipif(not TASKS.is_dir(), reason="threads of a process are counted in /proc")
def test_a_waiting_thread_gives_its_team_back_and_gets_another():
    counted, again = python(COMPUTE_AND_WAIT).splitlines()
    before, team, waiting, num_threads = map(int, counted.split())
    assert team == before + 4  # the thread itself and three of its team
    assert waiting == before + 1
    assert num_threads == 4  # a setting, which stays
    assert int(again) == 0


def test_torch_is_not_loaded_for_it():
    program = "import sys; from chatterbox.openmp import release_idle_threads as r; r(); print('torch' in sys.modules)"
    assert python(program).strip() == "False"


def test_nothing_is_done_without_a_runtime(monkeypatch, tmp_path):
    from chatterbox import openmp

    monkeypatch.setattr(openmp, "MAPS", tmp_path / "maps")
    openmp._pause.cache_clear()
    try:
        openmp.release_idle_threads()
        (tmp_path / "maps").write_text("7f00-7f10 r-xp 0 0:0 0 /nowhere/libgomp-1.so.1.0.0\n")
        openmp._pause.cache_clear()
        openmp.release_idle_threads()
    finally:
        monkeypatch.undo()
        openmp._pause.cache_clear()


@pytest.mark.skipif(not TASKS.is_dir(), reason="GNU's runtime is found in /proc")
def test_a_forked_child_may_have_more_threads():
    program = """
import os, torch
from chatterbox import forking

class Model:
    pass

torch.set_num_threads(2)
big, model = torch.ones(1 << 20), Model()
forking.register(model)
expected = big.sigmoid()
child = os.fork()
if not child:
    assert torch.get_num_threads() == 1
    before = len(os.listdir("/proc/self/task"))
    torch.set_num_threads(2)
    assert torch.equal(big.sigmoid(), expected)
    assert len(os.listdir("/proc/self/task")) == before + 1
    os._exit(0)
assert torch.equal(big.sigmoid(), expected)
print(os.waitpid(child, 0)[1])
"""
    assert python(program).strip() == "0"
