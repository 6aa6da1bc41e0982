"""COCO 2017, COCO-Stuff, VOC 2012 and SBD in miniature, as the archives that their servers give.

Names, folders, formats and label values are the real ones; only photographs are few, small and drawn.
"""

from __future__ import annotations

import http.server
import io
import json
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as rle
from scipy.io import savemat

from fmwiss.data.coco_stuff import COCO_CATEGORIES
from fmwiss.data.voc import VOC_CLASSES, voc_palette

WIDTH, HEIGHT = 64, 48
PERSON, CAR, DOG, TRUCK, ELEPHANT, PIZZA, CLOCK = 1, 3, 18, 8, 22, 59, 85
TRAIN: dict[int, list[int]] = {
    # image id -> category ids; base classes alone are step 0's
    9: [TRUCK], 25: [ELEPHANT], 30: [PIZZA, CLOCK], 34: [TRUCK, ELEPHANT], 36: [CLOCK], 42: [PIZZA],
    # with a class of VOC, with nothing but that, and with nothing at all
    49: [TRUCK, PERSON], 61: [PERSON], 64: [],
}
STEP0 = [9, 25, 30, 34, 36, 42]
VAL: dict[int, list[int]] = {139: [TRUCK, PERSON], 285: [ELEPHANT, DOG], 632: [PIZZA, CAR], 724: [CLOCK]}
VOC_TRAIN = {"2007_000032": ["person", "car"], "2007_000039": ["dog"]}
VOC_VAL = {"2007_000033": ["person"], "2007_000042": ["car", "dog"]}
SBD_TRAIN = {"2008_000002": ["person"], "2008_000008": ["car"]}
SBD_VAL = {"2008_000015": ["dog"], "2007_000033": ["person"]}  # the last is in VOC's val
ARCHIVES = {
    "coco": ["train2017.zip", "val2017.zip", "annotations_trainval2017.zip"],
    "coco-stuff": ["stuffthingmaps_trainval2017.zip"],
    "voc": ["VOCtrainval_11-May-2012.tar"],
    "sbd": ["benchmark.tgz"],
}


def _regions(count: int) -> list[tuple[int, int, int, int]]:
    """Rectangles side by side: left, top, right, bottom."""
    step = WIDTH // max(count, 1)
    return [(place * step + 4, 8, (place + 1) * step - 4, 40) for place in range(count)]


def _photograph(numbers: list[int], seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(90, 130, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    for number, (left, top, right, bottom) in zip(numbers, _regions(len(numbers)), strict=True):
        pixels[top:bottom, left:right] = (number * 53 % 256, number * 101 % 256, number * 29 % 256)
    return _bytes(Image.fromarray(pixels), "JPEG", quality=95)


def _bytes(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def _things_map(categories: list[int]) -> bytes:
    labels = np.full((HEIGHT, WIDTH), 105, dtype=np.uint8)  # stuff
    labels[:4] = 255  # unlabelled
    for category, (left, top, right, bottom) in zip(categories, _regions(len(categories)), strict=True):
        labels[top:bottom, left:right] = category - 1
    return _bytes(Image.fromarray(labels), "PNG")


def _instances(images: dict[int, list[int]]) -> bytes:
    annotations: list[dict[str, Any]] = []
    for image, categories in images.items():
        for category, (left, top, right, bottom) in zip(categories, _regions(len(categories)), strict=True):
            outline: Any = [[left, top, right, top, right, bottom, left, bottom]]
            if category == CLOCK:  # run lengths, as a crowd's, but of one object
                region = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
                region[top:bottom, left:right] = 1
                packed = rle.encode(region)
                outline = {"size": packed["size"], "counts": packed["counts"].decode()}
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": image, "category_id": category, "iscrowd": 0,
                    "segmentation": outline, "area": (right - left) * (bottom - top),
                    "bbox": [left, top, right - left, bottom - top],
                }
            )
    listed = [{"id": i, "file_name": f"{i:012d}.jpg", "width": WIDTH, "height": HEIGHT} for i in images]
    categories_listed = [{"id": i, "name": name, "supercategory": "x"} for i, name in COCO_CATEGORIES.items()]
    return json.dumps({"images": listed, "annotations": annotations, "categories": categories_listed}).encode()


def _zip(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for folder in dict.fromkeys(name.split("/")[0] for name in members):
            archive.writestr(f"{folder}/", b"")
        for name, content in members.items():
            archive.writestr(name, content)


def _tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def _voc_labels(names: list[str]) -> list[int]:
    return [VOC_CLASSES.index(name) + 1 for name in names]


def _voc_mask(names: list[str], void: bool) -> NDArray[np.uint8]:
    labels = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    for label, (left, top, right, bottom) in zip(_voc_labels(names), _regions(len(names)), strict=True):
        if void:
            labels[top - 1 : bottom + 1, left - 1 : right + 1] = 255
        labels[top:bottom, left:right] = label
    return labels


def _mat(names: list[str]) -> bytes:
    file = io.BytesIO()
    mask = _voc_mask(names, void=False)
    savemat(file, {"GTcls": {"Segmentation": mask, "CategoriesPresent": np.unique(mask)[1:]}}, do_compression=True)
    return file.getvalue()


def write_archives(folder: Path) -> None:
    """The six archives, under their real names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, images in (("train2017", TRAIN), ("val2017", VAL)):
        _zip(folder / f"{name}.zip", {f"{name}/{i:012d}.jpg": _photograph(c, i) for i, c in images.items()})
    _zip(
        folder / "annotations_trainval2017.zip",
        {
            "annotations/instances_train2017.json": _instances(TRAIN),
            "annotations/instances_val2017.json": _instances(VAL),
            "annotations/captions_val2017.json": b"{}",
        },
    )
    maps = {f"train2017/{i:012d}.png": _things_map(c) for i, c in TRAIN.items()}
    maps |= {f"val2017/{i:012d}.png": _things_map(c) for i, c in VAL.items()}
    _zip(folder / "stuffthingmaps_trainval2017.zip", maps)
    voc: dict[str, bytes] = {}
    for number, (image_id, names) in enumerate((VOC_TRAIN | VOC_VAL | SBD_TRAIN | SBD_VAL).items()):
        voc[f"JPEGImages/{image_id}.jpg"] = _photograph(_voc_labels(names), number)
    for image_id, names in (VOC_TRAIN | VOC_VAL).items():
        mask = Image.fromarray(_voc_mask(names, void=True))
        mask.putpalette(voc_palette())
        voc[f"SegmentationClass/{image_id}.png"] = _bytes(mask, "PNG")
    for name, images in (("train", VOC_TRAIN), ("val", VOC_VAL), ("trainval", VOC_TRAIN | VOC_VAL)):
        voc[f"ImageSets/Segmentation/{name}.txt"] = "".join(f"{i}\n" for i in images).encode()
    _tar(folder / "VOCtrainval_11-May-2012.tar", {f"VOCdevkit/VOC2012/{name}": c for name, c in voc.items()})
    sbd = {f"cls/{i}.mat": _mat(names) for i, names in (SBD_TRAIN | SBD_VAL).items()}
    sbd |= {f"{name}.txt": "".join(f"{i}\n" for i in ids).encode() for name, ids in
            (("train", SBD_TRAIN), ("val", SBD_VAL))}
    _tar(folder / "benchmark.tgz", {f"benchmark_RELEASE/dataset/{name}": content for name, content in sbd.items()})


class Server(http.server.ThreadingHTTPServer):
    """Serves files of a folder, with ranges; connections to a file may be broken, or refused, so many times.

    Attributes:
        breaks: by name, after how many bytes each of the next connections breaks.
        refuses: by name, with which status the next ones are answered.
        ranges: whether it gives parts of files.
        seen: name and range asked for, in order.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.breaks: dict[str, list[int]] = {}
        self.refuses: dict[str, list[int]] = {}
        self.ranges = True
        self.seen: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name, asked = self.path.partition("?")[0].rpartition("/")[2], self.headers.get("Range")
        self.server.seen.append((name, asked))
        if self.server.refuses.get(name):
            self.send_error(self.server.refuses[name].pop(0))
            return
        path = self.server.folder / name
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        tag = f'"{hash(content) & 0xFFFFFFFF:x}"'
        begin = int(asked[len("bytes=") :].split("-")[0]) if asked and self.server.ranges else 0
        if self.headers.get("If-Range") not in (None, tag):
            begin = 0
        if begin >= len(content) > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", tag)
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        part = content[begin:]
        if self.server.breaks.get(name):
            self.wfile.write(part[: self.server.breaks[name].pop(0)])
            self.close_connection = True
            return
        self.wfile.write(part)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serve(folder: Path) -> Iterator[Server]:
    """A server of the folder on this machine."""
    server = Server(folder)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
