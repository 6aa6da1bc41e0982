"""Predictions and masks as pictures: indexed PNGs, overlays with a legend, masks side by side, layers of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from torch.nn import functional as F

from fmwiss.data.emoji import EMOJI_CLASSES
from fmwiss.data.voc import BROKEN, VOC_CLASSES, VOID, unreadable, voc_palette
from fmwiss.files import write_atomically

Colour = tuple[int, int, int]

_SIGNATURE = "Software", "fmwiss"
_OPACITY = 0.55
_HEAT_STEPS = 128
_GAP = 4
"""Pixels between pictures that stand beside each other."""
_PAPER: Colour = (255, 255, 255)
_INK: Colour = (25, 25, 25)


def picture_indices(class_names: Sequence[str]) -> Tensor:
    """What a model's labels are called in a picture's palette.

    Args:
        class_names: names of the model's labels, ``background`` first.

    Returns:
        uint8 ``(256,)``, from label to palette index. When every class is one of VOC's (or of EmojiSeg's) the indices
        are VOC's own ids (EmojiSeg's), whatever the order in which the model learnt them, so that the picture can be
        compared with the data set's masks; otherwise they are the model's labels.
    """
    table = torch.arange(256, dtype=torch.uint8)
    classes = class_names[1:]
    for known in (VOC_CLASSES, EMOJI_CLASSES):
        if set(classes) <= set(known):
            ids = [known.index(name) + 1 for name in classes]
            table[1 : len(ids) + 1] = torch.tensor(ids, dtype=torch.uint8)
            break
    return table


def class_colours(class_names: Sequence[str]) -> dict[str, Colour]:
    """The palette's colour of every class, background left out; ``class_names`` as in :func:`picture_indices`."""
    palette, indices = voc_palette(), picture_indices(class_names).tolist()
    return {name: _colour(palette, indices[label]) for label, name in enumerate(class_names) if label}


def save_indexed_png(labels: Tensor, class_names: Sequence[str], path: Path) -> None:
    """Write a label map as an indexed PNG (mode P) in VOC's palette.

    Args:
        labels: uint8 ``(H, W)`` in the model's label space.
        class_names: names of the model's labels, ``background`` first; see :func:`picture_indices`.
        path: the file, which appears whole or not at all.
    """
    indices = picture_indices(class_names)[labels.cpu().long()]
    picture = Image.fromarray(indices.numpy()).convert("L")
    picture.putpalette(voc_palette())
    save_png(picture, path)


def save_png(picture: Image.Image, path: Path) -> None:
    """Write a picture as PNG under ``path``, whole or not at all; the folder is made where it is missing."""
    signed = PngInfo()
    signed.add_text(*_SIGNATURE)
    write_atomically(path, lambda temporary: picture.save(temporary, format="PNG", pnginfo=signed))


def read_png(path: Path) -> Image.Image:
    """A picture of :func:`save_png`'s.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except BROKEN as error:
        raise unreadable(f"the picture {path}", error) from error


def is_ours(path: Path) -> bool:
    """Whether a file is a picture of :func:`save_png`'s."""
    try:
        with Image.open(path) as picture:
            key, name = _SIGNATURE
            return picture.info.get(key) == name
    except (OSError, ValueError, SyntaxError):
        return False


def overlay(
    image: Tensor, labels: Tensor, class_names: Sequence[str], *, whole_legend: bool = False
) -> Image.Image:
    """The photograph with the classes' colours laid over it and a legend below.

    Args:
        image: uint8 ``(3, H, W)``, RGB.
        labels: uint8 ``(H, W)`` in the model's label space; background stays as photographed.
        class_names: names of the model's labels, ``background`` first.
        whole_legend: name every class, so that pictures of one size (frames of a video) stay of one size.

    Returns:
        RGB, ``W`` wide unless the legend needs more, and higher than ``H`` by the legend, which names the classes
        that are present.
    """
    colours = class_colours(class_names)
    table = torch.zeros(256, 3)
    for label, name in enumerate(class_names):
        if label:
            table[label] = torch.tensor(colours[name], dtype=torch.float32)
    labels = labels.cpu()
    shown = range(len(class_names)) if whole_legend else labels.unique().tolist()
    present = [class_names[label] for label in shown if 0 < label < len(class_names)]
    blended = _blend(image.cpu(), table[labels.long()].permute(2, 0, 1), labels > 0)
    photograph = _to_picture(_with_edges(blended, labels))
    entries = [(name, colours[name]) for name in present] or [("background only", _PAPER)]
    legend = _legend(entries, photograph.width, _font_for(photograph))
    canvas = Image.new("RGB", (max(photograph.width, legend.width), photograph.height + legend.height), _PAPER)
    canvas.paste(photograph, (0, 0))
    canvas.paste(legend, (0, photograph.height))
    return canvas


def side_by_side(image: Tensor, stages: Mapping[str, Tensor], names: Sequence[str]) -> Image.Image:
    """One row a class: the photograph, then the class's mask at every stage laid over it.

    Args:
        image: uint8 ``(3, H, W)``, RGB.
        stages: stage -> bool ``(C, h, w)``, masks of C >= 1 classes on any grid that covers the photograph.
        names: the C class names.

    Returns:
        RGB; above every photograph stands the class's name, above every mask its stage.
    """
    image = image.cpu()
    photograph = _to_picture(image)
    font = _font_for(photograph)
    line, gap = _line_height(font), _GAP
    width, height = photograph.size
    colours = class_colours(("background", *names))
    canvas = Image.new("RGB", ((1 + len(stages)) * (width + gap) - gap, len(names) * (line + height)), _PAPER)
    draw = ImageDraw.Draw(canvas)
    full = {stage: _to_size(masks.cpu(), (height, width)) for stage, masks in stages.items()}
    for row, name in enumerate(names):
        top = row * (line + height)
        colour = torch.tensor(colours[name], dtype=torch.float32)[:, None, None].expand(3, height, width)
        panels = [(name, photograph)]
        for stage, masks in full.items():
            panels.append((stage, _to_picture(_with_edges(_blend(image, colour, masks[row]), masks[row]))))
        for column, (title, panel) in enumerate(panels):
            left = column * (width + gap)
            draw.text((left + 2, top + 1), title, fill=_INK, font=font)
            canvas.paste(panel, (left, top + line))
    return canvas


def last_stages(pictures: Mapping[str, Image.Image], n_stages: Mapping[str, int]) -> Image.Image:
    """One photograph with several masks of it: its picture, then the last stage in each of :func:`side_by_side`'s.

    Args:
        pictures: by what stands above its column, as far as there is room; all are of the same photograph and classes.
        n_stages: how many stages each of them shows.

    Returns:
        RGB, as high as the pictures and a line of text.
    """
    widths = {name: (picture.width + _GAP) // (1 + n_stages[name]) - _GAP for name, picture in pictures.items()}
    name, first = next(iter(pictures.items()))
    width, height = widths[name], first.height
    panels = [("", first.crop((0, 0, width, height)))]
    for name, picture in pictures.items():
        panels.append((name, picture.crop((picture.width - widths[name], 0, picture.width, height))))
    font = _font_for(panels[0][1])
    line = _line_height(font)
    canvas = Image.new("RGB", (len(panels) * (width + _GAP) - _GAP, line + height), _PAPER)
    for column, (title, panel) in enumerate(panels):
        heading = Image.new("RGB", (width, line), _PAPER)
        ImageDraw.Draw(heading).text((2, 1), title, fill=_INK, font=font)
        canvas.paste(heading, (column * (width + _GAP), 0))
        canvas.paste(panel, (column * (width + _GAP), line))
    return canvas


def stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures below each other, as wide as the widest."""
    height = sum(picture.height + _GAP for picture in pictures) - _GAP
    canvas = Image.new("RGB", (max(picture.width for picture in pictures), height), _PAPER)
    top = 0
    for picture in pictures:
        canvas.paste(picture, (0, top))
        top += picture.height + _GAP
    return canvas


def label_layer(labels: Tensor, class_names: Sequence[str]) -> Image.Image:
    """A label map to be laid over its photograph: classes in the palette's colours, background transparent.

    Args:
        labels: uint8 ``(H, W)`` in the model's label space, void allowed.
        class_names: names of the model's labels, ``background`` first.

    Returns:
        Of mode P with as few colours as there are, so that its PNG is small; white where labels meet.
    """
    labels = labels.cpu()
    palette, indices = voc_palette(), picture_indices(class_names).tolist()
    edges = _edges(labels)
    present = [label for label in labels[~edges].unique().tolist() if label]
    codes = torch.zeros(256, dtype=torch.uint8)
    codes[present] = torch.arange(2, 2 + len(present), dtype=torch.uint8)
    colours = [_PAPER, _PAPER, *(_colour(palette, label if label == VOID else indices[label]) for label in present)]
    picture = Image.fromarray(codes[labels.long()].masked_fill(edges, 1).numpy())
    picture.putpalette([channel for colour in colours for channel in colour])
    picture.info["transparency"] = 0
    return picture


def mask_layer(mask: Tensor, label: int, class_names: Sequence[str], size: Sequence[int]) -> Image.Image:
    """One class's mask as :func:`label_layer` draws it.

    Args:
        mask: bool ``(h, w)`` on any grid that covers the photograph.
        label: the class's label.
        class_names: names of the model's labels, ``background`` first.
        size: height and width of the picture.
    """
    return label_layer(_to_size(mask[None].cpu(), size)[0].to(torch.uint8) * label, class_names)


def heat_map(values: Tensor, size: Sequence[int]) -> Image.Image:
    """Probabilities from black (0) over red and yellow to white (1), as the paper's figure 8 has them.

    Args:
        values: ``(h, w)`` in [0, 1].
        size: height and width of the picture, to which they are scaled bilinearly.

    Returns:
        Of mode P, with 128 steps.
    """
    full = F.interpolate(values.cpu().float()[None, None], size=list(size), mode="bilinear")[0, 0].clamp(0, 1)
    ramp = torch.linspace(0, 3, _HEAT_STEPS)
    heat = torch.stack([ramp - channel for channel in range(3)], dim=1).clamp(0, 1)
    picture = Image.fromarray((full * (_HEAT_STEPS - 1)).round().to(torch.uint8).numpy())
    picture.putpalette((255 * heat).round().to(torch.uint8).flatten().tolist())
    return picture


def thumbnail(image: Tensor, side: int) -> Image.Image:
    """A photograph, uint8 ``(3, H, W)``, at most ``side`` pixels long; see :func:`thumbnail_size`."""
    height, width = thumbnail_size(image.shape[-2], image.shape[-1], side)
    return _to_picture(image.cpu()).resize((width, height), Image.Resampling.LANCZOS)


def thumbnail_size(height: int, width: int, side: int) -> tuple[int, int]:
    """Height and width with the longer side at most ``side`` pixels; smaller photographs keep their size."""
    factor = min(1.0, side / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def save_masks(masks: Tensor, names: Sequence[str], size: Sequence[int], folder: Path, stem: str) -> None:
    """Write each class's mask of a photograph as a black and white PNG, ``<stem>_<class_name>.png``.

    One file a class, because masks of several classes may overlap.

    Args:
        masks: bool ``(C, h, w)`` on any grid that covers the photograph.
        names: the C class names.
        size: height and width of the photograph.
        folder: where the files go.
        stem: how their names begin.
    """
    for name, mask in zip(names, _to_size(masks.cpu(), size), strict=True):
        save_png(Image.fromarray(mask.numpy()), folder / f"{stem}_{name.replace(' ', '_')}.png")


def _to_size(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Masks (C, h, w) at a photograph's size, each pixel from the location that its centre lies in."""
    resized = F.interpolate(masks[None].float(), size=list(size), mode="nearest-exact")
    return resized[0] > 0.5


def _blend(image: Tensor, colour: Tensor, where: Tensor) -> Tensor:
    """``colour`` (3, H, W) in [0, 255] over a uint8 image at the pixels ``where`` (H, W)."""
    mixed = image.float().lerp(colour, _OPACITY).round().to(torch.uint8)
    return torch.where(where[None], mixed, image)


def _with_edges(image: Tensor, labels: Tensor) -> Tensor:
    """White where the right or the lower neighbour has another label (H, W)."""
    return image.masked_fill(_edges(labels), 255)


def _edges(labels: Tensor) -> Tensor:
    edges = torch.zeros_like(labels, dtype=torch.bool)
    edges[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edges[:-1, :] |= labels[:-1, :] != labels[1:, :]
    return edges


def _legend(entries: Sequence[tuple[str, Colour]], width: int, font: ImageFont.FreeTypeFont) -> Image.Image:
    """Coloured squares with names, in as many lines as ``width`` asks for (and wider if one name asks for that)."""
    line = _line_height(font)
    square = line - 6
    places, x, y = [], 0, 0
    for name, _ in entries:
        needed = square + 14 + round(font.getlength(name))
        if x and x + needed > width:
            x, y = 0, y + line
        places.append((x, y))
        x += needed
        width = max(width, needed)
    legend = Image.new("RGB", (width, y + line), _PAPER)
    draw = ImageDraw.Draw(legend)
    for (name, colour), (left, top) in zip(entries, places, strict=True):
        draw.rectangle((left + 3, top + 3, left + 3 + square, top + 3 + square), fill=colour, outline=_INK)
        draw.text((left + square + 8, top + 2), name, fill=_INK, font=font)
    return legend


def _font_for(picture: Image.Image) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=min(max(min(picture.size) // 22, 11), 32))
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType, which legends need")
    return font


def _line_height(font: ImageFont.FreeTypeFont) -> int:
    ascent, descent = font.getmetrics()
    return ascent + descent + 5


def _to_picture(image: Tensor) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))


def _colour(palette: Sequence[int], index: int) -> Colour:
    red, green, blue = palette[3 * index : 3 * index + 3]
    return red, green, blue
