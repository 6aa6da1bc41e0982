"""Rasterises the emoji that EmojiSeg is drawn with, from npm packages of iconify, into the package.

    npm install @iconify-json/{noto,noto-v1,fluent-emoji,fluent-emoji-flat,fxemoji,twemoji}
    pip install resvg-py
    python tools/rasterise_emoji.py node_modules src/fmwiss/data/emoji_drawings

One RGBA sheet a style and one JSON file that names the drawings on the sheets, row by row.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import resvg_py
from PIL import Image

from fmwiss.data.emoji import COLUMNS, DRAWINGS_FILE, EMOJI_CLASSES, HELD_OUT_STYLE, SIDE, TRAINING_STYLES
from fmwiss.files import write_atomically
from fmwiss.reporting.pictures import save_png

# The names of the emoji that show a class, the whole of it; what a style lacks is left out.
DRAWINGS = {
    "aeroplane": ("airplane", "small-airplane"),
    "bicycle": ("bicycle",),
    "bird": ("bird", "eagle", "parrot"),
    "boat": ("sailboat", "speedboat", "ferry"),
    "bottle": ("baby-bottle", "bottle-with-popping-cork"),
    "bus": ("bus", "oncoming-bus", "trolleybus"),
    "car": ("automobile", "taxi", "sport-utility-vehicle"),
    "cat": ("cat", "black-cat"),
    "chair": ("chair", "seat"),
    "cow": ("cow", "ox"),
    "dog": ("dog", "poodle", "guide-dog"),
    "horse": ("horse",),
    "motorbike": ("motorcycle", "motor-scooter"),
    "person": ("person-walking", "person-running", "person-standing"),
    "potted plant": ("potted-plant",),
    "sheep": ("ewe", "ram"),
    "sofa": ("couch-and-lamp",),
    "train": ("locomotive", "high-speed-train", "train", "railway-car"),
    "tv monitor": ("television", "desktop-computer"),
    "umbrella": ("umbrella", "umbrella-on-ground"),
}
# What FxEmoji, which is older, calls them, and what shows something else there (a face alone, a shoe, a scene).
OTHER_NAMES = {"person-walking": "walking", "ewe": "sheep", "locomotive": "steamlocomotive"}
NOT_FXEMOJI = {"bird", "sailboat", "cat", "dog", "umbrella", "desktop-computer"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path, help="the folder node_modules")
    parser.add_argument("out", type=Path, help="the folder for the sheets")
    arguments = parser.parse_args()
    listed: dict[str, list[list[str]]] = {}
    for style in (*TRAINING_STYLES, HELD_OUT_STYLE):
        icons = json.loads((arguments.packages / f"@iconify-json/{style}/icons.json").read_text())
        drawings = [
            (class_name, emoji, picture)
            for class_name in EMOJI_CLASSES
            for emoji in DRAWINGS[class_name]
            if not (style == "fxemoji" and emoji in NOT_FXEMOJI)
            and (picture := rasterise(icons, emoji)) is not None
        ]
        rows = -(-len(drawings) // COLUMNS)
        sheet = Image.new("RGBA", (COLUMNS * SIDE, rows * SIDE))
        for place, (*_, picture) in enumerate(drawings):
            sheet.paste(picture, (place % COLUMNS * SIDE, place // COLUMNS * SIDE))
        save_png(sheet, arguments.out / f"{style}.png")
        listed[style] = [[class_name, emoji] for class_name, emoji, _ in drawings]
        print(f"{style}: {len(drawings)} drawings")
    lines = ",\n".join(f" {json.dumps(style)}: {json.dumps(drawings)}" for style, drawings in listed.items())
    write_atomically(arguments.out / DRAWINGS_FILE, lambda path: path.write_text(f"{{\n{lines}\n}}\n"))


def rasterise(icons: dict[str, Any], emoji: str) -> Image.Image | None:
    """The emoji, cut to what is opaque and centred, its longer side filling the square; None if the style lacks it."""
    aliases = icons.get("aliases", {})
    found = next((n for n in (emoji, emoji.replace("-", ""), OTHER_NAMES.get(emoji, "")) if n in icons["icons"]), None)
    if found is None and emoji in aliases:
        found = aliases[emoji]["parent"]
    if found is None:
        return None
    icon = icons["icons"][found]
    width, height = icon.get("width", icons.get("width", 16)), icon.get("height", icons.get("height", 16))
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{box}">'
    drawn = resvg_py.svg_to_bytes(f"{svg}{icon['body']}</svg>", width=8 * SIDE, height=8 * SIDE)
    picture = Image.open(io.BytesIO(drawn)).convert("RGBA")
    opaque = Image.fromarray(((np.array(picture)[..., 3] > 127) * 255).astype(np.uint8))
    cut = picture.crop(opaque.getbbox())
    scale = SIDE / max(cut.size)
    size = (max(1, round(cut.width * scale)), max(1, round(cut.height * scale)))
    small = cut.resize(size, Image.Resampling.BOX)
    square = Image.new("RGBA", (SIDE, SIDE))
    square.paste(small, ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2))
    return square


if __name__ == "__main__":
    main()
