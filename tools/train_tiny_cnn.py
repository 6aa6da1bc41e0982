"""Trains the tiny CNN encoder of the package by self-distillation on scenes of EmojiSeg, without tags and masks.

    python tools/train_tiny_cnn.py src/fmwiss/foundation/tiny/resnet_emoji.safetensors

Two small views around one place of a scene; places with other colours than their scene has on average are drawn more
often, for objects are there more often than not. Around the middle of each view stands another scene, for each one
another: what the views have in common is the thing in the middle, not its surroundings. The student has to find the
answer of its moving average to the other view among those to other scenes' views (as MoCo v3 does, Chen et al., 2021).
The moving average is kept.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmwiss.foundation.tiny import RESNET
from tiny_distillation import STRIDE, Projector, distil, of_the_other_view
from tiny_scenes import SIZE, Scenes, distorted, normalised, recoloured, render_scenes

SIDE = 40
"""Pixels of a view, each way."""


class Network(nn.Module):
    """Encoder and projector."""

    weights: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.encoder = timm.create_model(RESNET, num_classes=0, output_stride=STRIDE)
        self.projector = Projector(self.encoder.num_features)
        self.register_buffer("weights", central_weights(SIDE // STRIDE), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """``(B, 3, 40, 40)`` -> ``(B, D)`` of length one."""
        return self.projector((self.encoder.forward_features(images).float() * self.weights).sum((2, 3)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--scenes", type=int, default=10000)
    parser.add_argument("--scene-seed", type=int, default=2000)
    parser.add_argument("--iterations", type=int, default=7000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--momentum", type=float, default=0.99, help="of the teacher, at the first iteration")
    parser.add_argument("--distorted", type=float, default=0.3, help="share of the views in strongly other colours")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    scenes = Salient.of(render_scenes(arguments.scenes, arguments.scene_seed))
    torch.manual_seed(arguments.seed)
    generator = torch.Generator().manual_seed(arguments.seed)
    scene = torch.arange(arguments.batch_size).repeat(2)

    def losses(student: nn.Module, teacher: nn.Module, progress: float) -> dict[str, Tensor]:
        chosen = torch.randint(arguments.scenes, (arguments.batch_size,), generator=generator)
        places = scenes.draw(chosen, generator)
        images = torch.cat([central_views(scenes, chosen, places, generator) for _ in range(2)])
        odd = torch.rand(len(images), 1, 1, 1, generator=generator) < arguments.distorted
        images = normalised(torch.where(odd, distorted(images, generator), images))
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                answers = teacher(images)
            mine = student(images)
        return {"image": contrast(mine, of_the_other_view(answers), scene)}

    student = Network().to(memory_format=torch.channels_last)
    distil(student, losses, arguments.out, arguments.iterations, arguments.learning_rate, arguments.momentum)


@dataclass(frozen=True)
class Salient:
    """Scenes, and how much their places stand out.

    Attributes:
        scenes: N scenes.
        inside: ``(N, L)`` bool, which of the L squares of ``STRIDE`` pixels, row by row, lie in the scene.
        salience: ``(N, L)``, squared distance of a square's colour from the scene's mean; 0 outside.
    """

    scenes: Scenes
    inside: Tensor
    salience: Tensor

    @classmethod
    def of(cls, scenes: Scenes) -> Salient:
        """Measure scenes."""
        colours = torch.cat([F.avg_pool2d(images.float() / 255, STRIDE) for images in scenes.images.split(200)])
        rows, columns = (scenes.sizes // STRIDE).unbind(1)
        squares = torch.arange(SIZE // STRIDE)
        inside = (squares < rows[:, None])[:, :, None] & (squares < columns[:, None])[:, None]
        mean = (colours * inside[:, None]).sum((2, 3)) / inside.sum((1, 2))[:, None]
        salience = ((colours - mean[:, :, None, None]).norm(dim=1) * inside).square()
        return cls(scenes, inside.flatten(1), salience.flatten(1))

    def draw(self, chosen: Tensor, generator: torch.Generator) -> Tensor:
        """A square of each chosen scene, drawn by its salience: ``(B, 2)``, x and y of its middle in pixels."""
        return middles(torch.multinomial(self.salience[chosen] + 1e-9, 1, generator=generator)[:, 0])

    def draw_ground(self, chosen: Tensor, generator: torch.Generator) -> Tensor:
        """A square of each chosen scene, drawn by how little it stands out: ``(B, 2)``."""
        salience = self.salience[chosen]
        weights = self.inside[chosen] / (salience + 0.2 * salience.mean(1, keepdim=True))
        return middles(torch.multinomial(weights, 1, generator=generator)[:, 0])


def middles(squares: Tensor) -> Tensor:
    """Squares by number -> ``(B, 2)``, x and y of their middles in pixels."""
    across = SIZE // STRIDE
    return torch.stack((squares % across, squares // across), dim=1) * STRIDE + STRIDE / 2


def central_views(salient: Salient, chosen: Tensor, places: Tensor, generator: torch.Generator) -> Tensor:
    """Views of what is at a place of each chosen scene, in surroundings from others.

    Args:
        chosen: ``(B,)``.
        places: ``(B, 2)``, x and y in pixels.

    Returns:
        ``(B, 3, 40, 40)``, about in [0, 1].
    """
    count = len(chosen)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    size = uniform(40, 72)
    shift = torch.stack((uniform(-0.12, 0.12), uniform(-0.12, 0.12)), dim=1)
    images = cut_out(salient.scenes, chosen, places + shift * size[:, None], size, generator)
    others = torch.randint(len(salient.salience), (count,), generator=generator)
    size = uniform(40, 90)
    ground = cut_out(salient.scenes, others, salient.draw_ground(others, generator), size, generator)
    radius, stretch = uniform(0.6, 1.1).view(-1, 1, 1), uniform(0.75, 1.33).view(-1, 1, 1)
    y, x = coordinates(SIDE)
    distance = ((x * stretch) ** 2 + (y / stretch) ** 2).sqrt()
    shown = ((radius - distance) / 0.15 + 0.5).clamp(0, 1)[:, None]
    return recoloured(images * shown + ground * (1 - shown), generator)


def cut_out(scenes: Scenes, chosen: Tensor, middle: Tensor, size: Tensor, generator: torch.Generator) -> Tensor:
    """Squares of scenes, as far moved as need be to lie inside, every second one mirrored.

    Args:
        chosen: ``(B,)``.
        middle: ``(B, 2)``, x and y in pixels.
        size: ``(B,)``, pixels.

    Returns:
        ``(B, 3, 40, 40)`` in [0, 1].
    """
    half = size[:, None] / 2
    middle = torch.maximum(torch.minimum(middle, scenes.sizes[chosen].flip(1) - half), half)
    mirror = torch.where(torch.rand(len(chosen), generator=generator) < 0.5, -1.0, 1.0)
    theta = torch.zeros(len(chosen), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = mirror * size / SIZE, size / SIZE
    theta[:, :, 2] = 2 * middle / SIZE - 1
    grid = F.affine_grid(theta, [len(chosen), 3, SIDE, SIDE], align_corners=False)
    return F.grid_sample(scenes.images[chosen].float() / 255, grid, padding_mode="border", align_corners=False)


def coordinates(side: int) -> tuple[Tensor, Tensor]:
    """y and x from -1 to 1, ``(side, side)`` each."""
    line = torch.linspace(-1, 1, side)
    y, x = torch.meshgrid(line, line, indexing="ij")
    return y, x


def central_weights(places: int) -> Tensor:
    """How much every place counts for a view: the middle most; ``(places, places)`` to a sum of 1."""
    y, x = coordinates(SIDE)
    weights = F.adaptive_avg_pool2d((1.3 - (x**2 + y**2)).clamp(0, 1)[None], places)[0]
    return weights / weights.sum()


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
