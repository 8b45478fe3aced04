"""OpenMP's idle threads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from chatterbox.models.weights import SMALL, is_small
from tests.support.programs import run

TASKS = Path("/proc/self/task")
needs_runtime = pytest.mark.skipif(
    not TASKS.is_dir() or torch.__version__ < "2.6",
    reason="GNU's runtime is found in /proc, and that of torch 2.5 cannot give threads back",
)
COMPUTE_AND_WAIT = """
import os, threading, torch
from chatterbox.runtime.openmp import release_idle_threads

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


@needs_runtime
def test_a_waiting_thread_gives_its_team_back_and_gets_another():
    counted, again = run(COMPUTE_AND_WAIT).splitlines()
    before, team, waiting, num_threads = map(int, counted.split())
    assert team == before + 4  # the thread itself and three of its team
    assert waiting == before + 1
    assert num_threads == 4  # a setting, which stays
    assert int(again) == 0


def test_torch_is_not_loaded_for_it():
    program = "import sys, chatterbox.runtime.openmp as o; o.release_idle_threads(); print('torch' in sys.modules)"
    assert run(program).strip() == "False"


COMPUTE_ALONE = """
import os, threading, torch
from chatterbox.runtime.openmp import alone, can_compute_alone

def threads():
    return len(os.listdir("/proc/self/task"))

torch.set_num_threads(4)
matrices = torch.ones(8, 300, 300)

def work():
    before = threads()
    with alone():
        torch.ones(1 << 20).sigmoid()
        matrices @ matrices  # by MKL, which counts its own
        print(can_compute_alone(), threads() - before, torch.get_num_threads())
        print(*others())
    torch.ones(1 << 20).sigmoid()
    print(threads() - before, torch.get_num_threads())

def others():
    seen = []
    other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    other.start()
    other.join()
    return seen

worker = threading.Thread(target=work)
worker.start()
worker.join()
"""


@needs_runtime
def test_a_thread_computes_alone_and_others_do_not():
    inside, others, behind = run(COMPUTE_ALONE).splitlines()
    assert inside == "True 0 1"
    assert others == "4"
    assert behind == "3 4"


def test_nothing_is_done_without_a_runtime(monkeypatch, tmp_path):
    from chatterbox.runtime import openmp

    own = torch.get_num_threads()
    monkeypatch.setattr(openmp, "MAPS", tmp_path / "maps")
    openmp._found.cache_clear()
    try:
        openmp.release_idle_threads()
        assert not openmp.can_compute_alone() and not is_small(torch.nn.Linear(2, 2))
        (tmp_path / "maps").write_text("7f00-7f10 r-xp 0 0:0 0 /nowhere/libgomp-1.so.1.0.0\n")
        openmp._found.cache_clear()
        openmp.release_idle_threads()
        with openmp.alone():
            assert torch.get_num_threads() == own
    finally:
        monkeypatch.undo()
        openmp._found.cache_clear()


@needs_runtime
def test_a_network_is_small_by_its_weights():
    assert is_small(torch.nn.Linear(2, 2), torch.nn.Linear(3, 3))
    half = torch.nn.Linear(SMALL // 2, 1, bias=False)
    assert is_small(half, half) and not is_small(half, half, torch.nn.Linear(2, 2))
    assert not is_small(torch.nn.Linear(2, 2, device="meta"))


@needs_runtime
def test_a_runtime_that_is_not_loaded_yet_is_found_later():
    program = """
import sys, types
from chatterbox.runtime import openmp
sys.modules["torch"] = types.ModuleType("torch")  # as while it is being imported
openmp.release_idle_threads()
print(openmp.can_compute_alone())
del sys.modules["torch"]
import torch
print(openmp.can_compute_alone())
"""
    assert run(program).split() == ["False", "True"]


@pytest.mark.skipif(not TASKS.is_dir(), reason="threads of a process are counted in /proc")
def test_a_child_of_a_process_without_a_model_does_not_wait_for_the_dead_team():
    program = """
import os, torch
from chatterbox.runtime.openmp import release_idle_threads

torch.set_num_threads(2)
torch.ones(1 << 20).sigmoid()
child = os.fork()
if not child:
    torch.set_num_threads(1)
    release_idle_threads()
    os._exit(0)
print(os.waitpid(child, 0)[1])
"""
    assert run(program).strip() == "0"


@needs_runtime
def test_a_forked_child_may_have_more_threads():
    program = """
import os, torch
from chatterbox.runtime import forking

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
    assert run(program).strip() == "0"


LOADED_AND_SPOKEN = """
import os, threading, time, torch
from chatterbox.tts import ChatterboxTTS

torch.set_num_threads(4)

def teams():  # threads that are not Python's
    return len(os.listdir("/proc/self/task")) - threading.active_count()

before = teams()
tts = ChatterboxTTS.from_pretrained("cpu", model="tiny")
print(teams() - before)
voice = tts.synthesizer.conditionals(torch.randn(60000).numpy())
print(teams() - before)
torch.ones(1 << 20).sigmoid()  # what a program does beside
assert teams() == before + 3
tts.generate("Hello there, this machine can talk.", audio_prompt_path=voice, seed=1)
until = time.monotonic() + 10
while teams() > before and time.monotonic() < until:  # the engine's and the renderer's, until they sleep
    time.sleep(0.01)
print(teams() - before)
"""


@needs_runtime
def test_no_team_is_left_behind_a_call():
    """The program's own threads among them: a team that nobody uses slows all others down."""
    assert run(LOADED_AND_SPOKEN).split() == ["0", "0", "0"]
