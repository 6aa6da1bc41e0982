"""Class-split protocols: which classes a step learns, and which photographs and labels it may see."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from fmwiss.config import ProtocolConfig
from fmwiss.data.coco_stuff import COCO_TO_VOC_CLASSES
from fmwiss.data.randomness import keyed_generator
from fmwiss.data.voc import VOC_CLASSES, VOID, canonical_class_name
from fmwiss.errors import UserError

NAMED_SPLITS: dict[str, tuple[int, ...]] = {"15-5": (15, 5), "10-10": (10, 10), "coco-to-voc": (60, 20)}
"""How many classes each step learns, in the data set's order."""


@dataclass(frozen=True)
class Protocol:
    """The order in which classes are learnt (paper, section 4.1).

    Attributes:
        steps: class names of every step, step 0 (learnt from masks) first. The label of a class in a model is its
            place in this order, from 1; 0 is background.
        setting: ``disjoint``: a step's photographs show no class of a later step; ``overlap``: they may, and in
            step 0 those pixels are background.

    Raises:
        UserError: no step, a step without classes, or a class named twice.
    """

    steps: tuple[tuple[str, ...], ...]
    setting: Literal["disjoint", "overlap"] = "overlap"

    def __post_init__(self) -> None:
        if not self.steps:
            raise UserError("protocol.steps is empty; it needs at least one step with one class")
        names: set[str] = set()
        for t, step in enumerate(self.steps):
            if not step:
                raise UserError(f"step {t} of protocol.steps has no class; every step needs at least one")
            for name in step:
                if name in names:
                    raise UserError(f"'{name}' is named twice in protocol.steps; a class is learnt once")
                names.add(name)

    @classmethod
    def from_config(cls, config: ProtocolConfig, known: Sequence[str] = VOC_CLASSES) -> Protocol:
        """The protocol that the experiment file names or lists.

        Args:
            config: section ``protocol``.
            known: the data set's class names, in its order.

        Raises:
            UserError: an unknown split, an unknown class, or what the class itself refuses.
        """
        if isinstance(config.steps, str):
            if config.steps not in NAMED_SPLITS:
                splits = ", ".join(NAMED_SPLITS)
                raise UserError(
                    f"protocol.steps '{config.steps}' is no named split; give one of {splits} or lists of class names"
                )
            sizes = NAMED_SPLITS[config.steps]
            if config.steps == "coco-to-voc" and tuple(known) != COCO_TO_VOC_CLASSES:
                raise UserError("protocol.steps 'coco-to-voc' needs data.source 'coco-to-voc'; give lists of classes")
            if sum(sizes) != len(known):
                raise UserError(
                    f"protocol.steps '{config.steps}' splits {sum(sizes)} classes, and the data set has {len(known)}; "
                    "give lists of class names"
                )
            ends = list(accumulate(sizes))
            return cls(tuple(tuple(known[e - n : e]) for n, e in zip(sizes, ends, strict=True)), config.setting)
        try:
            steps = tuple(tuple(canonical_class_name(name, known) for name in step) for step in config.steps)
        except UserError as error:
            raise UserError(f"{error} (in protocol.steps)") from error
        return cls(steps, config.setting)

    def new(self, t: int) -> tuple[str, ...]:
        """Classes that step ``t`` learns."""
        if not 0 <= t < len(self.steps):
            raise UserError(f"there is no step {t}; the protocol has the steps 0 to {len(self.steps) - 1}")
        return self.steps[t]

    def seen(self, t: int) -> tuple[str, ...]:
        """Classes learnt up to and including step ``t``, in the order of the model's labels 1, 2, ..."""
        return (*self.old(t), *self.new(t))

    def old(self, t: int) -> tuple[str, ...]:
        """Classes learnt before step ``t``."""
        return tuple(name for step in self.steps[:t] for name in step)

    def select(self, t: int, tags: Mapping[str, Set[str]], ids: Iterable[str]) -> list[str]:
        """The photographs of step ``t``: those with a class of it and, if disjoint, none of a later step.

        Reproduces the published lists of 15-5 and 10-10 (MiB, WILSON) id by id.

        Args:
            t: step.
            tags: class names in each photograph.
            ids: candidates; their order is kept.
        """
        new = frozenset(self.new(t))
        later = {name for step in self.steps[t + 1 :] for name in step} if self.setting == "disjoint" else set()
        return [image_id for image_id in ids if new & tags[image_id] and not later & tags[image_id]]

    def select_without(self, t: int, tags: Mapping[str, Set[str]], ids: Iterable[str]) -> list[str]:
        """Photographs with no class of step ``t`` and, if disjoint, none of a later one. Arguments: :meth:`select`."""
        others = self.steps[t : None if self.setting == "disjoint" else t + 1]
        shown = {name for step in others for name in step}
        return [image_id for image_id in ids if not shown & tags[image_id]]

    def select_seen(self, t: int, tags: Mapping[str, Set[str]], ids: Iterable[str]) -> list[str]:
        """The photographs of all steps up to ``t``: what a joint training sees. Arguments as of :meth:`select`."""
        ids = list(ids)
        steps = [set(self.select(step, tags, ids)) for step in range(t + 1)]
        return [image_id for image_id in ids if any(image_id in step for step in steps)]

    def step_table(self, t: int, class_names: Sequence[str]) -> Tensor:
        """:meth:`label_table` of the step's own classes alone: old and future ones are background, void stays void.

        This is what a step after 0 that learns from masks may see of them, in both settings.
        """
        table = self.label_table(t, class_names)
        table[table <= len(self.old(t))] = 0
        return table

    def label_table(self, t: int, class_names: Sequence[str]) -> Tensor:
        """Table from a data set's labels to the model's after step ``t``, uint8 ``(256,)``; use as ``table[mask]``.

        Args:
            t: step.
            class_names: the data set's names of its labels 1, 2, ...
        """
        table = torch.zeros(256, dtype=torch.uint8)
        table[VOID] = VOID
        for label, name in enumerate(self.seen(t), start=1):
            if name not in class_names:
                raise UserError(f"the data set has no class '{name}', which step {t} of the protocol needs")
            place = class_names.index(name) + 1
            if place < VOID:  # beyond are classes that only tags name
                table[place] = label
        return table


def share(ids: Sequence[str], fraction: float, seed: int) -> list[str]:
    """A random share of a step's photographs, in their order (Table 10).

    Args:
        ids: the photographs.
        fraction: in (0, 1]; at least one photograph is left.
        seed: the run's seed.
    """
    return draw(ids, max(1, round(fraction * len(ids))), seed, "fraction")


def draw(ids: Sequence[str], count: int, seed: int, purpose: str) -> list[str]:
    """Some of the photographs, in their order: ``count`` or all that there are.

    Args:
        ids: the photographs.
        count: at least 0.
        seed: the run's seed.
        purpose: keeps draws apart.
    """
    if count >= len(ids):
        return list(ids)
    kept = torch.randperm(len(ids), generator=keyed_generator(seed, purpose))[:count]
    return [ids[i] for i in sorted(kept.tolist())]
