"""Where the features of classes lie: matching, attraction and repulsion (SDR; Michieli and Zanuttigh, CVPR 2021)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from fmwiss.losses.distillation import single

NO_CLASS = 255
"""Label of places that belong to no class."""
SMALLEST = 1e-3
"""Distances below this repel no more."""


class PrototypeMatchingLoss(nn.Module):
    """Mean squared error between classes' mean features now and their prototypes.

    The mean over channels and over the classes that are there and have a prototype.

    Shapes:
        features ``(B, D, h, w)``; labels ``(B, h, w)`` integer, ``NO_CLASS`` where there is none; prototypes
        ``(n, D)``; known ``(n,)`` bool, the classes that have one. Returns a scalar; 0 where no such class is there.

    Example:
        >>> loss, labels = PrototypeMatchingLoss(), torch.tensor([[[0, 0]]])
        >>> features = torch.tensor([1.0, 3.0]).view(1, 1, 1, 2)
        >>> loss(features, labels, torch.zeros(1, 1), torch.tensor([True]))
        tensor(4.)
    """

    def forward(self, features: Tensor, labels: Tensor, prototypes: Tensor, known: Tensor) -> Tensor:
        sums, counts = class_sums(features, labels, len(prototypes))
        means = sums / counts.clamp(min=1)[:, None]
        present = (counts > 0) & known
        errors = (means - prototypes.to(means.dtype)).square().mean(dim=1)
        return (errors * present).sum() / present.sum().clamp(min=1)


class AttractionLoss(nn.Module):
    """Mean squared error between features and their class's prototype.

    The mean over channels, over a class's places, and over the classes that are there and have a prototype.

    Shapes:
        as in :class:`PrototypeMatchingLoss`.

    Example:
        >>> loss, labels = AttractionLoss(), torch.tensor([[[0, 0]]])
        >>> features = torch.tensor([1.0, 3.0]).view(1, 1, 1, 2)
        >>> loss(features, labels, torch.zeros(1, 1), torch.tensor([True]))
        tensor(5.)
    """

    def forward(self, features: Tensor, labels: Tensor, prototypes: Tensor, known: Tensor) -> Tensor:
        places, classes = _by_place(features, labels, len(prototypes))
        errors = (places - prototypes.to(places.dtype)[classes]).square().mean(dim=1)
        counts = classes.bincount(minlength=len(prototypes))
        per_class = errors.new_zeros(len(prototypes)).index_add(0, classes, errors) / counts.clamp(min=1)
        present = (counts > 0) & known
        return (per_class * present).sum() / present.sum().clamp(min=1)


class RepulsionLoss(nn.Module):
    """Mean over the ordered pairs of classes that are there of the inverse distance between their mean features.

    Shapes:
        features and labels as in :class:`PrototypeMatchingLoss`; n, the number of classes. Returns a scalar; 0 where
        there are not two classes.

    Example:
        >>> loss, labels = RepulsionLoss(), torch.tensor([[[0, 1]]])
        >>> loss(torch.tensor([1.0, 5.0]).view(1, 1, 1, 2), labels, 2)
        tensor(0.2500)
    """

    def forward(self, features: Tensor, labels: Tensor, n: int) -> Tensor:
        sums, counts = class_sums(features, labels, n)
        means = sums[counts > 0] / counts[counts > 0][:, None]
        if len(means) < 2:
            return features.sum() * 0.0
        # pdist's gradient is defined where two means are the same
        return F.pdist(means).clamp(min=SMALLEST).reciprocal().mean()


def class_sums(features: Tensor, labels: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Sums ``(n, D)`` of the features at each class's places, and how many places they are, integer ``(n,)``.

    Args:
        features: ``(B, D, h, w)``.
        labels: ``(B, h, w)`` integer, ``NO_CLASS`` or others from n on where a place belongs to no class.
        n: number of classes.
    """
    places, classes = _by_place(features, labels, n)
    # no matrix product: mixed precision would take it at half of it
    sums = places.new_zeros(n, places.shape[1]).index_add(0, classes, places)
    return sums, classes.bincount(minlength=n)


def _by_place(features: Tensor, labels: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The features ``(m, D)`` of the places that have a class, and their classes ``(m,)``."""
    flat = labels.flatten()
    kept = flat < n
    return single(features).permute(0, 2, 3, 1).flatten(0, 2)[kept], flat[kept]
