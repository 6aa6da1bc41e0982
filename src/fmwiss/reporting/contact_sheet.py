"""Many photographs on one picture, row by row: what a data set looks like, and what stands out in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fmwiss.data.randomness import keyed_generator
from fmwiss.data.voc import VOID, voc_palette
from fmwiss.reporting.pictures import thumbnail

SIDE, CAPTION, GAP = 128, 200, 6
COLUMNS = 6
ROWS = 40
_OPACITY = 0.5
_PAPER, _INK, _GREY = (255, 255, 255), (25, 25, 25), (120, 120, 120)


@dataclass(frozen=True)
class Row:
    """Photographs with something in common.

    Attributes:
        title: what they have in common.
        note: smaller, below it.
        photographs: ids; of more than fit some are drawn by lot, the same each time.
    """

    title: str
    note: str
    photographs: Sequence[str]


def contact_sheet(
    rows: Sequence[Row],
    read: Callable[[str], tuple[Tensor, Tensor | None]],
    progress: Callable[..., Iterable[Any]] = lambda items, *_: items,
) -> Image.Image:
    """Draw at most ``ROWS`` rows of at most ``COLUMNS`` photographs; the last row says how many are left out.

    Args:
        rows: what to show.
        read: gives a photograph by id, uint8 ``(3, H, W)``, and its mask, uint8 ``(H, W)``, or None; the mask's classes
            are laid over it in VOC's colours.
        progress: shows how far it is.
    """
    shown = list(rows[:ROWS])
    wanted = dict.fromkeys(image_id for row in shown for image_id in _drawn(row))
    tiles: Mapping[str, Image.Image] = {
        image_id: _tile(*read(image_id)) for image_id in progress(wanted, "drawing", len(wanted))
    }
    line = SIDE + GAP
    left_out = len(rows) - len(shown)
    sheet = Image.new("RGB", (CAPTION + COLUMNS * line + GAP, max(1, len(shown)) * line + GAP + 24), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, row in enumerate(shown):
        top = GAP + number * line
        _write(draw, row.title, (GAP, top + SIDE // 2 - 22), 17, _INK)
        _write(draw, row.note, (GAP, top + SIDE // 2 + 2), 13, _GREY)
        for column, image_id in enumerate(_drawn(row)):
            tile = tiles[image_id]
            left = CAPTION + column * line + (SIDE - tile.width) // 2
            sheet.paste(tile, (left, top + (SIDE - tile.height) // 2))
    note = f"{left_out} more rows are not shown" if left_out else "masks, where there are any, are laid over in colour"
    _write(draw, note, (GAP, sheet.height - 22), 13, _GREY, sheet.width - 2 * GAP)
    return sheet


def _drawn(row: Row) -> list[str]:
    """Of a row's photographs those that are shown, in their order."""
    order = torch.randperm(len(row.photographs), generator=keyed_generator(0, "contact sheet", row.title))
    return [row.photographs[place] for place in sorted(order[:COLUMNS].tolist())]


def _tile(image: Tensor, mask: Tensor | None) -> Image.Image:
    picture = thumbnail(image, SIDE)
    if mask is None:
        return picture
    labels = Image.fromarray(mask.numpy()).resize(picture.size, Image.Resampling.NEAREST)
    colours = np.array(voc_palette(), dtype=np.float32).reshape(256, 3)[np.asarray(labels)]
    pixels = np.asarray(picture, dtype=np.float32)
    coloured = ((np.asarray(labels) != 0) & (np.asarray(labels) != VOID))[..., None]
    mixed = np.where(coloured, (1 - _OPACITY) * pixels + _OPACITY * colours, pixels)
    return Image.fromarray(mixed.round().astype(np.uint8))


def _write(
    draw: ImageDraw.ImageDraw,
    text: str,
    place: tuple[int, int],
    size: int,
    colour: tuple[int, int, int],
    width: int = CAPTION - 2 * GAP,
) -> None:
    """One line, cut where it is too long."""
    font = ImageFont.load_default(size=size)
    cut = text
    while font.getlength(cut) > width:
        cut = cut[:-2].rstrip("…") + "…"
    draw.text(place, cut, fill=colour, font=font)
