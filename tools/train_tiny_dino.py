"""Trains a tiny image encoder of the package by self-distillation on scenes of EmojiSeg, without tags and masks.

    python tools/train_tiny_dino.py vit_emoji_patch8_80 src/fmwiss/foundation/tiny/vit_emoji_patch8_80.safetensors
    python tools/train_tiny_dino.py resnet_emoji src/fmwiss/foundation/tiny/resnet_emoji.safetensors

Two large and several small views of a scene; the student sees all of them, the teacher, its moving average, the large
ones, and the student learns to give the teacher's answer to another view (DINO, Caron et al., 2021). A ViT's large
views are masked in blocks, and each hidden patch learns the teacher's answer there (iBOT, Zhou et al., 2022). The
teacher's answers are balanced over the batch by Sinkhorn-Knopp (SwAV, DINOv2). The teacher's weights are kept.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from fmwiss.files import write_atomically
from fmwiss.foundation.tiny import RESNET, VIT
from fmwiss.reporting.progress import track
from tiny_scenes import normalised, render_scenes, views

LARGE, SMALL = 80, 40


class Head(nn.Module):
    """From features to scores of prototypes, both of length one."""

    def __init__(self, width: int, prototypes: int, hidden: int = 512, bottleneck: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        self.prototypes = nn.Parameter(torch.randn(prototypes, bottleneck))

    def forward(self, features: Tensor) -> Tensor:
        return F.normalize(self.layers(features).float(), dim=-1) @ F.normalize(self.prototypes, dim=-1).T


class Network(nn.Module):
    """Encoder and heads: scores of an image's features and, for a ViT, of its patches'."""

    def __init__(self, name: str, prototypes: int) -> None:
        super().__init__()
        self.is_vit = name == VIT
        self.encoder = timm.create_model(name, num_classes=0, **({"dynamic_img_size": True} if self.is_vit else {}))
        width = self.encoder.num_features
        self.head = Head(width, prototypes)
        self.patch_head = Head(width, prototypes) if self.is_vit else None
        self.mask_token = nn.Parameter(torch.zeros(width)) if self.is_vit else None

    def forward(self, images: Tensor, masks: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """``(B, 3, H, W)``, masks ``(B, h, w)`` bool -> ``(B, D)`` and, for a ViT, ``(B, h * w, D)``."""
        if not self.is_vit:
            return self.encoder(images), None
        patches = self.encoder.patch_embed(images)
        if masks is not None:
            patches = torch.where(masks[..., None], self.mask_token.to(patches.dtype), patches)
        tokens = self.encoder._pos_embed(patches)
        tokens = self.encoder.norm(self.encoder.blocks(self.encoder.norm_pre(tokens)))
        return tokens[:, 0], tokens[:, 1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=(VIT, RESNET))
    parser.add_argument("out", type=Path)
    parser.add_argument("--scenes", type=int, default=10000)
    parser.add_argument("--iterations", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, default=48)
    parser.add_argument("--small-views", type=int, default=2)
    parser.add_argument("--prototypes", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--momentum", type=float, default=0.98, help="of the teacher, at the first iteration")
    parser.add_argument("--seed", type=int, default=2000)
    arguments = parser.parse_args()

    scenes = render_scenes(arguments.scenes, arguments.seed)
    torch.manual_seed(arguments.seed)
    generator = torch.Generator().manual_seed(arguments.seed)
    student = Network(arguments.model, arguments.prototypes).to(memory_format=torch.channels_last)
    teacher = copy.deepcopy(student).requires_grad_(False)
    decayed = [p for p in student.parameters() if p.ndim > 1]
    others = [p for p in student.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=arguments.learning_rate)
    started, totals = time.monotonic(), [0.0, 0.0]
    for iteration in track(range(arguments.iterations), "training"):
        progress = iteration / arguments.iterations
        for group in optimizer.param_groups:
            group["lr"] = arguments.learning_rate * min(1.0, (iteration + 1) / 100) * _cosine(progress, 1.0, 0.02)
        chosen = torch.randint(arguments.scenes, (arguments.batch_size,), generator=generator)
        large = [normalised(views(scenes, chosen, LARGE, (0.3, 1.0), generator)) for _ in range(2)]
        small = [normalised(views(scenes, chosen, SMALL, (0.08, 0.3), generator)) for _ in range(arguments.small_views)]
        temperature = 0.04 + 0.02 * min(1.0, 3 * progress)
        loss, patch_loss = _losses(student, teacher, large, small, temperature, generator)
        optimizer.zero_grad(set_to_none=True)
        (loss + patch_loss).backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            momentum = _cosine(progress, arguments.momentum, 1.0)
            for mine, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
                mine.lerp_(theirs, 1 - momentum)
            for mine, theirs in zip(teacher.buffers(), student.buffers(), strict=True):
                mine.copy_(theirs)
        totals = [totals[0] + float(loss.detach()), totals[1] + float(patch_loss.detach())]
        if (iteration + 1) % 50 == 0:
            minutes = (time.monotonic() - started) / 60
            print(f"{iteration + 1}: image {totals[0] / 50:.3f}, patches {totals[1] / 50:.3f}, {minutes:.1f} min", flush=True)
            totals = [0.0, 0.0]
        if (iteration + 1) % 250 == 0 or iteration + 1 == arguments.iterations:
            _save(teacher.encoder, arguments.out)


def _losses(
    student: Network, teacher: Network, large: list[Tensor], small: list[Tensor], temperature: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy between answers to different views, and between those of hidden patches."""
    count = len(large[0])
    both = torch.cat(large)
    masks = None
    if student.is_vit:
        patch = student.encoder.patch_embed.patch_size[0]
        masks = block_masks(2 * count, LARGE // patch, generator)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            theirs, their_patches = teacher(both)
            answers = balanced(teacher.head(theirs), temperature).chunk(2)
        mine, my_patches = student(both, masks)
        scores = [*student.head(mine).chunk(2), *student.head(student(torch.cat(small))[0]).chunk(len(small))]
    terms = [
        cross_entropy(answer, score)
        for a, answer in enumerate(answers)
        for s, score in enumerate(scores)
        if s != a
    ]
    loss = torch.stack(terms).mean()
    if masks is None:
        return loss, torch.zeros(())
    hidden = masks.flatten(1)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            patch_answers = balanced(teacher.patch_head(their_patches[hidden]), temperature)
        patch_scores = student.patch_head(my_patches[hidden])
    return loss, cross_entropy(patch_answers, patch_scores)


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


def _cosine(progress: float, start: float, end: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


def _save(encoder: nn.Module, path: Path) -> None:
    state = {
        key: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
        for key, tensor in encoder.state_dict().items()
    }
    write_atomically(path, lambda temporary: save_file(state, temporary))


if __name__ == "__main__":
    main()
