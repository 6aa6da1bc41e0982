"""Losses: one a file, tensors only."""

from fmwiss.losses.balanced_cross_entropy import BalancedCrossEntropyLoss, confident_labels
from fmwiss.losses.dense_contrastive import DenseContrastiveLoss, sample_points
from fmwiss.losses.image_label import ImageLabelLoss
from fmwiss.losses.pixel_bce import PixelBCELoss
from fmwiss.losses.saliency import SaliencyLoss

__all__ = [
    "BalancedCrossEntropyLoss",
    "DenseContrastiveLoss",
    "ImageLabelLoss",
    "PixelBCELoss",
    "SaliencyLoss",
    "confident_labels",
    "sample_points",
]
