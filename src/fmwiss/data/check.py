"""What is wrong with a data set, looked for before anything is trained on it."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fmwiss.data.folder import CocoMasks, FolderSource
from fmwiss.data.source import Source
from fmwiss.data.tags import TagIndex
from fmwiss.data.voc import VOCSource
from fmwiss.errors import UserError
from fmwiss.names import joined

SMALL_SIDE = 64
"""A photograph with a shorter side of fewer pixels is suspiciously small: fewer than 4 x 4 places at stride 16."""
LONG_ASPECT = 4.0
"""A photograph that is more times as long as it is high, or the other way round, is suspiciously long."""
MANY_PIXELS = 50_000_000
"""A photograph with more pixels is suspiciously large: it takes seconds to read, each time."""
NEAR = 16
"""Photographs of whose 128 bits (:func:`perceptual_hash`) at most so many differ look the same.

Of 500 photographs of VOC no two differ by fewer than 25; of copies scaled to a half or a third, or compressed to JPEG's
quality 40, nine in ten by at most 12."""
THREADS = 4

Layout = Literal["voc", "folder", "coco"]
T = TypeVar("T")
Progress = Callable[..., Iterable[Any]]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        kind: of thing, as ``unreadable`` or ``duplicate``.
        message: one sentence.
        photographs: ids of those that it is about, if any.
        breaks: whether training would stop on it, or learn from nothing.
    """

    kind: str
    message: str
    photographs: tuple[str, ...] = ()
    breaks: bool = False


@dataclass
class Check:
    """What was found.

    Attributes:
        root: the folder.
        layout: as ``data.source`` calls it.
        photographs: ids of all that were looked at.
        classes: by class name, how many photographs are tagged with it beside their masks, and in how many masks it is.
        masks: how many photographs have one.
        sizes: by id, height and width of what could be read.
        tags: by id, class names from tags and masks.
        lists: ids by name, of pairs of lists of which one is for training and one for validation.
        findings: what is wrong.
        source: reads the photographs; None where the folder could not be opened.
    """

    root: Path
    layout: Layout
    photographs: list[str] = field(default_factory=list)
    classes: dict[str, tuple[int, int]] = field(default_factory=dict)
    masks: int = 0
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    tags: dict[str, frozenset[str]] = field(default_factory=dict)
    lists: dict[tuple[str, str], tuple[frozenset[str], frozenset[str]]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    source: Source | None = None

    @property
    def errors(self) -> list[Finding]:
        """What would break training."""
        return [finding for finding in self.findings if finding.breaks]

    @property
    def warnings(self) -> list[Finding]:
        """What is worth a look."""
        return [finding for finding in self.findings if not finding.breaks]

    def as_dict(self) -> dict[str, Any]:
        """The object that ``fmwiss data check --json`` prints."""

        def told(findings: list[Finding]) -> list[dict[str, Any]]:
            return [{"kind": f.kind, "message": f.message, "photographs": list(f.photographs)} for f in findings]

        return {
            "root": str(self.root),
            "layout": self.layout,
            "photographs": len(self.photographs),
            "tagged": sum(1 for names in self.tags.values() if names),
            "masks": self.masks,
            "classes": {name: {"tags": n_tags, "masks": n_masks} for name, (n_tags, n_masks) in self.classes.items()},
            "errors": told(self.errors),
            "warnings": told(self.warnings),
        }

    def found(self, kind: str, message: str, photographs: Iterable[str] = (), breaks: bool = False) -> None:
        """Add a finding."""
        self.findings.append(Finding(kind, message, tuple(photographs), breaks))


def layout_of(root: Path) -> Layout:
    """How a folder looks: ``voc`` with ``JPEGImages``, ``coco`` with ``annotations/instances*.json``, else ``folder``.

    Raises:
        UserError: there is no such folder.
    """
    if not root.is_dir():
        raise UserError(f"the data folder {root} does not exist; give a folder of photographs")
    if (root / "JPEGImages").is_dir():
        return "voc"
    return "coco" if any((root / "annotations").glob("instances*.json")) else "folder"


def check_data(
    root: Path,
    layout: Layout | None = None,
    tags: Path | None = None,
    progress: Progress = lambda items, *_: items,
) -> Check:
    """Look at every photograph, mask, tag and list of a data set.

    Args:
        root: the folder.
        layout: as ``data.source`` calls it; None: as it looks (:func:`layout_of`).
        tags: a tags file other than the folder's own.
        progress: shows how far it is.

    Raises:
        UserError: there is no such folder. All else is a finding.
    """
    check = Check(root, layout or layout_of(root))
    try:
        source = _open(check, tags)
    except UserError as error:
        check.found("folder", str(error), breaks=True)
        return check
    check.source = source
    if not check.photographs:
        return check
    facts = _look_at_photographs(check, source, progress)
    in_masks = _look_at_masks(check, source, progress)
    _look_at_tags(check, source, in_masks, tags)
    _look_at_lists(check, source)
    _look_at_sizes(check)
    _look_for_duplicates(check, facts, progress)
    check.findings.sort(key=lambda finding: not finding.breaks)
    return check


def _open(check: Check, tags: Path | None) -> Source:
    if check.layout == "voc":
        source = VOCSource(check.root)
        lists = sorted((check.root / "ImageSets/Segmentation").glob("*.txt"))
        ids: dict[str, None] = {}
        for path in lists:
            try:
                ids.update(dict.fromkeys(source.ids(path.stem)))
            except UserError as error:
                check.found("list", str(error), breaks=True)
        if not lists:
            check.found("list", f"{check.root}/ImageSets/Segmentation holds no list of ids", breaks=True)
        check.photographs = list(ids)
        return source
    masks: Literal["png", "coco"] = "coco" if check.layout == "coco" else "png"
    folder = FolderSource(
        check.root, tags=tags, masks=masks, complain=lambda sentence: check.found("folder", sentence, breaks=True)
    )
    check.photographs = list(folder.photographs.paths)
    others = folder.photographs.others
    if others:
        names = [path.relative_to(folder.photographs.folder).as_posix() for path in others]
        check.found("other pictures", f"{_count(others, 'picture')} of kinds that are not read: {_some(names)}; save "
                    "them as JPEG, PNG or WebP")
    return folder


# ------------------------------------------------------------------------------------------------------- photographs


@dataclass(frozen=True)
class _Facts:
    """Of a photograph that can be read."""

    size: tuple[int, int]
    digest: bytes
    bits: NDArray[np.uint8] | None


def _look_at_photographs(check: Check, source: Source, progress: Progress) -> dict[str, _Facts]:
    """Decode every one as training does."""

    def look(image_id: str) -> _Facts | str:
        try:
            image = source.read_image(image_id)
        except UserError as error:
            return str(error)
        digest = hashlib.blake2b(source.image_path(image_id).read_bytes(), digest_size=16).digest()
        return _Facts((image.shape[-2], image.shape[-1]), digest, perceptual_hash(image))

    facts: dict[str, _Facts] = {}
    for image_id, seen in _in_threads(look, check.photographs, "reading photographs", progress):
        if isinstance(seen, str):
            check.found("unreadable", seen, [image_id], breaks=True)
        else:
            facts[image_id] = seen
            check.sizes[image_id] = seen.size
    return facts


def _in_threads(
    work: Callable[[str], T], ids: Sequence[str], description: str, progress: Progress
) -> Iterable[tuple[str, T]]:
    with ThreadPoolExecutor(THREADS) as pool:
        yield from progress(zip(ids, pool.map(work, ids), strict=True), description, len(ids))


def perceptual_hash(image: Tensor) -> NDArray[np.uint8] | None:
    """What a photograph looks like in 128 bits, much the same after scaling and compression.

    The bits say for 8 x 8 places of the grey photograph which of two neighbours is brighter, once along rows and once
    along columns (difference hash).

    Args:
        image: uint8 RGB ``(3, H, W)``.

    Returns:
        uint8 ``(16,)``, packed; None for a photograph that is nearly of one colour, which looks like every other one.
    """
    picture = Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L")
    small = np.asarray(picture.resize((9, 9), Image.Resampling.BOX, reducing_gap=3.0), dtype=np.int16)
    if small.std() < 2:
        return None
    across, down = small[:8, 1:] > small[:8, :-1], small[1:, :8] > small[:-1, :8]
    return np.packbits(np.concatenate([across.ravel(), down.ravel()]))


def _look_at_sizes(check: Check) -> None:
    def tell(fault: str, wrong: Callable[[int, int], bool]) -> None:
        ids = [image_id for image_id, (height, width) in check.sizes.items() if wrong(height, width)]
        if ids:
            check.found("size", f"{_photographs(ids)} {fault}", ids)

    tell(f"with a shorter side below {SMALL_SIDE} pixels", lambda h, w: min(h, w) < SMALL_SIDE)
    tell(f"with sides that differ by more than {LONG_ASPECT:g} times", lambda h, w: max(h, w) > LONG_ASPECT * min(h, w))
    tell(f"of more than {MANY_PIXELS // 10**6} million pixels, slow to read", lambda h, w: h * w > MANY_PIXELS)


def _look_for_duplicates(check: Check, facts: Mapping[str, _Facts], progress: Progress) -> None:
    """Groups of the same files, and of photographs that look the same."""
    by_digest: defaultdict[bytes, list[str]] = defaultdict(list)
    for image_id, fact in facts.items():
        by_digest[fact.digest].append(image_id)
    for group in by_digest.values():
        if len(group) > 1:
            check.found("duplicate", f"the same file {len(group)} times{_disagreement(check, group)}", group)
    bits = {group[0]: facts[group[0]].bits for group in by_digest.values()}
    for near in near_duplicates({i: b for i, b in bits.items() if b is not None}, progress):
        check.found("near-duplicate", f"{len(near)} photographs that look the same{_disagreement(check, near)}", near)


def _disagreement(check: Check, group: Sequence[str]) -> str:
    """What makes duplicates worse."""
    differ = len({check.tags.get(image_id, frozenset()) for image_id in group}) > 1
    across = [names for names, lists in check.lists.items() if all(ids & {*group} for ids in lists)]
    split = f", in the list {across[0][0]} and in {across[0][1]}" if across else ""
    return f"{', with different tags' if differ else ''}{split}"


def near_duplicates(
    bits: Mapping[str, NDArray[np.uint8]], progress: Progress = lambda items, *_: items
) -> list[list[str]]:
    """Groups of photographs that are linked by pairs of which at most ``NEAR`` bits differ; by id, in their order."""
    ids = list(bits)
    if len(ids) < 2:
        return []
    packed = np.stack([bits[image_id] for image_id in ids])
    ones = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1, dtype=np.uint8)
    leader = list(range(len(ids)))

    def lead(place: int) -> int:
        while leader[place] != place:
            leader[place] = place = leader[leader[place]]
        return place

    for place in progress(range(len(ids) - 1), "comparing photographs", len(ids) - 1):
        distances = ones[packed[place + 1 :] ^ packed[place]].sum(axis=1, dtype=np.uint16)
        for other in np.flatnonzero(distances <= NEAR) + place + 1:
            first, second = sorted((lead(place), lead(int(other))))
            leader[second] = first
    groups: defaultdict[int, list[str]] = defaultdict(list)
    for place, image_id in enumerate(ids):
        groups[lead(place)].append(image_id)
    return [group for group in groups.values() if len(group) > 1]


# -------------------------------------------------------------------------------------------------------------- masks


def _look_at_masks(check: Check, source: Source, progress: Progress) -> dict[str, list[str]]:
    """Read every mask as training does; class names in each."""
    with_mask = [image_id for image_id in check.photographs if source.has_mask(image_id) and image_id in check.sizes]
    check.masks = len(with_mask)

    def look(image_id: str) -> list[str] | UserError:
        try:
            areas = source.read_mask(image_id).flatten().bincount(minlength=256).tolist()
        except UserError as error:
            return error
        return [name for label, name in enumerate(source.mask_classes, start=1) if areas[label]]

    found: dict[str, list[str]] = {}
    for image_id, names in _in_threads(look, with_mask, "reading masks", progress):
        if isinstance(names, UserError):
            check.found("mask", str(names), [image_id], breaks=True)
        else:
            found[image_id] = names
    if isinstance(source, FolderSource) and source.masks is not None:
        lost = [image_id for image_id in source.masks.ids if image_id not in source.photographs.paths]
        if lost:
            check.found("mask", f"{_count(lost, 'mask')} without a photograph: {_some(lost)}")
        if isinstance(source.masks, CocoMasks) and source.masks.absent:
            check.found("mask", f"{_count(source.masks.absent, 'entry', 'entries')} about photographs that are not "
                        f"there, the first: {source.masks.absent[0]}")
    unseen = [name for name in source.mask_classes if not any(name in names for names in found.values())]
    if found and unseen and check.layout != "voc":
        check.found("class", f"{_count(unseen, 'class', 'classes')} that no mask shows: {_some(unseen)}")
    return found


# --------------------------------------------------------------------------------------------------------------- tags


def _look_at_tags(check: Check, source: Source, in_masks: Mapping[str, list[str]], tags: Path | None) -> None:
    told: Mapping[str, frozenset[str]]
    if isinstance(source, FolderSource):
        told = {image_id: source.own_tags(image_id) for image_id in check.photographs}
        if source.absent:
            check.found("tags without files", f"{_count(source.absent, 'row')} about photographs that are not there, "
                        f"the first: {source.absent[0]}")
        _look_at_spellings(check, source)
    elif tags is not None:
        try:
            told = TagIndex.load_or_build(source, check.photographs, str(tags), check.root / "tags.json")
        except UserError as error:
            check.found("tags", str(error), breaks=True)
            told = {}
    else:
        told = {}
    check.tags = {i: frozenset(in_masks.get(i, ())) | told.get(i, frozenset()) for i in check.photographs}
    n_tags = Counter(name for names in told.values() for name in names)
    n_masks = Counter(name for names in in_masks.values() for name in names)
    names = dict.fromkeys((*source.mask_classes, *sorted(n_tags)))
    check.classes = {name: (n_tags[name], n_masks[name]) for name in names if n_tags[name] or n_masks[name]}
    bare = [i for i, found in check.tags.items() if not found and not source.has_mask(i)]
    if bare and isinstance(source, FolderSource):
        without_row = [image_id for image_id in bare if image_id not in source.has_row]
        if without_row:
            check.found("files without tags", f"{_photographs(without_row)} without a tag or a mask, which no step "
                        "would use", without_row)
        empty = [image_id for image_id in bare if image_id in source.has_row]
        if empty:
            check.found("empty tags", f"{_photographs(empty)} with empty tags, which no step would use", empty)
    if not check.classes:
        check.found("tags", f"no photograph of {check.root} has a tag or a mask with a class, so that nothing can be "
                    "learnt; add tags.csv with the columns file and tags", breaks=True)
    once = [name for name in check.classes if n_tags[name] == 1 and n_masks[name] == 0]
    if once:
        check.found("tags seen once", f"{_count(once, 'tag')} of one photograph each, perhaps mistyped: {_some(once)}",
                    [i for i in check.photographs if check.tags[i] & set(once)])
    for first, second, why in similar_names(check.classes):
        check.found(
            "similar names",
            f"'{first}' ({_seen(check, first)}) and '{second}' ({_seen(check, second)}) {why}; if they are the same "
            "class, write them alike",
        )


def _seen(check: Check, name: str) -> str:
    return str(sum(1 for names in check.tags.values() if name in names))


def _look_at_spellings(check: Check, source: FolderSource) -> None:
    """Spellings that are taken as one class."""
    spellings: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for row in source.rows:
        for name in row.tags:
            spellings[joined(name)][name] += 1
    for name in source.mask_classes:
        spellings[joined(name)][name] += 0
    for ways in spellings.values():
        if len(ways) > 1:
            listed = ", ".join(f"'{name}'" for name in ways)
            check.found("spellings", f"{listed} are taken as the same class")


def similar_names(names: Iterable[str]) -> list[tuple[str, str, str]]:
    """Pairs of names that may be meant as one, and how they differ.

    Such are singular and plural, and names of five letters or more that become the same when at most one letter is
    left out of each (a letter too many, too few, another one, or two swapped).
    """
    shown = {joined(name): name for name in names}
    pairs: dict[tuple[str, str], str] = {}

    def pair(group: Iterable[str], why: str) -> None:
        ordered = sorted(group)
        for place, first in enumerate(ordered):
            for second in ordered[place + 1 :]:
                pairs.setdefault((first, second), why)

    by_singular: defaultdict[str, set[str]] = defaultdict(set)
    by_rest: defaultdict[str, set[str]] = defaultdict(set)
    for name in shown:
        by_singular[_singular(name)].add(name)
        if len(name) >= 5:
            for rest in {name, *(name[:i] + name[i + 1 :] for i in range(len(name)))}:
                by_rest[rest].add(name)
    for group in by_singular.values():
        pair(group, "are singular and plural")
    for group in by_rest.values():
        pair(group, "differ by a letter")
    return [(shown[first], shown[second], why) for (first, second), why in sorted(pairs.items())]


def _singular(name: str) -> str:
    if name.endswith("ies") and len(name) > 4:
        return name[:-3] + "y"
    if name.endswith(("ses", "xes", "zes", "ches", "shes")):
        return name[:-2]
    return name[:-1] if name.endswith("s") and not name.endswith("ss") else name


# -------------------------------------------------------------------------------------------------------------- lists


def _look_at_lists(check: Check, source: Source) -> None:
    """Lists that cannot be read, and photographs that are both learnt from and validated on."""
    if check.layout == "voc":
        there = {path.stem for path in (check.root / "ImageSets/Segmentation").glob("*.txt")}
        names = [pair for pair in (("train_aug", "val"), ("train", "val")) if {*pair} <= there]
    else:
        names = [("train", "val")]
        for path in sorted((check.root / "splits").glob("*.txt")):
            try:
                source.ids(path.stem)
            except UserError as error:
                check.found("list", str(error), breaks=True)
    if any(finding.kind == "list" and finding.breaks for finding in check.findings):
        return
    for training, validation in names:
        try:
            lists = [frozenset(source.ids(name)) for name in (training, validation)]
        except UserError as error:  # without masks there is nothing to validate on, which is no fault of the files
            check.found("list", str(error))
            continue
        check.lists[training, validation] = lists[0], lists[1]
        blind = [image_id for image_id in lists[1] if not source.has_mask(image_id)]
        if blind:
            check.found("list", f"{_photographs(blind)} of the list {validation} without a mask to compare predictions "
                        "with; add masks, or leave them out of the list", sorted(blind), breaks=True)
        both = sorted(lists[0] & lists[1])
        if both:
            check.found("list", f"{_photographs(both)} both in the list {training} and in {validation}", both)


def _photographs(ids: Sequence[str]) -> str:
    return _count(ids, "photograph")


def _count(things: Sequence[Any], one: str, many: str | None = None) -> str:
    return f"{len(things)} {one if len(things) == 1 else many or one + 's'}"


def _some(names: Sequence[str], shown: int = 5) -> str:
    rest = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {rest} more" if rest > 0 else "")
