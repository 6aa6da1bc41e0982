"""Every block of the tutorial is run, in order, in an empty folder, without network."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage

import pytest

ROOT = Path(__file__).parents[1]
TUTORIAL = ROOT / "docs" / "tutorial.md"
FENCE = re.compile(r"(<!-- serves -->\n)?^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PATIENCE = 900.0
"""Seconds that a block may take: the machine may be busy."""

PROCESSOR_SECONDS = 270.0
"""One and a half times what it takes on two idle cores, which is three minutes: other programs lengthen it, too."""

NO_NETWORK = """
import socket, sys

whole = socket.socket.connect

def connect(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
        raise OSError(f"the tutorial must run without network, and asks {address}")
    return whole(self, address)

socket.socket.connect = connect
"""


@dataclass(frozen=True)
class Block:
    """A fenced block: ``title`` names the file that it is; a command that ``serves`` runs until it is stopped."""

    language: str
    title: str
    text: str
    serves: bool


def blocks() -> list[Block]:
    """All of the tutorial's, in order."""
    text = TUTORIAL.read_text(encoding="utf-8")
    return [Block(language, title or "", body, bool(serves)) for serves, language, title, body in FENCE.findall(text)]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The program on the path, its caches in the test's folder, and no network."""
    programs, modules = tmp_path / "bin", tmp_path / "modules"
    programs.mkdir()
    modules.mkdir()
    (modules / "sitecustomize.py").write_text(NO_NETWORK)
    program = programs / "fmwiss"
    program.write_text(f"#!{sys.executable}\nfrom fmwiss.cli import main\nmain()\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(modules), str(ROOT / "src")]),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",  # as many as there are cores would wait for each other wherever the machine is busy
        "PYTHONUNBUFFERED": "1",
    }


def run(block: Block, folder: Path, environment: dict[str, str]) -> str:
    """Carry out a block, and give what it printed."""
    if block.title:
        (folder / block.title).write_text(block.text, encoding="utf-8")
        return ""
    words = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}[block.language]
    if block.serves:
        return serve([*words, f"exec {block.text}"], folder, environment)
    done = subprocess.run(
        [*words, block.text], cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def serve(words: list[str], folder: Path, environment: dict[str, str]) -> str:
    """Start a command that serves a page, ask for the page as a browser would, and interrupt the command."""
    errors = (folder / "serving.log").open("w+")

    def can_be_interrupted() -> None:  # also where the tests run in the background, whose children ignore Ctrl-C
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(
        words,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        preexec_fn=can_be_interrupted,
    ) as job:
        try:
            assert job.stdout is not None
            address = job.stdout.readline().strip()
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+/?", address), address + (folder / "serving.log").read_text()
            deadline = time.monotonic() + 60
            while True:
                try:
                    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address, timeout=60) as page:
                        text: str = page.read().decode()
                    break
                except OSError:
                    assert time.monotonic() < deadline
                    time.sleep(0.2)
        finally:
            job.send_signal(signal.SIGINT)
            job.wait(PATIENCE)
    errors.close()
    return text


def test_the_tutorial_runs(tmp_path: Path, environment: dict[str, str]) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    started = getrusage(RUSAGE_CHILDREN)
    printed: list[str] = []
    for block in blocks():
        begun = time.monotonic()
        if block.language == "text":  # what the block before it prints
            assert printed[-1] == block.text
            continue
        printed.append(run(block, folder, environment))
        print(f"{time.monotonic() - begun:.1f} s: {block.text.splitlines()[0]}", flush=True)
    ended = getrusage(RUSAGE_CHILDREN)
    used = ended.ru_utime + ended.ru_stime - started.ru_utime - started.ru_stime
    print(f"{used:.0f} s of processor time")
    assert used < PROCESSOR_SECONDS

    (aside,) = re.findall(r"^`(fmwiss .*)`", TUTORIAL.read_text(encoding="utf-8"), re.MULTILINE)
    run(Block("bash", "", aside, serves=False), folder, environment)
    assert len(list((folder / "masks" / "pictures").glob("*.png"))) == 8

    known = json.loads((folder / "new-model" / "step1" / "model.json").read_text(encoding="utf-8"))
    assert "tv monitor" in json.dumps(known) and "umbrella" in json.dumps(known)
    evaluation = json.loads((folder / "new-model" / "step1" / "evaluation.json").read_text(encoding="utf-8"))
    assert evaluation["review"]["left_out"] == 1
    base = json.loads((folder / "old-model" / "step0" / "evaluation.json").read_text(encoding="utf-8"))
    print(json.dumps(base["miou"]), json.dumps(evaluation["miou"]), json.dumps(evaluation["iou"]))
    assert evaluation["miou"]["old"] > base["miou"]["old"] - 10
    assert evaluation["miou"]["new"] > 2
    assert len(list((folder / "predictions").glob("*_overlay.png"))) == 10
    for name in ("check.png", "report.html", "overlay.png", "new-model.onnx", "new-model/report.html"):
        assert (folder / name).stat().st_size > 1000, name


def test_every_block_is_of_a_kind_that_is_run() -> None:
    found = blocks()
    assert len(found) == TUTORIAL.read_text(encoding="utf-8").count("\n```") / 2
    assert {block.language for block in found} == {"bash", "python", "yaml", "text"}
    assert all(block.title for block in found if block.language == "yaml")
    assert sum(block.serves for block in found) == 1
