"""ImageNet weights of InPlace-ABN's authors (Rota Bulo, Porzi and Kontschieder, CVPR 2018) in timm's key names.

Their checkpoints hold ``state_dict`` with names such as ``module.mod2.block1.convs.conv1.weight``. In-place activated
batch norm scales by ``|weight| + eps``, since it has to be inverted; plain batch norm scales by ``weight``. So a
norm's ``weight`` is rewritten, and everything else is renamed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fmwiss.errors import UserError

EPS = 1e-5
"""Of batch norm, here and there; it is part of the in-place scale, too."""

_SHARED = ((r"^classifier\.fc\.", "fc."),)
_WIDE = (
    (r"^mod1\.conv1\.", "conv1."),
    (r"^(mod[2-7])\.block(\d+)\.(?:convs\.)?(bn[123]|conv[123]|proj_conv)\.", r"\1.{2}.\3."),
    (r"^bn_out\.", "bn_out."),
    *_SHARED,
)
_RESNET = (
    (r"^mod1\.(conv1|bn1)\.", r"\1."),
    (r"^mod([2-5])\.block(\d+)\.convs\.(bn[123]|conv[123])\.", r"layer{1}.{2}.\3."),
    (r"^mod([2-5])\.block(\d+)\.proj_conv\.", "layer{1}.{2}.downsample.0."),
    (r"^mod([2-5])\.block(\d+)\.proj_bn\.", "layer{1}.{2}.downsample.1."),
    *_SHARED,
)
FAMILIES: dict[str, tuple[tuple[str, str], ...]] = {"wide_resnet": _WIDE, "resnet": _RESNET}
"""Rules from the authors' names to timm's. ``{n}`` stands for the n-th group as a number, less one: they count groups
and blocks from 1, and group 2 is timm's first layer."""


def is_inplace_abn(state: Mapping[str, Tensor]) -> bool:
    """Whether key names are those of the authors' residual networks."""
    return any(re.match(r"^(module\.)?mod2\.block1\.convs\.", key) for key in state)


def family_of(state: Mapping[str, Tensor]) -> str:
    """``wide_resnet`` (whose blocks begin with a norm) or ``resnet``."""
    return "wide_resnet" if any(re.match(r"^(module\.)?mod2\.block1\.bn1\.", key) for key in state) else "resnet"


def convert(state: Mapping[str, Tensor], origin: Path) -> dict[str, Tensor]:
    """The weights in timm's key names, for plain batch norm.

    Args:
        state: the authors' ``state_dict``, with or without ``module.`` before every name.
        origin: where it comes from, for messages.

    Returns:
        float32 weights of ``wide_resnet38_a2`` or of ``resnet101_leaky`` (or of another depth, if so given).

    Raises:
        UserError: a name is none of these networks', or two names are the same without ``module.``.
    """
    rules = FAMILIES[family_of(state)]
    converted: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = _rename(key.removeprefix("module."), rules)
        if name is None:
            raise UserError(f"{origin} holds {key}, which no network of InPlace-ABN's authors has that fmwiss reads")
        if name in converted:
            raise UserError(f"{origin} holds {key} twice, with and without 'module.'")
        # a norm's parameters alone are vectors and called weight
        is_scale = name.endswith(".weight") and tensor.ndim == 1
        converted[name] = tensor.float().abs() + EPS if is_scale else tensor
    for name in [name for name in converted if name.endswith(".running_mean")]:
        converted.setdefault(name.replace("running_mean", "num_batches_tracked"), torch.tensor(0))
    return {name: tensor.contiguous() for name, tensor in converted.items()}


def _rename(key: str, rules: tuple[tuple[str, str], ...]) -> str | None:
    for pattern, wanted in rules:
        found = re.match(pattern, key)
        if found is None:
            continue
        for place, number in enumerate(found.groups(), start=1):
            if f"{{{place}}}" in wanted:
                wanted = wanted.replace(f"{{{place}}}", str(int(number) - 1))
        return found.expand(wanted) + key[found.end() :]
    return None
