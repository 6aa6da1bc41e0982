"""The suite file as typed models: which experiments are run and how they are put into tables."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

import fmwiss
from fmwiss.config import Config, RECALLConfig, leaves, load_config, read_mapping, show_value, wanted
from fmwiss.errors import UserError

FOLDER = Path("configs") / "suites"
"""Where a suite's name is looked up: under the current folder, then under the source tree."""

PerCent = Annotated[float, Field(ge=0.0, le=100.0)]
Name = Annotated[str, Field(min_length=1)]
Supervision = Literal["image", "pixel"]


def _different(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds):
        raise ValueError("must be different whole numbers")
    return seeds


Seeds = Annotated[tuple[Annotated[int, Field(ge=0, strict=True)], ...], Field(min_length=1), AfterValidator(_different)]


class _Part(BaseModel):
    # a row of a table of numbers may be called 10
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, coerce_numbers_to_str=True)


class PaperFigures(_Part):
    """What the paper reports for a row, in per cent."""

    old: PerCent | None = Field(None, description='mean IoU over the base classes ("1-15" of Table 1)')
    new: PerCent | None = Field(None, description='mean IoU over the classes learnt from tags ("16-20")')
    all: PerCent | None = Field(None, description="mean IoU over every class and the background")
    further: dict[str, PerCent] = Field(
        default_factory=dict, description="on further lists, by the group's further columns: {voc-val new: 63.6}"
    )

    def by_column(self) -> dict[str, float | None]:
        """Every figure by its column."""
        return {"old": self.old, "new": self.new, "all": self.all, **self.further}


class Entry(_Part):
    """A row of a table: an experiment."""

    name: Name = Field(description="the row's label")
    config: str | None = Field(
        None, description="experiment file, relative to the suite file; by default the group's"
    )
    overrides: dict[str, Any] = Field(
        default_factory=dict, description="key.path: value of the experiment file, over the group's"
    )
    seeds: Seeds | None = Field(None, description="by default the group's")
    note: str = Field("", description="text on the row, under the table")


class TrainingEntry(Entry):
    """A row of trained models."""

    paper: PaperFigures | None = Field(None, description="the paper's figures, shown beside ours")


class _Group(_Part):
    name: Name = Field(description="the table's title")
    note: str = Field("", description="text under the title")
    config: str | None = Field(None, description="experiment file of the entries that name none")
    overrides: dict[str, Any] = Field(default_factory=dict, description="key.path: value for every entry")
    seeds: Seeds | None = Field(None, description="by default the suite's")
    compare: tuple[tuple[Name, Name], ...] = Field(
        (), description="pairs of entries whose difference, seed by seed, is shown: [[FMWISS, WILSON]]"
    )


class TrainingGroup(_Group):
    """A table of trained models."""

    kind: Literal["training"] = "training"
    supervision: Supervision = Field(
        "image", description="the comparison that the table is part of: of methods that learn from tags (image) or "
        "from masks (pixel); `fmwiss bench --supervision` chooses by it"
    )
    curve: bool = Field(
        False, description="draw mIoU over the last step's epochs; needs training.validate_every in the experiments"
    )
    further: tuple[Annotated[str, Field(pattern=r"^\S+ (old|new|all)$")], ...] = Field(
        (), description="further columns: a list of the experiments' data.also and old, new or all: [voc-val new]"
    )
    headings: dict[str, str] = Field(
        default_factory=dict, description="headings of columns, as the paper has them: {old: COCO 1-60}"
    )
    entries: tuple[TrainingEntry, ...] = Field(min_length=1, description="the table's rows")


class PseudoMaskGroup(_Group):
    """A table of pseudo masks, made and compared with the truth, without training."""

    kind: Literal["pseudo-masks"] = "pseudo-masks"
    split: str | None = Field(None, description="list of photographs; by default the experiment's data.val_split")
    classes: Literal["new", "all"] = Field("new", description="those learnt from tags, or all of the protocol")
    pictures: int = Field(0, ge=0, description="photographs to draw the stages of")
    entries: tuple[Entry, ...] = Field(min_length=1, description="the table's rows")


Group = Annotated[TrainingGroup | PseudoMaskGroup, Field(discriminator="kind")]


class Suite(_Part):
    """A matrix of experiments and seeds."""

    title: str = Field("", description="heading of the results")
    note: str = Field("", description="text under it")
    seeds: Seeds = Field((0,), description="training.seed of each run")
    groups: tuple[Group, ...] = Field(min_length=1, description="one table each")

    @field_validator("groups", mode="before")
    @classmethod
    def _trained(cls, value: Any) -> Any:
        """A group without a kind is one of training."""
        if not isinstance(value, list):
            return value
        return [{"kind": "training", **group} if isinstance(group, Mapping) else group for group in value]


@dataclass(frozen=True)
class Row:
    """An entry with its resolved experiment; ``training.seed`` in it is of no account."""

    group: TrainingGroup | PseudoMaskGroup
    entry: Entry
    config: Config
    overrides: Mapping[str, Any]
    """The group's and the entry's by whole key path; for the tables."""
    file: str
    """The experiment file as the suite names it."""
    seeds: tuple[int, ...]

    @property
    def label(self) -> str:
        """Both names."""
        return f"{self.group.name} / {self.entry.name}"

    @property
    def supervision(self) -> Supervision:
        """The group's; pseudo masks are of the methods that learn from tags."""
        return supervision_of(self.group)

    @property
    def lacks_replay(self) -> bool:
        """Whether it cannot be run, as it needs photographs of old classes and is given none."""
        method = self.config.method
        return isinstance(method, RECALLConfig) and method.replay is None

    def with_replay(self, folder: Path) -> Row:
        """The row with the folder if it needs one, else itself."""
        if not self.lacks_replay:
            return self
        method = self.config.method.model_copy(update={"replay": folder})
        return replace(self, config=self.config.model_copy(update={"method": method}))


def supervision_of(group: TrainingGroup | PseudoMaskGroup) -> Supervision:
    """What the methods of a table learn from."""
    return group.supervision if isinstance(group, TrainingGroup) else "image"


def find_suite(suite: str) -> Path:
    """The file of a suite given by its name or its path.

    Raises:
        UserError: there is none; the message gives the nearest name.
    """
    if suite.endswith((".yaml", ".yml")) or Path(suite).is_file():
        return Path(suite)
    folders = [FOLDER, Path(fmwiss.__file__).parents[2] / FOLDER]
    for folder in folders:
        if (folder / f"{suite}.yaml").is_file():
            return folder / f"{suite}.yaml"
    known = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    if not known:
        raise UserError(f"there is no suite '{suite}' and no folder {FOLDER} here; give the path of a suite file")
    raise UserError(
        f"there is no suite '{suite}'; the nearest one is {nearest(suite, known)}, and there are {', '.join(known)}, "
        "or give the path of a suite file"
    )


def load_suite(path: Path) -> Suite:
    """Read a suite file.

    Raises:
        UserError: it cannot be read, a key is unknown (the message gives the nearest right key), a value is wrong, a
            name stands twice, or one that is compared is no entry.
    """
    values = read_mapping(path, "suite file", "title, seeds and groups")
    try:
        suite = Suite.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{path}{_problem(error, values)}") from error
    _unique([group.name for group in suite.groups], f"{path}: groups")
    for group in suite.groups:
        where = f"{path}, group {group.name}"
        names = [entry.name for entry in group.entries]
        _unique(names, f"{where}: entries")
        for name in (name for pair in group.compare for name in pair):
            if name not in names:
                raise UserError(f"{where}: compare names {name}, which is no entry; the nearest is "
                                f"{nearest(name, names)}")
    return suite


def resolve(suite: Suite, path: Path) -> list[Row]:
    """Every entry with its experiment, in the file's order.

    Args:
        suite: what :func:`load_suite` gave.
        path: the suite file, to which the experiments' paths are relative.

    Raises:
        UserError: an entry has no experiment file, or the file or an override is wrong.
    """
    return [_resolve(suite, group, entry, path) for group in suite.groups for entry in group.entries]


def _resolve(suite: Suite, group: TrainingGroup | PseudoMaskGroup, entry: Entry, path: Path) -> Row:
    where = f"{path}, entry {entry.name} of group {group.name}"
    file = entry.config or group.config
    if file is None:
        raise UserError(f"{where}: has no config, and its group has none either; name an experiment file")
    overrides = {**dict(leaves(group.overrides)), **dict(leaves(entry.overrides))}
    if "training.seed" in overrides:
        raise UserError(f"{where}: overrides training.seed; give the seeds under seeds")
    if not (path.parent / file).is_file():
        raise UserError(f"{where}: there is no experiment file {path.parent / file}; config is relative to the suite")
    config = load_config(path.parent / file, [group.overrides, entry.overrides], where)
    if isinstance(group, TrainingGroup) and group.curve and config.training.validate_every == 0:
        raise UserError(f"{where}: its curve needs training.validate_every > 0 and has 0; set it under overrides")
    if isinstance(group, PseudoMaskGroup) and config.cosegmentation.source == "true-masks":
        raise UserError(
            f"{where}: cosegmentation.source is true-masks, which are the truth themselves and no pseudo masks; set it "
            "to foundation under overrides"
        )
    return Row(group, entry, config, overrides, file, entry.seeds or group.seeds or suite.seeds)


def choose(rows: Sequence[Row], names: Sequence[str], supervision: Supervision = "image") -> list[Row]:
    """The rows of the groups and entries named; where both are, those that are in both. All without names.

    Args:
        rows: of a suite.
        names: of groups and entries.
        supervision: only groups of this one are looked into.

    Raises:
        UserError: a name is none of a group or an entry, or one chooses nothing beside the others.
    """
    others = {name for row in rows if row.supervision != supervision for name in (row.group.name, row.entry.name)}
    rows = [row for row in rows if row.supervision == supervision]
    if not rows:
        raise UserError(f"--supervision {supervision}: the suite has no such group; leave it out or give the other one")
    groups, entries = {row.group.name for row in rows}, {row.entry.name for row in rows}
    for name in names:
        if name in others - groups - entries:
            other = "pixel" if supervision == "image" else "image"
            raise UserError(f"--only {name}: is of the groups with supervision {other}; add --supervision {other}")
        if name not in groups | entries:
            close = nearest(name, [*groups, *entries])
            raise UserError(f"--only {name}: the suite has no entry and no group of that name; the nearest is {close}")
    wanted_groups, wanted_entries = groups & set(names), entries & set(names)
    chosen = [
        row
        for row in rows
        if (not wanted_groups or row.group.name in wanted_groups)
        and (not wanted_entries or row.entry.name in wanted_entries)
    ]
    met = {name for row in chosen for name in (row.group.name, row.entry.name)}
    for name in names:
        if name not in met:
            inside = "has none of the entries" if name in wanted_groups else "is an entry of none of the groups"
            raise UserError(f"--only {name}: {inside} that the other --only name; leave one of them out")
    return chosen


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that is most like another one."""
    by_spelling = {other.lower(): other for other in known}
    return by_spelling[difflib.get_close_matches(name.lower(), by_spelling, n=1, cutoff=0.0)[0]]


def _unique(names: Sequence[str], where: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{where} names {name} twice; each needs a name of its own")


def _problem(error: ValidationError, values: Mapping[str, Any]) -> str:
    """Where a suite is wrong and how, to follow its path; an unknown key, the likelier mistake, first."""
    problems = error.errors(include_url=False)
    keys_first = (problem for problem in problems if problem["type"] in ("extra_forbidden", "invalid_key"))
    first = next(keys_first, problems[0])
    place, model, value, inner = _locate(first["loc"], values)
    keys = [part for part in inner if isinstance(part, str)]
    key = ".".join(keys)
    if first["type"] == "invalid_key" or first["loc"][-1:] == ("[key]",):
        for part in inner[: -1 if first["type"] == "invalid_key" else -2]:
            value = value[part]
        strange = next(name for name in value if not isinstance(name, str))
        return f"{place}: the key {show_value(strange)} must be text; put it into quotes or give the right one"
    if first["type"] == "extra_forbidden":
        fields = PaperFigures.model_fields if keys[:-1] == ["paper"] else model.model_fields
        near = ".".join([*keys[:-1], nearest(keys[-1], fields)])
        return f"{place}: unknown key {key}{_owner(key, model)}; the nearest right key is {near}"
    right = wanted(first)
    if keys[:1] == ["compare"]:
        inner, right = ["compare"], "a list of pairs of entries' names"
    elif first["type"] == "missing":
        return f"{place}: {key} is missing and must be given"
    elif first["type"] == "union_tag_invalid":
        key, inner = "kind", ["kind"]
    for part in inner:
        value = value[part]
    return f"{place}: {key or 'it'} is {show_value(value)} but must be {right}"


def _owner(key: str, model: type[BaseModel]) -> str:
    """An aside on the other kind of group where that has a key."""
    others: dict[type[BaseModel], tuple[type[BaseModel], str]] = {
        TrainingGroup: (PseudoMaskGroup, "pseudo-masks"),
        PseudoMaskGroup: (TrainingGroup, "training"),
        Entry: (TrainingEntry, "training"),
    }
    other, kind = others.get(model, (model, ""))
    return f" (of groups of kind {kind} alone)" if key in other.model_fields else ""


def _locate(loc: Sequence[int | str], values: Any) -> tuple[str, type[BaseModel], Any, list[int | str]]:
    """Where pydantic's problem lies.

    Returns:
        the entry and the group in words, which model describes it, what the file says of it, and the way within it.
    """
    parts = list(loc)
    if len(parts) < 2 or parts[0] != "groups":
        return "", Suite, values, parts
    group = values["groups"][parts[1]]
    place = f"group {_called(group, parts[1])}"
    if len(parts) == 2:
        return f", {place}", TrainingGroup, group, []
    trained, parts = parts[2] == "training", parts[3:]  # pydantic names the choice, which is no key
    if len(parts) < 2 or parts[0] != "entries":
        return f", {place}", TrainingGroup if trained else PseudoMaskGroup, group, parts
    entry = group["entries"][parts[1]]
    model = TrainingEntry if trained else Entry
    return f", entry {_called(entry, parts[1])} of {place}", model, entry, parts[2:]


def _called(part: Any, place: int | str) -> str:
    """A group's or an entry's name, or its place from 1 where it has none."""
    name = part.get("name") if isinstance(part, Mapping) else None
    return show_value(name) if name is not None else str(int(place) + 1)
