"""Pretrained weights that fmwiss knows by name: what they are, where they come from, and the file that they become.

Data, no code. A digest stands here where it is published (in the file's own address, or by its authors) or given alike
by several who use the file; elsewhere it is None, and ``fmwiss weights get`` prints the one that it finds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["clip", "timm", "dino", "ibot", "inplace-abn"]

_DINO = "https://dl.fbaipublicfiles.com/dino"
_IBOT = "https://lf3-nlp-opensource.bytetos.com/obj/nlp-opensource/archive/2022/ibot"
_IABN = "https://github.com/mapillary/inplace_abn"


@dataclass(frozen=True)
class Entry:
    """Weights under a name.

    Attributes:
        name: what ``fmwiss weights get`` calls them.
        kind: ``clip``: open_clip's from a hub; ``timm``: timm's from a hub; else a checkpoint of its authors, whose
            keys are renamed.
        model: open_clip's or timm's name of the model.
        file: safetensors file in the folder of weights.
        licence: of the weights, as their authors state it.
        page: where they are described.
        url: the checkpoint; None where there is none that a program could fetch.
        original: the checkpoint's usual name.
        digest: of the checkpoint, ``sha256:...`` or ``md5:...``.
        tag: open_clip's tag.
        size: of the checkpoint, bytes, about.
    """

    name: str
    kind: Kind
    model: str
    file: str
    licence: str
    page: str
    url: str | None = None
    original: str | None = None
    digest: str | None = None
    tag: str | None = None
    size: int = 0


def _clip(model: str, tag: str, licence: str, page: str, size: int) -> Entry:
    return Entry(f"{model}.{tag}", "clip", model, f"{model}.{tag}.safetensors", licence, page, tag=tag, size=size)


def _timm(model: str, licence: str, page: str, size: int) -> Entry:
    return Entry(model, "timm", model, f"{model}.safetensors", licence, page, size=size)


_OPENAI = "https://github.com/openai/CLIP"
_OPEN_CLIP = "https://github.com/mlfoundations/open_clip"
_DINOV2 = "https://github.com/facebookresearch/dinov2"
_DINOV3 = "https://github.com/facebookresearch/dinov3"

ENTRIES: tuple[Entry, ...] = (
    _clip("ViT-B-16-quickgelu", "openai", "MIT", _OPENAI, 600_000_000),
    _clip("ViT-B-32-quickgelu", "openai", "MIT", _OPENAI, 605_000_000),
    _clip("ViT-L-14-quickgelu", "openai", "MIT", _OPENAI, 1_710_000_000),
    _clip("RN50-quickgelu", "openai", "MIT", _OPENAI, 410_000_000),
    _clip("ViT-B-16", "laion2b_s34b_b88k", "MIT", _OPEN_CLIP, 600_000_000),
    _clip("ViT-L-14", "laion2b_s32b_b82k", "MIT", _OPEN_CLIP, 1_710_000_000),
    Entry(
        "dino-vit-s16", "dino", "vit_small_patch16_224.dino", "vit_small_patch16_224.dino.safetensors", "Apache-2.0",
        "https://github.com/facebookresearch/dino", f"{_DINO}/dino_deitsmall16_pretrain/dino_deitsmall16_pretrain.pth",
        "dino_deitsmall16_pretrain.pth", size=87_000_000,
    ),
    Entry(
        "dino-vit-b16", "dino", "vit_base_patch16_224.dino", "vit_base_patch16_224.dino.safetensors", "Apache-2.0",
        "https://github.com/facebookresearch/dino", f"{_DINO}/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth",
        "dino_vitbase16_pretrain.pth",
        # not published by the authors; several projects that check the file give the same
        "sha256:bf34ad0f424b9029b593e8dc3ed553bf26e88bcba0d32bf3e62a6209cb64c85e", size=343_242_485,
    ),
    Entry(
        "ibot-vit-s16", "ibot", "vit_small_patch16_224", "ibot_vit_small_patch16.safetensors", "Apache-2.0",
        "https://github.com/bytedance/ibot", f"{_IBOT}/vits_16/checkpoint_teacher.pth", "ibot_vit_small_patch16.pth",
        size=87_000_000,
    ),
    Entry(
        "ibot-vit-b16", "ibot", "vit_base_patch16_224", "ibot_vit_base_patch16.safetensors", "Apache-2.0",
        "https://github.com/bytedance/ibot", f"{_IBOT}/vitb_16/checkpoint_teacher.pth", "ibot_vit_base_patch16.pth",
        size=343_000_000,
    ),
    Entry(
        "ibot-vit-l16", "ibot", "vit_large_patch16_224", "ibot_vit_large_patch16.safetensors", "Apache-2.0",
        "https://github.com/bytedance/ibot", f"{_IBOT}/vitl_16/checkpoint_teacher.pth", "ibot_vit_large_patch16.pth",
        size=1_213_000_000,
    ),
    _timm("vit_small_patch14_dinov2.lvd142m", "Apache-2.0", _DINOV2, 88_000_000),
    _timm("vit_base_patch14_dinov2.lvd142m", "Apache-2.0", _DINOV2, 346_000_000),
    _timm("vit_large_patch14_dinov2.lvd142m", "Apache-2.0", _DINOV2, 1_217_000_000),
    _timm("vit_small_patch16_dinov3.lvd1689m", "DINOv3 License", _DINOV3, 86_000_000),
    _timm("vit_base_patch16_dinov3.lvd1689m", "DINOv3 License", _DINOV3, 343_000_000),
    _timm("vit_large_patch16_dinov3.lvd1689m", "DINOv3 License", _DINOV3, 1_213_000_000),
    Entry(
        "wide-resnet38-iabn", "inplace-abn", "wide_resnet38_a2", "wide_resnet38_a2.safetensors",
        "ImageNet's terms of access", _IABN, None, "wide_resnet38_ipabn_lr_256.pth.tar",
        "md5:0f9746bedb62d9f94c4437cfb8e6f2d8", size=437_000_000,
    ),
    Entry(
        "resnet101-iabn", "inplace-abn", "resnet101_leaky", "resnet101_leaky.safetensors",
        "ImageNet's terms of access", _IABN,
        # the authors' file, as the literature on incremental segmentation hands it on (PLOP, CVPR 2021)
        "https://github.com/arthurdouillard/CVPR2021_PLOP/releases/download/v1.0/resnet101_iabn_sync.pth.tar",
        "resnet101_iabn_sync.pth.tar", size=179_000_000,
    ),
)
