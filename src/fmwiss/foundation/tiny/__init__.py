"""The tiny models that come with the package: trained on EmojiSeg by the programs in ``tools/``, see the model cards.

They are a ResNet CLIP of open_clip's classes, and a self-supervised ViT and ResNet of timm's. Importing this module
makes the architectures of the last two known to timm under the names below, importing :mod:`fmwiss.foundation.clip`
that of the first to open_clip (whose import takes a second or two, and most commands need no CLIP). From there on they
are found and loaded like any other model, and their weights lie in :data:`FOLDER`, half precision.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

FOLDER = Path(__file__).parent
CLIP = "TinyCLIP-emoji"
CLIP_TAG = "emojiseg"
VIT = "vit_emoji_patch8_80"
RESNET = "resnet_emoji"

_MEAN_STD = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
default_cfgs = generate_default_cfgs(
    {
        f"{VIT}.dino": {"input_size": (3, 80, 80), "num_classes": 0, "first_conv": "patch_embed.proj", **_MEAN_STD},
        f"{RESNET}.dino": {
            "input_size": (3, 96, 96), "num_classes": 0, "first_conv": "conv1.0", "classifier": "fc", **_MEAN_STD
        },
    }
)


@register_model
def vit_emoji_patch8_80(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """timm's ViT with 4 blocks of width 128 on patches of 8 pixels."""
    size = {"img_size": 80, "patch_size": 8, "embed_dim": 128, "depth": 4, "num_heads": 4, "num_classes": 0}
    return build_model_with_cfg(
        VisionTransformer, VIT, pretrained, pretrained_filter_fn=checkpoint_filter_fn, **{**size, **kwargs}
    )


@register_model
def resnet_emoji(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """timm's ResNet with one basic block a stage."""
    size = {
        "block": BasicBlock, "layers": (1, 1, 1, 1), "channels": (32, 64, 96, 160), "stem_type": "deep",
        "stem_width": 16, "avg_down": True, "num_classes": 0,
    }
    return build_model_with_cfg(ResNet, RESNET, pretrained, **{**size, **kwargs})
