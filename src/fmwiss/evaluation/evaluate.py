"""Running a model over a split."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.classification import MulticlassConfusionMatrix

from fmwiss.config import Config
from fmwiss.data.protocols import Protocol
from fmwiss.data.source import Source, open_source
from fmwiss.data.voc import VOID
from fmwiss.errors import UserError
from fmwiss.evaluation.metrics import Evaluation
from fmwiss.models import Segmenter
from fmwiss.processes import Processes
from fmwiss.reporting.progress import track

MOST_WAITING = 4
"""Batches' worth of photographs that may wait in memory for others of their shape."""

ImageMode = Literal["whole", "center-crop"]

Observer = Callable[[str, Tensor, Tensor], None]
"""Called with a photograph's id, its mask in the data set's labels (void included), and the prediction in the model's
labels: ``(H, W)`` each, of what was compared, the mask uint8 on the CPU, the prediction int64 on the model's device."""


def evaluate(
    model: Segmenter,
    source: Source,
    ids: Sequence[str],
    protocol: Protocol,
    *,
    image: ImageMode = "whole",
    crop_size: int = 512,
    batch_size: int = 8,
    rank: int = 0,
    world_size: int = 1,
    observe: Observer | None = None,
) -> Evaluation:
    """Confusion of a model with the truth, exact over batches and processes.

    With ``whole`` a photograph is scaled to the model's working size, and the logits are scaled bilinearly to the
    photograph's own size, where they meet the mask. With ``center-crop`` photograph and mask are scaled so that the
    shorter side has ``crop_size`` pixels and the central square is compared, as the peers' published tables do.
    Void pixels are left out; pixels of classes that the model has not learnt count as background, as in the
    literature.

    Args:
        model: the segmenter; its own modes and device are used.
        source: where the photographs are.
        ids: which ones.
        protocol: the steps, of which the model has learnt the first ones.
        image: what is compared.
        crop_size: side of the centre crop in pixels.
        batch_size: photographs of one size per forward pass.
        rank: this process.
        world_size: processes that share the work; the counts of all are summed by torchmetrics.
        observe: is shown every photograph of this process's share once.
    """
    device = model.mean.device
    labels = protocol.label_table(len(model.architecture.steps) - 1, source.class_names).long()
    metric = MulticlassConfusionMatrix(len(model.class_names), ignore_index=VOID).to(device)
    was_training = model.training
    model.eval()

    def read(image_id: str) -> tuple[Tensor, Tensor, Tensor, str]:
        photograph, mask = source.read_image(image_id), source.read_mask(image_id)
        if image == "center-crop":
            photograph, mask = center_crop(photograph, mask, crop_size)
            photograph = photograph[None]
        else:
            photograph = model.to_working_size(photograph)
        return photograph, labels[mask.long()], mask, image_id

    mine = ids[rank::world_size]
    with ThreadPoolExecutor(1) as reader:
        samples = track(_prefetched(reader, read, mine), "evaluating", len(mine))
        for photographs, truths, masks, shown in _equal_shapes(samples, batch_size):
            logits = model.predict_logits(torch.cat(photographs).to(device), (masks[0].shape[-2], masks[0].shape[-1]))
            predicted = logits.argmax(dim=1)
            metric.update(predicted, torch.stack(truths).to(device))
            if observe is not None:
                for image_id, mask, labelling in zip(shown, masks, predicted, strict=True):
                    observe(image_id, mask, labelling)
    model.train(was_training)
    Processes.of_this_job().barrier()  # which waits as long as it takes; the sum below gives up after half an hour
    return Evaluation.from_confusion(metric.compute().cpu(), model.architecture.steps, len(ids))


def _prefetched(reader: ThreadPoolExecutor, read, ids: Sequence[str]) -> Iterator[tuple[Any, ...]]:  # type: ignore[no-untyped-def]
    """Read one photograph ahead of the model."""
    pending = None
    for image_id in ids:
        ready, pending = pending, reader.submit(read, image_id)
        if ready is not None:
            yield ready.result()
    if pending is not None:
        yield pending.result()


def _equal_shapes(samples: Iterable[tuple[Any, ...]], batch_size: int) -> Iterator[tuple[list[Any], ...]]:
    """Batches, column by column, of samples whose first two tensors, photograph and mask, have the same shapes.

    At most ``MOST_WAITING`` batches wait.
    """
    waiting: dict[tuple[torch.Size, torch.Size], list[tuple[Any, ...]]] = defaultdict(list)
    for sample in samples:
        shape = (sample[0].shape, sample[1].shape)
        waiting[shape].append(sample)
        if len(waiting[shape]) == batch_size:
            yield _columns(waiting.pop(shape))
        elif sum(map(len, waiting.values())) == MOST_WAITING * batch_size:
            yield _columns(waiting.pop(max(waiting, key=lambda shape: len(waiting[shape]))))
    yield from map(_columns, waiting.values())


def _columns(samples: list[tuple[Any, ...]]) -> tuple[list[Any], ...]:
    return tuple(map(list, zip(*samples, strict=True)))


def center_crop(photograph: Tensor, mask: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """The central square of photograph and mask, scaled so that the shorter side has ``side`` pixels.

    Args:
        photograph: uint8 ``(3, H, W)``.
        mask: uint8 ``(H, W)``.
        side: in pixels.

    Returns:
        Float RGB in [0, 1], ``(3, side, side)``, and the mask, nearest neighbour, ``(side, side)``.
    """
    h, w = mask.shape
    factor = side / min(h, w)
    size = (max(side, round(h * factor)), max(side, round(w * factor)))
    resized = F.interpolate(photograph[None].float() / 255, size=size, mode="bilinear", antialias=True)[0]
    nearest = F.interpolate(mask[None, None].float(), size=size, mode="nearest-exact")[0, 0].to(mask.dtype)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    window = (..., slice(top, top + side), slice(left, left + side))
    return resized[window].clamp(0, 1), nearest[window]


def evaluate_run(
    run: Path,
    data: Path,
    split: str | None = None,
    step: int | None = None,
    image: ImageMode | None = None,
    device: torch.device | str = "cpu",
) -> Evaluation:
    """Evaluate a step of a run (the last one by default) on a split of any folder that is laid out as the run's was.

    Args:
        run: folder that ``fmwiss train`` wrote.
        data: the folder; where its tags were in a file that is not there any more, in its own. An extension is
            compared with any photographs with masks; their classes that it does not know are background.
        split: name of the list of ids; None: the configuration's validation split.
        step: which step's model; None: the last finished one.
        image: None: as the configuration says.
        device: where the model runs.

    Raises:
        UserError: the run, step, split or a file does not exist or cannot be read.
    """
    from fmwiss.config import load_config
    from fmwiss.data.extension import RECORD, judged_source
    from fmwiss.models import load_segmenter

    model = load_segmenter(run, step).to(device)
    config = load_config(run / "config.yaml", [])
    options = config.data
    source: Source
    if (run / RECORD).is_file():
        source = judged_source(data, split, model.class_names[1:], model.has_background)
        told = source.told_of_unknown()
        if told is not None:
            print(told, file=sys.stderr)
        return _evaluate_on(source, source.ids(source.compared), model, config, image)
    if options.source != "voc" and not Path(options.tags).is_file():
        options = options.model_copy(update={"tags": "masks"})
    source = open_source(options, data)
    known = set(source.class_names)
    missing = [name for name in model.class_names[1:] if name not in known]
    if missing:
        more = "" if options.source == "voc" else f"; add it to {data / 'classes.txt'}"
        raise UserError(f"{data}: its masks have no class {missing[0]!r}, which {run} has learnt{more}.")
    return _evaluate_on(source, source.ids(split or config.data.val_split), model, config, image)


def _evaluate_on(
    source: Source, ids: Sequence[str], model: Segmenter, config: Config, image: ImageMode | None
) -> Evaluation:
    return evaluate(
        model,
        source,
        ids,
        Protocol(model.architecture.steps, config.protocol.setting),
        image=image or config.evaluation.image,
        crop_size=config.evaluation.crop_size,
        batch_size=config.evaluation.batch_size,
    )
