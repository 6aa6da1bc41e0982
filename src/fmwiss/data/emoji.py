"""EmojiSeg: generated, photograph-like scenes of emoji with exact masks, identical on every machine.

A scene has one of several kinds of background and one to four objects, each an emoji at a random size, angle and light,
perhaps flipped, partly hidden by another or cut by the border. Training scenes are drawn with five styles of emoji,
validation scenes with a sixth, so that validation measures generalisation to drawings never seen.

Scenes are computed in NumPy from uniform random numbers with nothing but additions, multiplications, divisions and
comparisons, element by element, which IEEE 754 fixes to the last bit: no library's resizing, no ``sin``, no ``randn``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fmwiss.data.randomness import keyed_generator
from fmwiss.data.voc import VOC_CLASSES, canonical_class_name, voc_palette
from fmwiss.errors import UserError
from fmwiss.files import write_atomically

EMOJI_CLASSES: tuple[str, ...] = tuple("umbrella" if name == "dining table" else name for name in VOC_CLASSES)
"""VOC's classes in VOC's order; no emoji shows a dining table, so an umbrella has its place."""
TRAINING_STYLES = ("noto", "noto-v1", "fluent-emoji", "fluent-emoji-flat", "fxemoji")
HELD_OUT_STYLE = "twemoji"

SIDE = 96
"""Pixels of a drawing on a sheet, each way."""
COLUMNS = 8
DRAWINGS_FILE = "drawings.json"
FOLDER = Path(__file__).parent / "emoji_drawings"
ATTRIBUTION = FOLDER / "ATTRIBUTION.md"

SMALLEST, LARGEST = 0.03, 0.45
"""What of a scene an object covers, at least and at most."""
_NUMBER_OF_OBJECTS = (0.45, 0.8, 0.95, 1.0)  # cumulative probabilities of 1, 2, 3, 4
_TRIES = 12

Array = NDArray[np.float64]
Layout = Literal["voc", "folder", "tagged"]
"""How a data set is written, see :func:`write_emoji`."""


@dataclass(frozen=True)
class Drawing:
    """One emoji.

    Attributes:
        class_name: what it shows.
        style: the set of emoji that it is from.
        levels: ``(S, S, 4)`` each, premultiplied RGB and opacity in [0, 1], S being 96, 48, 24.
    """

    class_name: str
    style: str
    levels: tuple[Array, ...]

    @property
    def share(self) -> float:
        """What of its square is opaque, in (0, 1]."""
        return float((self.levels[0][..., 3] >= 0.5).mean())


@cache
def drawings(style: str) -> tuple[Drawing, ...]:
    """All drawings of a style, in the order of the classes."""
    listed = json.loads((FOLDER / DRAWINGS_FILE).read_text(encoding="utf-8"))[style]
    with Image.open(FOLDER / f"{style}.png") as picture:
        sheet = np.asarray(picture).astype(np.float64) / 255
    found = []
    for place, (class_name, _) in enumerate(listed):
        top, left = place // COLUMNS * SIDE, place % COLUMNS * SIDE
        full = sheet[top : top + SIDE, left : left + SIDE].copy()
        full[..., :3] *= full[..., 3:]
        half = _halved(full)
        found.append(Drawing(class_name, style, (full, half, _halved(half))))
    return tuple(found)


class EmojiSeg:
    """A data set of scenes, rendered when asked for; it reads like :class:`~fmwiss.data.voc.VOCSource`.

    Args:
        n_train: scenes in the split ``train_aug``.
        n_val: scenes in the split ``val``, drawn in the held-out style.
        seed: of all draws.
        size: longer side in pixels; the shorter one is between 0.7 of it and all of it.
        shown: classes that scenes show; masks keep the labels of all twenty.

    Raises:
        UserError: scenes would be too small, or no drawing shows a class.
    """

    class_names: tuple[str, ...] = EMOJI_CLASSES

    def __init__(
        self,
        n_train: int = 600,
        n_val: int = 200,
        seed: int = 0,
        size: int = 160,
        shown: Sequence[str] = EMOJI_CLASSES,
    ) -> None:
        if size < 32:
            raise UserError(f"EmojiSeg's size is {size}; scenes need at least 32 pixels")
        self.seed, self.size = seed, size
        self.shown = tuple(canonical_class_name(name, EMOJI_CLASSES) for name in shown)
        twice = next((name for place, name in enumerate(self.shown) if name in self.shown[:place]), None)
        if twice is not None:
            raise UserError(f"EmojiSeg is asked for the class '{twice}' twice; name it once")
        self.splits = {
            "train_aug": [f"train_{index:06d}" for index in range(n_train)],
            "val": [f"val_{index:06d}" for index in range(n_val)],
        }

    def ids(self, split: str) -> list[str]:
        """Scene ids of ``train_aug`` or ``val``."""
        if split not in self.splits:
            raise UserError(f"EmojiSeg has no split '{split}'; it has {', '.join(self.splits)}")
        return list(self.splits[split])

    def read_image(self, image_id: str) -> Tensor:
        """Scene as uint8 RGB ``(3, H, W)``."""
        return self.read(image_id)[0]

    def read_mask(self, image_id: str) -> Tensor:
        """Mask as uint8 ``(H, W)``: 0 background, 1-20 classes; exact, so there is no void."""
        return self.read(image_id)[1]

    def read(self, image_id: str) -> tuple[Tensor, Tensor]:
        """Both, for the price of one."""
        scene = re.fullmatch(r"(train|val)_(\d{6})", image_id)
        if scene is None:
            raise UserError(f"EmojiSeg has no scene '{image_id}'; its ids are like train_000000 and val_000000")
        styles = TRAINING_STYLES if scene[1] == "train" else (HELD_OUT_STYLE,)
        draws = keyed_generator(self.seed, "emoji", image_id)
        pixels, labels = render(draws, int(scene[2]), styles, self.size, self.shown)
        return torch.from_numpy(pixels).permute(2, 0, 1), torch.from_numpy(labels)


def write_emoji(
    folder: Path,
    source: EmojiSeg,
    progress: Callable[..., Iterable[Any]] = lambda items, *_: items,
    layout: Layout = "voc",
) -> None:
    """Write a data set, with its class names in ``classes.txt`` and the drawings' attributions.

    Photographs are JPEG (quality 95), so their pixels differ a little from :meth:`EmojiSeg.read_image`; masks are
    exact.

    Args:
        folder: where to.
        source: the scenes.
        progress: shows the scenes passing by.
        layout: ``voc``; ``folder``, as :class:`~fmwiss.data.folder.FolderSource` reads it, with the lists ``train``
            and ``val``; or ``tagged``, photographs of the training scenes and ``tags.csv`` alone.
    """
    images, masks, lists = ("JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation")
    splits = source.splits
    if layout != "voc":
        images, masks, lists = "images", "masks", "splits"
        splits = {split.removesuffix("_aug"): listed for split, listed in splits.items()}
    if layout == "tagged":
        splits = {"train": splits["train"]}
    for name in (images,) if layout == "tagged" else (images, masks, lists):
        (folder / name).mkdir(parents=True, exist_ok=True)
    ids = [image_id for listed in splits.values() for image_id in listed]
    tags = {}
    for image_id in progress(ids, "drawing scenes", len(ids)):
        image, mask = source.read(image_id)
        tags[image_id] = [source.class_names[label - 1] for label in mask.unique().tolist() if label]
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        _write(picture, folder / f"{images}/{image_id}.jpg", format="JPEG", quality=95, subsampling=0)
        if layout != "tagged":
            labels = Image.fromarray(mask.numpy()).convert("L")
            labels.putpalette(voc_palette())
            _write(labels, folder / f"{masks}/{image_id}.png", format="PNG")
    _write_text(ATTRIBUTION.read_text(encoding="utf-8"), folder / ATTRIBUTION.name)
    if layout != "voc":
        rows = "".join(f"{image_id}.jpg,{';'.join(tags[image_id])}\n" for image_id in splits["train"])
        _write_text(f"file,tags\n{rows}", folder / "tags.csv")
    if layout == "tagged":
        return
    _write_text("".join(f"{name}\n" for name in source.class_names), folder / "classes.txt")
    for split, listed in splits.items():  # last, for they are what makes a folder a whole data set
        _write_text("".join(f"{image_id}\n" for image_id in listed), folder / f"{lists}/{split}.txt")


def write_emoji_by_class(
    folder: Path, source: EmojiSeg, progress: Callable[..., Iterable[Any]] = lambda items, *_: items
) -> None:
    """Write the training scenes alone, one folder per class, as methods that replay photographs want them.

    A scene lies in the folder of its main object, whose class goes through the classes in turn; it may show others.
    """
    ids = source.ids("train_aug")
    for number, image_id in enumerate(progress(ids, "drawing scenes", len(ids))):
        picture = Image.fromarray(source.read_image(image_id).permute(1, 2, 0).numpy())
        path = folder / source.shown[number % len(source.shown)] / f"{image_id}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(picture, path, format="JPEG", quality=95, subsampling=0)
    _write_text(ATTRIBUTION.read_text(encoding="utf-8"), folder / ATTRIBUTION.name)


def _write(picture: Image.Image, path: Path, **options: Any) -> None:
    write_atomically(path, lambda temporary: picture.save(temporary, **options))


def _write_text(text: str, path: Path) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def render(
    generator: torch.Generator,
    index: int,
    styles: Sequence[str] = TRAINING_STYLES,
    size: int = 160,
    shown: Sequence[str] = EMOJI_CLASSES,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw one scene.

    Args:
        generator: of all draws.
        index: the scene's number; the class of its main object goes through the classes in turn.
        styles: sets of emoji to choose from.
        size: longer side in pixels.
        shown: classes of its objects.

    Returns:
        ``(H, W, 3)`` RGB and ``(H, W)`` labels.
    """
    draws = _Draws(generator)
    shorter = int(size * draws.uniform(0.7, 1.0))
    height, width = (shorter, size) if draws.uniform() < 0.7 else (size, shorter)
    canvas = _background(draws, height, width)
    objects = _objects(draws, index, styles, height, width, shown)
    labels = np.zeros((height, width), dtype=np.uint8)
    for drawing, warped in objects:
        opacity = warped[..., 3:]
        canvas *= 1 - 0.35 * draws.uniform() * _shadow(opacity)
        light = draws.uniform(0.75, 1.15) * np.array([draws.uniform(0.9, 1.1) for _ in range(3)])
        canvas = canvas * (1 - opacity) + warped[..., :3] * light
        labels[opacity[..., 0] >= 0.5] = EMOJI_CLASSES.index(drawing.class_name) + 1
    canvas *= _light(draws, height, width)
    canvas += 0.08 * (draws.field(height, width, 3) + draws.field(height, width, 3) - 1) * draws.uniform(0.2, 1.0)
    return (canvas.clip(0, 1) * 255 + 0.5).astype(np.uint8), labels


# -------------------------------------------------------------------------------------------------------- objects


def _objects(
    draws: _Draws, index: int, styles: Sequence[str], height: int, width: int, shown: Sequence[str]
) -> list[tuple[Drawing, Array]]:
    """Objects from back to front; each shows at least 3 % of the scene and half of itself."""
    by_class: dict[str, list[Drawing]] = {name: [] for name in EMOJI_CLASSES}
    for style in styles:
        for drawing in drawings(style):
            by_class[drawing.class_name].append(drawing)
    lot = draws.uniform()
    wanted = [index % len(shown)]
    wanted += [draws.integer(len(shown)) for bound in _NUMBER_OF_OBJECTS[:-1] if lot >= bound]
    placed: list[tuple[Drawing, Array]] = []
    visible: list[NDArray[np.bool_]] = []
    whole: list[int] = []
    for number in wanted:
        choice = by_class[shown[number]]
        drawing = choice[draws.integer(len(choice))]
        for attempt in range(_TRIES):
            # The first one has to stand somewhere: at last in the middle, at a size that every drawing can have.
            last = not placed and attempt == _TRIES - 1
            warped = _placed(draws, drawing, height, width, in_the_middle=last)
            opaque = warped[..., 3] >= 0.5
            left = [seen & ~opaque for seen in visible]
            fits = SMALLEST <= opaque.mean() <= LARGEST and all(
                seen.mean() >= SMALLEST and 2 * seen.sum() >= area for seen, area in zip(left, whole, strict=True)
            )
            if fits or last:
                placed.append((drawing, warped))
                visible = [*left, opaque]
                whole.append(int(opaque.sum()))
                break
    return placed


def _placed(draws: _Draws, drawing: Drawing, height: int, width: int, in_the_middle: bool) -> Array:
    """The drawing at a random place, size and angle, ``(H, W, 4)``."""
    lot = draws.uniform()
    covered = 0.035 * (1 + 10.5 * lot * lot) + 0.06 * lot  # median about .125, at most .46
    # 1 pixel of the scene is so many of the drawing's; the drawing's square may exceed the scene a little.
    step = SIDE * (drawing.share / (covered * height * width)) ** 0.5
    step = max(step, SIDE / (1.05 * min(height, width)))
    x, y = width * draws.uniform(0.16, 0.84), height * draws.uniform(0.16, 0.84)
    tangent = draws.uniform(-0.2, 0.2)  # of half the angle: up to 23 degrees
    mirrored = draws.uniform() < 0.5
    if in_the_middle:
        step, x, y, tangent = SIDE / (0.8 * min(height, width)), width / 2, height / 2, 0.0
    cosine, sine = (1 - tangent * tangent) / (1 + tangent * tangent), 2 * tangent / (1 + tangent * tangent)
    dx, dy = np.arange(width)[None, :] + 0.5 - x, np.arange(height)[:, None] + 0.5 - y
    u, v = (cosine * dx + sine * dy) * step, (cosine * dy - sine * dx) * step
    level = 0
    while step > 1.5 and level < len(drawing.levels) - 1:
        step, level = step / 2, level + 1
    scale = 1 / (1 << level)
    side = SIDE >> level
    return _sampled(drawing.levels[level], (-u if mirrored else u) * scale + side / 2, v * scale + side / 2)


def _sampled(picture: Array, x: Array, y: Array) -> Array:
    """Bilinear samples of ``(S, S, 4)`` at positions in pixels; nothing outside."""
    side = len(picture)
    padded = np.zeros((side + 3, side + 3, picture.shape[2]))
    padded[1:-2, 1:-2] = picture
    x, y = (x + 0.5).clip(0, side + 1), (y + 0.5).clip(0, side + 1)
    column, row = x.astype(np.int64), y.astype(np.int64)
    right, down = (x - column)[..., None], (y - row)[..., None]
    above = padded[row, column] * (1 - right) + padded[row, column + 1] * right
    below = padded[row + 1, column] * (1 - right) + padded[row + 1, column + 1] * right
    return above * (1 - down) + below * down


def _shadow(opacity: Array) -> Array:
    """A soft copy of an object's opacity a little below and beside it."""
    moved = np.zeros_like(opacity)
    for shift in (1, 2, 3, 4):
        moved[shift:, shift:] += 0.25 * opacity[:-shift, :-shift]
    return moved


def _halved(picture: Array) -> Array:
    return 0.25 * (picture[::2, ::2] + picture[1::2, ::2] + picture[::2, 1::2] + picture[1::2, 1::2])


# ----------------------------------------------------------------------------------------------------- backgrounds


def _background(draws: _Draws, height: int, width: int) -> Array:
    """``(H, W, 3)`` in [0, 1] of one of six kinds."""
    kinds = (_gradient, _clouds, _horizon, _stripes, _tiles, _bokeh)
    return kinds[draws.integer(len(kinds))](draws, height, width)


def _gradient(draws: _Draws, height: int, width: int) -> Array:
    return _mixed(draws, _ramp(draws, height, width))


def _clouds(draws: _Draws, height: int, width: int) -> Array:
    return _mixed(draws, _noise(draws, height, width))


def _horizon(draws: _Draws, height: int, width: int) -> Array:
    """Sky above, textured ground below an uneven line."""
    rows = (np.arange(height) / height)[:, None]
    line = draws.uniform(0.25, 0.65) + 0.15 * (_noise(draws, height, width)[:1] - 0.5)
    sky = _mixed(draws, (0.3 * _noise(draws, height, width) + rows).clip(0, 1))
    ground = _mixed(draws, _noise(draws, height, width, coarsest=16))
    return np.where((rows < line)[..., None], sky, ground)


def _stripes(draws: _Draws, height: int, width: int) -> Array:
    phase = _ramp(draws, height, width) * draws.uniform(2, 12) + 0.2 * _noise(draws, height, width)
    wave = phase - np.floor(phase)
    return _mixed(draws, (4 * np.minimum(wave, 1 - wave) - 0.5).clip(0, 1))


def _tiles(draws: _Draws, height: int, width: int) -> Array:
    side = draws.uniform(0.08, 0.3) * width
    columns = np.floor((np.arange(width) + width * draws.uniform()) / side)
    rows = np.floor((np.arange(height) + height * draws.uniform()) / side)
    odd = (rows[:, None] + columns[None, :]) % 2
    return _mixed(draws, 0.6 * odd + 0.4 * _noise(draws, height, width))


def _bokeh(draws: _Draws, height: int, width: int) -> Array:
    """Soft discs before a blurred ground."""
    canvas = _mixed(draws, _noise(draws, height, width, finest=16))
    for _ in range(4 + draws.integer(8)):
        radius = width * draws.uniform(0.03, 0.12)
        dx = np.arange(width)[None, :] - width * draws.uniform()
        dy = np.arange(height)[:, None] - height * draws.uniform()
        disc = ((1.15 - (dx * dx + dy * dy) / (radius * radius)) / 0.3).clip(0, 1)[..., None] * draws.uniform(0.2, 0.6)
        canvas = canvas * (1 - disc) + _colour(draws) * disc
    return canvas


def _light(draws: _Draws, height: int, width: int) -> Array:
    """The scene's illumination, ``(H, W, 1)``."""
    return (draws.uniform(0.75, 1.1) + draws.uniform(0, 0.4) * (_ramp(draws, height, width) - 0.5))[..., None]


def _ramp(draws: _Draws, height: int, width: int) -> Array:
    """From 0 to 1 in a random direction."""
    across, down = draws.uniform(-1, 1), draws.uniform(-1, 1)
    ramp = across * (np.arange(width) / width)[None, :] + down * (np.arange(height) / height)[:, None]
    return (ramp - ramp.min()) / max(ramp.max() - ramp.min(), 1e-6)


def _noise(draws: _Draws, height: int, width: int, coarsest: int = 64, finest: int = 2) -> Array:
    """Value noise over several octaves, in [0, 1]; cells in pixels."""
    total, weights = np.zeros((height, width)), 0.0
    cell, weight = coarsest, 1.0
    roughness = draws.uniform(0.4, 0.75)
    while cell >= finest:
        total += weight * _octave(draws, height, width, cell)
        weights += weight
        cell, weight = cell // 2, weight * roughness
    return total / weights


def _octave(draws: _Draws, height: int, width: int, cell: int) -> Array:
    values = draws.field(height // cell + 2, width // cell + 2)
    rows, columns = np.arange(height), np.arange(width)
    y, x = (rows % cell) / cell, (columns % cell) / cell
    y, x = (y * y * (3 - 2 * y))[:, None], (x * x * (3 - 2 * x))[None, :]
    above, below = values[rows // cell], values[rows // cell + 1]
    left, right = columns // cell, columns // cell + 1
    return (above[:, left] * (1 - x) + above[:, right] * x) * (1 - y) + (
        below[:, left] * (1 - x) + below[:, right] * x
    ) * y


def _mixed(draws: _Draws, shares: Array) -> Array:
    """Two random colours mixed, ``(H, W)`` in [0, 1] -> ``(H, W, 3)``."""
    first, second = _colour(draws), _colour(draws)
    return first + (second - first) * shares[..., None]


def _colour(draws: _Draws) -> Array:
    grey, tint = draws.uniform(0.15, 0.9), draws.uniform(0.0, 0.35)
    return np.array([grey + tint * draws.uniform(-1, 1) for _ in range(3)]).clip(0, 1)


class _Draws:
    """Uniform random numbers of a generator."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def field(self, *shape: int) -> Array:
        """Numbers in [0, 1)."""
        return torch.rand(shape, generator=self.generator, dtype=torch.float64).numpy()

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * float(self.field())

    def integer(self, count: int) -> int:
        """In ``[0, count)``."""
        return int(self.field() * count)
