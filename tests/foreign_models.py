"""Tiny models with random weights, saved to disk by the libraries that they are of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

CITY = ("road", "building", "person", "car")
PETS = ("background", "cat", "dog")


def save_smp(
    folder: Path, kind: str = "Unet", classes: int = 3, labels: tuple[str, ...] | None = PETS, **more: Any
) -> Any:
    """A model of ``segmentation_models_pytorch``, and the names of its outputs as ``classes.txt``."""
    import segmentation_models_pytorch as smp

    torch.manual_seed(0)
    size = {"encoder_depth": 5, "decoder_channels": (16, 16, 8, 8, 8)} if kind == "Unet" else {}
    options = {"encoder_name": "tu-test_resnet" if kind == "Unet" else "resnet18", "encoder_weights": None, **size}
    model = getattr(smp, kind)(**{**options, "classes": classes, **more}).eval()
    model.save_pretrained(folder)
    if labels is not None:
        (folder / "classes.txt").write_text("\n".join(labels) + "\n")
    return model


def save_segformer(folder: Path, labels: tuple[str, ...] = CITY, processor: dict[str, Any] | None = None) -> Any:
    """A SegFormer of 0.02 million parameters."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

    torch.manual_seed(0)
    config = SegformerConfig(
        depths=[1] * 4, hidden_sizes=[8, 8, 16, 16], num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=16,
        id2label=dict(enumerate(labels)), label2id={name: i for i, name in enumerate(labels)},
    )
    model = _confident(SegformerForSemanticSegmentation(config).eval(), "decode_head.classifier")
    model.save_pretrained(folder)
    if processor is not None:
        SegformerImageProcessor(**processor).save_pretrained(folder)
    return model


def save_mobilenet(folder: Path, labels: tuple[str, ...] = PETS) -> Any:
    """A DeepLab on MobileNetV2, a quarter as wide as usual."""
    from transformers import MobileNetV2Config, MobileNetV2ForSemanticSegmentation

    torch.manual_seed(0)
    config = MobileNetV2Config(
        depth_multiplier=0.25, output_stride=16, id2label=dict(enumerate(labels)),
        label2id={name: i for i, name in enumerate(labels)},
    )
    model = _confident(MobileNetV2ForSemanticSegmentation(config).eval(), "segmentation_head.classifier.convolution")
    model.save_pretrained(folder)
    return model


def _confident(model: Any, head: str) -> Any:
    """Scores apart from each other, so that predictions do not hang on the last digit."""
    with torch.no_grad():
        model.get_submodule(head).weight.mul_(50)
    return model
