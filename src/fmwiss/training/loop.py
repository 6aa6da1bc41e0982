"""The training loop: one step of one method."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter

from fmwiss.config import OptimizationConfig
from fmwiss.data.batches import Batch, collate
from fmwiss.data.datasets import IterationSampler
from fmwiss.data.randomness import keyed_generator
from fmwiss.data.replay import InterleavedSampler
from fmwiss.errors import UserError
from fmwiss.files import write_atomically
from fmwiss.methods import Method
from fmwiss.reporting.progress import track
from fmwiss.training.checkpoint import load_checkpoint, save_checkpoint
from fmwiss.training.forwards import as_written, forwards, synchronise_batch_norm
from fmwiss.training.parts import accumulate_gradients
from fmwiss.training.schedule import poly_factor

LOG_EVERY = 10
"""Iterations between lines of losses in ``metrics.jsonl``."""


@dataclass(frozen=True)
class Loop:
    """How a step is trained; :meth:`run` does it, from its last checkpoint if there is one.

    ``folder`` receives ``metrics.jsonl``, TensorBoard events and ``state/`` (checkpoints, removed by the caller when
    the step is done). ``validate`` is called with the number of finished epochs after every ``validate_every`` of
    them; its figures are logged. ``compile``, ``activation_checkpointing`` and ``sync_batch_norm`` are those of
    :class:`~fmwiss.config.TrainingConfig`.
    """

    fabric: Fabric
    options: OptimizationConfig
    folder: Path
    seed: int
    step: int
    workers: int
    checkpoint_every: int
    gradient_clip: float | None = None
    validate_every: int = 0
    validate: Callable[[], dict[str, Any]] | None = None
    description: str = "training"
    sync_batch_norm: bool = False
    compile: bool = False
    activation_checkpointing: bool = False
    _losses: dict[str, float] = field(default_factory=dict)

    def run(
        self, method: Method, dataset: Dataset[Any], n_images: int, n_replayed: int = 0, replay_share: float = 0.0
    ) -> float:
        """Train ``method`` on ``dataset`` (which is indexed by (epoch, index), ``n_images`` long).

        Args:
            method: what learns.
            dataset: its samples.
            n_images: how many of them an epoch has.
            n_replayed: how many come after those, of which every batch has a share.
            replay_share: that share.

        Returns:
            The seconds that it took, in this process and in those that were interrupted.
        """
        with forwards(method, self.compile, self.activation_checkpointing):
            return self._run(method, dataset, n_images, n_replayed, replay_share)

    def _run(
        self, method: Method, dataset: Dataset[Any], n_images: int, n_replayed: int, replay_share: float
    ) -> float:
        started = time.monotonic()
        options, fabric = self.options, self.fabric
        method.seed = self.seed
        if self.sync_batch_norm and fabric.world_size > 1:
            synchronise_batch_norm(method)
        groups = method.parameter_groups(options.learning_rate, options.head_rate)
        optimizer = build_optimizer(options, groups, fused=self.gradient_clip is None)
        base_rates = [group["lr"] for group in optimizer.param_groups]
        module, wrapped = fabric.setup(method, optimizer)
        state = self.folder / "state"
        done, seconds_before = load_checkpoint(state, method, optimizer, fabric.strategy.precision)

        steps: dict[str, Any] = {
            "epochs": method.warmup_epochs + options.epochs,
            "seed": self.seed,
            "start_iteration": done,
            "rank": fabric.global_rank,
            "world_size": fabric.world_size,
        }
        if n_replayed:
            sampler: IterationSampler = InterleavedSampler(
                n_images, n_replayed, replay_share, options.batch_size, **steps
            )
        else:
            sampler = IterationSampler(n_images, options.batch_size, **steps)
        if sampler.batch_size < 2 * fabric.world_size * options.accumulate:
            parts = f", each in {options.accumulate} parts" if options.accumulate > 1 else ""
            raise UserError(
                f"step {self.step} would train on {sampler.batch_size} photograph(s) at a time in {fabric.world_size} "
                f"process(es){parts}; the decoder's batch norm needs at least two for each."
            )
        per_epoch = sampler.iterations_per_epoch
        warmup, total = method.warmup_epochs * per_epoch, (method.warmup_epochs + options.epochs) * per_epoch
        constant = options.constant_epochs * per_epoch
        loader = DataLoader(
            dataset,
            batch_sampler=sampler,
            num_workers=self.workers,
            collate_fn=collate,
            pin_memory=fabric.device.type == "cuda",
        )
        log = _Log(self.folder, done) if fabric.is_global_zero else None
        if log and done == 0:
            log.write({"iteration": 0, "images": n_images, "iterations": total, "per_epoch": per_epoch})
        method.start_epoch(done // per_epoch)
        for iteration, loaded in enumerate(track(loader, self._describe, total=total, completed=done), start=done):
            if iteration % per_epoch == 0:
                method.start_epoch(iteration // per_epoch)
            batch: Batch = loaded.to(fabric.device)
            factor = poly_factor(iteration, warmup, total, options.poly_power, constant)
            for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
                group["lr"] = rate * factor
            draws = keyed_generator(self.seed, "iteration", self.step, iteration, fabric.global_rank)
            # dropout draws from the global generator: keyed likewise, so that a resumed run draws the same
            torch.manual_seed(int(torch.randint(2**62, (1,), generator=draws)))
            optimizer.zero_grad(set_to_none=True)
            losses = accumulate_gradients(fabric, module, method, batch, options.accumulate, draws)
            if self.gradient_clip is not None:
                # in half precision an overflow is usual: the loss scaler skips that update
                finite = fabric.strategy.precision.precision != "16-mixed"
                fabric.clip_gradients(module, wrapped, max_norm=self.gradient_clip, error_if_nonfinite=finite)
            wrapped.step()

            finished = iteration + 1
            epoch_ends = finished % per_epoch == 0
            if log and (finished % LOG_EVERY == 0 or epoch_ends):
                self._losses.clear()
                self._losses.update({name: float(loss) for name, loss in losses.items()})
                seconds = (time.monotonic() - started) / (finished - done)
                log.write(
                    {
                        "iteration": finished,
                        "epoch": finished / per_epoch,
                        "learning_rate": optimizer.param_groups[0]["lr"],
                        "seconds_per_iteration": round(seconds, 4),
                        "losses": dict(self._losses),
                    }
                )
            if self.validate and self.validate_every and epoch_ends and finished < total:
                epoch = finished // per_epoch
                if epoch % self.validate_every == 0:
                    with as_written() if self.compile else nullcontext():
                        figures = self.validate()
                    method.start_epoch(epoch)
                    if log:
                        log.write({"iteration": finished, "epoch": epoch, "validation": figures})
            if log and (epoch_ends or finished % self.checkpoint_every == 0):
                seconds = seconds_before + time.monotonic() - started
                save_checkpoint(state, finished, method, optimizer, seconds, fabric.strategy.precision)
        if log:
            log.close()
        return seconds_before + time.monotonic() - started

    def _describe(self) -> str:
        if not self._losses:
            return self.description
        return f"{self.description} (loss {sum(self._losses.values()):.4f})"


def build_optimizer(
    options: OptimizationConfig, groups: list[dict[str, object]], fused: bool = True
) -> torch.optim.Optimizer:
    """The configured optimizer over parameter groups that hold their rates.

    AdamW's update is ``fused`` into one pass over memory, on two CPU cores in a fifth of the time; that cannot be had
    together with gradient clipping under ``16-mixed``. SGD's fused update fails where a parameter gets its first
    gradient later than another, as the student does after the teacher's warm-up.
    """
    if options.optimizer == "adamw":
        betas = (options.momentum, 0.999)
        return torch.optim.AdamW(groups, betas=betas, weight_decay=options.weight_decay, fused=fused)
    return torch.optim.SGD(
        groups, momentum=options.momentum, weight_decay=options.weight_decay, nesterov=options.nesterov, foreach=True
    )


class _Log:
    """``metrics.jsonl`` and TensorBoard, cut back to the iteration where a resumed run starts."""

    def __init__(self, folder: Path, done: int) -> None:
        self.path = folder / "metrics.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        kept = _lines_until(self.path, done) if done else []
        write_atomically(self.path, lambda path: path.write_text("".join(line + "\n" for line in kept)))
        self.file = self.path.open("a")
        events = folder / "tensorboard"
        if not done:
            shutil.rmtree(events, ignore_errors=True)
        self.board = SummaryWriter(os.fspath(events), purge_step=done + 1 if done else None)

    def write(self, record: dict[str, Any]) -> None:
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()
        for name, value in _scalars(record):
            self.board.add_scalar(name, value, record["iteration"])

    def close(self) -> None:
        self.file.close()
        self.board.close()


def _lines_until(path: Path, iteration: int) -> list[str]:
    """The whole lines of a log up to an iteration; a line that a kill cut short is dropped."""
    kept = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            record = json.loads(line)
        except ValueError:
            break
        if record["iteration"] <= iteration:
            kept.append(line)
    return kept


def _scalars(record: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    scalars: list[tuple[str, float]] = []
    for name, value in record.items():
        if isinstance(value, dict):
            scalars += _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name not in ("iteration", "epoch"):
            scalars.append((prefix + name, float(value)))
    return scalars
