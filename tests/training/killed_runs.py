"""Trains runs that are killed at given moments; started by test_resume.py in a process of its own.

``python killed_runs.py PLAN.json`` does the plan's runs one after the other and prints one JSON list: how every
attempt ended (0, or -9 when it was killed). An attempt is a fork of this process, which itself only imports, so that
each starts from the same state and pays no import. A moment is a mapping with the key ``at``:

- ``iteration``: before iteration ``number`` of step ``step``;
- ``half``: when half of a file whose name holds ``name`` is written;
- ``before`` / ``after``: around the rename to ``name``;
- ``removal``: when half of the folder ``name`` is removed;
- ``outside``: from outside, when ``metrics.jsonl`` of step ``step`` tells of iteration ``number``.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fmwiss.config import load_config
from fmwiss.training import loop
from fmwiss.training.run import train

WRITERS = ("fmwiss.training.checkpoint", "fmwiss.models.segmenter", "fmwiss.data.memory")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(moment: dict[str, Any], out: Path) -> None:
    """Make this process kill itself at the moment."""
    if moment["at"] == "iteration":
        _before_iteration(moment["step"], moment["number"], out)
    elif moment["at"] == "half":
        for module in map(importlib.import_module, WRITERS):
            module.save_file = _half(module.save_file, moment["name"])  # type: ignore[attr-defined]
    elif moment["at"] in ("before", "after"):
        os.replace = _around(os.replace, moment["name"], moment["at"])  # type: ignore[assignment]
    elif moment["at"] == "removal":
        shutil.rmtree = _half_removed(shutil.rmtree, moment["name"])  # type: ignore[assignment]
    else:
        assert moment["at"] == "outside"


def _before_iteration(step: int, number: int, out: Path) -> None:
    schedule = loop.poly_factor

    def poly_factor(iteration: int, *rest: Any) -> float:
        if iteration == number and (out / f"step{step}").is_dir() and not (out / f"step{step + 1}").is_dir():
            die()
        return schedule(iteration, *rest)

    loop.poly_factor = poly_factor


def _half(save: Callable[..., None], name: str) -> Callable[..., None]:
    def save_file(tensors: Any, path: Path, *rest: Any) -> None:
        save(tensors, path, *rest)
        if name in Path(path).name:
            os.truncate(path, Path(path).stat().st_size // 2)
            die()

    return save_file


def _around(rename: Callable[..., None], name: str, when: str) -> Callable[..., None]:
    def replace(source: Path, target: Path) -> None:
        if Path(target).name == name and when == "before":
            die()
        rename(source, target)
        if Path(target).name == name:
            die()

    return replace


def _half_removed(remove: Callable[..., None], name: str) -> Callable[..., None]:
    def rmtree(path: Path, *rest: Any, **options: Any) -> None:
        if Path(path).name == name and Path(path).is_dir():
            next(file for file in Path(path).rglob("*") if file.is_file()).unlink()
            die()
        remove(path, *rest, **options)

    return rmtree


def attempt(plan: dict[str, Any], out: Path, moment: dict[str, Any] | None, overrides: list[str]) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if moment is not None:
                arm(moment, out)
            train(load_config(plan["config"], overrides), Path(plan["data"]), None, out)
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    if moment is not None and moment["at"] == "outside":
        log = out / f"step{moment['step']}" / "metrics.jsonl"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if log.is_file() and f'"iteration": {moment["number"]},' in log.read_text():
                break
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)  # not reaped yet, so the number is still the child's
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    plan = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    ends = [
        [attempt(plan, Path(run["out"]), moment, run.get("overrides", [])) for moment in run["moments"]]
        for run in plan["runs"]
    ]
    print(json.dumps(ends))


if __name__ == "__main__":
    main()
