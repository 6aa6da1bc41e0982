"""Single photographs from anywhere, as a user has them: for prediction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fmwiss.data.voc import BROKEN, unreadable
from fmwiss.errors import UserError


def read_photograph(path: Path) -> Tensor:
    """A photograph of any common format as uint8 RGB ``(3, H, W)``, upright.

    Other than a data set's photographs, whose masks are stored as they are, it is turned as its EXIF orientation says.

    Raises:
        UserError: the file is missing, may not be read, is no picture, truncated, too large to be a photograph, or grey
            with 16 or more bits a pixel. (Of colours with 16 bits a channel the upper eight are taken.)
    """
    try:
        with Image.open(path) as picture:
            if picture.mode[0] in "IF":  # I, I;16, F
                raise UserError(f"{path} has more than 8 bits a channel; save it with 8, as JPEG or PNG")
            upright = ImageOps.exif_transpose(picture).convert("RGB")
    except FileNotFoundError as error:
        raise UserError(f"there is no photograph {path}") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{path} has more pixels than a photograph may have; make it smaller") from error
    except BROKEN as error:
        raise unreadable(str(path), error) from error
    return torch.from_numpy(np.array(upright)).permute(2, 0, 1).contiguous()
