"""Distance of features that are pooled over rows and columns of windows (PLOP; Douillard et al., CVPR 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmwiss.losses.distillation import single

Normalisation = Literal["mean", "length", "none"]


class LocalPODLoss(nn.Module):
    """Euclidean distance of two maps' local POD embeddings, mean over the photographs.

    Both maps are squared, then pooled (:func:`local_pod`).

    Args:
        windows: sides of the grids that a map is cut into.
        normalisation: what both embeddings are divided by before they are compared. ``mean``: the mean of the old map's
            squares in the photograph, so that the loss does not depend on the scale of the encoder's features.
            ``length``: each by its own length. ``none``: nothing, as in the published code.

    Shapes:
        new, old ``(B, C, h, w)``. Returns a scalar, of at least single precision.

    Example:
        >>> loss = LocalPODLoss(windows=(1,), normalisation="none")
        >>> loss(torch.full((1, 1, 1, 1), 2.0), torch.ones(1, 1, 1, 1))
        tensor(4.2426)
    """

    def __init__(self, windows: Sequence[int] = (1, 2, 4), normalisation: Normalisation = "mean") -> None:
        super().__init__()
        self.windows = tuple(windows)
        self.normalisation = normalisation

    def forward(self, new: Tensor, old: Tensor) -> Tensor:
        new, old = single(new).square(), single(old).square()
        first, second = local_pod(new, self.windows), local_pod(old, self.windows)
        if self.normalisation == "length":
            first, second = F.normalize(first, dim=1), F.normalize(second, dim=1)
        distances = torch.linalg.vector_norm(first - second, dim=1)
        if self.normalisation == "mean":
            distances = distances / old.mean(dim=(1, 2, 3)).clamp(min=torch.finfo(old.dtype).tiny)
        return distances.mean()


def local_pod(maps: Tensor, windows: Sequence[int]) -> Tensor:
    """Means over the rows and over the columns of every window of ``(B, C, h, w)`` maps, side by side ``(B, n)``.

    A map is cut into ``s x s`` windows for every s of ``windows``; where it cannot be cut into equal ones they differ
    by one place, and a map of fewer places than s has as many windows as places.
    """
    parts = []
    for side in windows:
        for rows in torch.tensor_split(maps, min(side, maps.shape[2]), dim=2):
            for window in torch.tensor_split(rows, min(side, maps.shape[3]), dim=3):
                parts += [window.mean(dim=3).flatten(1), window.mean(dim=2).flatten(1)]
    return torch.cat(parts, dim=1)


def merge_new(logits: Tensor, n_old: int) -> Tensor:
    """Logits ``(B, |Y_t|, h, w)`` with those of new classes added to the background's: ``(B, n_old, h, w)``."""
    background = logits[:, :1] + logits[:, n_old:].sum(dim=1, keepdim=True)
    return torch.cat([background, logits[:, 1:n_old]], dim=1)
