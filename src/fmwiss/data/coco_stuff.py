"""COCO 2017 as it is published, with COCO-Stuff's label maps or with its own outlines; and COCO before VOC."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fmwiss.data.coco import CocoFile, rasterise
from fmwiss.data.composed import ComposedSource
from fmwiss.data.voc import VOC_CLASSES, VOID, VOCSource, read_plane, read_stored, stored_size
from fmwiss.errors import UserError
from fmwiss.names import joined

Masks = Literal["maps", "instances"]

_NAMES = (
    "person:1 bicycle:2 car:3 motorcycle:4 airplane:5 bus:6 train:7 truck:8 boat:9 traffic light:10 fire hydrant:11 "
    "stop sign:13 parking meter:14 bench:15 bird:16 cat:17 dog:18 horse:19 sheep:20 cow:21 elephant:22 bear:23 "
    "zebra:24 giraffe:25 backpack:27 umbrella:28 handbag:31 tie:32 suitcase:33 frisbee:34 skis:35 snowboard:36 "
    "sports ball:37 kite:38 baseball bat:39 baseball glove:40 skateboard:41 surfboard:42 tennis racket:43 bottle:44 "
    "wine glass:46 cup:47 fork:48 knife:49 spoon:50 bowl:51 banana:52 apple:53 sandwich:54 orange:55 broccoli:56 "
    "carrot:57 hot dog:58 pizza:59 donut:60 cake:61 chair:62 couch:63 potted plant:64 bed:65 dining table:67 toilet:70 "
    "tv:72 laptop:73 mouse:74 remote:75 keyboard:76 cell phone:77 microwave:78 oven:79 toaster:80 sink:81 "
    "refrigerator:82 book:84 clock:85 vase:86 scissors:87 teddy bear:88 hair drier:89 toothbrush:90"
)


def _categories() -> dict[int, str]:
    categories, rest = {}, _NAMES
    while rest:
        name, _, rest = rest.partition(":")
        number, _, rest = rest.partition(" ")
        categories[int(number)] = name
    return categories


COCO_CATEGORIES: dict[int, str] = _categories()
"""The 80 classes by category id, which runs from 1 to 90 with gaps."""
COCO_OF_VOC: tuple[int, ...] = (5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72)
"""Category ids of VOC's 20 classes, in VOC's order."""
COCO_TO_VOC_CLASSES: tuple[str, ...] = (
    *(name for category, name in COCO_CATEGORIES.items() if category not in COCO_OF_VOC),
    *VOC_CLASSES,
)
"""The 60 classes that VOC lacks, in COCO's order and spelling, then VOC's 20 in its own."""
LAST_THING, FIRST_STUFF, LAST_STUFF = 90, 91, 181
"""In COCO-Stuff's maps: things are 0 to 90, their category id less one; stuff follows."""
_LISTS = {"train": "train2017", "val": "val2017"}


class CocoSource:
    """COCO 2017 in the folders of its downloads, as ``fmwiss data coco`` and ``coco-stuff`` lay them out.

    - ``images/train2017/000000000009.jpg``, and ``val2017``. An id is ``train2017/000000000009``.
    - ``stuffthingmaps/train2017/000000000009.png``: COCO-Stuff's maps (Caesar et al., CVPR 2018). Things, 0 to 90, are
      the category id less one; stuff, 91 to 181, is background; 255, unlabelled, is void.
    - ``annotations/instances_train2017.json``: outlines, drawn as :func:`fmwiss.data.coco.rasterise` says.

    Args:
        root: the folder.
        masks: ``maps``, or ``instances`` for outlines.
        tags: ``masks``: the classes in the masks; ``instances``: those that the outlines' file tells, so that not
            every map has to be opened.
        labels: label, from 1, of every category id; by default COCO's order.
        class_names: of the labels.

    Raises:
        UserError: a folder is missing, or a file of annotations is spoilt.
    """

    def __init__(
        self,
        root: str | Path,
        masks: Masks = "maps",
        tags: str = "masks",
        labels: dict[int, int] | None = None,
        class_names: Sequence[str] = tuple(COCO_CATEGORIES.values()),
    ) -> None:
        self.root = Path(root)
        self.masks = masks
        self.tags = tags
        self.labels = labels or {category: label for label, category in enumerate(COCO_CATEGORIES, start=1)}
        self._names = tuple(class_names)
        if tags not in ("masks", "instances"):
            raise UserError(f"data.tags is '{tags}', and of COCO's own layout it must be masks or instances")
        if not self.root.is_dir():
            raise UserError(f"the data folder {self.root} does not exist; give the one that holds COCO's images")
        needed = ["images", *(["stuffthingmaps"] if masks == "maps" else [])]
        for name in (*needed, *(["annotations"] if "instances" in (masks, tags) else [])):
            if not (self.root / name).is_dir():
                command = "coco-stuff" if name == "stuffthingmaps" else "coco"
                raise UserError(f"{self.root} has no folder {name}; 'fmwiss data {command}' makes it")
        self._files: dict[str, CocoFile] = {}
        self._numbers: dict[str, int | str] = {}

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the labels 1, 2, ..."""
        return self._names

    @property
    def mask_classes(self) -> tuple[str, ...]:
        """The same: all classes are in the masks."""
        return self._names

    @property
    def tags_origin(self) -> str:
        """What an index of tags was made from."""
        return f"COCO {self.masks if self.tags == 'masks' else self.tags}"

    def ids(self, split: str) -> list[str]:
        """Image ids of ``train`` or ``val`` (``train2017``, ``val2017``), ascending, or of a list ``splits/NAME.txt``.

        They are the maps that there are, or the images that the outlines' file names.

        Raises:
            UserError: there is no such list, or it is empty.
        """
        path = self.root / "splits" / f"{split}.txt"
        if path.is_file():
            try:
                lines = path.read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"the list {path} cannot be read as text; it must hold one id a line") from error
            ids = [line.strip() for line in lines if line.strip()]
        else:
            name = _LISTS.get(split, split)
            if not (self.root / "images" / name).is_dir() or "/" in name:
                there = ", ".join(sorted(p.name for p in (self.root / "images").iterdir() if p.is_dir())) or "none"
                raise UserError(f"{self.root} has no photographs '{split}'; there are: {there}")
            if self.masks == "maps":
                ids = sorted(f"{name}/{file.stem}" for file in (self.root / "stuffthingmaps" / name).glob("*.png"))
            else:
                ids = sorted(f"{name}/{Path(image.file).stem}" for image in self._file(name).images)
            path = self.root / ("stuffthingmaps" if self.masks == "maps" else "annotations") / name
        if not ids:
            raise UserError(f"{path} lists no photograph; 'fmwiss data' makes it anew where it is removed")
        return ids

    def image_path(self, image_id: str) -> Path:
        """Path of the photograph."""
        return self.root / "images" / f"{image_id}.jpg"

    def mask_path(self, image_id: str) -> Path:
        """Path of the map, or of the outlines' file."""
        if self.masks == "maps":
            return self.root / "stuffthingmaps" / f"{image_id}.png"
        return self._annotations(image_id.partition("/")[0])

    def image_size(self, image_id: str) -> tuple[int, int]:
        """Height and width from the photograph's header.

        Raises:
            UserError: the file is missing, may not be read, or is no picture.
        """
        return stored_size(self.image_path(image_id))

    def read_image(self, image_id: str) -> Tensor:
        """Photograph as uint8 RGB ``(3, H, W)``, as stored: COCO's maps and outlines ignore an EXIF orientation.

        Raises:
            UserError: the file is missing, may not be read, is truncated or no picture.
        """
        return read_stored(self.image_path(image_id))

    def has_mask(self, image_id: str) -> bool:
        """True: every photograph of a list has a mask; where it is missing :meth:`read_mask` says so."""
        return True

    def read_mask(self, image_id: str) -> Tensor:
        """Mask as uint8 ``(H, W)``: 0 background and stuff, 1, 2, ... :attr:`class_names`, 255 void.

        Raises:
            UserError: the map is missing, unreadable, of another size than its photograph or holds another label; an
                outline cannot be drawn.
        """
        size = self.image_size(image_id)
        if self.masks == "instances":
            file, number = self._file(image_id.partition("/")[0]), self._image(image_id)
            return torch.from_numpy(rasterise(file.annotations(number), self.labels, size, str(file.path)))
        path = self.mask_path(image_id)
        missing = "each photograph of a list needs one"
        labels = read_plane("the map", path, size, missing, meant="an 8-bit picture of labels")
        strange = labels[(labels > LAST_STUFF) & (labels < VOID)]
        if strange.size:
            raise UserError(f"the map {path} holds the label {strange[0]}; labels are 0 to {LAST_STUFF} and {VOID}")
        return torch.from_numpy(self._table[labels])

    def classes_in_mask(self, image_id: str) -> list[str]:
        """Class names of a photograph, in the order of the labels: those in its mask, or those that have outlines."""
        if self.tags == "instances":
            file, number = self._file(image_id.partition("/")[0]), self._image(image_id)
            there = set(file.present(number))
            found = {self.labels[category] for category, name in COCO_CATEGORIES.items() if name in there}
        else:
            areas = self.read_mask(image_id).flatten().bincount(minlength=256)
            found = set(areas.nonzero().flatten().tolist())
        return [name for label, name in enumerate(self._names, start=1) if label in found]

    def own_tags(self, image_id: str) -> frozenset[str]:
        """Nothing beside :meth:`classes_in_mask`."""
        return frozenset()

    @cached_property
    def _table(self) -> np.ndarray:
        """From the maps' values to labels."""
        table = np.zeros(256, dtype=np.uint8)
        table[VOID] = VOID
        for category, label in self.labels.items():
            table[category - 1] = label
        return table

    def _annotations(self, name: str) -> Path:
        return self.root / "annotations" / f"instances_{name}.json"

    def _file(self, name: str) -> CocoFile:
        """The outlines of a list, read once; its categories must be COCO's."""
        if name not in self._files:
            file = CocoFile.parse(self._annotations(name))
            if file.problems:
                raise UserError(file.problems[0])
            for category, wanted in COCO_CATEGORIES.items():
                if joined(file.categories.get(category, "")) != joined(wanted):
                    raise UserError(
                        f"{file.path} calls category {category} '{file.categories.get(category, 'nothing')}', and in "
                        f"COCO it is '{wanted}'; data.source 'coco' reads files with categories of their own"
                    )
            self._files[name] = file
            self._numbers.update({f"{name}/{Path(image.file).stem}": image.id for image in file.images})
        return self._files[name]

    def _image(self, image_id: str) -> int | str:
        if image_id not in self._numbers:
            raise UserError(f"{self._annotations(image_id.partition('/')[0])} does not name the photograph {image_id}")
        return self._numbers[image_id]


class CocoToVOCSource(ComposedSource):
    """COCO, of which step 0 learns, and VOC, of which the others learn: WILSON's COCO-to-VOC (CVPR 2022).

    The folder holds ``coco`` (:class:`CocoSource`) and ``voc`` (:class:`~fmwiss.data.voc.VOCSource`); ids begin with
    ``coco/`` or ``voc/``. Labels are those of :data:`COCO_TO_VOC_CLASSES` in both.

    Step 0 may use COCO's training images with at least one of the 60 classes that VOC lacks and none of VOC's 20, which
    is what the setting ``disjoint`` says of them; later steps VOC's (10,582 in ``train_aug``).

    Args:
        root: the folder.
        masks: of COCO: ``maps`` or ``instances``.
        tags: of COCO: ``masks`` or ``instances``; VOC's are those in its masks.

    Raises:
        UserError: one of the two is missing or laid out otherwise, or VOC's classes are not VOC's.
    """

    def __init__(self, root: str | Path, masks: Masks = "maps", tags: str = "masks") -> None:
        self.root = Path(root)
        for name in ("coco", "voc"):
            if not (self.root / name).is_dir():
                raise UserError(f"{self.root} has no folder {name}; COCO-to-VOC needs 'coco' and 'voc' side by side")
        places = {name: label for label, name in enumerate(COCO_TO_VOC_CLASSES, start=1)}
        of_voc = {category: places[VOC_CLASSES[number]] for number, category in enumerate(COCO_OF_VOC)}
        labels = {category: of_voc.get(category) or places[name] for category, name in COCO_CATEGORIES.items()}
        self.coco = CocoSource(self.root / "coco", masks, tags, labels, COCO_TO_VOC_CLASSES)
        self.voc = VOCSource(self.root / "voc")
        if self.voc.class_names != VOC_CLASSES:
            raise UserError(f"{self.voc.root / 'classes.txt'} names other classes than VOC's; remove it")
        self._voc_table = torch.zeros(256, dtype=torch.uint8)
        self._voc_table[VOID] = VOID
        self._voc_table[1 : 1 + len(VOC_CLASSES)] = torch.tensor([places[name] for name in VOC_CLASSES])

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the labels 1, 2, ..."""
        return COCO_TO_VOC_CLASSES

    @property
    def mask_classes(self) -> tuple[str, ...]:
        """The same: all classes are in the masks."""
        return COCO_TO_VOC_CLASSES

    @property
    def tags_origin(self) -> str:
        """What an index of tags was made from."""
        return f"{self.coco.tags_origin} and VOC's masks"

    def ids(self, split: str) -> list[str]:
        """Ids of ``train`` (COCO's and VOC's ``train_aug``), ``coco-NAME`` or ``voc-NAME``, as in ``coco-val``.

        Raises:
            UserError: there is no such list.
        """
        if split == "train":
            return [*self.ids("coco-train"), *self.ids("voc-train_aug")]
        name, _, rest = split.partition("-")
        if name not in ("coco", "voc") or not rest:
            raise UserError(f"COCO-to-VOC has no list '{split}'; give train, coco-val, voc-val or another such name")
        source, _ = self._of(f"{name}/")
        return [f"{name}/{image_id}" for image_id in source.ids(rest)]

    def of_step(self, t: int, ids: Sequence[str]) -> list[str]:
        """Those among ``ids`` that a step may choose from: step 0 COCO's, the others VOC's."""
        prefix = "coco/" if t == 0 else "voc/"
        return [image_id for image_id in ids if image_id.startswith(prefix)]

    def _of(self, image_id: str) -> tuple[CocoSource | VOCSource, str]:
        name, _, rest = image_id.partition("/")
        return (self.coco if name == "coco" else self.voc), rest

    def has_mask(self, image_id: str) -> bool:
        """True."""
        source, rest = self._of(image_id)
        return source.has_mask(rest)

    def read_mask(self, image_id: str) -> Tensor:
        """Mask as uint8 ``(H, W)`` in the labels of both."""
        source, rest = self._of(image_id)
        mask = source.read_mask(rest)
        return mask if source is self.coco else self._voc_table[mask.long()]

    def classes_in_mask(self, image_id: str) -> list[str]:
        """Class names of a photograph, in the order of the labels."""
        source, rest = self._of(image_id)
        return source.classes_in_mask(rest)

    def own_tags(self, image_id: str) -> frozenset[str]:
        """Nothing beside :meth:`classes_in_mask`."""
        return frozenset()
