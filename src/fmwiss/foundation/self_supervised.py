"""The self-supervised ViT whose last attention completes objects (eq. 4): DINO, iBOT, DINOv2 and DINOv3 through timm.

timm's hub has DINO, DINOv2 and DINOv3; iBOT's weights, and DINO's as their authors published them, are read by
:func:`read_checkpoint`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import Attention, AttentionRope, apply_rot_embed_cat
from timm.models.eva import EvaAttention, EvaBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from fmwiss.config import SelfSupervisedConfig
from fmwiss.errors import UserError
from fmwiss.foundation.checkpoints import read_state
from fmwiss.foundation.images import Normalize, fit
from fmwiss.foundation.weights import load_timm, load_timm_state, state_digest, weights_folder


class TimmViT(nn.Module):
    """A :class:`~fmwiss.foundation.SelfSupervisedModel` over a timm ViT.

    Args:
        vit: timm ``VisionTransformer`` or ``Eva`` (DINOv3), made with ``dynamic_img_size=True``.
        name: its timm name.
        mean: mean colour of the images that it was trained on.
        std: their standard deviation.

    Raises:
        UserError: the model is no ViT of plain blocks.
    """

    vit: Any

    def __init__(self, vit: nn.Module, name: str, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.vit = vit
        blocks = getattr(vit, "blocks", None)
        if not blocks or not _is_plain(blocks[-1]):
            raise UserError(f"a self-supervised model must be a timm ViT of plain blocks, and {name} is not")
        self.name = name
        self.patch_size: int = self.vit.patch_embed.patch_size[0]
        self.normalize = Normalize(mean, std)
        blocks[-1] = _LastBlock(blocks[-1])

    @cached_property
    def identity(self) -> dict[str, Any]:
        return {"model": self.name, "weights": state_digest(self.vit)}

    @torch.inference_mode()
    def attention(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` in [0, 1] -> ``(B, heads, L, L)``, patch to patch, softmax over all tokens."""
        self._forward(images, complete=False)
        return torch.stack(list(self._heads()), dim=1)

    @torch.inference_mode()
    def mean_attention(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` in [0, 1] -> ``(B, L, L)``, the mean over heads; one head at a time is in memory."""
        self._forward(images, complete=False)
        return self._mean_head()

    @torch.inference_mode()
    def patch_features(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` in [0, 1] -> ``(B, D, gh, gw)``, patch tokens after the final norm."""
        features = self._forward(images, complete=True)
        self.vit.blocks[-1].take()
        return features

    @torch.inference_mode()
    def mean_attention_and_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Both of the above from one pass."""
        features = self._forward(images, complete=True)
        return self._mean_head(), features

    def _forward(self, images: Tensor, complete: bool) -> Tensor:
        self.vit.blocks[-1].complete = complete
        images = fit(images, self.patch_size)
        tokens = self.vit.forward_features(self.normalize(images))[:, self.vit.num_prefix_tokens :]
        grid = (images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size)
        return tokens.transpose(1, 2).unflatten(2, grid)

    def _mean_head(self) -> Tensor:
        heads = self._heads()
        total, count = next(heads), 1
        for head in heads:
            total += head
            count += 1
        return total / count

    def _heads(self) -> Iterator[Tensor]:
        """``(B, L, L)``, patch to patch, for one head after the other."""
        prefix = self.vit.num_prefix_tokens
        queries, keys = self.vit.blocks[-1].take()
        for head in range(queries.shape[1]):
            logits = queries[:, head, prefix:] @ keys[:, head].transpose(1, 2)
            yield logits.softmax(-1)[..., prefix:]


class _LastBlock(nn.Module):
    """Stands in the ViT for its last block: keeps the attention's queries and keys, and skips the rest if it can.

    Fused attention never shows its probabilities, so they are computed outside, from the queries and keys; for these,
    values, projection and MLP are not needed.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block: Any = block
        self.complete = True
        self._kept: tuple[Tensor, Tensor] | None = None

    def forward(self, tokens: Tensor, **kwargs: Any) -> Tensor:
        self._kept = _queries_and_keys(self.block.attn, self.block.norm1(tokens), kwargs.get("rope"))
        return self.block(tokens, **kwargs) if self.complete else tokens

    def take(self) -> tuple[Tensor, Tensor]:
        """Queries, scaled, and keys of the last call, ``(B, heads, tokens, width)``; they are given once."""
        assert self._kept is not None, "call the model first"
        kept, self._kept = self._kept, None
        return kept


def _is_plain(block: nn.Module) -> bool:
    """Whether the block is norm -> attention -> ... with as many keys as queries, as in DINO, iBOT, DINOv2 and v3."""
    attention = getattr(block, "attn", None)
    return (
        isinstance(block, (Block, EvaBlock))
        and isinstance(attention, (Attention, AttentionRope, EvaAttention))
        and getattr(attention, "num_kv_groups", 1) == 1
    )


def _queries_and_keys(attention: Any, tokens: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor]:
    """The first lines of timm's attention layers, without the values; queries come scaled."""
    if attention.qkv is not None:
        width = 2 * attention.qkv.out_features // 3
        bias = attention.qkv.bias
        if getattr(attention, "q_bias", None) is not None:
            bias = torch.cat((attention.q_bias, attention.k_bias))
        both = nn.functional.linear(tokens, attention.qkv.weight[:width], None if bias is None else bias[:width])
        queries, keys = both.chunk(2, dim=-1)
    else:
        queries, keys = attention.q_proj(tokens), attention.k_proj(tokens)

    def finish(projected: Tensor, norm: nn.Module) -> Tensor:
        heads = norm(projected.unflatten(2, (attention.num_heads, -1)).transpose(1, 2))
        if rope is None:
            return heads
        prefix, half = attention.num_prefix_tokens, getattr(attention, "rotate_half", False)
        turned = apply_rot_embed_cat(heads[:, :, prefix:], rope, half=half)
        return torch.cat((heads[:, :, :prefix], turned), dim=2).type_as(heads)

    return finish(queries, attention.q_norm) * attention.scale, finish(keys, attention.k_norm)


def load_self_supervised(config: SelfSupervisedConfig, weights: Path | None = None) -> TimmViT:
    """The ViT that a configuration names: from its checkpoint, the local folder or timm's hub.

    Random weights are the same in every run. A checkpoint is taken to be of a model trained on images normalised by
    ImageNet's mean and standard deviation, as DINO, iBOT and DINOv2 are, whatever the supervised weights under the same
    timm name (``vit_large_patch16_224``) expect.

    Raises:
        UserError: unknown model, no ViT, no weights to be had, weights of another architecture.
    """
    options = {"num_classes": 0, "dynamic_img_size": True}
    if config.pretrained and config.checkpoint is not None:
        file = _find_checkpoint(config.checkpoint, weights)
        vit = load_timm_state(config.model, read_checkpoint(file), file, **options)
        return TimmViT(vit, config.model, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vit = load_timm(config.model, weights, pretrained=config.pretrained, **options)
    expects: Any = vit.pretrained_cfg
    return TimmViT(vit, config.model, expects["mean"], expects["std"])


def _find_checkpoint(checkpoint: Path, weights: Path | None) -> Path:
    """The checkpoint as it is named, from where the command runs, or in the folder of weights; else, there, what
    ``fmwiss weights`` has made of it."""
    folder = weights_folder(weights)
    candidates = [checkpoint] if folder is None else [checkpoint, folder / checkpoint]
    for path in (*candidates, *(path.with_suffix(".safetensors") for path in candidates)):
        if path.is_file():
            return path
    raise UserError(
        f"the self-supervised checkpoint {' or '.join(map(str, candidates))} is missing; download it from its authors' "
        "page, put it into the --weights folder or name it in cosegmentation.self_supervised.checkpoint"
    )


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The backbone's weights, in timm's key names, from a safetensors file or a checkpoint of DINO's or iBOT's authors.

    Theirs hold the backbone alone (DINO), the backbone under ``state_dict`` (iBOT), or the whole training, of which
    the teacher's backbone is taken.

    Raises:
        UserError: the file is unreadable or holds no weights.
    """
    return rename_keys(read_state(path, "self-supervised checkpoint"))


def rename_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """From the key names of DINO and iBOT to timm's: without wrappers, projection heads and iBOT's mask token."""
    renamed = {}
    for key, tensor in state.items():
        for wrapper in ("module.", "backbone."):
            key = key.removeprefix(wrapper)
        if not key.startswith(("head.", "head2.", "masked_embed")):
            renamed[key] = tensor
    return renamed
