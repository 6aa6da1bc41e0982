"""Frozen models behind small interfaces: vision-language, self-supervised and saliency models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from fmwiss.config import SelfSupervisedConfig, VisionLanguageConfig
from fmwiss.foundation.images import frozen
from fmwiss.foundation.interfaces import SaliencyModel, SelfSupervisedModel, VisionLanguageModel

__all__ = [
    "SaliencyModel",
    "SelfSupervisedModel",
    "VisionLanguageModel",
    "build_saliency",
    "build_self_supervised",
    "build_vision_language",
    "describe_classes",
]


def build_vision_language(
    config: VisionLanguageConfig, weights: Path | None = None, device: torch.device | str = "cpu"
) -> VisionLanguageModel:
    """The frozen model that a configuration names, on a device.

    Args:
        config: section ``cosegmentation.vision_language``.
        weights: folder of local weights (see :mod:`fmwiss.foundation.weights`), looked at before the hub.

    Raises:
        UserError: unknown model, no weights to be had, weights of another model.
    """
    if config.name == "imagenet-names":
        from fmwiss.foundation.imagenet_names import ImageNetNames
        from fmwiss.foundation.weights import load_timm

        classifier = load_timm(config.model, weights)
        return frozen(ImageNetNames(classifier, config.model, config.rows, config.rivals), device)

    from fmwiss.foundation.clip import load_clip

    return frozen(load_clip(config, weights), device)


def build_self_supervised(
    config: SelfSupervisedConfig, weights: Path | None = None, device: torch.device | str = "cpu"
) -> SelfSupervisedModel:
    """The frozen ViT that a configuration names, on a device; arguments and errors as above."""
    from fmwiss.foundation.self_supervised import load_self_supervised

    return frozen(load_self_supervised(config, weights), device)


def build_saliency(
    config: SelfSupervisedConfig, weights: Path | None = None, device: torch.device | str = "cpu"
) -> SaliencyModel:
    """The saliency of the frozen ViT that a configuration names; arguments and errors as above."""
    from fmwiss.foundation.saliency import NormalizedCut

    return NormalizedCut(build_self_supervised(config, weights, device))


def describe_classes(
    class_names: Sequence[str], config: VisionLanguageConfig
) -> list[tuple[str, list[tuple[str, str]]]]:
    """What stands for each class name, without loading a model.

    Returns:
        For every name, pairs: for ``imagenet-names`` a synset id and its words, for ``clip`` a row's name and the first
        of the prompts that it is the mean of.

    Raises:
        UserError: ``imagenet-names`` finds no ImageNet class for a name.
    """
    if config.name == "imagenet-names":
        from fmwiss.foundation.synsets import find_synsets, words_of

        return [
            (name, [(synset, words_of(synset)) for synset in find_synsets(name, config.rows)]) for name in class_names
        ]

    from fmwiss.foundation.clip import prompts, row_names

    return [(name, [(row, prompts(row)[0]) for row in row_names(name, config.rows)]) for name in class_names]
