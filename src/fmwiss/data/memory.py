"""Memory bank of old classes and copy-paste augmentation (paper, section 3.4)."""

from __future__ import annotations

import io
import json
import math
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from fmwiss.data.randomness import keyed_generator
from fmwiss.data.source import Source
from fmwiss.data.transforms import Crop
from fmwiss.errors import UserError
from fmwiss.files import write_atomically

T = typing.TypeVar("T")
JPEG_QUALITY = 95
FLIP = 0.5


class Progress(typing.Protocol):
    """Passes items on while it shows how far they are."""

    def __call__(self, iterable: Iterable[T], description: str, total: int, /) -> Iterable[T]: ...


@dataclass(frozen=True)
class Instance:
    """The whole region of a class in one photograph, cropped to its bounding box.

    Attributes:
        jpeg: the photograph's crop as a JPEG file, uint8 ``(n,)``.
        bits: the region, one bit a pixel, row by row, uint8 ``(ceil(height * width / 8),)``.
        height: of the crop.
        width: of the crop.
        shorter_side: of the photograph, in pixels: what the crop's size is relative to.
        longer_side: of the photograph; 0 of the files of earlier versions, whose runs' crops were windows.
    """

    # Arrays, not tensors: loader processes that are not forked would get each tensor by a file descriptor of its own.
    jpeg: NDArray[np.uint8]
    bits: NDArray[np.uint8]
    height: int
    width: int
    shorter_side: int
    longer_side: int = 0

    def image(self) -> Tensor:
        """The crop as uint8 RGB ``(3, height, width)``."""
        with Image.open(io.BytesIO(self.jpeg.tobytes())) as picture:
            return torch.from_numpy(np.array(picture)).permute(2, 0, 1)

    def region(self) -> Tensor:
        """Bool ``(height, width)``, True where the class is."""
        flat = np.unpackbits(self.bits, count=self.height * self.width)
        return torch.from_numpy(flat).reshape(self.height, self.width).bool()


class MemoryBank:
    """Instances of old classes, at most B a class, in one small file.

    Attributes:
        made_with: ``bank_size`` and ``min_area`` that :meth:`build` was given, which the file keeps; None of a bank
            that it did not make.
    """

    def __init__(self) -> None:
        self._archives: dict[str, list[Instance]] = {}
        self.made_with: dict[str, float] | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that have instances."""
        return tuple(self._archives)

    def __getitem__(self, name: str) -> tuple[Instance, ...]:
        """The archive of a class, empty for a class without instances."""
        return tuple(self._archives.get(name, ()))

    def count(self, name: str) -> int:
        """Number of instances of a class."""
        return len(self[name])

    def add(self, name: str, image: Tensor, region: Tensor, min_area: float) -> bool:
        """Put the whole region of a class in one photograph into the bank.

        Args:
            name: of the class.
            image: the photograph, uint8 RGB ``(3, H, W)``.
            region: where the class is, void excluded; from the truth or from a model's prediction, bool ``(H, W)``.
            min_area: smallest share of the photograph that the region must cover.

        Returns:
            Whether the region was large enough to be put in.
        """
        if not _large_enough(int(region.sum()), region, min_area):
            return False
        rows = region.any(dim=1).nonzero().flatten()
        columns = region.any(dim=0).nonzero().flatten()
        top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
        crop = image[:, top:bottom, left:right].permute(1, 2, 0).contiguous()
        jpeg = io.BytesIO()
        Image.fromarray(crop.numpy()).save(jpeg, format="JPEG", quality=JPEG_QUALITY)
        instance = Instance(
            jpeg=np.frombuffer(jpeg.getvalue(), dtype=np.uint8),
            bits=np.packbits(region[top:bottom, left:right].numpy()),
            height=bottom - top,
            width=right - left,
            shorter_side=min(image.shape[-2:]),
            longer_side=max(image.shape[-2:]),
        )
        self._archives.setdefault(name, []).append(instance)
        return True

    @classmethod
    def build(
        cls,
        source: Source,
        ids: Sequence[str],
        label_table: Tensor,
        class_names: Sequence[str],
        bank_size: int,
        min_area: float,
        seed: int,
        progress: Progress | None = None,
    ) -> MemoryBank:
        """Collect instances from photographs with masks.

        Photographs are visited in a random order keyed by the seed until every class has enough, so an archive is a
        uniform draw, without replacement, among the photographs in which the class is large enough.

        Args:
            source: photographs and masks.
            ids: the photographs that may be used, those of step 0.
            label_table: uint8 ``(256,)``, from the masks' labels to the model's.
            class_names: names of the model's labels 1, 2, ...
            bank_size: B, instances kept a class; 0 keeps none.
            min_area: smallest share of its photograph that an instance may cover.
            seed: the run's seed.
            progress: shows how many photographs have been visited.
        """
        bank = cls()
        bank.made_with = {"bank_size": bank_size, "min_area": min_area}
        missing = dict.fromkeys(class_names, bank_size) if bank_size else {}
        order = torch.randperm(len(ids), generator=keyed_generator(seed, "memory bank")).tolist()
        visits = progress(order, "memory bank", len(order)) if progress else order
        for index in visits:
            if not missing:
                break
            mask = source.read_mask(ids[index])
            areas = torch.zeros(256, dtype=torch.long)
            areas.index_add_(0, label_table.long(), mask.flatten().bincount(minlength=256))
            wanted = [
                (label, name)
                for label, name in enumerate(class_names, start=1)
                if name in missing and _large_enough(int(areas[label]), mask, min_area)
            ]
            if not wanted:
                continue
            image, labels = source.read_image(ids[index]), label_table[mask.long()]
            for label, name in wanted:
                bank.add(name, image, labels == label, min_area)
                missing[name] -= 1
                if not missing[name]:
                    del missing[name]
        bank._archives = {name: bank._archives[name] for name in class_names if name in bank._archives}
        return bank

    def save(self, path: Path) -> None:
        """Write the bank to one safetensors file, at once or not at all."""
        arrays: dict[str, NDArray[np.uint8]] = {}
        rows: list[tuple[str, int, int, int, int]] = []
        for name, archive in self._archives.items():
            for instance in archive:
                arrays[f"{len(rows)}.jpeg"], arrays[f"{len(rows)}.bits"] = instance.jpeg, instance.bits
                sides = instance.shorter_side, instance.longer_side
                rows.append((name, instance.height, instance.width, *sides))
        metadata = {"instances": json.dumps(rows), "made_with": json.dumps(self.made_with)}
        write_atomically(path, lambda temporary: save_file(arrays, temporary, metadata))

    @classmethod
    def load(cls, path: Path) -> MemoryBank:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: the file is missing or no memory bank.
        """
        bank = cls()
        try:
            with safe_open(path, framework="numpy") as file:
                bank.made_with = json.loads(file.metadata().get("made_with", "null"))
                for index, (name, *sizes) in enumerate(json.loads(file.metadata()["instances"])):
                    jpeg, bits = file.get_tensor(f"{index}.jpeg"), file.get_tensor(f"{index}.bits")
                    instance = Instance(jpeg, bits, *sizes)
                    bank._archives.setdefault(name, []).append(instance)
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise UserError(f"the memory bank {path} is missing or unreadable; train step 0 again") from error
        return bank


class CopyPaste:
    """Pastes a random instance of a random old class into a training crop (paper, section 3.4, Figure 4).

    Its draws are keyed by seed, image id and epoch and are independent of the crop's: with and without copy-paste a
    run sees the same crops.

    Args:
        bank: the instances.
        labels: the model's label of each old class; classes without instances are passed over.
        probability: that anything is pasted.
        scale: range of the random scale, that of the crops.
        resize: working size of photographs, that of the crops; None keeps their own.
        seed: the run's seed.
        crop: what the crops are (:class:`~fmwiss.data.transforms.JointTransform`). In resized ones an instance is as
            large as in one of its own photograph, but keeps its proportions.
    """

    def __init__(
        self,
        bank: MemoryBank,
        labels: Mapping[str, int],
        probability: float,
        scale: tuple[float, float],
        resize: int | None,
        seed: int,
        crop: Crop = "window",
    ) -> None:
        self.archives = [(label, bank[name]) for name, label in labels.items() if bank[name]]
        self.instances = {name: bank.count(name) for name in labels}
        """How many there are of each class to choose from."""
        self.probability = probability
        self.scale = scale
        self.resize = resize
        self.seed = seed
        self.crop = crop

    def __call__(self, image: Tensor, image_id: str, epoch: int) -> tuple[Tensor, Tensor, int] | None:
        """Paste into one crop.

        Args:
            image: float RGB in [0, 1], ``(3, S, S)``; it is left as it is.
            image_id: of the photograph, a key of the draws.
            epoch: a key of the draws.

        Returns:
            A new image, the pasted region as bool ``(S, S)`` and its label; None when nothing was pasted. The instance
            lies wholly inside where it fits, else a random part of it is seen.
        """
        draws = torch.rand(7, generator=keyed_generator(self.seed, "copy-paste", image_id, epoch)).tolist()
        if draws[0] >= self.probability or not self.archives:
            return None
        label, archive = self.archives[_pick(draws[1], len(self.archives))]
        instance = archive[_pick(draws[2], len(archive))]
        pixels, region = _enlarged(instance, self._factor(instance, draws[3], image.shape[-1]))
        if draws[4] < FLIP:
            pixels, region = pixels.flip(-1), region.flip(-1)

        rows, seen_rows = _overlap(draws[5], image.shape[-2], region.shape[-2])
        columns, seen_columns = _overlap(draws[6], image.shape[-1], region.shape[-1])
        seen = region[seen_rows, seen_columns]
        if not seen.any():
            return None
        pasted = torch.zeros(image.shape[-2:], dtype=torch.bool)
        pasted[rows, columns] = seen
        out = image.clone()
        out[:, rows, columns] = torch.where(seen, pixels[:, seen_rows, seen_columns], out[:, rows, columns])
        return out, pasted, label

    def _factor(self, instance: Instance, draw: float, crop_size: int) -> float:
        """Size in a crop of its own photograph, over the size in the photograph."""
        drawn = self.scale[0] + draw * (self.scale[1] - self.scale[0])
        if self.crop == "resized":
            return crop_size / math.sqrt(min(drawn, 1.0) * instance.shorter_side * instance.longer_side)
        return drawn if self.resize is None else drawn * self.resize / instance.shorter_side


def _enlarged(instance: Instance, factor: float) -> tuple[Tensor, Tensor]:
    """Float pixels and region of an instance ``factor`` times as large."""
    size = [max(1, round(instance.height * factor)), max(1, round(instance.width * factor))]
    pixels = F.to_dtype(F.resize(instance.image(), size), torch.float32, scale=True)
    region = F.resize(instance.region()[None], size, InterpolationMode.NEAREST_EXACT)[0]
    return pixels, region


def _large_enough(area: int, mask: Tensor, min_area: float) -> bool:
    return area > 0 and area >= min_area * mask.numel()


def _pick(draw: float, count: int) -> int:
    return min(int(draw * count), count - 1)


def _overlap(draw: float, canvas: int, extent: int) -> tuple[slice, slice]:
    """Where an instance of ``extent`` pixels lands on an axis of the canvas, and which part of it is seen."""
    slack = canvas - extent
    begin = min(0, slack) + _pick(draw, abs(slack) + 1)
    first, last = max(begin, 0), min(begin + extent, canvas)
    return slice(first, last), slice(first - begin, last - begin)
