"""Two processes of one job; started by training/test_processes.py: ``two_processes.py PLAN.json``.

The plan is a list of attempts, made one after the other; what came of them, exit codes and what was said on standard
output and error, is printed as one JSON list. An attempt is a mapping:

- ``words``: of a command of ``fmwiss``;
- ``processes``: the processes that are started for it, each with its environment variables; those that a process starts
  itself, with ``--devices``, come on top;
- ``kill``: which process kills itself, and before which iteration of which step; optional;
- ``checks``: a folder for what the processes find together when they have trained, and ``data`` for it; optional.

Every process is a fork of this one, which itself only imports: importing takes longer than all that they do.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.launchers import subprocess_script
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from fmwiss.cli import run as command
from fmwiss.config import Config, sections_of
from fmwiss.data.batches import Batch
from fmwiss.methods import PLOP, RECALL, Method, Supervised, build_method
from fmwiss.models import Architecture, HelperDecoder, Segmenter
from fmwiss.processes import Processes
from fmwiss.training import loop
from fmwiss.training.launch import build_fabric
from fmwiss.training.parts import accumulate_gradients
from test_pseudo_masks import Setup

CLASSES = (("aeroplane", "bicycle"), ("sheep", "sofa"))
SIDE = 48


def make_segmenter(steps: int) -> Segmenter:
    """A small one of the first steps' classes, without dropout."""
    torch.manual_seed(steps)
    return Segmenter(Architecture("test_efficientnet", 16, 8, (1, 2, 3), 0.0, CLASSES[:steps], None))


def make_batch(n: int) -> Batch:
    """Photographs that differ in how much of them counts, with everything that a method may ask for.

    Old classes 1 and 2 in pasted instances, new ones 3 and 4 in masks; of the pseudo masks the second class is in every
    other photograph.
    """
    draws = torch.Generator().manual_seed(n)

    def blocks(channels: int) -> Tensor:
        return F.interpolate(torch.rand(n, channels, 6, 6, generator=draws), size=(SIDE, SIDE)) > 0.5

    valid = torch.arange(SIDE) < SIDE - 5 * torch.arange(n)[:, None]
    tags = torch.stack([torch.ones(n, dtype=torch.bool), torch.arange(n) % 2 == 0], dim=1)
    pasted = (blocks(1) & blocks(1))[:, 0].long() * (1 + torch.arange(n) % 2)[:, None, None]
    labels = torch.where(blocks(1), 3, torch.where(blocks(1), 4, torch.where(blocks(1), 255, 0)))[:, 0]
    return Batch(
        ids=tuple(f"photograph {number}" for number in range(n)),
        image=torch.rand(n, 3, SIDE, SIDE, generator=draws),
        valid=valid[:, None].expand(n, SIDE, SIDE).clone(),
        mask=labels,
        pseudo=blocks(2) & tags[:, :, None, None] & (pasted == 0)[:, None],
        tags=tags,
        pasted=pasted,
        saliency=blocks(1)[:, 0].to(torch.uint8) * 255,
        replayed=torch.arange(n) % 3 == 2,
    )


SECTIONS = {s.model_fields["name"].default: s for s in sections_of(Config.model_fields["method"].annotation)}
LOCATORS = ("cam locator", "seam locator", "ss locator", "eps locator")
INEXACT = {
    "fmwiss": {"new_dcl"},  # each part's points are its own, if the processes' are not gathered
    "wilson": {"all_bce"},  # the localizer decides which photographs count
    "sdr": {"prototype_matching", "attraction", "repulsion", "sparsity"},  # by classes and features
    "seam locator": {"er"},
    "eps locator": {"saliency"},
}
"""Losses whose parts are weighted by photographs although they are means over something else."""


def method_of(name: str, **options: Any) -> Method:
    """A method, or an offline method's locator, after its warm-up, with batch norm on frozen statistics.

    ``supervised`` is step 0's.
    """
    kind, _, locator = name.partition(" ")
    torch.manual_seed(0)
    if name == "supervised":
        method: Method = Supervised(make_segmenter(2))
    else:
        method = build_method(SECTIONS[kind](**options), make_segmenter(2), make_segmenter(1))
    if isinstance(method, PLOP):
        method.thresholds.fill_(0.9)
    if isinstance(method, RECALL):
        method.helper = HelperDecoder(method.student, 2)
    if locator:
        found = method.locator()
        assert found is not None
        method = found
    method.start_epoch(20)
    return method.eval()


GATHERED = {"gather_points": True, "encoder_gradient": True, "untagged_absent": False, "points_per_class": 7}
"""FMWISS with contrastive points of all processes, and gradients wherever they can go."""

GRADIENTS = {name: 1 for name in (*SECTIONS, *LOCATORS)} | {"supervised": 2}
"""Methods, and into how many parts a process cuts its photographs."""


def gradients(fabric: Fabric, name: str, n_parts: int) -> dict[str, Tensor]:
    """Of every parameter that learns, for one batch of seven photographs that processes and parts share.

    Of the losses without those that parts do not make up exactly; FMWISS's points are gathered.
    """
    method = method_of(name, **(GATHERED if name == "fmwiss" else {}))
    left_out = set() if name == "fmwiss" else INEXACT.get(name, set())
    whole = method.training_step
    method.training_step = lambda *given: {  # type: ignore[method-assign]
        loss: value for loss, value in whole(*given).items() if loss not in left_out
    }
    module = fabric.setup(method)
    method.eval()  # batch norm on frozen statistics
    share = make_batch(7).parts(fabric.world_size)[fabric.global_rank]
    accumulate_gradients(fabric, module, method, share, n_parts, torch.Generator().manual_seed(fabric.global_rank))
    return {name: p.grad.clone().contiguous() for name, p in method.named_parameters() if p.grad is not None}


def check(data: Path, out: Path, fabric: Fabric) -> None:
    """Fill a store together, and compute gradients together."""
    processes = Processes.of_this_job()
    setup = Setup(data, out / "store")
    written = processes.gather(setup.fill(processes=processes))
    for name, n_parts in GRADIENTS.items():
        found = gradients(fabric, name, n_parts)
        if processes.is_first:
            save_file(found, out / f"{name}.safetensors")
    if processes.is_first:
        (out / "written.json").write_text(json.dumps(written))
    processes.barrier()


def kill_before(rank: int, step: int, number: int, out: Path) -> None:
    """Let the process of this rank kill itself before an iteration."""
    schedule = loop.poly_factor

    def poly_factor(iteration: int, *rest: Any) -> float:
        here = (out / f"step{step}").is_dir() and not (out / f"step{step + 1}").is_dir()
        if here and iteration == number and Processes.of_this_job().rank == rank:
            os.kill(os.getpid(), signal.SIGKILL)
        return schedule(iteration, *rest)

    loop.poly_factor = poly_factor


def take_part(attempt: dict[str, Any]) -> int:
    """What every process of an attempt does; returns its exit code."""
    if attempt.get("kill"):
        kill_before(**attempt["kill"], out=Path(attempt["out"]))
    code = command(attempt["words"])
    if code == 0 and attempt.get("checks"):
        fabric = build_fabric("auto", "32-true", len(attempt["processes"]))
        fabric.launch()
        check(Path(attempt["data"]), Path(attempt["checks"]), fabric)
    return code


class Fork:
    """In place of ``subprocess.Popen``: a fork that takes part in the attempt."""

    def __init__(self, attempt: dict[str, Any], environment: dict[str, str], said: int) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.dup2(said, 1)
                os.dup2(said, 2)
                os.environ.update(environment)

                def another(_: object, env: dict[str, str], cwd: object) -> Fork:
                    return Fork(attempt, env, said)

                subprocess_script.subprocess = SimpleNamespace(Popen=another)
                code = take_part(attempt)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)

    def poll(self) -> int | None:
        if self.returncode is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            if found:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self) -> int:
        while self.poll() is None:
            time.sleep(0.01)
        assert self.returncode is not None
        return self.returncode

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def make(attempt: dict[str, Any]) -> dict[str, Any]:
    """Start the processes; when all of them have ended, also those that they have started, say how."""
    reading, writing = os.pipe()
    forks = [Fork(attempt, environment, writing) for environment in attempt["processes"]]
    os.close(writing)
    with os.fdopen(reading, errors="replace") as said:
        text = said.read()  # to the end of the last one that could write
    return {"codes": [fork.wait() for fork in forks], "said": text}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps([make(attempt) for attempt in json.loads(Path(sys.argv[1]).read_text())]))
