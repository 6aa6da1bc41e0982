"""Figures of single photographs: where a model got better and where it got worse than the one before it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fmwiss.data.voc import VOID
from fmwiss.files import write_atomically

_LABELS = 256


@dataclass(frozen=True)
class PhotographFigures:
    """IoU in per cent on one photograph.

    ``iou`` holds the classes that are in the truth or in the prediction, ``truth`` the names of the former; ``miou``
    is the mean over the former, background included, and None where everything is void.
    """

    miou: float | None
    iou: dict[str, float]
    truth: frozenset[str]


class PhotographCounts:
    """Pixels of every photograph by truth and prediction, kept sparsely (some tens of bytes a class and photograph).

    The truth is kept in the data set's labels, which stay the same from step to step: so the counts of one step's
    model give its figures under the classes of a later step, too. It is an observer of
    :func:`fmwiss.evaluation.evaluate`.

    Args:
        identity: what was compared with what, JSON-able: counts of another identity are not loaded.
    """

    def __init__(self, identity: Mapping[str, Any]) -> None:
        self.identity = dict(identity)
        self.entries: dict[str, Tensor] = {}
        """By image id, int32 ``(n, 3)``: truth in the data set's labels, prediction in the model's, pixels > 0."""

    def __call__(self, image_id: str, mask: Tensor, predicted: Tensor) -> None:
        """Count a photograph.

        Args:
            image_id: its id.
            mask: ``(H, W)`` in the data set's labels; void is left out.
            predicted: ``(H, W)`` in the model's labels.
        """
        pairs = mask.to(predicted.device).flatten().long() * _LABELS + predicted.flatten()
        counts = torch.bincount(pairs, minlength=VOID * _LABELS)[: VOID * _LABELS].cpu()
        found = counts.nonzero().squeeze(1)
        columns = (found // _LABELS, found % _LABELS, counts[found])
        self.entries[image_id] = torch.stack(columns, dim=1).to(torch.int32)

    def has(self, ids: Iterable[str]) -> bool:
        """Whether all these photographs are counted."""
        return all(image_id in self.entries for image_id in ids)

    def figures(self, image_id: str, label_table: Tensor, class_names: Sequence[str]) -> PhotographFigures:
        """IoU on a photograph.

        Args:
            image_id: one that is counted.
            label_table: ``(256,)``, from the data set's labels to those of ``class_names``.
            class_names: background first; the model that predicted may know the first ones of them only.
        """
        truth, predicted, pixels = self.entries[image_id].long().unbind(1)
        truth = label_table.long()[truth]
        size = len(class_names)
        matrix = torch.zeros(size, size, dtype=torch.long)
        matrix.index_put_((truth, predicted), pixels, accumulate=True)
        intersection, rows = matrix.diag(), matrix.sum(1)
        union = rows + matrix.sum(0) - intersection
        iou = {
            name: 100 * int(common) / int(either)
            for name, common, either in zip(class_names, intersection, union, strict=True)
            if either
        }
        present = [name for name, count in zip(class_names, rows, strict=True) if count]
        miou = sum(iou[name] for name in present) / len(present) if present else None
        return PhotographFigures(miou, iou, frozenset(present))

    def save(self, path: Path) -> None:
        """Write one safetensors file, whole or not at all."""
        rows = torch.cat([torch.zeros(0, 3, dtype=torch.int32), *self.entries.values()])
        tensors = {
            "labels": rows[:, :2].to(torch.uint8).contiguous(),
            "pixels": rows[:, 2].contiguous(),
            "entries": torch.tensor([len(entry) for entry in self.entries.values()], dtype=torch.int32),
        }
        # one entry, for safetensors writes several in any order, and equal counts are to be equal files
        about = json.dumps({"identity": self.identity, "ids": list(self.entries)})
        write_atomically(path, lambda temporary: save_file(tensors, temporary, {"photographs": about}))

    @classmethod
    def load(cls, path: Path, identity: Mapping[str, Any]) -> PhotographCounts | None:
        """What :meth:`save` wrote; None where there is nothing of this identity to be read, so that it is counted anew.
        """
        counts = cls(identity)
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads(file.metadata()["photographs"])
                if about["identity"] != counts.identity:
                    return None
                labels, pixels = file.get_tensor("labels").to(torch.int32), file.get_tensor("pixels")
                rows = torch.cat([labels, pixels[:, None]], dim=1).split(file.get_tensor("entries").tolist())
                counts.entries = dict(zip(about["ids"], rows, strict=True))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError):
            return None
        return counts
