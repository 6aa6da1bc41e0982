"""What the loader hands to a method: one sample, and a batch of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """One training crop of S x S pixels; fields that the step does not have are None.

    Attributes:
        id: image id.
        image: float RGB in [0, 1], ``(3, S, S)``.
        valid: bool ``(S, S)``, False where the crop reaches beyond the photograph.
        mask: uint8 ``(S, S)``, labels of the model, 255 void and padding.
        pseudo: bool ``(C_new, S, S)``, channel j is the j-th class of ``protocol.new(t)``; untagged ones are False;
            None where the method learns from no pseudo masks.
        tags: bool ``(C_new,)``, which of the step's new classes the photograph is tagged with.
        pasted: uint8 ``(S, S)``, label of the old class pasted there, 0 elsewhere.
        saliency: uint8 ``(S, S)``, 255 where something stands out, 0 elsewhere and on padding.
        replayed: bool ``()``, whether the photograph is of another step's classes and its mask a model's.
    """

    id: str
    image: Tensor
    valid: Tensor
    mask: Tensor | None = None
    pseudo: Tensor | None = None
    tags: Tensor | None = None
    pasted: Tensor | None = None
    saliency: Tensor | None = None
    replayed: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """B samples.

    Attributes:
        ids: image ids.
        image: float RGB in [0, 1], ``(B, 3, S, S)``.
        valid: bool ``(B, S, S)``, False where a crop reaches beyond its photograph.
        mask: int64 ``(B, S, S)``, labels of the model, 255 void and padding; None in a step that learns from tags.
        pseudo: bool ``(B, C_new, S, S)``, channel j is the j-th class of ``protocol.new(t)``; untagged ones are False;
            None where the method learns from no pseudo masks.
        tags: bool ``(B, C_new)``, which of the step's new classes each photograph is tagged with.
        pasted: int64 ``(B, S, S)``, label of the old class pasted there, 0 elsewhere; None without copy-paste.
        saliency: uint8 ``(B, S, S)``, 255 where something stands out; None where the method does not ask for it.
        replayed: bool ``(B,)``, whose masks are a model's, of photographs of old classes; None without replay.
    """

    ids: tuple[str, ...]
    image: Tensor
    valid: Tensor
    mask: Tensor | None = None
    pseudo: Tensor | None = None
    tags: Tensor | None = None
    pasted: Tensor | None = None
    saliency: Tensor | None = None
    replayed: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory; ``DataLoader(pin_memory=True)`` calls this."""
        return self._with_tensors(Tensor.pin_memory)

    def parts(self, n: int) -> list[Batch]:
        """At most ``n`` batches of as equal sizes as can be: part i has the samples i, i + n, ..."""
        if n == 1:
            return [self]
        n = min(n, len(self.ids))
        return [replace(self._with_tensors(lambda t, i=i: t[i::n]), ids=self.ids[i::n]) for i in range(n)]  # type: ignore[misc]

    def _with_tensors(self, change: Callable[[Tensor], Tensor]) -> Batch:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        changed: dict[str, Any] = {name: change(v) for name, v in values.items() if isinstance(v, Tensor)}
        return replace(self, **changed)


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples of one step and crop size to a :class:`Batch`."""

    def stacked(part: Callable[[Sample], Tensor | None]) -> Tensor | None:
        parts = [tensor for tensor in map(part, samples) if tensor is not None]
        return torch.stack(parts) if parts else None

    def labels(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.long()

    return Batch(
        ids=tuple(sample.id for sample in samples),
        image=torch.stack([sample.image for sample in samples]),
        valid=torch.stack([sample.valid for sample in samples]),
        mask=labels(stacked(lambda sample: sample.mask)),
        pseudo=stacked(lambda sample: sample.pseudo),
        tags=stacked(lambda sample: sample.tags),
        pasted=labels(stacked(lambda sample: sample.pasted)),
        saliency=stacked(lambda sample: sample.saliency),
        replayed=stacked(lambda sample: sample.replayed),
    )
