"""Losses: one a file, tensors only."""

from fmwiss.losses.dense_contrastive import DenseContrastiveLoss, sample_points
from fmwiss.losses.pixel_bce import PixelBCELoss

__all__ = ["DenseContrastiveLoss", "PixelBCELoss", "sample_points"]
