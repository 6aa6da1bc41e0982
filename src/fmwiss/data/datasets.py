"""Training samples of both kinds of step, and the order in which they come."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping, Sequence, Set

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fmwiss.data.batches import Sample
from fmwiss.data.memory import CopyPaste
from fmwiss.data.randomness import keyed_generator
from fmwiss.data.source import Source
from fmwiss.data.transforms import JointTransform
from fmwiss.data.voc import VOID
from fmwiss.errors import UserError


class PseudoMaskSource(typing.Protocol):
    """Where the masks of tagged classes come from."""

    def masks(self, image_id: str, classes: Sequence[str], epoch: int) -> Tensor:
        """One mask a class on a grid that covers the whole photograph, bool or uint8 ``(len(classes), gh, gw)``."""
        ...

    def stages(self, image_id: str, classes: Sequence[str], epoch: int) -> dict[str, Tensor]:
        """By name, the masks at every stage on the way there, for people to look at; the last are :meth:`masks`."""
        ...


class SaliencySource(typing.Protocol):
    """Where saliency maps come from."""

    def map(self, image_id: str) -> Tensor:
        """What stands out, on a grid that covers the whole photograph, uint8 ``(gh, gw)`` from 0 to 255."""
        ...


class TrueMasks:
    """The truth in place of pseudo masks: a diagnostic upper bound; the one source that opens mask files.

    Args:
        source: where the masks lie.
        class_names: names of the masks' labels 1, 2, ...
    """

    def __init__(self, source: Source, class_names: Sequence[str]) -> None:
        self.source = source
        self.labels = {name: label for label, name in enumerate(class_names, start=1)}

    def masks(self, image_id: str, classes: Sequence[str], epoch: int) -> Tensor:
        """Bool ``(len(classes), H, W)``; void belongs to no class, and every epoch has the same masks."""
        labels = torch.tensor([self.labels[name] for name in classes], dtype=torch.uint8)
        return self.source.read_mask(image_id) == labels[:, None, None]

    def stages(self, image_id: str, classes: Sequence[str], epoch: int) -> dict[str, Tensor]:
        """:meth:`masks` alone, as ``true masks``."""
        return {"true masks": self.masks(image_id, classes, epoch)}


class MaskDataset(Dataset[Sample]):
    """Photographs with masks: step 0.

    ``dataset[epoch, index]`` is a sample; its draws depend on the seed, the image id and the epoch alone.

    Args:
        source: photographs and masks.
        ids: the step's image ids.
        label_table: uint8 ``(256,)``, from the masks' labels to the model's (:meth:`Protocol.label_table`).
        transform: makes the crop.
        seed: the run's seed.
    """

    def __init__(
        self, source: Source, ids: Sequence[str], label_table: Tensor, transform: JointTransform, seed: int
    ) -> None:
        self.source = source
        self.ids = list(ids)
        self.label_table = label_table
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        image_id = self.ids[index]
        image, cropped, valid = self.transform(
            self.source.read_image(image_id),
            {"mask": self.source.read_mask(image_id)},
            {"mask": VOID},
            keyed_generator(self.seed, "crop", image_id, epoch),
        )
        return Sample(image_id, image, valid, mask=self.label_table[cropped["mask"].long()])


class WeakDataset(Dataset[Sample]):
    """Photographs that carry only tags: steps after 0.

    Of the tags it keeps those of the step's new classes; it opens no mask. ``dataset[epoch, index]`` is a sample; its
    draws depend on the seed, the image id and the epoch alone.

    Args:
        source: photographs.
        ids: the step's image ids.
        tags: class names in each photograph; those not in ``new_classes`` are dropped.
        new_classes: C_new, the classes that the step learns.
        transform: makes the crop.
        seed: the run's seed.
        pseudo_masks: gives the masks of the tagged classes; None: samples have none.
        copy_paste: pastes instances of old classes; None pastes nothing.
        saliency: gives saliency maps; None: samples have none.
    """

    def __init__(
        self,
        source: Source,
        ids: Sequence[str],
        tags: Mapping[str, Set[str]],
        new_classes: Sequence[str],
        transform: JointTransform,
        seed: int,
        pseudo_masks: PseudoMaskSource | None,
        copy_paste: CopyPaste | None,
        saliency: SaliencySource | None = None,
    ) -> None:
        self.source = source
        self.ids = list(ids)
        self.new_classes = tuple(new_classes)
        self.tagged = torch.tensor([[name in tags[image_id] for name in self.new_classes] for image_id in self.ids])
        self.transform = transform
        self.seed = seed
        self.pseudo_masks = pseudo_masks
        self.copy_paste = copy_paste
        self.saliency = saliency

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        image_id, tagged = self.ids[index], self.tagged[index]
        names = [name for name, present in zip(self.new_classes, tagged.tolist(), strict=True) if present]
        masks = {}
        if self.pseudo_masks is not None and names:
            masks["pseudo"] = self.pseudo_masks.masks(image_id, names, epoch)
        if self.saliency is not None:
            masks["saliency"] = self.saliency.map(image_id)
        image, cropped, valid = self.transform(
            self.source.read_image(image_id),
            masks,
            {"pseudo": 0, "saliency": 0},
            keyed_generator(self.seed, "crop", image_id, epoch),
        )
        saliency = cropped.get("saliency")
        pseudo = None
        if self.pseudo_masks is not None:
            pseudo = torch.zeros((len(self.new_classes), *valid.shape), dtype=torch.bool)
            if names:
                pseudo[tagged] = cropped["pseudo"].bool()
        if self.copy_paste is None:
            return Sample(image_id, image, valid, pseudo=pseudo, tags=tagged, saliency=saliency)

        pasted = torch.zeros(valid.shape, dtype=torch.uint8)
        instance = self.copy_paste(image, image_id, epoch)
        if instance is not None:
            image, region, label = instance
            pasted[region] = label
            if pseudo is not None:
                pseudo &= ~region
            # An instance pasted beyond the photograph is a picture of something: losses may look at it.
            valid = valid | region
        return Sample(image_id, image, valid, pseudo=pseudo, tags=tagged, pasted=pasted, saliency=saliency)


class IterationSampler:
    """The batches of a step's remaining iterations, as lists of (epoch, index), for ``DataLoader(batch_sampler=...)``.

    One pass over the sampler is the whole step, so loader processes live through it; a step that was interrupted
    goes on with ``start_iteration`` and sees the very batches that it would have seen. The order in an epoch depends
    on the seed and the epoch alone; what is left after the last full batch is dropped. A data set smaller than a
    batch is one batch.

    Args:
        n: number of samples.
        batch_size: samples of an iteration, over all processes.
        seed: the run's seed.
        epochs: length of the step.
        start_iteration: iterations done already.
        rank: this process; it gets every ``world_size``-th sample of each batch.
        world_size: number of processes.

    Raises:
        UserError: there are no samples, or a batch has too few for every process to get one.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        *,
        seed: int,
        epochs: int,
        start_iteration: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if n == 0:
            raise UserError("the step has no photographs; its classes appear in none of the training split's tags")
        self.n = n
        self.batch_size = min(batch_size, n)
        if self.batch_size < world_size:
            raise UserError(
                f"a batch of {self.batch_size} photographs cannot be shared by {world_size} processes; "
                "use fewer devices or a larger batch_size"
            )
        self.iterations_per_epoch = n // self.batch_size
        self.iterations = epochs * self.iterations_per_epoch
        self.seed = seed
        self.start_iteration = start_iteration
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        return max(0, self.iterations - self.start_iteration)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order: list[int] = []
        order_of = -1
        for iteration in range(self.start_iteration, self.iterations):
            epoch, place = divmod(iteration, self.iterations_per_epoch)
            if epoch != order_of:
                order = torch.randperm(self.n, generator=keyed_generator(self.seed, "order", epoch)).tolist()
                order_of = epoch
            batch = order[place * self.batch_size : (place + 1) * self.batch_size]
            yield [(epoch, index) for index in batch[self.rank :: self.world_size]]
