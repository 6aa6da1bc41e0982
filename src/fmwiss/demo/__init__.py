"""``fmwiss demo``: five classes from tags alone, on EmojiSeg with the tiny models of the package, without downloads."""

from __future__ import annotations

import json
import math
import shlex
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from fmwiss.errors import UserError

MARK = ".fmwiss-demo"
EXPERIMENTS = Path(__file__).parent
METHODS = ("fmwiss", "finetuning")
SIZE = 96
"""Longer side of a scene in pixels."""


def run_demo(
    out: Path, seed: int = 0, n_train: int = 1500, n_val: int = 200, settings: Sequence[str] = ()
) -> Path:
    """Generate scenes in ``out``, teach a model fifteen classes from masks and five from tags, and show how it went.

    FMWISS and plain fine-tuning learn from the same pseudo masks and grow the same base model. A demo that lies in
    ``out`` already is replaced.

    Args:
        out: folder for everything that is written.
        seed: of the scenes and of the runs.
        n_train: scenes to learn from.
        n_val: scenes to validate on.
        settings: overrides of the experiments' keys, ``path.to.key=value`` each (tests).

    Returns:
        The report.

    Raises:
        UserError: ``out`` holds something else, or a command failed.
    """
    from rich.console import Console

    from fmwiss.reporting.tables import runs_table

    started = time.monotonic()
    _clear(out)
    data, report = out / "data", out / "report.html"
    print(
        "A model learns fifteen classes of generated scenes from masks, then five new ones from scenes that carry only "
        "tags: with FMWISS, and by plain fine-tuning on the same pseudo masks. It is judged on scenes drawn in a style "
        "that no model here has seen."
    )
    _run("data", "emoji", "--out", data, "--train", n_train, "--val", n_val, "--size", SIZE, "--seed", seed)
    for experiment in EXPERIMENTS.glob("*.yaml"):
        (out / experiment.name).write_bytes(experiment.read_bytes())
    precision = _faster_precision()
    overrides = [word for setting in (f"training.seed={seed}", *settings) for word in ("--set", setting)]
    for method in METHODS:
        base = [] if method == METHODS[0] else ["--base", out / METHODS[0]]
        folders = ["--data", data, "--cache", out / "cache", *base, "--out", out / method, "--precision", precision]
        _run("train", out / f"{method}.yaml", *folders, *overrides)
    photographs = sorted((data / "JPEGImages").glob("val_*.jpg"))[:8]
    _run("predict", out / METHODS[0], *photographs, "--out", out / "predictions")
    _run("report", *(out / method for method in METHODS), "--out", report)
    figures = {
        name: json.loads((out / step / "evaluation.json").read_text(encoding="utf-8"))
        for name, step in (("base model", f"{METHODS[0]}/step0"), *((method, f"{method}/step1") for method in METHODS))
    }
    print(f"\nmIoU in per cent on {n_val} scenes in the style that nobody has seen:", flush=True)
    Console().print(runs_table(figures))
    print(f"It took {(time.monotonic() - started) / 60:.1f} minutes. The report, with pictures: {report}")
    return report


def _run(*words: object) -> None:
    from fmwiss.cli import run

    command = [str(word) for word in words]
    print(f"\n$ fmwiss {shlex.join(command)}", flush=True)
    if run(command) != 0:
        raise UserError("the demo stopped at the command above")


def _faster_precision() -> str:
    """``bf16-mixed`` where the processor computes a convolution sooner in bfloat16, as newer ones do."""
    import torch

    convolution = torch.nn.Conv2d(128, 128, 3, padding=1).to(memory_format=torch.channels_last)
    images = torch.rand(16, 128, 16, 16).contiguous(memory_format=torch.channels_last)
    seconds = {True: math.inf, False: math.inf}
    for _ in range(10):  # in turn, and the best counts: other work on the machine comes and goes
        for enabled in seconds:
            started = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                convolution(images).sum().backward()
            seconds[enabled] = min(seconds[enabled], time.perf_counter() - started)
    return "bf16-mixed" if seconds[True] < seconds[False] else "32-true"


def _clear(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; give another folder with --out")
    if out.is_dir() and any(out.iterdir()):
        if not (out / MARK).is_file():
            raise UserError(f"{out} holds other files than a demo's; give a new folder with --out")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).touch()
