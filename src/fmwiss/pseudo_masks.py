"""Co-segmentation over a data set: what the frozen models give is computed once and kept, masks are drawn from it.

:func:`fill_store` runs the two foundation models over the photographs and writes one small file for each into a
:class:`PseudoMaskStore`. :class:`StoredPseudoMasks` draws the paper's masks from the files, with fresh seeds every
epoch, :class:`StoredPlusMasks` reads those of ``fmwiss-plus``, which know no chance, and :func:`evaluate_pseudo_masks`
compares either with the ground truth.
"""

from __future__ import annotations

import glob
import hashlib
import json
import math
import os
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.v2.functional import resize

from fmwiss.config import CosegmentationConfig, PlusConfig
from fmwiss.cosegmentation import cut_levels, draw_seeds, fuse, mean_of_seeds, scale_scores, seed_masks
from fmwiss.cosegmentation_plus import merge_views, plus_maps
from fmwiss.data.randomness import keyed_generator
from fmwiss.data.voc import VOID, canonical_class_name, unreadable
from fmwiss.errors import UserError
from fmwiss.files import write_atomically
from fmwiss.foundation.interfaces import SelfSupervisedModel, VisionLanguageModel
from fmwiss.processes import ALONE, Processes

FORMAT = 1
"""Version of the files; part of every store's identity."""

MAX_FILE_BYTES = 1_000_000
"""Largest size of a photograph's file."""

GRID_REFINEMENT = 2
"""Masks come on a grid this many times finer than the patches: scores and mean attention are resized bilinearly before
they are cut. On voc-mini's dev this is worth 0.5 to 1 point of IoU against cutting them patch by patch; 4 adds nothing.
"""

_LOG_RANGE = 16.0
"""Attention below exp(-16) of its row's maximum is stored as that."""

_HEADER_BYTES = 4096
"""Room left for a file's header, beside the class names in it."""

_AHEAD = 256
"""Photographs that are surveyed ahead of the one that is needed."""

_STALE_SECONDS = 3600
"""Age after which a temporary file belongs to nobody any more."""

Size = tuple[int, int]

_DRAWN = ("threshold", "exclusive")
"""Options of ``fmwiss-plus`` that the maps of a store do not depend on: they belong to the draws."""

T = TypeVar("T")
KeptT = TypeVar("KeptT", bound="Kept")


class PhotographSource(Protocol):
    """What co-segmentation asks of a data set."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the labels 1, 2, ... of :meth:`read_mask`."""

    def image_path(self, image_id: str) -> Path:
        """Path of the photograph."""

    @property
    def mask_classes(self) -> tuple[str, ...]:
        """Those of them that masks can have."""

    def image_size(self, image_id: str) -> Size:
        """Height and width of what :meth:`read_image` gives."""

    def has_mask(self, image_id: str) -> bool:
        """Whether :meth:`read_mask` is to be had."""

    def read_image(self, image_id: str) -> Tensor:
        """Photograph as uint8 RGB ``(3, H, W)``."""

    def read_mask(self, image_id: str) -> Tensor:
        """Mask as uint8 ``(H, W)``; 255 is void. Only the evaluation calls it."""


class Track(Protocol):
    """How progress is shown; :func:`fmwiss.reporting.progress.track` fits."""

    def __call__(self, iterable: Iterable[T], description: str, total: int) -> Iterable[T]:
        """Give the items on."""


def _silently(iterable: Iterable[T], description: str, total: int) -> Iterable[T]:
    return iterable


# --------------------------------------------------------------------------------------------------- one photograph


class DamagedFile(Exception):
    """A file of the store is not what was written."""


@dataclass(frozen=True)
class Kept:
    """What is stored of one photograph: the names of its C classes, and tensors."""

    classes: tuple[str, ...]

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, as they go into a file."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "classes"}


@dataclass(frozen=True)
class Evidence(Kept):
    """What the frozen models say about one photograph, as equations 3-5 need it.

    With C tagged classes, a patch grid of ``gh x gw`` with L locations, and R of them whose attention is kept:

    Attributes:
        classes: names of the C classes.
        scores: ``(C, gh, gw)`` float16, eq. 3 on the patch grid, min-max scaled to [0, 1].
        score_range: ``(C, 2)`` float32, minimum and maximum of the cosines before the scaling.
        locations: ``(R,)`` int32, ascending: the initial foreground of all classes (of the largest photographs a
            random part of it, see :func:`_kept_locations`).
        codes: ``(R, L)`` uint8, the logarithm of the head-averaged attention that each of them pays to every
            location, on a linear scale of its own from the row's smallest to its largest value.
        code_range: ``(R, 2)`` float32, these logarithms.
    """

    scores: Tensor
    score_range: Tensor
    locations: Tensor
    codes: Tensor
    code_range: Tensor

    @property
    def grid(self) -> tuple[int, int]:
        """``gh, gw``."""
        return self.scores.shape[1], self.scores.shape[2]

    def has_attention(self) -> Tensor:
        """Locations whose attention is kept, ``(L,)`` bool."""
        return self._row_of_location() >= 0

    def attention(self, points: Tensor) -> Tensor:
        """Attention of locations: int64 ``(...)`` in [0, L) -> float32 ``(..., gh, gw)``; rows not kept are 0."""
        if not len(self.locations):
            return torch.zeros(*points.shape, *self.grid)
        row = self._row_of_location()[points]
        kept = row.clamp(min=0)
        low, high = self.code_range[kept].unbind(-1)
        logarithm = low[..., None] + self.codes[kept] * ((high - low) / 255)[..., None]
        return logarithm.exp_().masked_fill_((row < 0)[..., None], 0.0).unflatten(-1, self.grid)

    def _row_of_location(self) -> Tensor:
        rows = torch.full((math.prod(self.grid),), -1)
        rows[self.locations.long()] = torch.arange(len(self.locations))
        return rows


@dataclass(frozen=True)
class PlusEvidence(Kept):
    """The maps of ``fmwiss-plus`` for one photograph, uint8 from 0 to 255 for 0 to 1 (:func:`as_bytes`).

    Attributes:
        classes: names of the C classes.
        scores: ``(C, gh, gw)``, eq. 3 over all views, min-max scaled, on the patch grid.
        propagated: ``(C, gh, gw)``, after the rounds of propagation.
        refined: ``(C, H, W)``, the same, enlarged and adapted to the photograph.
    """

    scores: Tensor
    propagated: Tensor
    refined: Tensor


def as_bytes(maps: Tensor) -> Tensor:
    """Maps in [0, 1] as uint8 on the CPU, to the nearest 255th."""
    return (maps.float() * 255).round().to(torch.uint8).cpu().contiguous()


def encode_attention(attention: Tensor) -> tuple[Tensor, Tensor]:
    """Attention rows as bytes, with a relative error of at most 3.2 %.

    Args:
        attention: ``(R, L)`` floats, not negative.

    Returns:
        codes ``(R, L)`` uint8 and code_range ``(R, 2)`` float32, see :class:`Evidence`.
    """
    attention = attention.float()
    floor = attention.amax(1, keepdim=True).clamp(min=1e-30) * math.exp(-_LOG_RANGE)
    logarithm = attention.clamp(min=floor).log()
    low, high = logarithm.aminmax(dim=1, keepdim=True)
    codes = (logarithm - low) * (255 / (high - low).clamp(min=1e-9))
    return codes.round().to(torch.uint8), torch.cat([low, high], dim=1)


def _kept_locations(foreground: Tensor, image_id: str) -> Tensor:
    """Locations whose attention a photograph's file keeps, ``(R,)`` int64, ascending.

    That is every location that is foreground of a class, as long as the file stays under :data:`MAX_FILE_BYTES`. On
    larger grids each class keeps as many locations as the others, drawn at random once and for all (or all of them,
    if it has fewer): seeds drawn from these are as random as drawn from all of them, but over the epochs fewer.

    Args:
        foreground: ``(C, L)`` bool, on the CPU.
        image_id: key of the draw.
    """
    n_classes, length = foreground.shape
    room = MAX_FILE_BYTES - _HEADER_BYTES - 64 * n_classes - 2 * n_classes * length
    largest = max(1, room // (length + 12))  # bytes a row: L codes, 8 for their range, 4 for the location
    locations = foreground.any(0).nonzero().squeeze(1)
    if len(locations) <= largest:
        return locations
    lots = torch.rand(length, generator=keyed_generator(0, "kept attention", image_id))
    # A location's turn is its place in the order of its class's lots, in the class where it comes first.
    order = torch.where(foreground, lots, 2.0).argsort(1)
    turn = torch.empty_like(order).scatter_(1, order, torch.arange(length).expand_as(order))
    first = turn.masked_fill_(~foreground, length).amin(0)
    return locations[first[locations].argsort(stable=True)[:largest]].sort().values


# -------------------------------------------------------------------------------------------------------- the store


def store_identity(
    config: CosegmentationConfig, vision_language: VisionLanguageModel, self_supervised: SelfSupervisedModel
) -> dict[str, Any]:
    """Everything that a store's contents depend on, and nothing else, as JSON-able data.

    N, K, the binarisation, the fusion and the seed are not in it: they belong to the draws. So do the thresholds of
    ``fmwiss-plus``, whose stores hold maps in place of scores and attention, and say so under ``plus``.
    """
    identity = {
        "format": FORMAT,
        "vision_language": {**vision_language.identity, "input_size": config.vision_language.input_size},
        "self_supervised": {**self_supervised.identity, "input_size": config.self_supervised.input_size},
    }
    if config.name == "fmwiss-plus":
        plus = config.plus.model_dump(mode="json", exclude=set(_DRAWN))
        if plus["presence"] == 0:  # as before there was such a key
            del plus["presence"]
        return {**identity, "plus": plus}
    return {**identity, "init_threshold": config.init_threshold}


class PseudoMaskStore:
    """Folder ``<root>/<hash of identity>/`` with one file a photograph.

    A file's name is the image id and a short hash of the photograph's bytes, so that a changed photograph, or another
    one of the same id, is not mistaken for it. Files appear whole or not at all; several processes may fill one store.

    Args:
        root: folder that holds the stores, made if need be.
        identity: from :func:`store_identity`.

    Attributes:
        plus: options of ``fmwiss-plus`` that made the maps; None where the paper's co-segmentation made the files.
        kind: what the files hold.
    """

    def __init__(self, root: str | Path, identity: Mapping[str, Any]) -> None:
        self.identity = json.loads(json.dumps(identity))
        self.plus = PlusConfig.model_validate(self.identity["plus"]) if "plus" in self.identity else None
        self.kind: type[Kept] = Evidence if self.plus is None else PlusEvidence
        text = json.dumps(self.identity, sort_keys=True, indent=2)
        self.folder = Path(root) / hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        self._digests: dict[str, str] = {}
        self.folder.mkdir(parents=True, exist_ok=True)
        description = self.folder / "identity.json"
        if not description.is_file() or description.read_text(encoding="utf-8") != text:
            write_atomically(description, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        self._remove_stale_files()

    def path(self, image_id: str, digest: str) -> Path:
        """Where the file of a photograph with this content is, or would be."""
        return self.folder / f"{quote(image_id, safe='')}-{digest}.safetensors"

    def choose(self, image_id: str, digest: str) -> None:
        """Say which photograph an image id stands for, where the store holds several of that id."""
        self._digests[image_id] = digest

    def read(self, image_id: str, kind: type[KeptT]) -> KeptT:
        """What is stored for a photograph.

        Raises:
            UserError: nothing is, its file is damaged, or there are several photographs of that id.
        """
        if image_id not in self._digests:
            self.choose(image_id, self._only_digest(image_id))
        path = self.path(image_id, self._digests[image_id])
        try:
            return read_evidence(path, kind)
        except (FileNotFoundError, DamagedFile) as error:
            raise UserError(f"{path} is missing or damaged; run 'fmwiss pseudo-masks' again to restore it") from error

    def _only_digest(self, image_id: str) -> str:
        prefix = quote(image_id, safe="") + "-"
        # The digest has no "-", so an id that is the beginning of another one does not match that one's files.
        found = [path.stem[len(prefix) :] for path in self.folder.glob(f"{glob.escape(prefix)}*.safetensors")]
        found = [digest for digest in found if "-" not in digest]
        if len(found) == 1:
            return found[0]
        if not found:
            raise UserError(
                f"no pseudo masks of photograph {image_id} are in {self.folder}; run 'fmwiss pseudo-masks' first"
            )
        raise UserError(
            f"{self.folder} holds pseudo masks of {len(found)} different photographs named {image_id}; run "
            "'fmwiss pseudo-masks' with the data at hand to say which one is meant"
        )

    def _remove_stale_files(self) -> None:
        """Remove what a killed process left of files it was writing."""
        for path in self.folder.glob(".*.tmp"):
            try:
                if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                    path.unlink()
            except FileNotFoundError:  # another process was faster
                continue


def read_evidence(path: Path, kind: type[KeptT]) -> KeptT:
    """Read one file of a store that holds this kind.

    Raises:
        FileNotFoundError: there is none.
        DamagedFile: it is truncated or altered.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["fmwiss"])
            evidence = kind(
                classes=tuple(header["classes"]), **{name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            )
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise DamagedFile(str(path)) from error
    if header["checksum"] != _checksum(evidence):
        raise DamagedFile(str(path))
    return evidence


def write_evidence(path: Path, evidence: Kept) -> None:
    """Write one file of a store; it appears whole or not at all."""
    header = {"classes": list(evidence.classes), "checksum": _checksum(evidence)}
    content = save(evidence.tensors(), metadata={"fmwiss": json.dumps(header)})
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def _checksum(evidence: Kept) -> int:
    checksum = 0
    for tensor in evidence.tensors().values():
        checksum = zlib.crc32(tensor.contiguous().numpy().data, checksum)
    return checksum


# ------------------------------------------------------------------------------------------------------- filling it


def working_size(height: int, width: int, input_size: int, stride: int) -> tuple[int, int]:
    """Size at which a model sees a photograph: longer side about ``input_size``, sides multiples of ``stride``."""
    factor = input_size / max(height, width) / stride
    return max(1, round(height * factor)) * stride, max(1, round(width * factor)) * stride


@dataclass(frozen=True, slots=True)
class _Job:
    """One photograph to be shown to the models; of all there is one, so that they share what they have in common."""

    image_id: str
    digest: str
    classes: tuple[str, ...]
    stored: bool
    vision_sizes: tuple[Size, ...]
    patch_sizes: tuple[Size, ...]


@dataclass(frozen=True)
class _Views:
    """One photograph at the sizes at which each model sees it, uint8 ``(3, H, W)``."""

    vision: list[Tensor]
    patches: list[Tensor]


def fill_store(
    store: PseudoMaskStore,
    source: PhotographSource,
    ids: Sequence[str],
    tags: Mapping[str, AbstractSet[str]],
    classes: Sequence[str],
    vision_language: VisionLanguageModel,
    self_supervised: SelfSupervisedModel,
    batch_size: int = 8,
    device: str | torch.device = "cpu",
    progress: Track = _silently,
    loader_threads: int = 2,
    processes: Processes = ALONE,
) -> int:
    """Run the frozen models over the photographs that the store does not hold yet, and keep what they give.

    Photographs keep their aspect ratio and meet in batches of one shape. While the models are at work, threads decode
    the next photographs and write the last ones; memory holds a few batches, however many photographs there are.
    What is there already is checked and, if damaged, replaced. After a kill the same call goes on; it forms the same
    batches again and runs those that are not complete, so that the store ends up with the very same bits. Several
    processes form these batches too and share them, so that every file has one writer and again the same bits.

    Args:
        store: made with the identity of these two models.
        source: where the photographs are.
        ids: the photographs; those without a tag in ``classes`` are left out.
        tags: class names that each photograph shows; may hold other classes, too.
        classes: the classes of interest. If a photograph is stored with others already, these stay.
        vision_language: gives eq. 3's scores.
        self_supervised: gives eq. 4's attention.
        batch_size: photographs per forward pass.
        device: where the models are.
        progress: shows the photographs passing by.
        loader_threads: threads that decode.
        processes: that share the work, each of which makes this call; it returns when all of them are done.

    Returns:
        The number of photographs that were written, by all of them.

    Raises:
        UserError: a photograph is missing, may not be read, or is no picture.
    """
    survey = _Survey(store, source, tags, tuple(classes), vision_language.stride, self_supervised.patch_size)
    with ThreadPoolExecutor(loader_threads) as loaders, ThreadPoolExecutor(1) as writer:
        looked_at = processes.collect(_mapped(loaders, survey, processes.share(list(dict.fromkeys(ids)))))
        jobs = [job for job in looked_at if job is not None]  # all have looked before the first one writes
        for job in jobs:
            store.choose(job.image_id, job.digest)
        batches = [batch for batch in _batches(jobs, batch_size) if not all(job.stored for job in batch)]
        model: _FrozenModels | _PlusModels
        if store.plus is None:
            threshold = store.identity["init_threshold"]
            model = _FrozenModels(vision_language, self_supervised, torch.device(device), threshold)
        else:
            model = _PlusModels(vision_language, self_supervised, torch.device(device), store.plus)
        written: deque[Future[None]] = deque()

        def photographs() -> Iterator[_Job]:
            for batch, images in _prefetched(loaders, mine, partial(_load, source)):
                for job, evidence in zip(batch, model(batch, images), strict=True):
                    if not job.stored:
                        path = store.path(job.image_id, job.digest)
                        written.append(writer.submit(write_evidence, path, evidence))
                    yield job
                while len(written) > 2 * batch_size:
                    written.popleft().result()

        mine = processes.share(batches)
        for _ in progress(photographs(), "pseudo masks", sum(map(len, mine))):
            pass
        for future in written:
            future.result()
    processes.barrier()
    return sum(not job.stored for batch in batches for job in batch)


class _Survey:
    """What has to be done for a photograph."""

    def __init__(
        self,
        store: PseudoMaskStore,
        source: PhotographSource,
        tags: Mapping[str, AbstractSet[str]],
        classes: tuple[str, ...],
        vision_stride: int,
        patch_stride: int,
    ) -> None:
        self.store = store
        self.source = source
        self.tags = tags
        self.classes = classes
        plus = store.plus
        vision, patches = (store.identity[model]["input_size"] for model in ("vision_language", "self_supervised"))
        self.vision = _inputs(vision, (1.0,) if plus is None else plus.score_scales), vision_stride
        self.patches = _inputs(patches, (1.0,) if plus is None else plus.feature_scales), patch_stride
        self._shared: dict[Any, Any] = {}

    def __call__(self, image_id: str) -> _Job | None:
        classes = tuple(name for name in self.classes if name in self.tags[image_id])
        if not classes:
            return None
        photograph = self.source.image_path(image_id)
        try:
            content = photograph.read_bytes()
        except OSError as error:
            raise unreadable(f"the photograph {photograph}", error, "missing") from error
        height, width = self.source.image_size(image_id)
        digest = hashlib.blake2b(content, digest_size=8).hexdigest()
        try:
            there = read_evidence(self.store.path(image_id, digest), self.store.kind).classes
        except (FileNotFoundError, DamagedFile):
            there = ()
        # where classes compete, scores of more of them are other scores
        competing = "classes" in self.store.identity
        stored = set(classes) == set(there) if competing else set(classes) <= set(there)
        wanted = there if stored else (*classes, *(n for n in there if n not in classes and not competing))
        return _Job(
            image_id,
            digest,
            self._share(wanted),
            stored,
            self._share(_sizes(height, width, *self.vision)),
            self._share(_sizes(height, width, *self.patches)),
        )

    def _share(self, value: T) -> T:
        """The first value that equals this one, so that equal ones of many photographs are one in memory."""
        shared: T = self._shared.setdefault(value, value)
        return shared


def _inputs(input_size: int, scales: Sequence[float]) -> tuple[int, ...]:
    """Longer sides of the views at these multiples of the input size."""
    return tuple(dict.fromkeys(max(1, round(input_size * scale)) for scale in scales))


def _sizes(height: int, width: int, inputs: Sequence[int], stride: int) -> tuple[Size, ...]:
    """The views' sizes; two that come to the same are one."""
    return tuple(dict.fromkeys(working_size(height, width, side, stride) for side in inputs))


def _batches(jobs: Iterable[_Job], batch_size: int) -> list[list[_Job]]:
    """Photographs of equal shapes together, in the order in which the shapes first come; equal tags side by side."""
    shapes: dict[tuple[tuple[Size, ...], tuple[Size, ...]], list[_Job]] = {}
    for job in jobs:
        shapes.setdefault((job.vision_sizes, job.patch_sizes), []).append(job)
    groups = [sorted(group, key=lambda job: job.classes) for group in shapes.values()]
    return [group[start : start + batch_size] for group in groups for start in range(0, len(group), batch_size)]


def _load(source: PhotographSource, job: _Job) -> _Views:
    """The photograph as the models see it."""
    image = source.read_image(job.image_id)
    vision, patches = (
        [resize(image, list(size), antialias=True) for size in sizes] for sizes in (job.vision_sizes, job.patch_sizes)
    )
    return _Views(vision, patches)


def _mapped(pool: ThreadPoolExecutor, function: Callable[[str], T], items: Iterable[str]) -> Iterator[T]:
    """As ``pool.map``, which makes a future of every item at once: a kilobyte and more for each photograph."""
    waiting: deque[Future[T]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) == _AHEAD:
            yield waiting.popleft().result()
    for future in waiting:
        yield future.result()


def _prefetched(
    pool: ThreadPoolExecutor, batches: Sequence[list[_Job]], load: Callable[[_Job], _Views]
) -> Iterator[tuple[list[_Job], list[_Views]]]:
    """Batches with their images; the next batch is being loaded while one is out."""
    waiting: deque[tuple[list[_Job], list[Future[_Views]]]] = deque()
    try:
        for batch in batches:
            waiting.append((batch, [pool.submit(load, job) for job in batch]))
            if len(waiting) > 1:
                ready, futures = waiting.popleft()
                yield ready, [future.result() for future in futures]
        for ready, futures in waiting:
            yield ready, [future.result() for future in futures]
    finally:
        for _, futures in waiting:
            for future in futures:
                future.cancel()


@dataclass(frozen=True)
class _Models:
    """Both models; ``(batch, views)`` in, what is kept of each photograph out."""

    vision_language: VisionLanguageModel
    self_supervised: SelfSupervisedModel
    device: torch.device

    def _vision(self, views: Sequence[_Views]) -> list[Tensor]:
        """A batch at each of its sizes, float ``(B, 3, H, W)`` in [0, 1]."""
        return [self._on_device(stack) for stack in zip(*(one.vision for one in views), strict=True)]

    def _patches(self, views: Sequence[_Views]) -> list[Tensor]:
        return [self._on_device(stack) for stack in zip(*(one.patches for one in views), strict=True)]

    def _on_device(self, images: Sequence[Tensor]) -> Tensor:
        batch = torch.stack(list(images))
        return batch.to(self.device, non_blocking=True, memory_format=torch.channels_last).float() / 255

    def _grid(self, images: Tensor) -> Size:
        """The self-supervised model's patches."""
        patch_size = self.self_supervised.patch_size
        return images.shape[-2] // patch_size, images.shape[-1] // patch_size


def _by_classes(batch: Sequence[_Job]) -> dict[tuple[str, ...], list[int]]:
    """Places in the batch by tags: a photograph is asked for its own alone, because a model may let classes compete."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for number, job in enumerate(batch):
        groups.setdefault(job.classes, []).append(number)
    return groups


@dataclass(frozen=True)
class _FrozenModels(_Models):
    """For equations 3-5."""

    threshold: float

    @torch.inference_mode()
    def __call__(self, batch: Sequence[_Job], views: Sequence[_Views]) -> list[Kept]:
        (vision,), (patches,) = self._vision(views), self._patches(views)
        grid = self._grid(patches)
        scores: dict[int, Tensor] = {}
        for classes, members in _by_classes(batch).items():
            maps = self.vision_language.scores(vision[members], classes)
            scores.update(zip(members, maps, strict=True))
        attention = self.self_supervised.mean_attention(patches)
        return [
            self._evidence(job, scores[number], attention[number], grid) for number, job in enumerate(batch)
        ]

    def _evidence(self, job: _Job, scores: Tensor, attention: Tensor, grid: tuple[int, int]) -> Evidence:
        resized = interpolate(scores[None].float(), grid, mode="bilinear", align_corners=False)
        scaled = scale_scores(resized, grid)[0].half().cpu()
        low, high = resized[0].flatten(1).aminmax(dim=1)
        # Foreground is judged on the scores as stored, so that it is the same when they are read again.
        locations = _kept_locations(scaled.flatten(1) > self.threshold, job.image_id)
        codes, code_range = encode_attention(attention[locations.to(attention.device)])
        return Evidence(
            classes=job.classes,
            scores=scaled,
            score_range=torch.stack([low, high], dim=1).cpu(),
            locations=locations.int(),
            codes=codes.cpu(),
            code_range=code_range.cpu(),
        )


@dataclass(frozen=True)
class _PlusModels(_Models):
    """For ``fmwiss-plus``."""

    options: PlusConfig

    def _merged(
        self, model: Callable[[Tensor], Tensor], views: Sequence[Tensor], grid: Size, normalise: bool = False
    ) -> Tensor:
        """What a model gives for a batch at each of its sizes, and for the mirror images, as one map on the grid."""
        maps = [model(images) for images in views]
        mirrored = [False] * len(views)
        if self.options.flip:
            maps += [model(images.flip(-1)) for images in views]
            mirrored += [True] * len(views)
        return merge_views(maps, mirrored, grid, normalise)

    @torch.inference_mode()
    def __call__(self, batch: Sequence[_Job], views: Sequence[_Views]) -> list[Kept]:
        vision, patches = self._vision(views), self._patches(views)
        grid = self._grid(patches[0])
        features = self._merged(self.self_supervised.patch_features, patches, grid, normalise=True)
        kept: dict[int, Kept] = {}
        for classes, members in _by_classes(batch).items():
            def scores_of(images: Tensor, classes: tuple[str, ...] = classes) -> Tensor:
                return self.vision_language.scores(images, classes)

            scores = self._merged(scores_of, [images[members] for images in vision], grid)
            maps = plus_maps(scores, features[members], patches[0][members], self.options)
            for place, number in enumerate(members):
                kept[number] = PlusEvidence(classes, *(as_bytes(stage[place]) for stage in maps))
        return [kept[number] for number in range(len(batch))]


# ---------------------------------------------------------------------------------------------------------- drawing


class StoredPseudoMasks:
    """The paper's masks, drawn from a filled store: fresh seeds for every image, class and epoch, whatever the process.

    Args:
        store: filled by :func:`fill_store` with the photographs that will be asked for.
        config: N, K, binarisation and fusion.
        seed: the run's seed.

    Raises:
        UserError: the store was filled for another threshold of the initial masks.
    """

    stage_names = ("init", "seeds", "refined")

    def __init__(self, store: PseudoMaskStore, config: CosegmentationConfig, seed: int) -> None:
        if config.init_threshold != store.identity["init_threshold"]:
            raise UserError(
                f"cosegmentation.init_threshold is {config.init_threshold}, but the pseudo masks in {store.folder} "
                f"were made for {store.identity['init_threshold']}; make them again"
            )
        self.store = store
        self.config = config
        self.seed = seed

    def masks(self, image_id: str, classes: Sequence[str], epoch: int) -> Tensor:
        """M_refine of the tagged classes, bool over the whole photograph, in the order of ``classes``.

        The shape is ``(C, H, W)``, with :data:`GRID_REFINEMENT` places a patch in each direction.

        Raises:
            UserError: the store does not hold this photograph with these classes.
        """
        return self.stages(image_id, classes, epoch)["refined"]

    def stages(self, image_id: str, classes: Sequence[str], epoch: int) -> dict[str, Tensor]:
        """M_init, M_seeds and M_refine as ``init``, ``seeds`` and ``refined``, each as :meth:`masks` gives them."""
        init, attention, drawn = self._seeds(image_id, classes, epoch)
        config = self.config
        seeds = seed_masks(attention, drawn, (init.shape[1], init.shape[2]), config.k, config.binarize)
        return {"init": init, "seeds": seeds, "refined": fuse(init, seeds, config.fusion)}

    def levels(self, image_id: str, classes: Sequence[str], epoch: int) -> Tensor:
        """Where M_refine is cut, whatever K: it is ``levels > 2 * K`` for every K that is a multiple of one half.

        Returns:
            uint8 ``(C, H, W)`` from 0 to 202.

        Raises:
            UserError: as :meth:`masks`.
        """
        init, attention, drawn = self._seeds(image_id, classes, epoch)
        mean = mean_of_seeds(attention, drawn, (init.shape[1], init.shape[2]))
        cut = (2 * cut_levels(mean, self.config.binarize) - 1e-9).ceil().clamp(0, 202)
        cut = (cut * drawn.any(1)[:, None, None]).to(torch.uint8)
        if self.config.fusion == "none":
            return init * torch.tensor(202, dtype=torch.uint8)
        if self.config.fusion == "intersection":
            return cut * init
        return cut.masked_fill(init, 202)

    def _seeds(self, image_id: str, classes: Sequence[str], epoch: int) -> tuple[Tensor, Tensor, Tensor]:
        """M_init ``(C, H, W)``, the seed points' attention ``(C, N, gh, gw)``, and which of them count."""
        evidence = self.store.read(image_id, Evidence)
        config = self.config
        size = (evidence.grid[0] * GRID_REFINEMENT, evidence.grid[1] * GRID_REFINEMENT)
        scores = evidence.scores[_places(evidence, image_id, classes)]
        generators = [keyed_generator(self.seed, "seed points", image_id, name, epoch) for name in classes]
        candidates = (scores > config.init_threshold).flatten(1) & evidence.has_attention()
        points, drawn = draw_seeds(candidates, config.n_seeds, generators)
        fine = interpolate(scores[:, None].float(), size, mode="bilinear", align_corners=False)[:, 0]
        return fine > config.init_threshold, evidence.attention(points), drawn


class StoredPlusMasks:
    """Masks of ``fmwiss-plus`` from a filled store: the same in every epoch and for every seed.

    Args:
        store: filled by :func:`fill_store` with the photographs that will be asked for.
        config: the thresholds, and whether classes exclude each other.
    """

    stage_names = ("init", "propagated", "refined")

    def __init__(self, store: PseudoMaskStore, config: CosegmentationConfig) -> None:
        self.store = store
        self.config = config

    def masks(self, image_id: str, classes: Sequence[str], epoch: int) -> Tensor:
        """The masks of the tagged classes, bool ``(C, H, W)`` over the whole photograph, in the order of ``classes``.

        Raises:
            UserError: the store does not hold this photograph with these classes.
        """
        return self.stages(image_id, classes, epoch)["refined"]

    def stages(self, image_id: str, classes: Sequence[str], epoch: int) -> dict[str, Tensor]:
        """The scores' masks, as the paper cuts them, those of the propagated maps and the final ones.

        They are ``init``, ``propagated`` and ``refined``, each as :meth:`masks` gives them; the first two are on a
        coarser grid, resized bilinearly before they are cut.
        """
        evidence = self.store.read(image_id, PlusEvidence)
        places = _places(evidence, image_id, classes)
        size = (evidence.refined.shape[1], evidence.refined.shape[2])
        scores, propagated, refined = (
            interpolate(maps[:, None].float() / 255, size, mode="bilinear", align_corners=False)[:, 0]
            for maps in (evidence.scores, evidence.propagated, evidence.refined)
        )
        return {
            "init": (scores > self.config.init_threshold)[places],
            "propagated": self._cut(propagated)[places],
            "refined": self._cut(refined)[places],
        }

    def levels(self, image_id: str, classes: Sequence[str], epoch: int) -> Tensor:
        """Where the masks are cut, whatever the threshold: they are ``levels / 255 > threshold`` (in float32).

        Returns:
            uint8 ``(C, H, W)``.

        Raises:
            UserError: as :meth:`masks`.
        """
        evidence = self.store.read(image_id, PlusEvidence)
        levels = evidence.refined * self._allowed(evidence.refined.float() / 255)
        return levels[_places(evidence, image_id, classes)]

    def _cut(self, maps: Tensor) -> Tensor:
        """Masks of all the classes of a photograph, ``(C, H, W)``."""
        return (maps > self.config.plus.threshold) & self._allowed(maps)

    def _allowed(self, maps: Tensor) -> Tensor:
        """Where a class may be for all that the others say, ``(C, H, W)``."""
        if not self.config.plus.exclusive:
            return torch.ones_like(maps, dtype=torch.bool)
        return maps.argmax(0) == torch.arange(len(maps))[:, None, None]


StoredMasks = StoredPseudoMasks | StoredPlusMasks


def _places(kept: Kept, image_id: str, classes: Sequence[str]) -> list[int]:
    """Where the classes stand among those stored."""
    missing = [name for name in classes if name not in kept.classes]
    if missing:
        raise UserError(
            f"no pseudo mask of '{missing[0]}' is stored for photograph {image_id}, which is not tagged so; "
            "run 'fmwiss pseudo-masks' with the tags at hand"
        )
    return [kept.classes.index(name) for name in classes]


def open_pseudo_masks(
    config: CosegmentationConfig,
    source: PhotographSource,
    ids: Sequence[str],
    tags: Mapping[str, AbstractSet[str]],
    weights: Path | None,
    cache: Path | None,
    device: torch.device | str,
    seed: int,
    progress: Track = _silently,
    processes: Processes = ALONE,
) -> StoredMasks:
    """Masks of tagged photographs from the store that fits a configuration; what it lacks is computed first.

    Args:
        config: the models, their options, and how masks are drawn.
        source: where the photographs are.
        ids: the photographs.
        tags: class names that each photograph shows, of the classes wanted.
        weights: folder with weights by timm name, looked into before the hub.
        cache: folder that holds the stores; None: ``fmwiss/pseudo-masks`` in the user's cache folder.
        device: where the frozen models run.
        seed: the run's seed.
        progress: shows the photographs passing by.
        processes: that share the work, each of which makes this call.
    """
    from fmwiss.foundation import build_self_supervised, build_vision_language

    if config.vision_language.competing and not config.vision_language.background:
        raise UserError(
            "cosegmentation.vision_language: with prompt_denoising or key_smoothing class names compete, and a "
            "photograph with one tag has no other; name things under background, too"
        )
    named = [canonical_class_name(name, source.class_names) for name in config.vision_language.rows]
    for name in named:
        if named.count(name) > 1:
            raise UserError(f"cosegmentation.vision_language.rows names {name} more than once; give it one list")
    vision_language = build_vision_language(config.vision_language, weights, device)
    self_supervised = build_self_supervised(config.self_supervised, weights, device)
    classes = sorted(set().union(*(tags[image_id] for image_id in ids)))
    identity = store_identity(config, vision_language, self_supervised)
    if config.competing:
        identity["classes"] = classes  # of which those of a photograph decide on each other's scores
    with processes.first_goes_first():
        store = PseudoMaskStore(cache or _default_cache(), identity)
    fill_store(
        store,
        source,
        ids,
        tags,
        classes,
        vision_language,
        self_supervised,
        config.batch_size,
        device,
        progress,
        processes=processes,
    )
    if config.name == "fmwiss-plus":
        return StoredPlusMasks(store, config)
    return StoredPseudoMasks(store, config, seed)


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fmwiss" / "pseudo-masks"


# ------------------------------------------------------------------------------------------------------- evaluation


def check_truth(source: PhotographSource, ids: Iterable[str], classes: Iterable[str]) -> None:
    """Whether pseudo masks of these classes and photographs can be compared with the truth.

    Raises:
        UserError: masks cannot hold one of the classes, or a photograph has none.
    """
    unknown = next((name for name in classes if name not in source.mask_classes), None)
    if unknown is not None:
        raise UserError(f"the masks have no class '{unknown}', so its pseudo masks cannot be compared with the truth")
    bare = next((image_id for image_id in ids if not source.has_mask(image_id)), None)
    if bare is not None:
        raise UserError(
            f"the photograph '{bare}' has no mask, so its pseudo masks cannot be compared with the truth; give a list "
            "of photographs with masks, as --split val"
        )


def evaluate_pseudo_masks(
    masks: StoredMasks,
    source: PhotographSource,
    ids: Sequence[str],
    tags: Mapping[str, AbstractSet[str]],
    classes: Sequence[str],
    epoch: int = 0,
    progress: Track = _silently,
    processes: Processes = ALONE,
) -> dict[str, Any]:
    """Compare pseudo masks with the ground truth.

    The IoU of a class is the sum of intersections over the sum of unions, over the photographs tagged with it, at full
    resolution (masks resized by nearest neighbour), void left out.

    The ceiling, given for a union of masks cut at a percentile, is the IoU with perfect attention of whole patches: a
    mask cannot be smaller than the (100 - K) % of the patch grid that the percentile keeps, so it holds the patches
    that are more than half object, or, if these are fewer, the (100 - K) % of patches with the most object in them;
    patches without object that fill it up come row by row.

    Processes share the photographs, and their counts of pixels are added up.

    Returns:
        ``{"images": n, "init": stage, ..., "refined": stage, "ceiling": stage}`` with the stages that the masks have,
        a stage being ``{"iou": {class: per cent, or None if no photograph is tagged with it}, "miou": mean over the
        others}``.
    """
    names = [*classes]
    check_truth(source, ids, names)
    with_ceiling = (
        isinstance(masks, StoredPseudoMasks)
        and masks.config.binarize == "percentile"
        and masks.config.fusion == "union"
    )
    stages = [*masks.stage_names, *(["ceiling"] if with_ceiling else [])]
    intersection = {stage: torch.zeros(len(names), dtype=torch.long) for stage in stages}
    union = {stage: torch.zeros(len(names), dtype=torch.long) for stage in stages}
    tagged_ids = [image_id for image_id in ids if tags[image_id] & set(names)]
    mine = processes.share(tagged_ids)
    for image_id in progress(mine, "evaluating pseudo masks", len(mine)):
        tagged = [number for number, name in enumerate(names) if name in tags[image_id]]
        drawn = masks.stages(image_id, [names[number] for number in tagged], epoch)
        labels = [source.class_names.index(names[number]) + 1 for number in tagged]
        mask = source.read_mask(image_id)
        if with_ceiling:
            grid = (drawn["init"].shape[1] // GRID_REFINEMENT, drawn["init"].shape[2] // GRID_REFINEMENT)
            patches = ceiling_masks(_pixels_by_place(mask, grid), labels, masks.config.k)
            drawn["ceiling"] = patches.unflatten(1, grid)
        truth = (mask == torch.tensor(labels, dtype=torch.uint8)[:, None, None]).flatten(1)
        valid = (mask != VOID).flatten()
        for stage in stages:
            predicted = _enlarged(drawn[stage], (mask.shape[0], mask.shape[1])).flatten(1) & valid
            intersection[stage][tagged] += (predicted & truth).sum(1)
            union[stage][tagged] += (predicted | truth).sum(1)
    counts = [torch.stack([intersection[stage], union[stage]]) for stage in stages]
    totals = torch.stack([torch.stack(share) for share in processes.gather(counts)]).sum(dim=0)
    return {"images": len(tagged_ids)} | {
        stage: _stage_summary(names, *total) for stage, total in zip(stages, totals, strict=True)
    }


def _stage_summary(names: Sequence[str], intersection: Tensor, union: Tensor) -> dict[str, Any]:
    iou = {
        name: 100 * int(common) / int(either) if either else None
        for name, common, either in zip(names, intersection, union, strict=True)
    }
    known = [value for value in iou.values() if value is not None]
    return {"iou": iou, "miou": sum(known) / len(known) if known else None}


def _enlarged(masks: Tensor, size: Size) -> Tensor:
    """Masks ``(C, h, w)`` at the photograph's size by nearest neighbour: a pixel is where its centre lies."""
    row, column = _cells(size[0], masks.shape[1]), _cells(size[1], masks.shape[2])
    return masks[:, row[:, None], column]


def _pixels_by_place(mask: Tensor, grid: Size) -> Tensor:
    """Pixels of each label in each place of a grid, ``(places, 256)`` int64; a pixel is where its centre lies."""
    row, column = _cells(mask.shape[0], grid[0]), _cells(mask.shape[1], grid[1])
    place = row[:, None] * grid[1] + column
    counts = torch.bincount((place * 256 + mask.long()).flatten(), minlength=256 * grid[0] * grid[1])
    return counts.view(-1, 256)


def _cells(pixels: int, cells: int) -> Tensor:
    """In which of so many equal cells the centre of each pixel of a line lies, ``(pixels,)`` int64."""
    return (2 * torch.arange(pixels) + 1) * cells // (2 * pixels)


def ceiling_masks(pixels: Tensor, labels: Sequence[int], k: float) -> Tensor:
    """Best masks of at least (100 - K) % of the patches, ``(C, L)`` bool; see :func:`evaluate_pseudo_masks`.

    Args:
        pixels: ``(L, 256)``, pixels of each label in each patch.
        labels: the C labels.
        k: K, per cent.
    """
    share = pixels[:, labels].T / pixels.sum(1).clamp(min=1)
    least = math.ceil(round((1 - k / 100) * len(pixels), 6))
    place = share.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (place < least) | (share > 0.5)
