"""The processes of a run: how they start, and that all of them end when one does.

One process, several of this machine (``devices``), or as many as ``torchrun`` or SLURM have started: Fabric's plugins
tell which. Processes that Fabric starts are watched here. Where one is killed the others would wait for it for half an
hour, or be killed without a word: instead the job ends within seconds, with one sentence.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
from lightning_fabric.strategies import DDPStrategy
from lightning_fabric.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from lightning_fabric.utilities.exceptions import MisconfigurationException

from fmwiss.config import TrainingConfig
from fmwiss.endings import LOOK_EVERY, end_when, how_it_ended, wait_for_another_parent
from fmwiss.errors import UserError
from fmwiss.processes import ALONE, Processes

GRACE = 5.0
"""Seconds in which it shows whether an error is another process's, too."""
_PARENT = "FMWISS_FIRST_PROCESS"
"""Environment variable of processes that the first one has started: its number."""
GO_ON = "the same command goes on where it was"


def build_fabric(devices: str | int, precision: str, num_nodes: int | None = None) -> Fabric:
    """Fabric for the processes that are asked for, or that a launcher has started; none is started yet.

    Args:
        devices: processes of a node, or "auto": as many as the launcher has started, else one for each GPU.
        precision: Fabric's.
        num_nodes: None: as many as the launcher says, else one.

    Raises:
        UserError: they do not fit the machine or the launcher, or the precision is not to be had.
    """
    of_node, nodes = _launched()
    if of_node is not None and devices == "auto":
        devices = of_node
    options: dict[str, Any] = {"devices": devices, "precision": precision, "num_nodes": num_nodes or nodes or 1}
    asked = f"--devices {devices}" + (f" --num-nodes {num_nodes}" if num_nodes else "")
    try:
        fabric = Fabric(**{**options, "precision": "32-true"})  # without its warnings about precisions
        if precision == "16-mixed" and fabric.device.type == "cpu":
            raise UserError(
                "--precision 16-mixed: half precision with a scaler needs a GPU, and this run computes on a CPU; use "
                "bf16-mixed or 32-true"
            )
        if fabric.world_size == 1 and options["num_nodes"] == 1:
            return Fabric(**options)
        # while only the teacher learns, the student's parameters get no gradient, for which DDP would wait
        strategy = _Strategy(find_unused_parameters=True)
        fabric = Fabric(strategy=strategy, **options)
        environment = strategy.cluster_environment
        assert environment is not None
        environment.validate_settings(strategy.num_processes, options["num_nodes"])
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        raise UserError(f"{asked}: {str(error).splitlines()[0].strip()}") from error
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if name not in os.environ]
    if options["num_nodes"] > 1 and isinstance(environment, LightningEnvironment) and missing:
        raise UserError(
            f"{asked}: several nodes have to find each other; start fmwiss by torchrun or srun, or set "
            f"{' and '.join(missing)} on every node"
        )
    return fabric


@contextmanager
def at_work(
    devices: str | int | None, num_nodes: int | None, device: Callable[[], torch.device]
) -> Iterator[tuple[torch.device, Processes]]:
    """The device of this process and all processes, for work that several can share but need not.

    Args:
        devices: as of :func:`build_fabric`; None: as many as a launcher has started, else this process alone.
        num_nodes: as there.
        device: of a process that is alone.
    """
    if devices is None and num_nodes is None and _launched() == (None, None):
        yield device(), ALONE
        return
    fabric = build_fabric("auto" if devices is None else devices, "32-true", num_nodes)
    fabric.launch()
    with one_job(fabric):
        yield fabric.device, Processes.of_this_job()


def check_hardware(fabric: Fabric, options: TrainingConfig) -> None:
    """Raise UserError where the training asks for what this machine, or torch, cannot do."""
    if options.compile and options.activation_checkpointing:
        raise UserError(
            "training.compile and training.activation_checkpointing exclude each other, as the compiler decides itself "
            "what it computes again; set one of them"
        )
    if options.sync_batch_norm is True and fabric.device.type != "cuda":
        raise UserError(
            f"training.sync_batch_norm: torch has synchronised batch norm for CUDA alone, and this run computes on a "
            f"{fabric.device.type.upper()}; set it to auto or false"
        )


def _launched() -> tuple[int | None, int | None]:
    """Processes of a node, and nodes, as a launcher says that has started this process; None without one."""
    if TorchElasticEnvironment.detect():
        of_node = int(os.environ["LOCAL_WORLD_SIZE"])
        return of_node, int(os.environ["WORLD_SIZE"]) // of_node
    if "SLURM_NTASKS" in os.environ and SLURMEnvironment.detect():
        of_node = os.environ.get("SLURM_NTASKS_PER_NODE")  # type: ignore[assignment]
        nodes = int(os.environ.get("SLURM_NNODES", "1"))
        return (int(of_node) if of_node is not None else None), nodes
    return None, None


# ---------------------------------------------------------------------------------------------- starting and watching


class _Strategy(DDPStrategy):
    """DDP whose processes are watched, and whose barriers wait as long as it takes."""

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = _Launcher(self.cluster_environment, self.num_processes, self.num_nodes)

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        Processes.of_this_job().barrier()


class _Launcher(_SubprocessScriptLauncher):
    """Fabric's, which starts this node's other processes; :class:`_Watch` takes the place of its observer.

    That one kills all processes, the first one included, without a word.
    """

    def launch(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.cluster_environment.creates_processes_externally:
            if os.environ.get(_PARENT) == str(os.getppid()):
                _end_with_parent()
        else:
            os.environ[_PARENT] = str(os.getpid())
            self._call_children_scripts()
            self.watch = _Watch(self.procs)
            self.watch.start()
        # LOCAL_RANK is set by now, by which the environment says that nothing is left to be started
        return super().launch(function, *args, **kwargs)


class _Watch(threading.Thread):
    """Looks after the processes that this one has started; when one is lost it ends all of them.

    Args:
        processes: of the local ranks 1, 2, ...
    """

    def __init__(self, processes: list[subprocess.Popen[bytes]]) -> None:
        super().__init__(daemon=True, name="watch")
        self.processes = processes
        self.ending = False

    def run(self) -> None:
        while not self.ending:
            codes = [process.poll() for process in self.processes]
            for number, code in enumerate(codes, start=1):
                if code and not self.ending:
                    self._end(number, code)
            if all(code == 0 for code in codes):
                return
            time.sleep(LOOK_EVERY)

    def end_others(self) -> None:
        """End the processes, of which nothing is to be told any more."""
        self.ending = True
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()

    def _end(self, number: int, code: int) -> None:
        self.end_others()
        if code != 2:  # after a sentence of its own
            sentence = f"process {number} of the run {how_it_ended(code)}, so the others were ended; {GO_ON}"
            print(f"fmwiss: {sentence}.", file=sys.stderr, flush=True)
        os._exit(2 if code == 2 else 1)


def _end_with_parent() -> None:
    """End this process when the first one is gone; that one ends the others itself unless it is killed."""
    sentence = f"process 0 of the run was killed, so the others were ended; {GO_ON}"
    end_when(wait_for_another_parent, sentence if os.environ.get("LOCAL_RANK") == "1" else None)


@contextmanager
def one_job(fabric: Fabric) -> Iterator[None]:
    """Inside, an error of one process is one of all: they end, and each sentence is told once.

    Raises:
        UserError: in place of torch's error where another process was lost that is not watched from here.
    """
    watch = getattr(getattr(fabric.strategy, "launcher", None), "watch", None)
    try:
        yield
    except BaseException as error:
        if fabric.world_size == 1:
            raise
        lost = _is_lost_connection(error)
        if watch is None or lost:
            # the first process may have the same to tell and ends this one, or the watch knows who was lost
            time.sleep(GRACE)
        if watch is not None:
            watch.end_others()
        if lost:
            raise UserError(
                f"the connection to another process of the run broke off, whose last words may tell why; {GO_ON}"
            ) from error
        raise


def _is_lost_connection(error: BaseException) -> bool:
    """Whether torch says so: NCCL by the exception's type, gloo by its text."""
    kinds = getattr(torch.distributed, "DistError", ())
    return isinstance(error, kinds) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())
