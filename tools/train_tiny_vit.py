"""Trains the tiny ViT of the package by self-distillation on scenes of EmojiSeg, without tags and masks.

    python tools/train_tiny_vit.py src/fmwiss/foundation/tiny/vit_emoji_patch8_80.safetensors

Two views of a scene; the student sees one, the teacher, its moving average, the other, and the student learns to give
the teacher's answer: for the whole view (DINO, Caron et al., 2021), and for places in it the answer of the place in
the other view that shows the same (as dense variants do: PixPro, Xie et al., 2021). Half of the views are masked in
blocks, so that the student also has to guess what it does not see (iBOT, Zhou et al., 2022). The teacher's answers are
balanced over the batch by Sinkhorn-Knopp (SwAV, DINOv2). The teacher's weights are kept.

A ViT's attention learns last which places belong together, long after its features know it. Here there is no time for
that, so attention starts as a measure of likeness and nearness, queries equal to keys (as mimetic initialisation has
it, Trockman and Kolter, 2023). In the last block, whose attention is what the model is made for, they are kept equal,
and it learns to attend to the places whose features the teacher finds alike.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmwiss.foundation.tiny import VIT
from tiny_distillation import STRIDE, Projector, distil, of_the_other_view
from tiny_scenes import counterparts, normalised, render_scenes, views

SIDE = 80
"""Pixels of a view, each way."""
PLACES = 1536
"""Places of a mini-batch that are compared."""


class Head(Projector):
    """From features to scores of prototypes, both of length one."""

    def __init__(self, width: int, prototypes: int) -> None:
        super().__init__(width)
        self.prototypes = nn.Parameter(torch.randn(prototypes, self.layers[-1].out_features))

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features) @ F.normalize(self.prototypes, dim=-1).T


class Network(nn.Module):
    """Encoder and heads: features of the whole image and of its places."""

    def __init__(self, prototypes: int) -> None:
        super().__init__()
        self.encoder = timm.create_model(VIT, num_classes=0, dynamic_img_size=True)
        width = self.encoder.num_features
        self.head = Head(width, prototypes)
        self.place_head = Head(width, prototypes)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.last_input: Tensor

    def forward(self, images: Tensor, masks: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(B, 3, H, W)``, masks ``(B, h, w)`` bool -> ``(B, D)`` and ``(B, D, h, w)``; keeps :attr:`last_input`."""
        grid = (images.shape[-2] // STRIDE, images.shape[-1] // STRIDE)
        patches = self.encoder.patch_embed(images)
        if masks is not None:
            patches = torch.where(masks[..., None], self.mask_token.to(patches.dtype), patches)
        tokens = self.encoder.norm_pre(self.encoder._pos_embed(patches))
        *blocks, last = self.encoder.blocks
        for block in blocks:
            tokens = block(tokens)
        self.last_input = tokens
        tokens = self.encoder.norm(last(tokens))
        return tokens[:, 0], tokens[:, 1:].transpose(1, 2).unflatten(2, grid)

    def attention(self, tokens: Tensor) -> Tensor:
        """The last block's attention from patch to patch, its mean over heads.

        Args:
            tokens: what goes into that block, ``(B, 1 + L, W)``.

        Returns:
            ``(B, L, L)``, rows sum to 1.
        """
        last = self.encoder.blocks[-1]
        projected = last.attn.qkv(last.norm1(tokens[:, 1:]))
        queries, keys, _ = projected.unflatten(-1, (3, last.attn.num_heads, -1)).unbind(2)
        logits = torch.einsum("bihd,bjhd->bhij", queries.float(), keys.float()) * last.attn.scale
        return logits.softmax(-1).mean(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--scenes", type=int, default=8000)
    parser.add_argument("--iterations", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, default=48)
    parser.add_argument("--prototypes", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--momentum", type=float, default=0.98, help="of the teacher, at the first iteration")
    parser.add_argument("--seed", type=int, default=2000)
    arguments = parser.parse_args()

    scenes = render_scenes(arguments.scenes, arguments.seed)
    torch.manual_seed(arguments.seed)
    generator = torch.Generator().manual_seed(arguments.seed)
    student = Network(arguments.prototypes).to(memory_format=torch.channels_last)
    start_from_likeness(student.encoder)

    def losses(student: nn.Module, teacher: nn.Module, progress: float) -> dict[str, Tensor]:
        chosen = torch.randint(arguments.scenes, (arguments.batch_size,), generator=generator)
        pair = [views(scenes, chosen, SIDE, (0.25, 1.0), generator) for _ in range(2)]
        return _losses(student, teacher, pair, 0.04 + 0.02 * min(1.0, 3 * progress), generator)

    distil(
        student, losses, arguments.out, arguments.iterations, arguments.learning_rate, arguments.momentum,
        after=lambda: tie(student.encoder.blocks[-1]),
    )


def _losses(
    student: nn.Module, teacher: nn.Module, pair: list[tuple[Tensor, Tensor]], temperature: float,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Cross-entropy between the answers to two views: for the whole, and place by place where they overlap."""
    images = torch.cat([normalised(view) for view, _ in pair]).contiguous(memory_format=torch.channels_last)
    mine = torch.cat([where for _, where in pair])
    masks = block_masks(len(images), SIDE // STRIDE, generator)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            whole, places = teacher(images)
            affinity = likeness(places)
            whole, places = of_the_other_view(whole), of_the_other_view(places)
            there, inside = counterparts(mine, of_the_other_view(mine), places.shape[-2:])
            shown = inside.flatten().nonzero()[:, 0]
            drawn = shown[torch.randperm(len(shown), generator=generator)[:PLACES]]
            matched = F.grid_sample(places.float(), there, align_corners=False).permute(0, 2, 3, 1).flatten(0, 2)[drawn]
            answers = balanced(teacher.head(whole), temperature)
            place_answers = balanced(teacher.place_head(matched), temperature)
        whole, places = student(images, masks)
        scores = student.head(whole)
        place_scores = student.place_head(places.permute(0, 2, 3, 1).flatten(0, 2)[drawn])
    attention = student.attention(student.last_input)
    return {
        "image": cross_entropy(answers, scores),
        "places": cross_entropy(place_answers, place_scores),
        "attention": -(affinity * attention.clamp(min=1e-6).log()).sum(-1).mean(),
    }


@torch.no_grad()
def likeness(places: Tensor, temperature: float = 0.1) -> Tensor:
    """Which places are alike, or like the same places: ``(B, D, h, w)`` -> ``(B, L, L)``, rows sum to 1."""
    features = places.float().flatten(2)
    features = F.normalize(features - features.mean(2, keepdim=True), dim=1)
    rows = (features.transpose(1, 2) @ features / temperature).softmax(-1)
    return rows @ rows


@torch.no_grad()
def start_from_likeness(encoder: nn.Module) -> None:
    """Give every block's queries and keys the same weights, of such a size that a key has unit variance.

    And every place a code whose likeness to another's falls off with their distance (random Fourier features).
    """
    side, width = SIDE // STRIDE, encoder.pos_embed.shape[-1]  # type: ignore[union-attr, index]
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    phase = torch.stack((rows, columns), dim=-1).view(-1, 2).float() @ (0.3 * torch.randn(2, width // 2))
    encoder.pos_embed[:, 1:] = 0.5 * torch.cat((phase.sin(), phase.cos()), dim=1)  # type: ignore[index]
    for block in encoder.blocks:  # type: ignore[union-attr]
        width = block.attn.qkv.in_features
        nn.init.normal_(block.attn.qkv.weight[: 2 * width], std=width**-0.5)
        tie(block)
        block.attn.qkv.weight[:width] *= 2**0.5
        block.attn.qkv.weight[width : 2 * width] *= 2**0.5


@torch.no_grad()
def tie(block: nn.Module) -> None:
    """Give a block's queries and keys their mean weights."""
    projection = block.attn.qkv  # type: ignore[union-attr]
    for parameter in (projection.weight, projection.bias):
        queries, keys, _ = parameter.chunk(3)
        mean = (queries + keys) / 2
        queries.copy_(mean)
        keys.copy_(mean)


def cross_entropy(answers: Tensor, scores: Tensor, temperature: float = 0.1) -> Tensor:
    return -(answers * F.log_softmax(scores.float() / temperature, dim=-1)).sum(-1).mean()


@torch.no_grad()
def balanced(scores: Tensor, temperature: float, rounds: int = 3) -> Tensor:
    """Sinkhorn-Knopp: ``(N, K)`` scores to rows that sum to 1 and use all prototypes alike."""
    shares = (scores.float() / temperature - (scores.float() / temperature).max()).exp()
    for _ in range(rounds):
        shares = shares / shares.sum(0, keepdim=True).clamp(min=1e-12) / shares.shape[1]
        shares = shares / shares.sum(1, keepdim=True).clamp(min=1e-12)
    return shares


def block_masks(count: int, side: int, generator: torch.Generator) -> Tensor:
    """``(count, side, side)`` bool: rectangles hide up to half of every second view."""
    masks = torch.zeros(count, side, side, dtype=torch.bool)
    for index in range(0, count, 2):
        wanted = float(torch.rand((), generator=generator)) * 0.4 + 0.1
        while masks[index].float().mean() < wanted:
            height, width = torch.randint(2, side // 2 + 1, (2,), generator=generator).tolist()
            top = int(torch.randint(side - height + 1, (), generator=generator))
            left = int(torch.randint(side - width + 1, (), generator=generator))
            masks[index, top : top + height, left : left + width] = True
    return masks[torch.randperm(count, generator=generator)]


if __name__ == "__main__":
    main()
