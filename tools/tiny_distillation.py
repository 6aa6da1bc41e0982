"""What the programs that train the tiny image encoders share: student and teacher, projections, schedules, the loop."""

from __future__ import annotations

import copy
import math
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmwiss.reporting.progress import track
from tiny_scenes import save_half

STRIDE = 8
"""Pixels of a place of a view, each way."""


class Projector(nn.Module):
    """From features to a space where they are compared, of length one."""

    def __init__(self, width: int, hidden: int = 512, bottleneck: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )

    def forward(self, features: Tensor) -> Tensor:
        return F.normalize(self.layers(features).float(), dim=-1)


def distil(
    student: nn.Module,
    losses: Callable[[nn.Module, nn.Module, float], dict[str, Tensor]],
    out: Path,
    iterations: int,
    learning_rate: float,
    momentum: float,
    after: Callable[[], None] = lambda: None,
) -> None:
    """Train a student to give its teacher's answers, and write the teacher's encoder.

    Args:
        student: has an ``encoder``; the teacher begins as its copy and follows it as a moving average.
        losses: from student, teacher and progress in [0, 1), the loss terms of one iteration, by name.
        out: file for the weights.
        iterations: of the optimizer.
        learning_rate: AdamW's, after the warm-up.
        momentum: the teacher's, at the first iteration; 1 at the last.
        after: called after every iteration.
    """
    teacher = copy.deepcopy(student).requires_grad_(False)
    decayed = [p for p in student.parameters() if p.ndim > 1]
    others = [p for p in student.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate)
    started, totals = time.monotonic(), Counter[str]()
    for iteration in track(range(iterations), "training"):
        progress = iteration / iterations
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (iteration + 1) / 100) * cosine(progress, 1.0, 0.02)
        terms = losses(student, teacher, progress)
        optimizer.zero_grad(set_to_none=True)
        sum(terms.values()).backward()  # type: ignore[union-attr]
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        after()
        follow(teacher, student, cosine(progress, momentum, 1.0))
        totals.update({name: float(term.detach()) for name, term in terms.items()})
        if (iteration + 1) % 50 == 0:
            minutes = (time.monotonic() - started) / 60
            means = ", ".join(f"{name} {total / 50:.3f}" for name, total in totals.items())
            print(f"{iteration + 1}: {means}, {minutes:.1f} min", flush=True)
            totals.clear()
        if (iteration + 1) % 250 == 0 or iteration + 1 == iterations:
            save_half(teacher.encoder, out)  # type: ignore[arg-type]


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move the teacher's parameters towards the student's, and take the student's statistics over."""
    for mine, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
        mine.lerp_(theirs, 1 - momentum)
    for mine, theirs in zip(teacher.buffers(), student.buffers(), strict=True):
        mine.copy_(theirs)


def of_the_other_view(features: Tensor) -> Tensor:
    """Exchange the first half of a batch, one view of every scene, with the second, the other view."""
    return torch.cat(features.chunk(2)[::-1])


def cosine(progress: float, start: float, end: float) -> float:
    """From ``start`` to ``end`` along half a cosine."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))
