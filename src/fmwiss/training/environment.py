"""What a step was trained with: versions, machine, devices."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from lightning_fabric import Fabric

import fmwiss
from fmwiss.reporting.records import Environment

PACKAGES = (
    "torchvision",
    "timm",
    "open_clip_torch",
    "segmentation-models-pytorch",
    "lightning-fabric",
    "torchmetrics",
    "numpy",
    "pillow",
)


def describe_environment(fabric: Fabric) -> Environment:
    """The environment of this process; nothing in it names a person, a host or a path."""
    return Environment(
        fmwiss=fmwiss.__version__,
        commit=source_commit(),
        versions={
            "python": platform.python_version(),
            "torch": torch.__version__,  # which tells its build, too
            **{name: _version(name) for name in PACKAGES},
        },
        machine=Environment.Machine(
            system=f"{platform.system()} {platform.machine()}",
            processor=_processor(),
            cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            memory_gib=_memory_gib(),
            devices=_devices(fabric),
        ),
        threads=torch.get_num_threads(),
        processes=fabric.world_size,
        precision=str(fabric.strategy.precision.precision),
        finished=datetime.now(timezone.utc).isoformat(timespec="minutes"),
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def source_commit() -> str | None:
    """The commit of the source tree that this package lies in, ``+`` behind it with changes; None without a tree.

    It is that of the moment at which this process, or the one that it is a fork of, imported the package: the tree may
    be another one by the time that a long step ends.
    """
    return _COMMIT


def _commit(package: Path) -> str | None:
    """The commit of the source tree that the package lies in, if it does: ``<tree>/src/fmwiss``."""
    tree = package.parents[1]
    if package.parent.name != "src" or not (tree / ".git").exists():
        return None
    try:
        commit = _git(tree, "rev-parse", "HEAD")
        return commit + "+" if _git(tree, "status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.SubprocessError):  # no git here, or it does not trust the folder
        return None


def _git(tree: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(tree), *words], capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.strip()


_COMMIT = _commit(Path(fmwiss.__file__).parent)


def _processor() -> str:
    """The processor's name where the system tells it, else its kind."""
    description = Path("/proc/cpuinfo")
    if description.is_file():
        for line in description.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (AttributeError, OSError, ValueError):  # a system that does not tell
        return None


def _devices(fabric: Fabric) -> list[str]:
    """The kind of device that this process computes on; with several processes each has one."""
    name = torch.cuda.get_device_name(fabric.device) if fabric.device.type == "cuda" else fabric.device.type
    return [name] * fabric.world_size
