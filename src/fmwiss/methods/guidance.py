"""What a batch says about its pixels, at the resolution of a loss."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fmwiss.data.batches import Batch
from fmwiss.errors import UserError

BACKGROUND = 0
"""Its label."""


@dataclass(frozen=True)
class Guidance:
    """What supervises the pixels of a batch.

    Shapes: valid ``(B, 1, H, W)`` bool, False on padding; pseudo ``(B, |C_t|, H, W)`` float, M_refine in {0, 1}, 0 on
    pasted pixels; tags ``(B, |C_t|, 1, 1)`` bool; pasted ``(B, 1, H, W)`` integer, label of the pasted old class or 0.
    """

    valid: Tensor
    pseudo: Tensor
    tags: Tensor
    pasted: Tensor

    @classmethod
    def of(cls, batch: Batch, stride: float) -> Guidance:
        """Every ``stride``-th pixel of the batch's maps, taken at the cells' centres."""
        if batch.pseudo is None or batch.tags is None:
            raise ValueError("this method learns from pseudo masks and tags, and the batch has none")
        pasted = torch.zeros_like(batch.valid, dtype=torch.long) if batch.pasted is None else batch.pasted
        return cls(
            valid=thin(batch.valid, stride)[:, None],
            pseudo=thin(batch.pseudo, stride).to(batch.image.dtype),
            tags=batch.tags[:, :, None, None],
            pasted=thin(pasted, stride)[:, None],
        )


def thin(maps: Tensor, stride: float) -> Tensor:
    """Every ``stride``-th pixel of square maps ``(..., S, S)``, taken at the cells' centres."""
    if stride == 1:
        return maps
    side = maps.shape[-1]
    cells = torch.arange(math.ceil(side / stride), device=maps.device)
    centres = ((cells + 0.5) * stride).long().clamp(max=side - 1)
    return maps[..., centres[:, None], centres]


def resize_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """``(B, C, h, w)`` logits at the resolution of a loss; those from inference mode become ones that it may keep."""
    if logits.shape[-2:] == size:
        return logits.clone() if logits.is_inference() else logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def hard_target(pseudo: Tensor, old: Tensor) -> Tensor:
    """What a student learns from masks and the old model, ``(B, |Y_t|, H, W)`` in [0, 1].

    Args:
        pseudo: masks of the new classes, bool ``(B, |C_t|, H, W)``; under them there is no background.
        old: the old model's sigmoid outputs, ``(B, |Y_{t-1}|, H, W)``, the background first.
    """
    target = torch.cat([old, pseudo.to(old.dtype)], dim=1)
    target[:, BACKGROUND].masked_fill_(pseudo.any(dim=1), 0.0)
    return target


def known_classes(tags: Tensor, n_old: int) -> Tensor:
    """Old classes and tagged new ones, bool ``(B, |Y_t|, 1, 1)``, of tags ``(B, |C_t|)``; others may be there."""
    return torch.cat([tags.new_ones(len(tags), n_old), tags], dim=1)[:, :, None, None]


def check_stride(stride: int, crop_size: int, key: str = "method.loss_stride") -> None:
    """Raise UserError where a stride, that of ``key``, leaves part of a cell at the crop's edge."""
    if crop_size % stride:
        raise UserError(
            f"{key} = {stride} does not divide data.crop_size = {crop_size}; give one that does."
        )
