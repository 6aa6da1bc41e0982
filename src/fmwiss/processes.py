"""What the processes of one job share: work, values, and what each has found."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

T = TypeVar("T")

PATIENCE = timedelta(days=7)
"""How long a process waits at a barrier: one of them may label photographs, or copy files, while the others wait."""


@dataclass(frozen=True)
class Processes:
    """The processes that work on one job, and which of them this one is; all call the methods in the same order.

    Args:
        rank: this process.
        count: of all processes on all nodes.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def of_this_job(cls) -> Processes:
        """Those that torch has connected; one where it has connected none."""
        if distributed.is_available() and distributed.is_initialized():
            return cls(distributed.get_rank(), distributed.get_world_size())
        return ALONE

    @property
    def is_first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's part of the work: every ``count``-th item."""
        return list(items[self.rank :: self.count])

    def collect(self, mine: Iterable[T]) -> list[T]:
        """What all have made of their shares, in the order of the items that were shared."""
        shares: list[list[T]] = self.gather(list(mine))
        longest = max(map(len, shares))
        return [share[place] for place in range(longest) for share in shares if place < len(share)]

    def gather(self, mine: T) -> list[T]:
        """Everybody's value, in the order of ranks; it travels as a pickle, as tensors of other kinds cannot."""
        if self.count == 1:
            return [mine]
        values: list[Any] = [None] * self.count
        distributed.all_gather_object(values, mine, group=_patient())
        return values

    def add_up(self, values: Tensor) -> Tensor:
        """The sum over all processes, element by element; of integers exact. ``values`` is left alone."""
        if self.count == 1:
            return values
        total = values.clone()
        distributed.all_reduce(total)
        return total

    def stack(self, values: Tensor) -> Tensor:
        """``(count, *shape)``: everybody's values of one shape.

        What all compute from it alike, as a loss that each of them has whole, gets the gradient that one process would
        get: this process's own part carries its gradient times ``count``, and DDP takes the mean over processes.
        """
        if self.count == 1:
            return values[None]
        sent = values.detach().contiguous()
        received = [torch.empty_like(sent) for _ in range(self.count)]
        distributed.all_gather(received, sent)
        if values.requires_grad:
            received[self.rank] = sent + self.count * (values - sent)
        return torch.stack(received)

    def barrier(self) -> None:
        """Wait until everybody is here."""
        if self.count > 1:
            distributed.barrier(group=_patient())

    @contextmanager
    def first_goes_first(self) -> Iterator[None]:
        """The first process does what stands inside, then the others do; what it has written they find."""
        if not self.is_first:
            self.barrier()
        yield
        if self.is_first:
            self.barrier()


ALONE = Processes()


def _patient() -> Any:
    return _patient_group(distributed.group.WORLD)


@functools.lru_cache(maxsize=1)
def _patient_group(world: Any) -> Any:
    """A group on the CPU that waits long; the one of training gives up after half an hour."""
    return distributed.new_group(backend="gloo", timeout=PATIENCE)
