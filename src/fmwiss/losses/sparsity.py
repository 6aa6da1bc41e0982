"""Features of few active channels (SDR; Michieli and Zanuttigh, CVPR 2021)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fmwiss.losses.distillation import single

SMALLEST = 1e-2
"""Of a place's sum over channels, after its class's largest value has become 1."""


class SparsityLoss(nn.Module):
    """Mean over the counted places of ``sum_d exp(f_d) / sum_d f_d``, with f the normalised features.

    The positive parts of the features are divided by the largest value that any channel has anywhere at the places of
    the same label: what is active should be as active as that, and the rest silent.

    Shapes:
        features ``(B, D, h, w)``; labels ``(B, h, w)`` integer in [0, 255], 255 where a place does not count. Returns
        a scalar, of at least single precision; 0 when nothing counts.

    Example:
        >>> loss, features = SparsityLoss(), torch.tensor([2.0, 0.0]).view(1, 2, 1, 1)
        >>> loss(features, torch.zeros(1, 1, 1, dtype=torch.long))
        tensor(3.7183)
    """

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        flat = labels.flatten()
        kept = flat != 255
        places = single(features).permute(0, 2, 3, 1).flatten(0, 2)[kept].relu()
        if len(places) == 0:
            return features.sum() * 0.0
        largest = places.new_zeros(256).scatter_reduce(0, flat[kept], places.amax(dim=1), "amax")
        normalised = places / largest[flat[kept]].clamp(min=torch.finfo(places.dtype).tiny)[:, None]
        total = normalised.sum(dim=1)
        return (normalised.exp().sum(dim=1) / total.clamp(min=SMALLEST)).mean()
