"""What there is to do for a suite: which runs, in which folders, on which base models."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from fmwiss.bench.suite import PseudoMaskGroup, Row
from fmwiss.config import Config, CopyPasteConfig, OptimizationConfig, leaves, show_value
from fmwiss.data.protocols import Protocol
from fmwiss.data.source import Source
from fmwiss.data.voc import VOCSource
from fmwiss.errors import UserError
from fmwiss.files import write_atomically
from fmwiss.training.base import base_settings

Kind = Literal["base", "training", "pseudo-masks"]

FIGURES = "pseudo-masks.json"
"""What a finished job of pseudo masks leaves."""
REPORT = "report.html"
"""The last file that a finished run of training writes."""
IDENTITY = "identity.json"
"""What a job's results depend on, whole: written before it begins, compared before anything of it is shown."""

_FREE = ("workers", "checkpoint_every")
"""Keys that say how the work is done, not what comes of it."""

_FOLDERS = {"replay": "*/*", "saliency": "**/*.png"}
"""A method's keys that name folders, and what of it belongs to a job's identity."""


@dataclass(frozen=True, eq=False)
class Job:
    """One piece of work, in a folder of its own."""

    kind: Kind
    label: str
    seed: int
    config: Config
    folder: Path
    steps: int
    """Steps of the protocol."""
    base: Path | None = None
    """Run whose step 0 is taken over."""
    split: str = ""
    """Pseudo masks: list of photographs."""
    all_classes: bool = False
    """Pseudo masks: of step 0's classes, too."""
    pictures: int = 0
    """Pseudo masks: photographs to draw."""

    @property
    def title(self) -> str:
        """For a person."""
        return f"{self.label}, seed {self.seed}"

    def is_done(self) -> bool:
        """Whether there is nothing left to do."""
        if self.kind == "pseudo-masks":
            return (self.folder / FIGURES).is_file()
        steps = range(1 if self.kind == "base" else self.steps)
        return (self.folder / REPORT).is_file() and all(
            (self.folder / f"step{t}" / "model.json").is_file() for t in steps
        )

    def is_begun(self) -> bool:
        """Whether an earlier command left something to go on from."""
        return self.folder.is_dir()

    def has_base(self) -> bool:
        """Whether the run has its step 0 already."""
        return (self.folder / "step0" / "model.json").is_file()


class Workspace:
    """The output folder: ``runs/NAME-HASH/seedN`` and ``bases/NAME-HASH``.

    A folder belongs to what its contents depend on: the experiment and the photographs. Entries with the same
    experiment share it, in whichever group they stand and whatever they are called; and of a suite that has been
    changed what has stayed the same is not done again. The hash is of what the experiment says and of which photographs
    there are; what else the results depend on (the library's defaults, the files behind the photographs' names, the
    precision) is kept in the folder and has to be the same.

    Args:
        out: the folder; it need not exist.
        source: the data set.
        precision: that the runs are computed with.
    """

    def __init__(self, out: Path, source: Source, precision: str = "32-true") -> None:
        self.out, self.source, self.precision = out, source, precision
        self._digests: dict[str, str] = {}
        self._files: dict[str, dict[str, str]] = {}
        self._folders: dict[str, Path] = {}

    @cached_property
    def known(self) -> tuple[str, ...]:
        """The data set's class names."""
        return self.source.class_names

    def folder(self, row: Row) -> Path:
        """Where an entry's runs are, by seed."""
        config, group = row.config, row.group
        settings = _settings(config)
        identity: dict[str, Any] = {"kind": group.kind, "classes": self.known}
        if isinstance(group, PseudoMaskGroup):
            split = group.split or config.data.val_split
            identity["config"] = {key: settings.get(key) for key in ("protocol", "cosegmentation")}
            identity |= {"tags": config.data.tags, "split": [split, self._digest(split)]}
            identity |= {"of": group.classes, "pictures": group.pictures}
        else:
            identity |= {"config": settings, "data": self._data(config)}
        return self._named("runs", row.label, identity)

    def base_folder(self, config: Config) -> Path:
        """Where the base model of a run is, which other runs may share."""
        identity = {
            "base": base_settings(config, self.known),
            "evaluation": config.evaluation.model_dump(mode="json"),
            "classes": self.known,
            "data": self._data(config),
        }
        return self._named("bases", f"{config.protocol.setting} seed {config.training.seed}", identity)

    def jobs(self, rows: Iterable[Row], seeds: Sequence[int] | None) -> list[Job]:
        """Everything that the rows need, finished or not, seed by seed; a base before the first run that takes it.

        Args:
            rows: the entries.
            seeds: in place of the entries' own.
        """
        rows = list(rows)
        all_seeds = list(dict.fromkeys(seeds or (seed for row in rows for seed in row.seeds)))
        jobs: dict[Path, Job] = {}
        for seed in all_seeds:
            for row in rows:
                if seed in (seeds or row.seeds):
                    for job in self._jobs(row, seed):
                        jobs.setdefault(job.folder, job)
        return list(jobs.values())

    def identity(self, job: Job) -> dict[str, Any]:
        """Everything that a job's results depend on, JSON-able: the whole configuration, the data and the precision.

        Of the data there are the lists of photographs, the sizes of the files that they stand for, and a table of tags.
        """
        config, whole = job.config, job.config.model_dump(mode="json")
        splits = [config.data.train_split, config.data.val_split]
        if job.kind == "base":
            whole = {**base_settings(config, self.known), "data.val_split": config.data.val_split}
            whole["evaluation"] = config.evaluation.model_dump(mode="json")
        elif job.kind == "pseudo-masks":
            whole = {key: whole[key] for key in ("protocol", "cosegmentation")}
            whole |= {"data.tags": config.data.tags, "training.seed": job.seed}
            whole |= {"split": job.split, "of": "all" if job.all_classes else "new", "pictures": job.pictures}
            splits = [job.split]
        else:
            for key in ("also", "negatives"):  # as before there were such keys
                if not whole["data"][key]:
                    del whole["data"][key]
            for section in ("data", "training"):
                whole[section] = {key: value for key, value in whole[section].items() if key not in _FREE}
        identity = {
            "kind": job.kind,
            "config": whole,
            "classes": self.known,
            "data": {split: self._fingerprint(split) for split in splits},
            "precision": self.precision,
        }
        if config.data.tags not in ("masks", "xml", "instances"):
            identity["tags"] = _hash_of_file(Path(config.data.tags))
        for key, pattern in _FOLDERS.items():
            folder = whole.get("method", {}).pop(key, None)
            if folder is not None and Path(folder).is_dir():
                identity[key] = _hash_of_files(Path(folder), pattern)
        return dict(json.loads(json.dumps(identity)))

    def keep_identity(self, job: Job) -> None:
        """Write a job's identity into its folder."""
        job.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.identity(job), indent=1) + "\n"
        write_atomically(job.folder / IDENTITY, lambda path: path.write_text(text, encoding="utf-8"))

    def check(self, rows: Iterable[Row], jobs: Iterable[Job]) -> None:
        """Refuse what was made from something else.

        Args:
            rows: entries, of which every seed that there is counts.
            jobs: of which the base models count.

        Raises:
            UserError: the first key in which a folder's identity is another one.
        """
        for row in rows:
            for path in sorted(self.folder(row).glob("seed*")):
                if path.name[4:].isdigit():
                    self._check(self._jobs(row, int(path.name[4:]))[-1])
        for job in jobs:
            if job.kind == "base":
                self._check(job)

    def _check(self, job: Job) -> None:
        path = job.folder / IDENTITY
        if not path.is_file():
            if (job.folder / "config.yaml").is_file() or (job.folder / FIGURES).is_file():
                raise UserError(
                    f"{job.folder}: holds results and no {IDENTITY}, so that it cannot be told what they were made "
                    "from; remove the folder or give another --out"
                )
            return
        try:
            before = dict(leaves(json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(f"{path}: cannot be read ({error}); remove {job.folder} to begin it anew") from error
        now = dict(leaves(self.identity(job)))
        default = _defaults(job.config)
        for key in [*now, *before]:
            if key in before and key in now and before[key] == now[key]:
                continue
            if key not in before and key in default and now[key] == default[key]:
                continue  # an earlier version did not have it and did what the default says
            if key in _FOLDERS and key not in now:
                continue  # finished runs are shown, too, where no folder is given
            if key in ("tags", *_FOLDERS) or key.startswith("data."):
                place = getattr(job.config.method, key) if key in _FOLDERS else self.source.root
                raise UserError(
                    f"{job.folder} was made from other data: {key} is another one in {place} now; give the "
                    "same data or another --out"
                )
            name, then, wanted = key.removeprefix("config."), before.get(key), now.get(key)
            raise UserError(
                f"{job.folder} was started with {name} = {show_value(then)} but {show_value(wanted)} is asked for now; "
                "give the same value or another --out"
            )

    def _jobs(self, row: Row, seed: int) -> list[Job]:
        training = row.config.training.model_copy(update={"seed": seed})
        config = row.config.model_copy(update={"training": training})
        steps = len(Protocol.from_config(config.protocol, self.known).steps)
        folder, group = self.folder(row) / f"seed{seed}", row.group
        if isinstance(group, PseudoMaskGroup):
            split = group.split or config.data.val_split
            everything = group.classes == "all"
            return [
                Job("pseudo-masks", row.label, seed, config, folder, steps, None, split, everything, group.pictures)
            ]
        base = self.base_folder(config)
        return [
            Job("base", f"{group.name} / base model", seed, _base_config(config), base, steps),
            Job("training", row.label, seed, config, folder, steps, base),
        ]

    def _data(self, config: Config) -> list[str]:
        return [self._digest(split) for split in (config.data.train_split, config.data.val_split)]

    def _digest(self, split: str) -> str:
        """Of a list of photographs."""
        if split not in self._digests:
            self._digests[split] = _hash(self.source.ids(split))
        return self._digests[split]

    def _fingerprint(self, split: str) -> dict[str, str]:
        """Of a list of photographs and, by their sizes, of the files that it stands for; nothing is opened."""
        if split not in self._files:
            source, ids = self.source, self.source.ids(split)
            places = {"photographs": source.image_path, "masks": source.mask_path}
            if isinstance(source, VOCSource):
                places["annotations"] = source.xml_path
            sizes = {name: _hash([_size(place(image_id)) for image_id in ids]) for name, place in places.items()}
            self._files[split] = {"list": self._digest(split), **sizes}
        return self._files[split]

    def _named(self, parent: str, name: str, identity: Any) -> Path:
        """The folder of what has this identity: the one there is, whatever it is called, or a new one of this name."""
        digest = _hash(identity)
        if digest not in self._folders:
            there = sorted((self.out / parent).glob(f"*-{digest}"))
            self._folders[digest] = there[0] if there else self.out / parent / f"{slug(name)}-{digest}"
        return self._folders[digest]


def slug(name: str) -> str:
    """A name as part of a file's: letters a to z, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower())[:60].strip("-") or "entry"


def _base_config(config: Config) -> Config:
    """What a base model is trained with: nothing of the run's method, so that it is the same whichever run comes first.

    It keeps no memory of old classes either: each run makes the one that it wants.
    """
    return Config(
        protocol=config.protocol,
        data=config.data.model_copy(update={"fraction": 1.0}),
        segmenter=config.segmenter,
        copy_paste=CopyPasteConfig(bank_size=0),
        training=config.training.model_copy(update={"steps": OptimizationConfig(), "validate_every": 0}),
        evaluation=config.evaluation,
    )


def _settings(config: Config) -> dict[str, Any]:
    """What an experiment sets otherwise than the library, without its seed and what does not matter for the results.

    Defaults are left out, so that a key that a later version adds makes no other experiment of it.
    """
    settings = config.model_dump(mode="json", exclude_defaults=True)
    settings.setdefault("method", {})["name"] = config.method.name  # which is the default of its own section
    settings["method"].pop("replay", None)  # where the photographs lie; which they are is in the identity
    settings.get("training", {}).pop("seed", None)
    for section in ("data", "training"):
        for key in _FREE:
            settings.get(section, {}).pop(key, None)
    return {section: values for section, values in settings.items() if values}


def _defaults(config: Config) -> dict[str, Any]:
    """What the library sets, by key as in a job's identity, for experiments with the same method."""
    plain = Config.model_validate({"method": {"name": config.method.name}}).model_dump(mode="json")
    return {f"config.{key}": value for key, value in leaves(plain)}


def _size(path: Path) -> int | None:
    """Of a file in bytes; None where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return None


def _hash_of_file(path: Path) -> str:
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=5).hexdigest()
    except OSError as error:
        raise UserError(
            f"the table of tags {path} cannot be read ({error.strerror}); data.tags is 'masks', 'xml' or a CSV file's "
            "path"
        ) from error


def _hash_of_files(folder: Path, pattern: str) -> str:
    """Of the names and sizes of a folder's files."""
    files = sorted(folder.glob(pattern))
    return _hash([[path.relative_to(folder).as_posix(), _size(path)] for path in files])


def _hash(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=5).hexdigest()
