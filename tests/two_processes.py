"""Two processes of one job; started by training/test_processes.py: ``two_processes.py PLAN.json``.

The plan is a mapping: ``train``, the words of a command ``fmwiss train``; ``kill``, of which process and before which
iteration of which step it kills itself, if it does; ``checks``, a folder for what the processes find together when they
have trained, and ``data`` for it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from lightning_fabric import Fabric
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from fmwiss.cli import run as command
from fmwiss.config import FMWISSConfig
from fmwiss.data.batches import Batch
from fmwiss.methods import FMWISS, Method, Supervised
from fmwiss.models import Architecture, Segmenter
from fmwiss.processes import Processes
from fmwiss.training import loop
from fmwiss.training.launch import build_fabric
from fmwiss.training.parts import accumulate_gradients

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


def make_method(name: str) -> Method:
    """``supervised``, or FMWISS with contrastive points of all processes and gradients wherever they can go."""
    if name == "supervised":
        return Supervised(make_segmenter(2))
    options = FMWISSConfig(gather_points=True, encoder_gradient=True, untagged_absent=False, points_per_class=7)
    torch.manual_seed(0)
    return FMWISS(make_segmenter(2), make_segmenter(1), options)


def gradients(fabric: Fabric, name: str, n_parts: int) -> dict[str, Tensor]:
    """Of every parameter that learns, for one batch of seven photographs that processes and parts share."""
    method = make_method(name)
    module = fabric.setup(method)
    method.start_epoch(method.warmup_epochs)
    method.eval()  # batch norm on frozen statistics
    share = make_batch(7).parts(fabric.world_size)[fabric.global_rank]
    accumulate_gradients(fabric, module, method, share, n_parts, torch.Generator().manual_seed(fabric.global_rank))
    return {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}


GRADIENTS = {"fmwiss": 1, "supervised": 2}
"""Methods, and into how many parts a process cuts its photographs."""


def check(data: Path, out: Path) -> None:
    """Fill a store together, and compute gradients together."""
    from test_pseudo_masks import Setup

    setup, processes = Setup(data, out / "store"), Processes.of_this_job()
    written = processes.gather(setup.fill(processes=processes))
    setup.fill(processes=processes)
    fabric = build_fabric("auto" if "TORCHELASTIC_RUN_ID" in os.environ else 2 // int(os.environ.get("NODES", 1)),
                          "32-true", int(os.environ.get("NODES", 1)))  # fmt: skip
    fabric.launch()
    for name, n_parts in GRADIENTS.items():
        found = gradients(fabric, name, n_parts)
        if processes.is_first:
            save_file(found, out / f"{name}.safetensors")
    if processes.is_first:
        (out / "written.json").write_text(json.dumps(written))
    processes.barrier()


def kill_before(rank: int, step: int, number: int, out: Path) -> None:
    """Let a process of this rank kill itself before an iteration."""
    schedule = loop.poly_factor

    def poly_factor(iteration: int, *rest: Any) -> float:
        here = (out / f"step{step}").is_dir() and not (out / f"step{step + 1}").is_dir()
        if here and iteration == number and Processes.of_this_job().rank == rank:
            os.kill(os.getpid(), signal.SIGKILL)
        return schedule(iteration, *rest)

    loop.poly_factor = poly_factor


def main() -> int:
    torch.set_num_threads(1)
    plan = json.loads(Path(sys.argv[1]).read_text())
    if plan.get("kill"):
        kill_before(**plan["kill"], out=Path(plan["out"]))
    code = command(plan["train"])
    if code == 0 and plan.get("checks"):
        check(Path(plan["data"]), Path(plan["checks"]))
    return code


if __name__ == "__main__":
    sys.exit(main())
