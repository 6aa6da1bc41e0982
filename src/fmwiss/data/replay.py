"""Photographs of old classes that are not their training data, and batches that hold them beside a step's own."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fmwiss.data.batches import Sample
from fmwiss.data.datasets import IterationSampler, MaskDataset
from fmwiss.data.photographs import read_photograph
from fmwiss.data.randomness import keyed_generator
from fmwiss.data.transforms import JointTransform
from fmwiss.data.voc import VOID, canonical_class_name
from fmwiss.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


class ReplayFolder:
    """A folder of photographs with one folder for each class; a photograph's id is ``class/file name``.

    Args:
        root: the folder.
        classes: those of which photographs are wanted; folders of other names are not looked into.

    Raises:
        UserError: there is no such folder, or a class has none or an empty one.
    """

    def __init__(self, root: Path, classes: Sequence[str]) -> None:
        self.root = root
        if not root.is_dir():
            raise UserError(f"--replay {root}: is no folder; give one with a folder of photographs for each class")
        folders = _by_class(root, classes)
        self._paths: dict[str, Path] = {}
        self.class_of: dict[str, str] = {}
        """By id."""
        for name in classes:
            if name not in folders:
                raise UserError(f"--replay {root}: has no folder {name}; every old class needs one with photographs")
            files = sorted(path for path in folders[name].iterdir() if path.suffix.lower() in SUFFIXES)
            if not files:
                raise UserError(
                    f"{folders[name]}: holds no photograph ({', '.join(SUFFIXES)}); every old class needs some"
                )
            for path in files:
                image_id = f"{name}/{path.name}"
                self._paths[image_id] = path
                self.class_of[image_id] = name

    @property
    def ids(self) -> list[str]:
        """Of all photographs, class by class."""
        return list(self._paths)

    def read_image(self, image_id: str) -> Tensor:
        """A photograph, uint8 RGB ``(3, H, W)``; raises UserError if it cannot be read."""
        return read_photograph(self._paths[image_id])


def _by_class(root: Path, classes: Sequence[str]) -> dict[str, Path]:
    folders: dict[str, Path] = {}
    for path in sorted(root.iterdir()):
        if not path.is_dir():
            continue
        try:
            name = canonical_class_name(path.name, classes)
        except UserError:
            continue  # of a class that is not wanted here
        if name in folders:
            raise UserError(f"--replay {root}: {folders[name].name} and {path.name} are both of the class {name}")
        folders[name] = path
    return folders


class LabelSource(typing.Protocol):
    """Where the labels of replayed photographs come from."""

    def map(self, image_id: str) -> Tensor:
        """The model's label of every place on a grid that covers the whole photograph, uint8 ``(gh, gw)``."""
        ...


class ReplayDataset(Dataset[Sample]):
    """Replayed photographs with a model's labels in place of masks.

    ``dataset[epoch, index]`` is a sample; its draws depend on the seed, the photograph's id and the epoch alone.

    Args:
        photographs: where they are.
        labels: gives their labels.
        transform: makes the crop.
        seed: the run's seed.
    """

    def __init__(self, photographs: ReplayFolder, labels: LabelSource, transform: JointTransform, seed: int) -> None:
        self.photographs = photographs
        self.ids = photographs.ids
        self.labels = labels
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        image_id = self.ids[index]
        image, cropped, valid = self.transform(
            self.photographs.read_image(image_id),
            {"mask": self.labels.map(image_id)},
            {"mask": VOID},
            keyed_generator(self.seed, "replay crop", image_id, epoch),
        )
        return Sample(image_id, image, valid, mask=cropped["mask"], replayed=torch.tensor(True))


class InterleavedDataset(Dataset[Sample]):
    """A step's own samples, and from ``len(step)`` on the replayed ones; ``share`` is of these in every batch."""

    def __init__(self, step: MaskDataset, replay: ReplayDataset, share: float) -> None:
        self.step, self.replay, self.share = step, replay, share

    def __len__(self) -> int:
        return len(self.step) + len(self.replay)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        if index >= len(self.step):
            return self.replay[epoch, index - len(self.step)]
        return replace(self.step[epoch, index], replayed=torch.tensor(False))


class InterleavedSampler(IterationSampler):
    """Batches of which a share is replayed; epochs are those over the step's own photographs.

    The replayed ones come in an order that depends on the seed and on how often they have all been seen.

    Args:
        n: number of the step's own samples.
        n_replayed: number of the samples behind them.
        share: of the replayed ones in a batch, of which every process gets one, and two of the others, at least.
        batch_size: samples of an iteration, over all processes and of both kinds.
        seed: as of :class:`IterationSampler`, like the rest.
        epochs: over the step's own samples.
        start_iteration: to go on from.
        rank: of this process.
        world_size: number of processes.

    Raises:
        UserError: a batch has too few of one kind for every process to get one.
    """

    def __init__(
        self,
        n: int,
        n_replayed: int,
        share: float,
        batch_size: int,
        *,
        seed: int,
        epochs: int,
        start_iteration: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.n_replayed = n_replayed
        self.replayed = min(max(world_size, round(batch_size * share)), batch_size - 2 * world_size)
        if self.replayed < world_size:
            raise UserError(
                f"a batch of {batch_size} cannot hold a replayed photograph and two others for each of {world_size} "
                "process(es); use a larger batch_size"
            )
        super().__init__(
            n,
            batch_size - self.replayed,
            seed=seed,
            epochs=epochs,
            start_iteration=start_iteration,
            rank=rank,
            world_size=world_size,
        )

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order: list[int] = []
        order_of = -1
        for iteration, batch in enumerate(super().__iter__(), start=self.start_iteration):
            for place in range(iteration * self.replayed + self.rank, (iteration + 1) * self.replayed, self.world_size):
                time, position = divmod(place, self.n_replayed)
                if time != order_of:
                    generator = keyed_generator(self.seed, "replay order", time)
                    order, order_of = torch.randperm(self.n_replayed, generator=generator).tolist(), time
                batch.append((time, self.n + order[position]))
            yield batch
