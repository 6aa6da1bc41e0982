"""Losses: one a file, tensors only."""

from fmwiss.losses.balanced_cross_entropy import BalancedCrossEntropyLoss, confident_labels
from fmwiss.losses.dense_contrastive import DenseContrastiveLoss, lowest_lots, sample_points
from fmwiss.losses.distillation import BinaryDistillationLoss, DistillationLoss, EntropyWeightedDistillationLoss
from fmwiss.losses.image_label import ImageLabelLoss
from fmwiss.losses.local_pod import LocalPODLoss
from fmwiss.losses.pixel_bce import PixelBCELoss
from fmwiss.losses.pixel_cross_entropy import PixelCrossEntropyLoss
from fmwiss.losses.prototypes import AttractionLoss, PrototypeMatchingLoss, RepulsionLoss
from fmwiss.losses.saliency import SaliencyLoss
from fmwiss.losses.sparsity import SparsityLoss
from fmwiss.losses.unbiased import UnbiasedCrossEntropyLoss, UnbiasedDistillationLoss

__all__ = [
    "AttractionLoss",
    "BalancedCrossEntropyLoss",
    "BinaryDistillationLoss",
    "DenseContrastiveLoss",
    "DistillationLoss",
    "EntropyWeightedDistillationLoss",
    "ImageLabelLoss",
    "LocalPODLoss",
    "PixelBCELoss",
    "PixelCrossEntropyLoss",
    "PrototypeMatchingLoss",
    "RepulsionLoss",
    "SaliencyLoss",
    "SparsityLoss",
    "UnbiasedCrossEntropyLoss",
    "UnbiasedDistillationLoss",
    "confident_labels",
    "lowest_lots",
    "sample_points",
]
