"""A generated data set in VOC's layout: coloured shapes with exact masks, for the demo and the tests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter

from fmwiss.data.randomness import keyed_generator
from fmwiss.data.voc import VOC_CLASSES, canonical_class_name, voc_palette

SHAPE_CLASSES = ("aeroplane", "bicycle", "bird", "boat", "sheep", "sofa")


def write_shapes(
    folder: Path,
    n_train: int = 16,
    n_val: int = 8,
    size: int = 128,
    seed: int = 0,
    classes: Sequence[str] = SHAPE_CLASSES,
) -> None:
    """Write ``n_train + n_val`` small pictures with masks into ``folder`` in VOC's layout.

    Every class has a colour and a number of corners of its own. A picture shows one or two objects on a noisy
    background; its main class goes through ``classes`` in turn, so that each split shows every class when it has at
    least ``len(classes)`` pictures. Masks are 8-bit palette PNGs in VOC's ids with a void (255) border around each
    object. The same arguments write the same files.

    Args:
        folder: made when missing; gets ``JPEGImages``, ``SegmentationClassAug`` and ``ImageSets/Segmentation`` with
            the splits ``train_aug`` and ``val``.
        n_train: pictures in ``train_aug``.
        n_val: pictures in ``val``.
        size: longest side in pixels; sides lie between ``0.75 * size`` and ``size``, the others are 3/4 of them.
        seed: of all draws.
        classes: names of VOC classes.
    """
    labels = [VOC_CLASSES.index(canonical_class_name(name, VOC_CLASSES)) + 1 for name in classes]
    colours = {label: _colour(place / len(labels)) for place, label in enumerate(labels)}
    for name in ("JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for split, count in (("train_aug", n_train), ("val", n_val)):
        ids = [f"{split}_{index:06d}" for index in range(count)]
        for index, image_id in enumerate(ids):
            image, mask = _draw_picture(colours, index, size, keyed_generator(seed, "shapes", image_id))
            image.save(folder / "JPEGImages" / f"{image_id}.jpg", quality=95)
            mask.save(folder / "SegmentationClassAug" / f"{image_id}.png")
        (folder / "ImageSets/Segmentation" / f"{split}.txt").write_text("".join(f"{image_id}\n" for image_id in ids))


def _draw_picture(
    colours: Mapping[int, tuple[int, int, int]], index: int, size: int, generator: torch.Generator
) -> tuple[Image.Image, Image.Image]:
    longer = round(size * _uniform(generator, 0.75, 1.0))
    width, height = (longer, round(0.75 * longer)) if index % 4 else (round(0.75 * longer), longer)
    tint = torch.rand(3, generator=generator) * 40 + 100
    noise = torch.randn((height, width, 3), generator=generator) * 12
    image = Image.fromarray((tint + noise).clamp(0, 255).to(torch.uint8).numpy())
    mask = np.zeros((height, width), dtype=np.uint8)
    labels = list(colours)
    shown = [labels[index % len(labels)]]
    if _uniform(generator, 0.0, 1.0) < 0.5:
        shown.insert(0, labels[int(_uniform(generator, 0, len(labels)))])
    # The main object comes last, on top, so that none of it is hidden.
    for label in shown:
        region = Image.new("L", (width, height))
        ImageDraw.Draw(region).polygon(_corners(label, width, height, generator), fill=255)
        image.paste(colours[label], mask=region)
        mask[np.asarray(region.filter(ImageFilter.MaxFilter(3))) > 0] = 255
        mask[np.asarray(region.filter(ImageFilter.MinFilter(3))) > 0] = label
    indexed = Image.fromarray(mask).convert("L")
    indexed.putpalette(voc_palette())
    return image, indexed


def _corners(label: int, width: int, height: int, generator: torch.Generator) -> list[tuple[float, float]]:
    radius = min(width, height) * _uniform(generator, 0.22, 0.38)
    x = _uniform(generator, radius, width - radius)
    y = _uniform(generator, radius, height - radius)
    turn = _uniform(generator, 0, 2 * math.pi)
    count = 3 + label % 5
    angles = [turn + 2 * math.pi * corner / count for corner in range(count)]
    return [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]


def _colour(hue: float) -> tuple[int, int, int]:
    red, green, blue = Image.new("HSV", (1, 1), (round(255 * hue), 220, 230)).convert("RGB").tobytes()
    return red, green, blue


def _uniform(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))
