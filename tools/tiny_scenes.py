"""Scenes of EmojiSeg in memory, and random views of them, for the programs that train the tiny models."""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from fmwiss.data.emoji import EmojiSeg
from fmwiss.files import write_atomically
from fmwiss.reporting.progress import track

SIZE = 160
MEAN = torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1)
STD = torch.tensor((0.229, 0.224, 0.225)).view(1, 3, 1, 1)


@dataclass(frozen=True)
class Scenes:
    """Scenes in the training styles.

    Attributes:
        images: uint8 ``(N, 3, 160, 160)``, each in the upper left corner.
        sizes: ``(N, 2)``, height and width.
        names: the classes in each.
    """

    images: Tensor
    sizes: Tensor
    names: list[list[str]]


def render_scenes(count: int, seed: int, processes: int = 2) -> Scenes:
    """``count`` training scenes of a seed of their own."""
    images = torch.zeros(count, 3, SIZE, SIZE, dtype=torch.uint8)
    sizes = torch.zeros(count, 2, dtype=torch.long)
    names: list[list[str]] = []
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        jobs = ((seed, index) for index in range(count))
        for index, (image, shown) in enumerate(track(pool.imap(_render, jobs, chunksize=64), "scenes", count)):
            height, width = image.shape[1:]
            images[index, :, :height, :width] = torch.from_numpy(image)
            sizes[index] = torch.tensor((height, width))
            names.append(shown)
    return Scenes(images, sizes, names)


def _render(job: tuple[int, int]) -> tuple[object, list[str]]:
    torch.set_num_threads(1)
    seed, index = job
    image, labels = EmojiSeg(seed=seed, size=SIZE).read(f"train_{index:06d}")
    return image.numpy(), [EmojiSeg.class_names[label - 1] for label in labels.unique().tolist() if label]


def views(
    scenes: Scenes, chosen: Tensor, side: int, area: tuple[float, float], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """One random crop of each chosen scene, flipped and recoloured at random.

    Args:
        area: range of the crop's share of the scene; its aspect ratio is between 3 : 4 and 4 : 3 of the scene's.

    Returns:
        The views, ``(B, 3, side, side)``, about in [0, 1], and where they are: ``(B, 2, 3)``, which takes a view's
        coordinates in [-1, 1] to the scenes' (``affine_grid``'s).
    """
    count = len(chosen)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    size = scenes.sizes[chosen].float()
    share, aspect = uniform(*area), uniform(-0.1438, 0.1438).mul(2).exp().sqrt()
    height = (share.sqrt() * aspect).clamp(max=1) * size[:, 0]
    width = (share.sqrt() / aspect).clamp(max=1) * size[:, 1]
    top, left = uniform(0, 1) * (size[:, 0] - height), uniform(0, 1) * (size[:, 1] - width)
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = mirror * width / SIZE, height / SIZE
    theta[:, 0, 2], theta[:, 1, 2] = (2 * left + width) / SIZE - 1, (2 * top + height) / SIZE - 1
    grid = F.affine_grid(theta, [count, 3, side, side], align_corners=False)
    images = F.grid_sample(scenes.images[chosen].float() / 255, grid, padding_mode="border", align_corners=False)
    return recoloured(images, generator), theta


def recoloured(images: Tensor, generator: torch.Generator) -> Tensor:
    """Another saturation, hue, contrast and light, as photographs of one thing differ: ``(B, 3, H, W)`` in [0, 1]."""

    def factor(low: float, high: float) -> Tensor:
        return (low + (high - low) * torch.rand(len(images), generator=generator)).view(-1, 1, 1, 1)

    grey = images.mean(1, keepdim=True)
    saturation = torch.where(factor(0, 1) < 0.15, 0.0, factor(0.5, 1.5))
    images = grey + (images - grey) * saturation
    # a turn of the hue by exchanging some of one channel for another
    images = images + factor(0, 0.5) * (factor(0, 1) < 0.5) * (images.roll(1, 1) - images)
    middle = images.mean((1, 2, 3), keepdim=True)
    return (middle + (images - middle) * factor(0.6, 1.4)) * factor(0.7, 1.3)


def distorted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Other colours, so that shapes are what two views have in common.

    Args:
        images: ``(B, 3, H, W)``, about in [0, 1].
    """
    count = len(images)

    def often(share: float) -> Tensor:
        return torch.rand(count, 1, 1, 1, generator=generator) < share

    mixing = torch.eye(3) + 1.2 * (torch.rand(count, 3, 3, generator=generator) - 0.5)
    mixed = torch.einsum("bij,bjhw->bihw", mixing, images - 0.5) + 0.5
    images = torch.where(often(0.8), mixed, images)
    images = torch.where(often(0.2), 1 - images, images)
    images = torch.where(often(0.3), F.avg_pool2d(images, 3, 1, 1, count_include_pad=False), images)
    noise = 0.1 * torch.rand(count, 1, 1, 1, generator=generator) * torch.randn(images.shape, generator=generator)
    return images + torch.where(often(0.3), noise, 0.0)


def counterparts(mine: Tensor, theirs: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Where the places of one view lie in another.

    Args:
        mine: where the one is, ``(B, 2, 3)`` from :func:`views`.
        theirs: where the other is.
        grid: ``(h, w)``, the places.

    Returns:
        ``(B, h, w, 2)``, coordinates in the other view for ``grid_sample``, and ``(B, h, w)`` bool, which of them lie
        inside it.
    """
    scene = F.affine_grid(mine, [len(mine), 1, *grid], align_corners=False)
    scale = torch.stack((theirs[:, 0, 0], theirs[:, 1, 1]), dim=1)[:, None, None]
    there = (scene - theirs[:, None, None, :, 2]) / scale
    return there, (there.abs() < 0.95).all(-1)


def normalised(images: Tensor) -> Tensor:
    """By ImageNet's mean and standard deviation."""
    return (images.clamp(0, 1) - MEAN) / STD


def save_half(model: nn.Module, path: Path) -> None:
    """Write a model's weights in half precision."""
    state = {
        key: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
        for key, tensor in model.state_dict().items()
    }
    write_atomically(path, lambda temporary: save_file(state, temporary))
