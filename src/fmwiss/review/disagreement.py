"""How much the models disagree about a pseudo mask: what is likely to be wrong comes first.

Every term is in [0, 1], and the disagreement is the mean of those that there are:

- ``stages``: 1 - IoU of the vision-language model's own mask (``init``) and what the self-supervised model makes of it
  (``seeds`` in the paper's co-segmentation, ``refined`` in ``fmwiss-plus``);
- ``old model``: the share of the mask that the model of the step before takes for one of its own classes;
- ``new model``: 1 - IoU of the mask and the class as the model that has learnt the step predicts it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

STAGES, OLD, NEW = "stages", "old model", "new model"

_OTHER = {"seeds": "seeds", "propagated": "refined"}
"""By a stage that a co-segmentation has: the one that is compared with ``init``."""


def stage_term(stages: Mapping[str, Tensor]) -> list[float]:
    """1 - IoU of two stages of the masks, one number a class.

    Args:
        stages: bool ``(C, H, W)`` each, from ``StoredMasks.stages``.
    """
    other = next(second for first, second in _OTHER.items() if first in stages)
    return [1 - value for value in iou(stages["init"], stages[other])]


def iou(first: Tensor, second: Tensor) -> list[float]:
    """IoU of bool masks ``(C, H, W)``, class by class; of two empty ones 1."""
    common = (first & second).flatten(1).sum(1).double()
    either = (first | second).flatten(1).sum(1).double()
    return torch.where(either > 0, common / either.clamp(min=1), 1.0).tolist()


def old_term(masks: Tensor, labels: Tensor) -> list[float]:
    """The share of each mask that is one of the old model's classes; of an empty one 0.

    Args:
        masks: bool ``(C, H, W)``.
        labels: uint8 ``(H', W')``, the old model's prediction, 0 for its background.
    """
    known = _on_grid(labels, masks) > 0
    sizes = masks.flatten(1).sum(1)
    return ((masks & known).flatten(1).sum(1).double() / sizes.clamp(min=1)).tolist()


def new_term(masks: Tensor, labels: Tensor, classes: Sequence[int]) -> list[float]:
    """1 - IoU of each mask and a model's prediction of its class.

    Args:
        masks: bool ``(C, H, W)``.
        labels: uint8 ``(H', W')``, the prediction.
        classes: the C labels.
    """
    wanted = torch.tensor(list(classes), dtype=torch.uint8)
    return [1 - value for value in iou(masks, _on_grid(labels, masks) == wanted[:, None, None])]


def mean(terms: Mapping[str, float]) -> float:
    """The disagreement."""
    return sum(terms.values()) / len(terms)


def _on_grid(labels: Tensor, masks: Tensor) -> Tensor:
    size = [masks.shape[1], masks.shape[2]]
    return interpolate(labels[None, None].float(), size=size, mode="nearest-exact")[0, 0].to(torch.uint8)
