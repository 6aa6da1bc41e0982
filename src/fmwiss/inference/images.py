"""Photographs as users have them: paths, PIL images, arrays and tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fmwiss.data.photographs import read_photograph
from fmwiss.errors import UserError

Photograph: TypeAlias = "str | Path | Image.Image | np.ndarray[Any, Any] | Tensor"
"""One photograph; see :func:`to_tensor`."""
Photographs: TypeAlias = "Photograph | Iterable[Photograph]"
"""One photograph or several: a sequence of them, an array ``(B, H, W, 3)`` or a tensor ``(B, 3, H, W)``."""


def split(images: Photographs) -> tuple[list[Photograph], bool]:
    """The single photographs, not read yet, and whether one alone was given."""
    if isinstance(images, str | Path | Image.Image):
        return [images], True
    if isinstance(images, np.ndarray | Tensor):
        return (list(images), False) if images.ndim == 4 else ([images], True)
    if not isinstance(images, Iterable):
        raise UserError(f"a photograph is a path, a PIL image, an array or a tensor, not of type {_type(images)}")
    return list(images), False


def to_tensor(image: Photograph) -> Tensor:
    """One photograph as RGB ``(3, H, W)``, uint8 in [0, 255], or float in [0, 1] where a float tensor is given.

    Args:
        image: a path (read upright, as its EXIF orientation says), a PIL image with 8 bits a channel (taken as its
            pixels are), an array ``(H, W, 3)`` or ``(H, W)`` of uint8, or a tensor ``(3, H, W)`` of uint8 in [0, 255]
            or of floats in [0, 1].

    Raises:
        UserError: it is none of these, a folder, or a file that cannot be read.
    """
    if isinstance(image, str | Path):
        if Path(image).is_dir():
            files = f"sorted(Path({str(image)!r}).glob('*.jpg'))"
            raise UserError(f"{image}: is a folder; give the files in it, as in {files}")
        return read_photograph(Path(image))
    if isinstance(image, Image.Image):
        return _from_picture(image)
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if isinstance(image, Tensor):
        return _checked(image)
    raise UserError(f"a photograph is a path, a PIL image, an array or a tensor, not of type {_type(image)}")


def _from_picture(picture: Image.Image) -> Tensor:
    if picture.mode[0] in "IF":  # I, I;16, F
        raise UserError(f"the PIL image of mode {picture.mode} has more than 8 bits a channel; convert it to RGB first")
    try:
        return _from_array(np.array(picture.convert("RGB")))
    except (OSError, SyntaxError, ValueError) as error:  # Pillow reads files late, and raises these for broken ones
        raise UserError(f"the PIL image cannot be read ({error})") from error


def _from_array(array: np.ndarray[Any, Any]) -> Tensor:
    if array.dtype != np.uint8:
        raise UserError(f"an array of pixels must be of uint8 in [0, 255], not of {array.dtype}")
    if array.ndim == 2:
        array = np.repeat(array[:, :, None], 3, axis=2)
    if array.ndim != 3 or array.shape[2] != 3:
        raise UserError(f"an array of pixels must be of shape (H, W, 3), RGB, not {_shape(array.shape)}")
    _not_empty(array.shape)
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))


def _checked(tensor: Tensor) -> Tensor:
    if tensor.ndim != 3 or tensor.shape[0] != 3:
        raise UserError(f"a tensor of pixels must be of shape (3, H, W), RGB, not {_shape(tensor.shape)}")
    _not_empty(tensor.shape)
    if tensor.dtype == torch.uint8:
        return tensor
    if not tensor.is_floating_point():
        raise UserError(f"a tensor of pixels must be uint8 in [0, 255] or float in [0, 1], not {tensor.dtype}")
    low, high = tensor.min().item(), tensor.max().item()
    if not 0.0 <= low <= high <= 1.0:  # NaN is refused, too
        raise UserError(f"a float tensor of pixels must lie in [0, 1], neither scaled nor normalised; this one lies in "
                        f"[{low:.4g}, {high:.4g}]")
    return tensor.float()


def _not_empty(shape: Sequence[int]) -> None:
    if 0 in shape:
        raise UserError(f"a photograph has pixels, and this one's shape is {_shape(shape)}")


def _shape(shape: Sequence[int]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"


def _type(thing: object) -> str:
    return type(thing).__name__
