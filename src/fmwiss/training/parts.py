"""A batch in parts: those of several processes, and those that one process computes one after the other.

A loss is a mean over what a part has of it (its pixels, say), and parts differ in that. Each part's loss is weighted by
what it has, over what parts have on average, so that the mean over all parts, which is what DDP and the accumulation
take, is the loss of the whole batch, and its gradient the whole batch's gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from fmwiss.data.batches import Batch
from fmwiss.methods import Method
from fmwiss.processes import Processes

_PHOTOGRAPHS = "photographs"
"""What losses that a method does not count are means over."""


def accumulate_gradients(
    fabric: Fabric, module: Any, method: Method, batch: Batch, n_parts: int, draws: torch.Generator
) -> dict[str, Tensor]:
    """Add the gradient of all processes' batches to that of the parameters.

    Args:
        fabric: of the run.
        module: what ``fabric.setup`` made of the method.
        method: the method itself.
        batch: this process's share.
        n_parts: into how many parts it is cut, of which the memory holds one at a time.
        draws: for :meth:`Method.training_step`, part by part.

    Returns:
        The losses of this process's share, without their graphs.
    """
    processes = Processes(fabric.global_rank, fabric.world_size)
    if n_parts == 1 and processes.count == 1:
        losses: dict[str, Tensor] = module(vars(batch), draws)
        fabric.backward(torch.stack(list(losses.values())).sum())
        return {name: loss.detach() for name, loss in losses.items()}

    parts = batch.parts(n_parts)
    seen: dict[str, Tensor] = {}
    for number, (part, weights) in enumerate(zip(parts, part_weights(method, parts, processes), strict=True), start=1):
        with _synchronised(fabric, module, number == len(parts)):
            losses = module(vars(part), draws)
            weighed = {name: loss * _weight(weights, name).to(loss.dtype) for name, loss in losses.items()}
            fabric.backward(torch.stack(list(weighed.values())).sum() / len(parts))
        shown = losses if len(parts) == 1 else weighed
        for name, loss in shown.items():
            seen[name] = seen.get(name, 0.0) + loss.detach() / len(parts)
    return seen


def part_weights(method: Method, parts: Sequence[Batch], processes: Processes) -> list[dict[str, Tensor]]:
    """By loss, what each part has of it over what the parts of all processes have on average; 0 where none has any.

    Under ``photographs`` that of losses that the method does not count.
    """
    counts = [{_PHOTOGRAPHS: torch.tensor(len(part.ids), device=part.image.device), **method.extent(part)}
              for part in parts]  # fmt: skip
    names = list(counts[0])
    table = torch.stack([torch.stack([count[name].float() for name in names]) for count in counts])
    mean = processes.add_up(table.sum(dim=0)) / (len(parts) * processes.count)
    weights = table / mean.where(mean > 0, 1.0)
    return [dict(zip(names, row, strict=True)) for row in weights]


def _weight(weights: Mapping[str, Tensor], name: str) -> Tensor:
    return weights[name if name in weights else _PHOTOGRAPHS]


def _synchronised(fabric: Fabric, module: Any, last: bool) -> AbstractContextManager[None]:
    """Processes tell each other their gradients once, with the last part."""
    return fabric.no_backward_sync(module, enabled=not last)
