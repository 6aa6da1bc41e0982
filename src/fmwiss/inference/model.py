"""A trained model as its users know it: photographs in, masks out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeAlias, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from fmwiss.data.transforms import working_size
from fmwiss.errors import UserError
from fmwiss.inference.images import Photograph, Photographs, split, to_tensor
from fmwiss.inference.tiles import ALIGNMENT, Band, Rows, blended_rows, resized_rows
from fmwiss.models import Segmenter

Mask: TypeAlias = "np.ndarray[Any, np.dtype[np.uint8]]"
Scores: TypeAlias = "np.ndarray[Any, np.dtype[np.float32]]"
Tile: TypeAlias = Literal["auto", "none"] | int | None
Resize: TypeAlias = Literal["trained", "none"] | int | None
Precision: TypeAlias = Literal["32-true", "16-mixed", "bf16-mixed"]

LARGEST_WHOLE = 2048 * 2048
"""Pixels at the working size up to which ``tile="auto"`` lets a photograph through the model in one piece."""
AUTOMATIC_TILE = 1024
SMALLEST_TILE = 2 * ALIGNMENT
_VALUES = 2**25
"""Logits at a photograph's own size that are held at once: 128 MiB."""
_TYPES: Mapping[str, torch.dtype | None] = {"32-true": None, "16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}


class Prediction(NamedTuple):
    """What :meth:`Model.predict` gives with ``probabilities=True``."""

    mask: Mask
    """``(H, W)`` uint8, labels as in :attr:`Model.class_names`."""
    probabilities: Scores
    """``(labels, H, W)`` float32 in [0, 1]. Every label has one of its own (a sigmoid), so they need not sum to 1."""


class Model:
    """A segmentation model with the names and colours of its classes; :func:`load` makes one.

    Args:
        segmenter: the network, in evaluation mode, on the device where it shall run.
        precision: ``32-true``, or ``16-mixed`` or ``bf16-mixed`` for autocast.
        origin: folder that the model came from, and the step of the run if it is one: what its card is made of.

    Example:
        >>> import fmwiss
        >>> model = fmwiss.load("runs/15-5-ov")                # doctest: +SKIP
        >>> mask = model.predict("photo.jpg")                  # doctest: +SKIP
        >>> model.overlay("photo.jpg", mask).save("seen.png")  # doctest: +SKIP
    """

    def __init__(
        self, segmenter: Segmenter, *, precision: Precision = "32-true", origin: tuple[Path, int | None] | None = None
    ) -> None:
        if precision not in _TYPES:
            raise UserError(f"precision {precision}: must be one of {', '.join(_TYPES)}")
        self.segmenter = segmenter
        self.precision = precision
        self.origin = origin

    def __repr__(self) -> str:
        return f"Model({', '.join(self.class_names)}; {self.device}, {self.precision})"

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of every label, ``background`` first."""
        return self.segmenter.class_names

    @property
    def palette(self) -> Mapping[str, tuple[int, int, int]]:
        """Every label's colour, red, green and blue in [0, 255]: VOC's palette, as :meth:`overlay` uses it."""
        from fmwiss.reporting.pictures import class_colours

        return MappingProxyType({self.class_names[0]: (0, 0, 0), **class_colours(self.class_names)})

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.segmenter.mean.device

    @overload
    def predict(
        self,
        images: Photograph,
        *,
        probabilities: Literal[False] = False,
        tile: Tile = "auto",
        overlap: int | None = None,
        resize: Resize = "trained",
        batch_size: int = 8,
    ) -> Mask: ...

    @overload
    def predict(
        self,
        images: Photographs,
        *,
        probabilities: bool = False,
        tile: Tile = "auto",
        overlap: int | None = None,
        resize: Resize = "trained",
        batch_size: int = 8,
    ) -> Any: ...

    @torch.inference_mode()
    def predict(
        self,
        images: Photographs,
        *,
        probabilities: bool = False,
        tile: Tile = "auto",
        overlap: int | None = None,
        resize: Resize = "trained",
        batch_size: int = 8,
    ) -> Any:
        """Segment photographs of any sizes.

        Args:
            images: one photograph or several: paths, PIL images, arrays ``(H, W, 3)`` of uint8, tensors ``(3, H, W)``
                of uint8 or of floats in [0, 1]; see :func:`fmwiss.inference.images.to_tensor`. Arrays ``(B, H, W, 3)``
                and tensors ``(B, 3, H, W)`` are several.
            probabilities: give those of every label too.
            tile: side in pixels, at the working size, of windows that a larger photograph is cut into; the logits of
                overlapping windows are blended. A photograph that fits into one is treated as with None (or ``none``,
                as the command line has it), which never cuts. ``auto`` cuts photographs of more than ``LARGEST_WHOLE``
                pixels into windows of 1024. A window's border knows less of its surroundings than it would in the
                whole, so results differ a little.
            overlap: of windows in pixels; by default a quarter of ``tile``. Both are multiples of 32.
            resize: length in pixels that the shorter side is scaled to for the model, its working size: by default the
                one that it was trained with; None (or ``none``) keeps a photograph's own size.
            batch_size: photographs of one size, or windows, that go through the network at once.

        Returns:
            For one photograph a mask, ``(H, W)`` uint8 at its own size; for several a list of masks in their order.
            With ``probabilities`` a :class:`Prediction` in place of each mask.

        Raises:
            UserError: a photograph cannot be read or is no photograph, or an option is out of its range.
        """
        side, margin = _tiling(tile, overlap)
        size_of = partial(working_size, resize=_resize(resize, self.segmenter.architecture.resize))
        if batch_size < 1:
            raise UserError(f"batch_size {batch_size}: must be at least 1")
        photographs, single = split(images)
        tensors = [to_tensor(photograph) for photograph in photographs]
        groups: dict[torch.Size, list[int]] = defaultdict(list)
        for index, tensor in enumerate(tensors):
            groups[tensor.shape].append(index)
        results: list[Any] = [None] * len(tensors)
        for shape, indices in groups.items():
            size = (shape[1], shape[2])
            work = size_of(*size)
            values = len(self.class_names) * size[0] * size[1]
            if _fits(work, tile, side) and values <= _VALUES:
                together = max(1, min(batch_size, _VALUES // values))
                for chunk in (indices[i : i + together] for i in range(0, len(indices), together)):
                    logits = self._whole([tensors[i] for i in chunk], work, size)
                    for index, own in zip(chunk, logits, strict=True):
                        results[index] = _collect([(0, own)], size, len(own), probabilities)
                continue
            for index in indices:
                if _fits(work, tile, side):
                    logits = self._forward(self._scaled(tensors[index], work))[0]
                    bands: Iterator[Band] = iter([(logits.shape[1], logits)])
                else:
                    bands = self._tiled(tensors[index], work, side, margin, batch_size)
                rows = resized_rows(bands, size, _VALUES)
                results[index] = _collect(rows, size, len(self.class_names), probabilities)
        return results[0] if single else results

    def overlay(self, image: Photograph, mask: Mask | Tensor | Prediction) -> Image.Image:
        """The photograph with the classes' colours laid over it and a legend of those present below.

        Args:
            image: as :meth:`predict` takes it.
            mask: what :meth:`predict` gave for it: ``(H, W)``, or a :class:`Prediction`, whose mask is taken.

        Raises:
            UserError: the mask is none, has another size than the photograph, or labels that the model does not have.
        """
        from fmwiss.reporting.pictures import overlay

        photograph, labels = to_tensor(image), _labels(mask)
        if photograph.is_floating_point():
            photograph = (photograph * 255).round().to(torch.uint8)
        if labels.shape != photograph.shape[-2:]:
            raise UserError(
                f"the mask is of shape {tuple(labels.shape)} and the photograph of {tuple(photograph.shape[-2:])}; "
                "give the mask that predict gave for this photograph"
            )
        if labels.is_floating_point() or int(labels.min()) < 0 or int(labels.max()) >= len(self.class_names):
            raise UserError(f"the mask must hold whole labels from 0 to {len(self.class_names) - 1}, as predict's do")
        return overlay(photograph, labels.to(torch.uint8), self.class_names)

    def save_pretrained(self, folder: str | Path, *, license: str | None = None, dataset: str | None = None) -> None:
        """Write a folder that :func:`load` reads and that the Hugging Face hub shows well.

        Args:
            folder: gets ``model.safetensors``, ``model.json``, ``config.json`` and ``README.md``, the model's card.
            license: identifier of the licence that the weights are given under, such as ``cc-by-4.0``; without one the
                card says that none is stated.
            dataset: what the training photographs are called, for the card.

        Raises:
            UserError: the folder cannot be written, or the model's run cannot be read.
        """
        from fmwiss.inference.hub import save_pretrained

        save_pretrained(self, Path(folder), license=license, dataset=dataset)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        license: str,
        dataset: str | None = None,
        private: bool = False,
        revision: str | None = None,
        message: str | None = None,
        api: Any = None,
    ) -> str:
        """Upload what :meth:`save_pretrained` writes to the Hugging Face hub.

        Args:
            repo_id: ``owner/name``; made where it does not exist.
            license: see :meth:`save_pretrained`; what is published needs one.
            dataset: see :meth:`save_pretrained`.
            private: make a new repository one that only its owner sees.
            revision: branch; by default the main one.
            message: of the commit.
            api: a ``huggingface_hub.HfApi``; by default one with the user's own login.

        Returns:
            The address of the model's page.

        Raises:
            UserError: not logged in, not allowed, no such name, or no network.
        """
        from fmwiss.inference.hub import push_to_hub

        return push_to_hub(
            self,
            repo_id,
            license=license,
            dataset=dataset,
            private=private,
            revision=revision,
            message=message,
            api=api,
        )

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        device: str | torch.device = "auto",
        precision: Precision = "32-true",
    ) -> Model:
        """:func:`load` under the name that users of the hub expect."""
        return load(name, device=device, precision=precision, revision=revision)

    def _whole(self, photographs: list[Tensor], work: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """Float logits ``(B, labels, *size)`` of photographs of that size."""
        batch = torch.cat([self._scaled(photograph, work) for photograph in photographs])
        with self._autocast():
            logits = self.segmenter.predict_logits(batch, size)
        return logits.float()

    def _forward(self, images: Tensor) -> Tensor:
        """Float logits of images at the working size, at the model's output stride."""
        with self._autocast():
            logits = self.segmenter(images)
        return logits.float()

    def _tiled(
        self, photograph: Tensor, work: tuple[int, int], side: int, margin: int, batch_size: int
    ) -> Iterator[Band]:
        """Bands of logits of a photograph that is cut into windows."""
        if work == tuple(photograph.shape[-2:]):
            # bytes become floats window by window

            def crop(top: int, bottom: int, left: int, right: int) -> Tensor:
                return _as_batch(photograph[:, top:bottom, left:right], self.device)

        else:
            scaled = self._scaled(photograph, work)

            def crop(top: int, bottom: int, left: int, right: int) -> Tensor:
                return scaled[:, :, top:bottom, left:right]

        return blended_rows(self._forward, crop, work, side, margin, batch_size)

    def _scaled(self, photograph: Tensor, work: tuple[int, int]) -> Tensor:
        """One photograph as a float batch of one at the working size, on the device."""
        height, width = photograph.shape[-2:]
        if work == working_size(height, width, self.segmenter.architecture.resize):
            return self.segmenter.to_working_size(photograph)
        batch = _as_batch(photograph, self.device)
        if work != (height, width):
            batch = F.interpolate(batch, size=work, mode="bilinear", align_corners=False, antialias=True)
        return batch.contiguous(memory_format=torch.channels_last)

    def _autocast(self) -> AbstractContextManager[Any]:
        kind = _TYPES[self.precision]
        return nullcontext() if kind is None else torch.autocast(self.device.type, dtype=kind)


def load(
    path: str | Path,
    step: int | None = None,
    device: str | torch.device = "auto",
    *,
    precision: Precision = "32-true",
    revision: str | None = None,
) -> Model:
    """Load a model for use.

    Args:
        path: a run's folder, as ``fmwiss train`` wrote it; a folder that :meth:`Model.save_pretrained` wrote; or, where
            there is no such folder, the name of a model on the Hugging Face hub, ``owner/name``.
        step: of a run, whose model; by default the last finished one's.
        device: ``auto`` (a GPU where there is one), or a torch device.
        precision: ``32-true``, or ``16-mixed`` or ``bf16-mixed`` for autocast.
        revision: of a model on the hub: branch, tag or commit.

    Raises:
        UserError: there is no such model, it cannot be read, or the device is not there.
    """
    from fmwiss.inference.hub import open_model

    place = torch_device(device)
    segmenter, origin = open_model(path, step, revision)
    return Model(segmenter.eval().to(place), precision=precision, origin=origin)


def torch_device(name: str | torch.device, what: str = "device") -> torch.device:
    """The device of a name, ``auto`` included, or :class:`UserError` about ``what`` where there is none."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()  # meta takes all tensors and gives none back
    except (RuntimeError, AssertionError, ImportError) as error:  # unknown or not there, not compiled in, a plugin's
        raise UserError(f"{what} {name}: there is no such device here; give auto, cpu or cuda:0") from error
    return device


def check_tile(tile: Tile, what: str = "tile") -> int:
    """The side of windows in pixels, or :class:`UserError` about ``what`` where :meth:`Model.predict` takes no such."""
    side = AUTOMATIC_TILE if tile is None or tile in ("auto", "none") else tile
    if isinstance(side, bool) or not isinstance(side, int) or side < SMALLEST_TILE or side % ALIGNMENT:
        raise UserError(f"{what} {tile}: must be auto, none or a multiple of {ALIGNMENT} from {SMALLEST_TILE}")
    return side


def _labels(mask: Mask | Tensor | Prediction) -> Tensor:
    """A mask as a tensor, whichever of them it is."""
    labels = mask.mask if isinstance(mask, Prediction) else mask
    if not isinstance(labels, np.ndarray | Tensor):
        raise UserError(f"a mask is an array or a tensor, as predict gives it, not of type {type(labels).__name__}")
    return torch.as_tensor(labels)


def _tiling(tile: Tile, overlap: int | None) -> tuple[int, int]:
    """Side and overlap of windows in pixels, checked."""
    side = check_tile(tile)
    margin = side // 4 // ALIGNMENT * ALIGNMENT if overlap is None else overlap
    if not 0 <= margin < side or margin % ALIGNMENT:
        raise UserError(f"overlap {overlap}: must be a multiple of {ALIGNMENT} from 0 and below the tile's {side}")
    return side, margin


def _resize(resize: Resize, trained: int | None) -> int | None:
    if resize is None or resize == "none":
        return None
    if resize == "trained":
        return trained
    if isinstance(resize, bool) or not isinstance(resize, int) or resize < 1:
        raise UserError(f"resize {resize}: must be trained, none or a number of pixels from 1")
    return resize


def _fits(work: tuple[int, int], tile: Tile, side: int) -> bool:
    """Whether a photograph goes through the model in one piece."""
    if tile is None or tile == "none":
        return True
    return work[0] * work[1] <= LARGEST_WHOLE if tile == "auto" else max(work) <= side


def _as_batch(photograph: Tensor, device: torch.device) -> Tensor:
    """``(3, H, W)``, uint8 or float, as floats in [0, 1], ``(1, 3, H, W)``, on the device."""
    batch = photograph.to(device)[None]
    return batch.float().div_(255) if photograph.dtype == torch.uint8 else batch.float()


def _collect(rows: Iterable[Rows], size: tuple[int, int], labels: int, probabilities: bool) -> Mask | Prediction:
    """A mask from logits, some rows at a time."""
    mask = np.empty(size, dtype=np.uint8)
    scores = np.empty((labels, *size), dtype=np.float32) if probabilities else None
    for first, logits in rows:
        place = slice(first, first + logits.shape[1])
        mask[place] = logits.argmax(dim=0).to(torch.uint8).cpu().numpy()
        if scores is not None:
            scores[:, place] = logits.sigmoid().cpu().numpy()
    return mask if scores is None else Prediction(mask, scores)
