"""Wide-ResNet-38 A2, and ResNet-101 with leaky ReLU: the encoders that InPlace-ABN's authors trained on ImageNet.

Wide-ResNet-38 is "model A" of Wu, Shen and van den Hengel, "Wider or Deeper: Revisiting the ResNet Model for Visual
Recognition" (Pattern Recognition 2019), the A2 variant of Rota Bulo, Porzi and Kontschieder, "In-Place Activated
BatchNorm" (CVPR 2018), with which WILSON and FMWISS learn COCO-to-VOC. Importing this module makes both known to timm.

The published weights were trained with in-place activated batch norm, which is plain batch norm and leaky ReLU with
another parametrisation; :mod:`fmwiss.foundation.inplace_abn` rewrites them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import BatchNormAct2d, create_classifier
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import Bottleneck, ResNet
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

WIDE_RESNET38 = "wide_resnet38_a2"
RESNET101_LEAKY = "resnet101_leaky"

NEGATIVE_SLOPE = 0.01
BLOCKS = (3, 3, 6, 3, 1, 1)
"""Blocks of the groups 2 to 7; with two convolutions a block in the first four groups, three in the others, stem and
classifier, 38 layers."""
CHANNELS = ((128, 128), (256, 256), (512, 512), (512, 1024), (512, 1024, 2048), (1024, 2048, 4096))
"""Channels of every convolution of a group's blocks."""
DROPOUT = (0.0, 0.0, 0.0, 0.0, 0.3, 0.5)
_STRIDES = (1, 1, 2, 2, 2, 1)
"""Of a group's first block, where nothing is dilated; max-pooling stands before the first two groups."""

_IMAGENET = {
    "num_classes": 1000, "input_size": (3, 224, 224), "pool_size": (7, 7), "crop_pct": 0.875,
    "interpolation": "bilinear", "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225),
}
default_cfgs = generate_default_cfgs(
    {
        f"{WIDE_RESNET38}.iabn_in1k": {**_IMAGENET, "first_conv": "conv1", "classifier": "fc"},
        f"{RESNET101_LEAKY}.iabn_in1k": {**_IMAGENET, "first_conv": "conv1", "classifier": "fc"},
    }
)


class IdentityBlock(nn.Module):
    """Pre-activation residual block (He et al., ECCV 2016): two 3x3 convolutions, or 1x1, 3x3, 1x1.

    Where the shape changes, the short cut is a 1x1 convolution of the activated input, else the input itself.

    Args:
        in_channels: of the input.
        channels: of each convolution, two or three.
        stride: of the first convolution.
        dilation: of the 3x3 convolutions.
        dropout: probability that a channel is dropped before the last convolution.
    """

    def __init__(self, in_channels: int, channels: Sequence[int], stride: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = _norm(in_channels)
        first, *others = channels
        side = 3 if len(channels) == 2 else 1
        self.conv1 = _conv(in_channels, first, side, stride, dilation)
        self.bn2 = _norm(first)
        self.conv2 = _conv(first, others[0], 3, 1, dilation)
        if len(channels) == 3:
            self.bn3 = _norm(others[0])
            self.conv3 = _conv(others[0], others[1], side, 1, dilation)
        self.dropout = nn.Dropout2d(dropout)
        changes = stride != 1 or in_channels != channels[-1]
        self.proj_conv = _conv(in_channels, channels[-1], 1, stride, 1) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, h, w)`` to ``(B, channels[-1], h / stride, w / stride)``."""
        activated = self.bn1(x)
        shortcut = x if self.proj_conv is None else self.proj_conv(activated)
        out = self.bn2(self.conv1(activated))
        if hasattr(self, "conv3"):
            out = self.conv3(self.dropout(self.bn3(self.conv2(out))))
        else:
            out = self.conv2(self.dropout(out))
        return out + shortcut


class WideResNet(nn.Module):
    """Wide-ResNet A2 as a timm model.

    Its stages are those of ``features_only``: the groups 2 to 5 and the activated output.

    Args:
        blocks: of each of the six groups.
        channels: of their blocks' convolutions.
        num_classes: of the classifier; 0 for none.
        in_chans: channels of the image.
        output_stride: 32, 16 or 8; where a stride is left out, the 3x3 convolutions from there on are dilated.
        global_pool: timm's name of the pooling before the classifier.
        drop_rate: dropout before the classifier.
    """

    def __init__(
        self,
        blocks: Sequence[int] = BLOCKS,
        channels: Sequence[Sequence[int]] = CHANNELS,
        num_classes: int = 1000,
        in_chans: int = 3,
        output_stride: int = 32,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        # what timm itself raises of its own models
        assert output_stride in (8, 16, 32), f"output_stride {output_stride} must be 8, 16 or 32"
        self.num_classes = num_classes
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        width = channels[0][0] // 2
        self.conv1 = _conv(in_chans, width, 3, 1, 1)
        reduction, dilation = 1, 1
        self.feature_info: list[dict[str, Any]] = []
        for group, (count, sizes, wanted, dropout) in enumerate(
            zip(blocks, channels, _STRIDES, DROPOUT, strict=True), start=2
        ):
            stride = wanted
            if group <= 3:
                self.add_module(f"pool{group}", nn.MaxPool2d(3, stride=2, padding=1))
                reduction *= 2
            elif reduction * stride > output_stride:
                stride, dilation = 1, dilation * stride
            else:
                reduction *= stride
            layers = []
            for number in range(count):
                layers.append(IdentityBlock(width, sizes, stride if number == 0 else 1, dilation, dropout))
                width = sizes[-1]
            self.add_module(f"mod{group}", nn.Sequential(*layers))
            if group <= 5:
                self.feature_info.append({"num_chs": width, "reduction": reduction, "module": f"mod{group}"})
        self.bn_out = _norm(width)
        self.feature_info.append({"num_chs": width, "reduction": reduction, "module": "bn_out"})
        self.num_features = self.head_hidden_size = width
        self.global_pool, self.fc = create_classifier(width, num_classes, pool_type=global_pool)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=NEGATIVE_SLOPE, nonlinearity="leaky_relu")

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Blocks are computed again in the backward pass in place of being kept."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The linear layer."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str = "avg") -> None:
        """Put another classifier in its place."""
        self.num_classes = num_classes
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=global_pool)

    def forward_features(self, x: Tensor) -> Tensor:
        """``(B, 3, H, W)`` to ``(B, 4096, h, w)`` at the output stride."""
        x = self.conv1(x)
        for group in range(2, 8):
            if group <= 3:
                x = getattr(self, f"pool{group}")(x)
            for block in getattr(self, f"mod{group}"):
                keep = not self.grad_checkpointing or torch.jit.is_scripting()
                x = block(x) if keep else checkpoint(block, x, use_reentrant=False)
        return self.bn_out(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Features to logits ``(B, num_classes)``, or to what the classifier sees."""
        x = nn.functional.dropout(self.global_pool(x), p=self.drop_rate, training=self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images ``(B, 3, H, W)`` to logits ``(B, num_classes)``."""
        return self.forward_head(self.forward_features(x))


def _conv(in_channels: int, out_channels: int, side: int, stride: int, dilation: int) -> nn.Conv2d:
    dilation = dilation if side == 3 else 1
    padding = dilation if side == 3 else 0
    return nn.Conv2d(in_channels, out_channels, side, stride, padding, dilation, bias=False)


def _norm(channels: int) -> BatchNormAct2d:
    return BatchNormAct2d(channels, act_layer="leaky_relu", act_kwargs={"negative_slope": NEGATIVE_SLOPE})


@register_model
def wide_resnet38_a2(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """Wide-ResNet-38 A2: 109.2 million parameters with the classifier of 1000 classes."""
    return build_model_with_cfg(WideResNet, WIDE_RESNET38, pretrained, **kwargs)


@register_model
def resnet101_leaky(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """timm's ResNet-101 with leaky ReLU (slope .01), for the weights that were trained with in-place activated norm."""
    size: dict[str, Any] = {"block": Bottleneck, "layers": (3, 4, 23, 3), "act_layer": nn.LeakyReLU}  # slope .01
    return build_model_with_cfg(ResNet, RESNET101_LEAKY, pretrained, **{**size, **kwargs})
