"""The masks that a step's locator makes, kept in the step's folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fmwiss.errors import UserError
from fmwiss.files import write_atomically

CLASSES = "classes"


class LocatedMasks:
    """One small file a photograph with the label of every place; files appear whole or not at all.

    Args:
        folder: where the files are, made if need be.
        classes: the new classes, of the labels 1, 2, ...
    """

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        self.folder = folder
        self.classes = tuple(classes)

    def path(self, image_id: str) -> Path:
        """Where the file of a photograph is, or would be."""
        return self.folder / f"{quote(image_id, safe='')}.safetensors"

    def missing(self, ids: Iterable[str]) -> list[str]:
        """The photographs that have no file."""
        return [image_id for image_id in ids if not self.path(image_id).is_file()]

    def write(self, image_id: str, labels: Tensor) -> None:
        """Keep a photograph's labels, uint8 ``(gh, gw)``."""
        content = save({"labels": labels.contiguous()}, metadata={CLASSES: json.dumps(self.classes)})
        write_atomically(self.path(image_id), lambda temporary: temporary.write_bytes(content))

    def masks(self, image_id: str, classes: Sequence[str], epoch: int) -> Tensor:
        """Bool ``(len(classes), gh, gw)``, the same in every epoch; no two masks overlap.

        Raises:
            UserError: there is no file of the photograph, or it is damaged or of other classes.
        """
        path = self.path(image_id)
        try:
            with safe_open(path, framework="pt") as file:
                known = json.loads((file.metadata() or {})[CLASSES])
                labels = file.get_tensor("labels")
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise UserError(f"{path} is missing or damaged; delete it and train the step again") from error
        if tuple(known) != self.classes:
            raise UserError(f"{path} holds masks of other classes ({', '.join(known)}); delete {self.folder}")
        wanted = torch.tensor([self.classes.index(name) + 1 for name in classes], dtype=torch.uint8)
        return labels == wanted[:, None, None]
