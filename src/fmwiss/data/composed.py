"""A data set whose photographs are those of others, under names of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from fmwiss.data.source import Source


class ComposedSource(ABC):
    """What a :class:`~fmwiss.data.source.Source` hands on to the one that a photograph is from."""

    @abstractmethod
    def _of(self, image_id: str) -> tuple[Source, str]:
        """The data set that a photograph is from, and its id there."""

    def image_path(self, image_id: str) -> Path:
        """Path of the photograph."""
        source, name = self._of(image_id)
        return source.image_path(name)

    def mask_path(self, image_id: str) -> Path:
        """Path of the mask."""
        source, name = self._of(image_id)
        return source.mask_path(name)

    def image_size(self, image_id: str) -> tuple[int, int]:
        """Height and width of what :meth:`read_image` gives, without decoding it."""
        source, name = self._of(image_id)
        return source.image_size(name)

    def read_image(self, image_id: str) -> Tensor:
        """Photograph as uint8 RGB ``(3, H, W)``."""
        source, name = self._of(image_id)
        return source.read_image(name)
