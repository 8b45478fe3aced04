"""glibc's pools of memory: shared by the threads of a server, unless the user has decided."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

CODE = """
import ctypes, threading
from chatterbox.runtime.allocator import share_arenas

print(share_arenas())
libc, go = ctypes.CDLL(None), threading.Event()
libc.malloc.restype = ctypes.c_void_p
held = [threading.Thread(target=lambda: (libc.malloc(1000), go.wait())) for _ in range(6)]
for one in held:
    one.start()
libc.fflush(None)
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
go.set()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone")
@pytest.mark.parametrize(("variables", "is_shared"), [({}, True), ({"MALLOC_ARENA_MAX": "5"}, False)])
def test_threads_share_pools(variables: dict[str, str], is_shared: bool) -> None:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", CODE]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env=own | variables)
    assert str(is_shared) in ran.stdout
    assert ran.stdout.count("<heap nr=") == (2 if is_shared else 5)
