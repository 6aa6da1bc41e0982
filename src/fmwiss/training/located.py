"""What a step's locator is taught with and what it makes, kept in the step's folder: one small file a photograph."""

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

MAP = "map"
ABOUT = "about"


class KeptMaps:
    """One uint8 map a photograph; files appear whole or not at all.

    Args:
        folder: where the files are, made if need be.
        about: what the values mean, as JSON; files that say otherwise are refused.
    """

    def __init__(self, folder: Path, about: Sequence[str]) -> None:
        self.folder = folder
        self.about = list(about)

    def path(self, image_id: str) -> Path:
        """Where the file of a photograph is, or would be."""
        return self.folder / f"{quote(image_id, safe='')}.safetensors"

    def missing(self, ids: Iterable[str]) -> list[str]:
        """The photographs that have no file."""
        return [image_id for image_id in ids if not self.path(image_id).is_file()]

    def write(self, image_id: str, values: Tensor) -> None:
        """Keep a photograph's map, uint8 ``(gh, gw)``."""
        content = save({MAP: values.contiguous()}, metadata={ABOUT: json.dumps(self.about)})
        write_atomically(self.path(image_id), lambda temporary: temporary.write_bytes(content))

    def map(self, image_id: str) -> Tensor:
        """A photograph's map, uint8 ``(gh, gw)``.

        Raises:
            UserError: there is no file of the photograph, or it is damaged or says something else.
        """
        path = self.path(image_id)
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {})[ABOUT])
                values: Tensor = file.get_tensor(MAP)
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise UserError(f"{path} is missing or damaged; delete it and train the step again") from error
        if about != self.about:
            raise UserError(f"{path} is about {', '.join(about)}, not {', '.join(self.about)}; delete {self.folder}")
        return values


class LocatedMasks(KeptMaps):
    """The masks of the step's photographs, as the label of every place.

    Args:
        folder: where the files are.
        about: names of the new classes, of the labels 1, 2, ...
    """

    def masks(self, image_id: str, classes: Sequence[str], epoch: int) -> Tensor:
        """Bool ``(len(classes), gh, gw)``, the same in every epoch; no two masks overlap. Raises as :meth:`map`."""
        wanted = torch.tensor([self.about.index(name) + 1 for name in classes], dtype=torch.uint8)
        return self.map(image_id) == wanted[:, None, None]

    def stages(self, image_id: str, classes: Sequence[str], epoch: int) -> dict[str, Tensor]:
        """:meth:`masks` alone, as ``located``."""
        return {"located": self.masks(image_id, classes, epoch)}
