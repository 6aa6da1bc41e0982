"""What an extension will cost, measured with iterations of the very model, photographs and settings."""

from __future__ import annotations

import math
import os
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fmwiss.config import Config
from fmwiss.data.batches import Batch, collate
from fmwiss.data.datasets import WeakDataset
from fmwiss.data.randomness import keyed_generator
from fmwiss.data.source import Source
from fmwiss.data.transforms import JointTransform
from fmwiss.foundation import build_self_supervised, build_vision_language
from fmwiss.methods import Method, build_method
from fmwiss.models import Segmenter
from fmwiss.pseudo_masks import working_size as frozen_size
from fmwiss.training.loop import build_optimizer

MEMORY_SHARE = 0.7
"""Of the memory that is free, what an iteration may take; a larger batch is halved."""

ROUNDS = 2
WORTHWHILE = 0.85
"""Share of single precision's time that half precision may take to be chosen."""


@dataclass(frozen=True)
class Estimate:
    """Seconds and GiB that were measured, and what follows."""

    warmup_iteration: float
    iteration: float
    pseudo_mask: float | None
    """A photograph, by the foundation models; None where these were not to be had."""
    prediction: float
    """A photograph, by the model."""
    memory_gib: float
    precision: str
    batch_size: int

    def seconds(self, config: Config, tagged: int, without: int, compared: int) -> dict[str, float]:
        """By part of the work, for photographs with a new class, without one, and to judge by."""
        photographs = tagged + without
        per_epoch = max(1, photographs // min(config.training.steps.batch_size, photographs))
        warmup = int(getattr(config.method, "warmup_epochs", 0))
        return {
            "pseudo masks": (self.pseudo_mask or 0.0) * tagged,
            "training": per_epoch * (warmup * self.warmup_iteration + config.training.steps.epochs * self.iteration),
            "evaluation": 2 * self.prediction * compared,
        }


class HalfMasks:
    """Pseudo masks for a trial: the upper half of every photograph."""

    def masks(self, image_id: str, classes: Sequence[str], epoch: int) -> Tensor:
        """Bool ``(len(classes), 2, 2)``."""
        masks = torch.zeros(len(classes), 2, 2, dtype=torch.bool)
        masks[:, 0] = True
        return masks

    def stages(self, image_id: str, classes: Sequence[str], epoch: int) -> dict[str, Tensor]:
        """:meth:`masks` alone."""
        return {"trial": self.masks(image_id, classes, epoch)}


def try_out(
    config: Config,
    folder: Path,
    source: Source,
    tags: Mapping[str, frozenset[str]],
    new: Sequence[str],
    weights: Path | None,
    device: torch.device,
    precision: str,
) -> Estimate:
    """Measure.

    Args:
        config: the experiment.
        folder: of the step whose model is extended.
        source: the photographs.
        tags: of those that are learnt from.
        new: the new classes.
        weights: folder of weights, for the foundation models.
        device: where it will run.
        precision: Fabric's, or ``auto``: bfloat16 where that is clearly faster than single precision.

    Raises:
        UserError: a model cannot be built, or a photograph not be read.
    """
    ids = list(tags)
    options = config.data
    transform = JointTransform(options.crop_size, options.resize, options.scale, options.flip, options.crop)
    seed = config.training.seed
    dataset = WeakDataset(source, ids, tags, new, transform, seed, HalfMasks(), None)
    draws = torch.get_rng_state()
    try:
        # first, as weights that are not to be had should not be told of after minutes
        masks = _pseudo_mask_seconds(config, source, tags, new, weights, device)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        model = Segmenter.load(folder)
        prediction = _predict(model.to(device), source, ids[0])
        samples = [dataset[0, place % len(ids)] for place in range(config.training.steps.batch_size)]
        trial = _Trial(config, folder, new, device)
        free = _free_gib(device)
        before = _begin_peak(device)
        least = collate(samples[:2])
        trial.iterate(least, "32-true", warmup=False)
        batch_size = len(samples)
        if free is not None and batch_size > 2:
            each = max(0.0, _peak_gib(device) - before) / 2
            while batch_size > 2 and each * batch_size > MEMORY_SHARE * free:
                batch_size = max(2, batch_size // 2)
        batch = collate(samples[:batch_size])
        choices = [precision] if precision != "auto" else ["32-true", "bf16-mixed"]
        seconds = dict.fromkeys(choices, math.inf)
        for _ in range(ROUNDS):  # in turn, and the best counts: other work on the machine comes and goes
            for choice in choices:
                seconds[choice] = min(seconds[choice], trial.iterate(batch, choice, warmup=False))
        fastest = choices[-1] if seconds[choices[-1]] < WORTHWHILE * seconds[choices[0]] else choices[0]
        warmup = trial.iterate(batch, fastest, warmup=True)
        memory = _peak_gib(device)
    finally:
        torch.set_rng_state(draws)
    return Estimate(warmup, seconds[fastest], masks, prediction, memory, fastest, batch_size)


class _Trial:
    """The method on a model of its own."""

    def __init__(self, config: Config, folder: Path, new: Sequence[str], device: torch.device) -> None:
        options = config.training.steps
        student, old = Segmenter.load(folder), Segmenter.load(folder)
        student.add_step(tuple(new), config.segmenter.classifier_init, config.segmenter.class_prior)
        self.method: Method = build_method(config.method, student, old, options.freeze_batch_norm).to(device)
        groups = self.method.parameter_groups(options.learning_rate, options.head_rate)
        self.optimizer = build_optimizer(options, groups)
        self.device = device

    def iterate(self, batch: Batch, precision: str, warmup: bool) -> float:
        """One iteration; its seconds."""
        self.method.start_epoch(0 if warmup else self.method.warmup_epochs)
        batch = batch.to(self.device)
        generator = keyed_generator(0, "trial")
        half = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
        _wait(self.device)
        started = time.perf_counter()
        with torch.autocast(self.device.type, half) if half is not None else nullcontext():
            losses = self.method.training_step(batch, generator)
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        self.optimizer.step()
        _wait(self.device)
        return time.perf_counter() - started


def _predict(model: Segmenter, source: Source, image_id: str) -> float:
    photograph = source.read_image(image_id)
    started = time.perf_counter()
    model.predict(photograph).cpu()
    return time.perf_counter() - started


def _pseudo_mask_seconds(
    config: Config, source: Source, tags: Mapping[str, frozenset[str]], new: Sequence[str], weights: Path | None,
    device: torch.device,
) -> float | None:
    """Seconds a photograph that both frozen models take."""
    options = config.cosegmentation
    if config.method.name not in ("fmwiss", "finetuning") or options.source != "foundation":
        return None
    vision = build_vision_language(options.vision_language, weights, device)
    patches = build_self_supervised(options.self_supervised, weights, device)
    image_id = next(iter(tags))
    photograph = source.read_image(image_id).to(device)[None].float() / 255
    classes = [name for name in new if name in tags[image_id]]

    def seen(size: int, stride: int) -> Tensor:
        target = frozen_size(photograph.shape[-2], photograph.shape[-1], size, stride)
        return torch.nn.functional.interpolate(photograph, target, mode="bilinear", antialias=True)

    best = math.inf
    for _ in range(2):
        started = time.perf_counter()
        with torch.inference_mode():
            vision.scores(seen(options.vision_language.input_size, vision.stride), classes)
            patches.mean_attention(seen(options.self_supervised.input_size, patches.patch_size))
        _wait(device)
        best = min(best, time.perf_counter() - started)
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _begin_peak(device: torch.device) -> float:
    """Let :func:`_peak_gib` tell of what comes now alone, where the system allows it; the memory in use."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # Linux alone has it, and not everywhere may it be written
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _peak_gib(device)


def _peak_gib(device: torch.device) -> float:
    """Largest memory since :func:`_begin_peak`, of the GPU or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.is_file() else ():
        if line.startswith("VmHWM:"):
            return float(line.split()[1]) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def _free_gib(device: torch.device) -> float | None:
    """Memory that is to be had, where the system tells."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 2**30
    table = Path("/proc/meminfo")
    for line in table.read_text().splitlines() if table.is_file() else ():
        if line.startswith("MemAvailable:"):
            return float(line.split()[1]) / 2**20
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    except (AttributeError, OSError, ValueError):
        return None
