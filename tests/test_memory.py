"""One heap for all threads, counted by glibc itself."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="heaps of threads are glibc's")

PROGRAM = """
import ctypes, sys, threading
from fmwiss.memory import keep_little
if sys.argv[1] == "little":
    keep_little()
library = ctypes.CDLL(None)
library.malloc.restype = library.fopen.restype = ctypes.c_void_p
together = threading.Barrier(4)
def work():
    together.wait()
    for _ in range(200):
        library.malloc(ctypes.c_size_t(5000))
    together.wait()
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
file = library.fopen(sys.argv[2].encode(), b"w")
assert library.malloc_info(0, ctypes.c_void_p(file)) == 0
library.fclose(ctypes.c_void_p(file))
"""


def n_heaps(folder: Path, how: str, **variables: str) -> int:
    report = folder / f"{how}.xml"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **variables}
    subprocess.run([sys.executable, "-c", PROGRAM, how, str(report)], check=True, env=environment)
    return report.read_text().count("<heap nr=")


def test_threads_share_one_heap(tmp_path: Path) -> None:
    assert n_heaps(tmp_path, "as it is") > 1
    assert n_heaps(tmp_path, "little") == 1


def test_what_the_user_has_set_stays(tmp_path: Path) -> None:
    assert n_heaps(tmp_path, "little", MALLOC_ARENA_MAX="4") > 1
