"""Trains the tiny CNN encoder of the package by self-distillation on scenes of EmojiSeg, without tags and masks.

    python tools/train_tiny_cnn.py src/fmwiss/foundation/tiny/resnet_emoji.safetensors

Two views of a scene, half of them in other colours; the student sees one, the teacher, its moving average, the other.
Each place of the student's view has to find the place of the teacher's view that shows the same among those of other
scenes, and so has the whole view (as MoCo v3 does, Chen et al., 2021, and DenseCL, Wang et al., 2021, for places).
Places count that have other colours than their view has on average: there objects are, more often than not. The
teacher's weights are kept.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmwiss.foundation.tiny import RESNET
from tiny_distillation import PLACES, SIDE, STRIDE, Projector, distil, of_the_other_view
from tiny_scenes import counterparts, distorted, normalised, render_scenes, views


class Network(nn.Module):
    """Encoder and projectors."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = timm.create_model(RESNET, num_classes=0, output_stride=STRIDE)
        self.projector = Projector(self.encoder.num_features)
        self.place_projector = Projector(self.encoder.num_features)

    def forward(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` -> ``(B, D, h, w)``."""
        return self.encoder.forward_features(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--scenes", type=int, default=10000)
    parser.add_argument("--iterations", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=48)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--momentum", type=float, default=0.99, help="of the teacher, at the first iteration")
    parser.add_argument("--seed", type=int, default=3000)
    arguments = parser.parse_args()

    scenes = render_scenes(arguments.scenes, arguments.seed)
    torch.manual_seed(arguments.seed)
    generator = torch.Generator().manual_seed(arguments.seed)

    def losses(student: nn.Module, teacher: nn.Module, progress: float) -> dict[str, Tensor]:
        chosen = torch.randint(arguments.scenes, (arguments.batch_size,), generator=generator)
        pair = [views(scenes, chosen, SIDE, (0.25, 1.0), generator) for _ in range(2)]
        return _losses(student, teacher, pair, generator)

    student = Network().to(memory_format=torch.channels_last)
    distil(student, losses, arguments.out, arguments.iterations, arguments.learning_rate, arguments.momentum)


def _losses(
    student: nn.Module, teacher: nn.Module, pair: list[tuple[Tensor, Tensor]], generator: torch.Generator
) -> dict[str, Tensor]:
    images = torch.cat([view for view, _ in pair])
    salience = colour_contrast(images)
    scene = torch.arange(len(pair[0][0])).repeat(2)
    recoloured = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    images = torch.where(recoloured, distorted(images, generator), images)
    images = normalised(images).contiguous(memory_format=torch.channels_last)
    mine = torch.cat([where for _, where in pair])
    there, inside = counterparts(mine, of_the_other_view(mine), salience.shape[-2:])
    drawn = draw_places(salience, inside, PLACES // len(images), generator)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            features = teacher(images)
            wholes = teacher.projector(pooled(features, salience))
            places = F.grid_sample(of_the_other_view(features).float(), there, align_corners=False)
            places = teacher.place_projector(places.permute(0, 2, 3, 1).flatten(0, 2)[drawn])
        features = student(images)
        whole = student.projector(pooled(features, salience))
        place = student.place_projector(features.permute(0, 2, 3, 1).flatten(0, 2)[drawn])
    owner = scene[drawn // salience[0].numel()]
    return {"image": contrast(whole, of_the_other_view(wholes), scene), "places": contrast(place, places, owner)}


def colour_contrast(images: Tensor) -> Tensor:
    """How far the colour of every place is from the mean of its view: ``(B, 3, H, W)`` -> ``(B, h, w)``."""
    colours = F.avg_pool2d(images, STRIDE)
    return (colours - colours.mean((2, 3), keepdim=True)).norm(dim=1)


def draw_places(salience: Tensor, inside: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw places of every view without replacement, with weights that are the square of their salience.

    Args:
        salience: ``(B, h, w)``, not negative.
        inside: ``(B, h, w)`` bool, which places may be drawn.
        count: places of a view; one with fewer gives all that it has.

    Returns:
        Flat indices into ``(B, h, w)``.
    """
    # the largest of log-weights and Gumbel noise are such a draw
    noise = -torch.rand(salience.shape, generator=generator).clamp(1e-6, 1 - 1e-6).log()
    lots = (2 * (salience + 1e-3).log() - noise.log()).masked_fill(~inside, -torch.inf).flatten(1)
    best, index = lots.topk(min(count, lots.shape[1]), dim=1)
    flat = index + torch.arange(len(lots))[:, None] * lots.shape[1]
    return flat[best.isfinite()]


def pooled(features: Tensor, salience: Tensor) -> Tensor:
    """Mean of ``(B, D, h, w)`` features, weighted by salience ``(B, h, w)``: ``(B, D)``."""
    weights = salience / salience.sum((1, 2), keepdim=True).clamp(min=1e-6)
    return torch.einsum("bdhw,bhw->bd", features.float(), weights)


def contrast(mine: Tensor, theirs: Tensor, scene: Tensor, temperature: float = 0.1) -> Tensor:
    """InfoNCE: each of mine ``(N, D)`` against its own of theirs ``(N, D)`` and those of other scenes.

    Args:
        mine: the student's, of length one.
        theirs: the teacher's.
        scene: ``(N,)``, where each is from; others of the same scene are no negatives.
    """
    alike = mine @ theirs.T / temperature
    own = torch.eye(len(mine), dtype=torch.bool)
    alike = alike.masked_fill((scene[:, None] == scene) & ~own, -torch.inf)
    return F.cross_entropy(alike, torch.arange(len(mine)))


if __name__ == "__main__":
    main()
