"""What is being reviewed: a step's photographs, their pseudo masks, and the decisions about them."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from filelock import FileLock, Timeout

from fmwiss.config import Config, load_config
from fmwiss.data.extension import tagged_source
from fmwiss.data.protocols import Protocol, share
from fmwiss.data.randomness import keyed_generator
from fmwiss.data.review import REVIEW, Decision, Review, Threshold
from fmwiss.data.source import Source
from fmwiss.data.tags import TagIndex
from fmwiss.errors import UserError
from fmwiss.files import write_atomically
from fmwiss.methods import takes_pseudo_masks
from fmwiss.models import load_segmenter
from fmwiss.pseudo_masks import StoredMasks, StoredPlusMasks, open_pseudo_masks
from fmwiss.reporting.pictures import class_colours, thumbnail
from fmwiss.reporting.progress import track
from fmwiss.review import disagreement
from fmwiss.review.words import Words
from fmwiss.run_folders import finished_steps

FIGURES = "review-figures.json"
"""What the models said, beside the review: it is computed once."""
TAGS = "tags.json"
THUMBNAILS = 400
"""Thumbnails that stay in memory."""
SIDES = (320, 480, 720, 1080)
"""Their longer sides in pixels."""

T = TypeVar("T")
Show = Literal["open", "all", "accept", "reject", "absent"]
Order = Literal["worst", "best", "list"]


@dataclass(frozen=True)
class Place:
    """Where a session finds what it needs."""

    data: Path
    weights: Path | None
    cache: Path | None
    device: torch.device


@dataclass(frozen=True)
class Item:
    """A pseudo mask to be judged: one class of one photograph.

    Attributes:
        number: its place in the session.
        photograph: its photograph's place among the session's.
        image_id: the photograph.
        name: the class.
        terms: what the models say, by term of :mod:`fmwiss.review.disagreement`.
    """

    number: int
    photograph: int
    image_id: str
    name: str
    terms: Mapping[str, float]

    @property
    def disagreement(self) -> float:
        """In [0, 1], 1 is worst."""
        return disagreement.mean(self.terms)


@dataclass
class Session:
    """One step's masks and what is decided about them; may be used by several threads.

    Attributes:
        title: of the run or the experiment.
        step: whose classes are reviewed.
        folder: that holds the review.
        status: whether the step is finished, begun, or neither.
        seed: the run's.
        source: the photographs.
        classes: those that the step learns.
        masks: their pseudo masks.
        items: one for every tag.
        words: what the vision-language model sees.
    """

    title: str
    step: int
    folder: Path
    status: Literal["finished", "begun", "open"]
    seed: int
    source: Source
    classes: tuple[str, ...]
    masks: StoredMasks
    items: list[Item]
    words: Words
    review: Review
    _undo: list[list[tuple[str, str, Decision | None]]] = field(default_factory=list)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self.path = self.folder / REVIEW
        self.photographs = list(dict.fromkeys(item.image_id for item in self.items))
        self.colours = class_colours(("background", *self.source.class_names))
        self._pictures = _Recent[bytes](THUMBNAILS)
        self._sizes: dict[int, tuple[int, int]] = {}
        self._stamp = _stamp(self.path)
        self._places = {image_id: place for place, image_id in enumerate(self.photographs)}
        self._by_photograph: list[list[Item]] = [[] for _ in self.photographs]
        for item in self.items:
            self._by_photograph[item.photograph].append(item)

    # ------------------------------------------------------------------------------------------------ what is shown

    def numbers(self, name: str | None, show: Show, order: Order) -> list[int]:
        """The items of a class (or of all) that are decided so, in an order; worst means most disagreement."""
        with self._lock:
            said = {item.number: self.decision(item) for item in self.items}
        wanted = [
            item
            for item in self.items
            if name in (None, item.name) and (show == "all" or (said[item.number] or "open") == show)
        ]
        if order != "list":
            sign = -1 if order == "worst" else 1
            wanted.sort(key=lambda item: (sign * item.disagreement, item.number))
        return [item.number for item in wanted]

    def describe(self, item: Item) -> dict[str, Any]:
        """What the page needs to lay a card out, JSON-able."""
        height, width = self.size(item.photograph)
        return {
            "number": item.number,
            "photograph": item.photograph,
            "image": item.image_id,
            "class": item.name,
            "tags": [other.name for other in self.items_of(item.photograph)],
            "disagreement": round(item.disagreement, 4),
            "terms": {name: round(value, 4) for name, value in item.terms.items()},
            "decision": self.decision(item),
            "width": width,
            "height": height,
        }

    def items_of(self, photograph: int) -> list[Item]:
        """The masks of one photograph."""
        return self._by_photograph[photograph]

    def size(self, photograph: int) -> tuple[int, int]:
        """A photograph's height and width."""
        if photograph not in self._sizes:
            self._sizes[photograph] = self.source.image_size(self.photographs[photograph])
        return self._sizes[photograph]

    def thumbnail(self, photograph: int, side: int) -> bytes:
        """A photograph as JPEG, its longer side the smallest of :data:`SIDES` that is not below ``side``."""
        side = next((known for known in SIDES if known >= side), SIDES[-1])
        return self._pictures.recall((photograph, side), lambda: self._encode(photograph, side))

    def _encode(self, photograph: int, side: int) -> bytes:
        content = io.BytesIO()
        image = self.source.read_image(self.photographs[photograph])
        thumbnail(image, side).save(content, format="JPEG", quality=82, optimize=True)
        return content.getvalue()

    def levels(self, item: Item) -> tuple[int, int, bytes]:
        """Height, width and the bytes of ``StoredMasks.levels`` for one mask, row by row."""
        levels = self.masks.levels(item.image_id, [item.name], 0)[0].contiguous()
        return levels.shape[0], levels.shape[1], levels.numpy().tobytes()

    def counts(self) -> dict[str, dict[str, int]]:
        """How many masks of every class are decided how, ``open`` for those that are not."""
        with self._lock:
            found = {name: dict.fromkeys(("open", "accept", "reject", "absent"), 0) for name in self.classes}
            for item in self.items:
                found[item.name][self.decision(item) or "open"] += 1
            return found

    def threshold(self) -> dict[str, Any]:
        """The slider: what it is about, its range, the experiment's value and the one kept for training."""
        own = Threshold.of(self.masks.config)
        plus = isinstance(self.masks, StoredPlusMasks)
        kept = self.review.thresholds.get(self.step)
        return {
            "key": own.key,
            "value": own.value,
            "kept": kept.value if kept is not None and kept.key == own.key else None,
            "kind": "share" if plus else "percentile",
            "lowest": 0.0 if plus else 0.5,
            "highest": 0.99 if plus else 99.5,
            "stride": 0.01 if plus else 0.5,
            "moves": plus or self.masks.config.fusion != "none",
        }

    # ------------------------------------------------------------------------------------------- what is decided

    def decision(self, item: Item) -> Decision | None:
        """What is said of a mask so far."""
        return self.review.decisions.get((item.image_id, item.name))

    def decide(self, items: Sequence[Item], decision: Decision | None) -> None:
        """Note a decision about masks, or with None take it back, and write it down.

        Raises:
            UserError: the file cannot be written, or has been changed by another program.
        """
        with self._changing():
            self._undo.append(
                [(i.image_id, i.name, self.review.decide(i.image_id, i.name, decision)) for i in items]
            )

    def undo(self) -> list[Item]:
        """Take the last decision back; returns the masks that it was about, none if there is nothing to undo."""
        with self._lock:
            if not self._undo:
                return []
            with self._changing():
                last = self._undo.pop()
                for image_id, name, before in last:
                    self.review.decide(image_id, name, before)
            about = {(image_id, name) for image_id, name, _ in last}
            return [item for item in self.items if (item.image_id, item.name) in about]

    def keep_threshold(self, value: float | None) -> None:
        """Write the threshold down that the step is to be trained with; None leaves the experiment's.

        Raises:
            UserError: it is out of range, or as :meth:`decide`.
        """
        if value is None:
            with self._changing():
                self.review.thresholds.pop(self.step, None)
            return
        chosen = Threshold(Threshold.of(self.masks.config).key, value)
        chosen.applied(self.masks.config)
        with self._changing():
            self.review.thresholds[self.step] = chosen

    @property
    def undoable(self) -> int:
        """Decisions that can be taken back."""
        return len(self._undo)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold others off, and write the file afterwards; where that fails, all is as before."""
        with self._lock:
            before = Review(dict(self.review.decisions), dict(self.review.thresholds)), list(self._undo)
            try:
                if _stamp(self.path) != self._stamp:
                    raise UserError(
                        f"{self.path} has been changed by another program since; start 'fmwiss review' again to read it"
                    )
                yield
                self.review.write(self.path)
                self._stamp = _stamp(self.path)
            except BaseException:
                self.review, self._undo = before
                raise

    # ----------------------------------------------------------------------------------------------------- words

    def look(self, word: str, name: str | None) -> dict[str, Any]:
        """What the vision-language model sees for a word, on a handful of photographs; see :meth:`Words.look`.

        Args:
            word: any name.
            name: the class whose photographs are looked at; None for the step's first.
        """
        name = name or self.classes[0]
        tagged = [i.image_id for i in self.items if i.name == name]
        others = [i for i in self.photographs if all(item.name != name for item in self.items_of(self._places[i]))]
        found = self.words.look(word, self._some(tagged, name), self._some(others, name))
        pictures = [
            {
                "photograph": self._places[seen.image_id],
                "image": seen.image_id,
                "tagged": seen.tagged,
                "highest": round(seen.highest, 4),
                "width": seen.heat.shape[1],
                "height": seen.heat.shape[0],
                "ratio": round(self._ratio(self._places[seen.image_id]), 4),
                "heat": base64.b64encode(seen.heat.numpy().tobytes()).decode(),
            }
            for seen in found.pictures
        ]
        return {**found.summary(), "class": name, "pictures": pictures}

    def _ratio(self, photograph: int) -> float:
        height, width = self.size(photograph)
        return width / height

    def _some(self, ids: Sequence[str], name: str) -> list[str]:
        """A handful, the same ones every time."""
        order = torch.randperm(len(ids), generator=keyed_generator(self.seed, "words", name)).tolist()
        return [ids[place] for place in order[: self.words.handful]]


# ------------------------------------------------------------------------------------------------------- opening one


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keeps a second review from writing to the same file."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".review.lock", timeout=0):
            yield
    except Timeout as error:
        raise UserError(f"{folder}: another fmwiss review is at work there; close it first") from error


@dataclass(frozen=True)
class Target:
    """What is reviewed.

    Attributes:
        config: the experiment.
        folder: that holds the review.
        title: for the page.
        run: the run's folder, if it is one.
    """

    config: Config
    folder: Path
    title: str
    run: Path | None


def find_target(target: Path, out: Path | None, overrides: Sequence[str] = ()) -> Target:
    """A run, which keeps its review itself, or an experiment file and the folder that its review goes to.

    Raises:
        UserError: it is neither, or the other options do not go with it.
    """
    if target.is_dir():
        if not (target / "config.yaml").is_file():
            raise UserError(
                f"{target}: holds no config.yaml; give a folder that `fmwiss train --out` wrote, or an experiment file"
            )
        if out is not None:
            raise UserError(f"--out {out}: goes with an experiment file; the run {target} keeps its review itself")
        if overrides:
            raise UserError(f"--set changes an experiment file's keys; the run {target} has settings of its own")
        return Target(load_config(target / "config.yaml"), target, target.resolve().name, target)
    if not target.exists():
        raise UserError(f"there is no run and no experiment file {target}")
    config = load_config(target, overrides)
    if out is None:
        raise UserError(f"--out is missing: name the folder for the review of {target}, that of the run to be trained")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; give a folder")
    return Target(config, out, f"{target.resolve().parent.name}/{target.stem}", None)


def open_session(target: Target, place: Place, step: int | None = None, with_models: bool = True) -> Session:
    """Make what is missing of the pseudo masks, put them in order, and read what is decided already.

    Args:
        target: from :func:`find_target`.
        place: where photographs, weights and stores are.
        step: whose classes; by default the first that is not finished, or the last.
        with_models: of a run, the models before and after the step have a say in the order.

    Raises:
        UserError: the experiment makes no pseudo masks, there is no such step, nothing is tagged with its classes, or
            a file is damaged.
    """
    config = target.config
    source = tagged_source(target.folder, place.data, config.data)
    options = config.cosegmentation
    if not takes_pseudo_masks(config.method):
        raise UserError(
            f"{target.title}: the method {config.method.name} makes no pseudo masks to review; fmwiss and finetuning do"
        )
    if options.source == "true-masks":
        raise UserError(f"{target.title}: cosegmentation.source is true-masks, so there are no pseudo masks to review")
    protocol = Protocol.from_config(config.protocol, source.class_names)
    finished = finished_steps(target.run) if target.run is not None else []
    step = _chosen_step(protocol, finished, step)
    classes, seed = protocol.new(step), config.training.seed
    ids = source.ids(config.data.train_split)
    tags = TagIndex.load_or_build(source, ids, config.data.tags, target.folder / TAGS)
    chosen = share(protocol.select(step, tags, ids), config.data.fraction, seed)
    if not chosen:
        raise UserError(
            f"{place.data}: no photograph of {config.data.train_split} is tagged with a class of step {step} "
            f"({', '.join(classes)})"
        )
    review, path = Review(), target.folder / REVIEW
    if path.is_file():
        review = Review.read(path)
        review.check(path, ids, config.data.train_split, source.class_names)
    wanted = {image_id: tags[image_id] & frozenset(classes) for image_id in chosen}
    masks = open_pseudo_masks(
        options, source, chosen, wanted, place.weights, place.cache, place.device, seed, track
    )
    named = {image_id: [name for name in classes if name in wanted[image_id]] for image_id in chosen}
    models = _models(target.run, step, finished) if target.run is not None and with_models else {}
    figures = _Figures(target.folder / FIGURES, source, masks, seed, models, place.device).of(named)
    items = [
        Item(0, photograph, image_id, name, terms)
        for photograph, (image_id, names) in enumerate(named.items())
        for name, terms in zip(names, figures[image_id], strict=True)
    ]
    return Session(
        title=target.title,
        step=step,
        folder=target.folder,
        status=_status(target.folder, step),
        seed=seed,
        source=source,
        classes=classes,
        masks=masks,
        items=[replace(item, number=number) for number, item in enumerate(items)],
        words=Words(options.vision_language, source, place.weights, place.device),
        review=review,
    )


def _chosen_step(protocol: Protocol, finished: Sequence[int], step: int | None) -> int:
    last = len(protocol.steps) - 1
    if last == 0:
        raise UserError("the protocol has no step that learns from tags, so there are no pseudo masks to review")
    if step is None:
        return next((t for t in range(1, last + 1) if t not in finished), last)
    if step == 0:
        raise UserError("--step 0: learns from masks; the steps that learn from tags begin with 1")
    if step > last:
        raise UserError(f"--step {step}: the protocol has steps 0 to {last}")
    return step


def _status(folder: Path, step: int) -> Literal["finished", "begun", "open"]:
    from fmwiss.training.run import is_begun

    if (folder / f"step{step}" / "model.json").is_file():
        return "finished"
    return "begun" if is_begun(folder / f"step{step}") else "open"


def _models(run: Path, step: int, finished: Sequence[int]) -> dict[str, Path]:
    """The folders of the models that have a say, by term."""
    said = {disagreement.OLD: step - 1, disagreement.NEW: step}
    return {term: run / f"step{number}" for term, number in said.items() if number in finished}


class _Figures:
    """The terms of every mask's disagreement; what has been computed once is kept in a file."""

    def __init__(
        self,
        path: Path,
        source: Source,
        masks: StoredMasks,
        seed: int,
        models: Mapping[str, Path],
        device: torch.device,
    ) -> None:
        self.path = path
        self.source = source
        self.masks = masks
        self.device = device
        self.models = dict(models)
        cut_by = {"n_seeds", "k", "binarize", "fusion", "init_threshold", "plus"}
        cuts = masks.config.model_dump(mode="json", include=cut_by)
        weights = {term: _digest(folder / "model.safetensors") for term, folder in models.items()}
        self.identity = json.loads(
            json.dumps({"masks": masks.store.folder.name, "cuts": cuts, "seed": seed, "models": weights})
        )

    def of(self, named: Mapping[str, Sequence[str]]) -> dict[str, list[dict[str, float]]]:
        """By photograph, the terms of each of its classes, in their order."""
        known = self._read()
        missing = [i for i, names in named.items() if not set(names) <= set(known.get(i, {}))]
        if missing:
            models = {
                term: load_segmenter(folder.parent, int(folder.name[4:])).to(self.device).eval()
                for term, folder in self.models.items()
            }
            try:
                for image_id in track(missing, "putting masks in order"):
                    known[image_id] = self._terms(image_id, named[image_id], models)
            finally:  # an interrupt loses nothing
                text = json.dumps({"identity": self.identity, "figures": known})
                write_atomically(self.path, lambda path: path.write_text(text, encoding="utf-8"))
        return {image_id: [known[image_id][name] for name in names] for image_id, names in named.items()}

    def _terms(self, image_id: str, names: Sequence[str], models: Mapping[str, Any]) -> dict[str, dict[str, float]]:
        stages = self.masks.stages(image_id, names, 0)
        terms = {disagreement.STAGES: disagreement.stage_term(stages)}
        if models:
            image = self.source.read_image(image_id)
            for term, model in models.items():
                labels = model.predict(image).cpu()
                if term == disagreement.OLD:
                    terms[term] = disagreement.old_term(stages["refined"], labels)
                else:
                    self._check_names(term, names, model)
                    places = [model.class_names.index(name) for name in names]
                    terms[term] = disagreement.new_term(stages["refined"], labels, places)
        return {name: {term: values[place] for term, values in terms.items()} for place, name in enumerate(names)}

    def _check_names(self, term: str, names: Sequence[str], model: Any) -> None:
        """Raise :class:`UserError` where a step's model, as after another's was copied over it, lacks its classes."""
        unknown = [name for name in names if name not in model.class_names]
        if unknown:
            raise UserError(f"{self.models[term]}: the model there does not know {unknown[0]}; train the step again")

    def _read(self) -> dict[str, dict[str, dict[str, float]]]:
        """What is kept; nothing where it is of other masks or models, or damaged: then it is computed again."""
        if not self.path.is_file():
            return {}
        try:
            kept = json.loads(self.path.read_text(encoding="utf-8"))
            if kept["identity"] != self.identity:
                return {}
            return {
                str(i): {str(name): {str(t): float(v) for t, v in terms.items()} for name, terms in classes.items()}
                for i, classes in kept["figures"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError):
            return {}


def _digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _stamp(path: Path) -> tuple[int, int] | None:
    """What tells whether a file has been written by somebody else."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_size


class _Recent(OrderedDict[Hashable, T]):
    """Values that were asked for last; may be used by several threads."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self._guard = threading.Lock()

    def recall(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of a key, made if it is not at hand."""
        with self._guard:
            if key in self:
                self.move_to_end(key)
                return self[key]
        value = make()
        with self._guard:
            self[key] = value
            while len(self) > self.size:
                self.popitem(last=False)
        return value
