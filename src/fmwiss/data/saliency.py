"""Saliency maps from elsewhere, such as those of a network that was trained on saliency masks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from fmwiss.data.source import Source
from fmwiss.data.voc import read_plane
from fmwiss.errors import UserError


def check_saliency_folder(root: Path) -> None:
    """Raise UserError where there is no such folder."""
    if not root.is_dir():
        raise UserError(
            f"method.saliency = {root}: is no folder; give one with a grey picture ID.png for each photograph"
        )


class SaliencyFolder:
    """A folder with one grey picture for each photograph, ``ID.png``, of its size: 255 where something stands out.

    Args:
        root: the folder.
        source: the photographs that the maps are of.
        ids: which of them will be asked for.

    Raises:
        UserError: there is no such folder, or one of the photographs has no map.
    """

    def __init__(self, root: Path, source: Source, ids: Iterable[str] = ()) -> None:
        check_saliency_folder(root)
        self.root = root
        self.source = source
        bare = [image_id for image_id in ids if not self._path(image_id).is_file()]
        if bare:
            raise UserError(
                f"{self._path(bare[0])}: is missing, the first of {len(bare)} missing saliency maps; every photograph "
                "of the step needs one, or leave method.saliency out"
            )

    def map(self, image_id: str) -> Tensor:
        """A photograph's map, uint8 ``(H, W)``, 255 where something stands out.

        Raises:
            UserError: it is missing, unreadable, no grey picture of 8 bits, or not of its photograph's size.
        """
        path = self._path(image_id)
        size = self.source.image_size(image_id)
        missing = "every photograph of the step needs one"
        values = read_plane("the saliency map", path, size, missing, ("L",), "a grey picture of 8 bits")
        return torch.from_numpy(values)

    def _path(self, image_id: str) -> Path:
        return self.root / f"{image_id}.png"
