"""``fmwiss predict``: photographs and videos to files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from fmwiss.data.photographs import read_photograph
from fmwiss.errors import UserError
from fmwiss.files import write_atomically
from fmwiss.inference.media import Medium
from fmwiss.inference.model import Mask, Model, Resize, Tile
from fmwiss.inference.video import VideoReader, VideoWriter
from fmwiss.reporting.pictures import overlay, save_indexed_png, save_png
from fmwiss.reporting.progress import track

T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """How to predict; see :meth:`fmwiss.Model.predict`."""

    tile: Tile = "auto"
    resize: Resize = "trained"
    batch_size: int = 8
    frames: bool = False
    """Whether every frame's mask is written, too."""


@dataclass
class Summary:
    """What was done: JSON-able records of photographs, videos and failures."""

    photographs: list[dict[str, Any]] = field(default_factory=list)
    videos: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)

    def fail(self, path: Path, error: UserError) -> None:
        """Take a file down as one that could not be used, or not to its end."""
        self.failed.append({"file": str(path), "reason": str(error).rstrip(".")})


def predict(model: Model, media: Sequence[Medium], options: Options) -> Summary:
    """Segment every photograph and video and write the results, each file whole or not at all.

    A file that cannot be read is left out and taken down in the summary; everything else goes on.
    """
    summary = Summary()
    photographs = [medium for medium in media if not medium.is_video]
    if photographs:
        read = track(_read_ahead(photographs), "predicting", len(photographs))
        for batch in _chunks(_readable(read, summary), options.batch_size):
            _predict_photographs(model, batch, options, summary)
    for medium in media:
        if medium.is_video:
            try:
                _predict_video(model, medium, options, summary)
            except UserError as error:
                summary.fail(medium.path, error)
    return summary


def _predict_photographs(
    model: Model, batch: Sequence[tuple[Medium, Tensor]], options: Options, summary: Summary
) -> None:
    for (medium, photograph), mask in zip(batch, _masks(model, [image for _, image in batch], options), strict=True):
        labels = torch.from_numpy(mask)
        save_indexed_png(labels, model.class_names, medium.mask)
        save_png(overlay(photograph, labels, model.class_names), medium.overlay)
        summary.photographs.append({
            "file": str(medium.path),
            "mask": str(medium.mask),
            "overlay": str(medium.overlay),
            "width": mask.shape[1],
            "height": mask.shape[0],
            "shares": _shares(_pixels(mask, model), model),
        })


def _predict_video(model: Model, medium: Medium, options: Options, summary: Summary) -> None:
    """
    Raises:
        UserError: the video cannot be read at all.
    """
    pixels = np.zeros(len(model.class_names), dtype=np.int64)
    size: tuple[int, int] = (0, 0)
    done = 0

    def write(path: Path) -> None:
        nonlocal size, done, pixels
        writer: VideoWriter | None = None
        try:
            frames = track(reader, f"predicting {medium.path.name}", reader.frames)
            # what comes before a break is decoded whole, then the exception arrives
            for batch in _until_broken(_chunks(frames, options.batch_size), medium, summary):
                masks = _masks(model, [frame.image for frame in batch], options)
                for frame, mask in zip(batch, masks, strict=True):
                    labels = torch.from_numpy(mask)
                    picture = overlay(frame.image, labels, model.class_names, whole_legend=True)
                    if writer is None:
                        size = mask.shape[0], mask.shape[1]
                        writer = VideoWriter(path, (picture.height, picture.width), reader.rate, reader.time_base)
                    writer.write(picture, frame.pts)
                    if options.frames:
                        save_indexed_png(labels, model.class_names, medium.mask / f"{done:06d}.png")
                    pixels = pixels + _pixels(mask, model)
                    done += 1
        finally:
            if writer is not None:
                writer.close()

    with VideoReader(medium.path) as reader:
        write_atomically(medium.overlay, write)
    summary.videos.append({
        "file": str(medium.path),
        "overlay": str(medium.overlay),
        **({"masks": str(medium.mask)} if options.frames else {}),
        "width": size[1],
        "height": size[0],
        "frames": done,
        "shares": _shares(pixels, model),
    })


def _until_broken(batches: Iterator[list[T]], medium: Medium, summary: Summary) -> Iterator[list[T]]:
    """The batches of a video up to where it breaks off, which is taken down; one that gives nothing raises."""
    begun = False
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except UserError as error:
            if not begun:
                raise
            summary.fail(medium.path, error)
            return
        begun = True
        yield batch


def _read_ahead(media: Sequence[Medium]) -> Iterator[tuple[Medium, Tensor | UserError]]:
    """Photographs in order, one of them read while another is worked on."""

    def read(medium: Medium) -> tuple[Medium, Tensor | UserError]:
        try:
            return medium, read_photograph(medium.path)
        except UserError as error:
            return medium, error

    with ThreadPoolExecutor(1) as reader:
        pending = reader.submit(read, media[0])
        for following in media[1:]:
            ready, pending = pending, reader.submit(read, following)
            yield ready.result()
        yield pending.result()


def _readable(
    read: Iterable[tuple[Medium, Tensor | UserError]], summary: Summary
) -> Iterator[tuple[Medium, Tensor]]:
    for medium, image in read:
        if isinstance(image, UserError):
            summary.fail(medium.path, image)
        else:
            yield medium, image


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of ``size``; what an exception interrupts is given before it goes on."""
    chunk: list[T] = []
    try:
        for item in items:
            chunk.append(item)
            if len(chunk) == size:
                yield chunk
                chunk = []
    except UserError:
        if chunk:
            yield chunk
        raise
    if chunk:
        yield chunk


def _masks(model: Model, images: list[Tensor], options: Options) -> list[Mask]:
    try:
        masks: list[Mask] = model.predict(
            images, tile=options.tile, resize=options.resize, batch_size=options.batch_size
        )
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise UserError("the memory does not suffice; a smaller --batch-size or --tile needs less") from error
    return masks


def _pixels(mask: Mask, model: Model) -> Any:
    return np.bincount(mask.reshape(-1), minlength=len(model.class_names))


def _shares(pixels: Any, model: Model) -> dict[str, float]:
    """Every label's share of the pixels, in [0, 1]."""
    total = int(pixels.sum())
    return {name: round(int(count) / total, 6) for name, count in zip(model.class_names, pixels, strict=True)}
