"""Suites: the file, what is run for it, and what the tables say."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from filelock import FileLock
from PIL import Image
from safetensors.torch import save_file

from fmwiss import cli
from fmwiss.bench import worker
from fmwiss.bench.figure import write_figure
from fmwiss.bench.plan import FIGURES, IDENTITY, Job, Workspace
from fmwiss.bench.results import Result, Summary, Table, TableRow, difference
from fmwiss.bench.run import Bench, minutes_of
from fmwiss.bench.suite import Row, Suite, choose, find_suite, load_suite, resolve
from fmwiss.bench.tables import as_csv, as_json, as_markdown
from fmwiss.bench.worker import Place
from fmwiss.config import Config, load_config
from fmwiss.data.voc import VOCSource
from fmwiss.errors import UserError
from fmwiss.methods import METHODS, method_class
from fmwiss.pseudo_masks import StoredPlusMasks, StoredPseudoMasks
from fmwiss.reporting.pictures import save_png, side_by_side

SUITES = Path(__file__).parents[1] / "configs" / "suites"
BASE, NEW = ("aeroplane", "bicycle", "bird", "boat"), ("sheep", "sofa")
EXPERIMENT: dict[str, Any] = {
    "protocol": {"steps": [list(BASE), list(NEW)]},
    "data": {"crop_size": 32, "resize": 32, "workers": 0},
    "segmenter": {
        "encoder": "test_efficientnet",
        "pretrained": False,
        "decoder_channels": 8,
        "atrous_rates": [1, 1, 1],
    },
    "cosegmentation": {
        "source": "true-masks",
        "vision_language": {"name": "imagenet-names", "model": "test_efficientnet", "tag": None, "input_size": 96},
        "self_supervised": {"model": "test_vit", "input_size": 96},
    },
    "copy_paste": {"bank_size": 2},
    "method": {"warmup_epochs": 1},
    "training": {"step0": {"epochs": 1, "batch_size": 8}, "steps": {"epochs": 1, "batch_size": 4}},
}
WILSON = {**EXPERIMENT, "method": {"name": "wilson", "localizer_epochs": 0}}
SUITE: dict[str, Any] = {
    "title": "Two methods",
    "groups": [
        {
            "name": "15-5",
            "compare": [["FMWISS", "WILSON"]],
            "entries": [
                {"name": "FMWISS", "config": "fmwiss.yaml", "paper": {"old": 78.4, "new": 54.5, "all": 73.3}},
                {"name": "WILSON", "config": "wilson.yaml", "paper": {"old": 74.2, "new": 41.7, "all": 67.2}},
            ],
        }
    ],
}


COSEG = {"cosegmentation.source": "foundation"}


def suite_file(folder: Path, **changes: Any) -> Path:
    """A suite beside its two experiments."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "fmwiss.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    (folder / "wilson.yaml").write_text(yaml.safe_dump(WILSON))
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump({**SUITE, **changes}))
    return path


def rows_of(path: Path) -> tuple[Suite, list[Row]]:
    suite = load_suite(path)
    return suite, resolve(suite, path)


# ----------------------------------------------------------------------------------------------------- the suite file


@pytest.mark.parametrize("path", sorted(SUITES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_suites_of_the_project_name_experiments_and_keys_that_there_are(path: Path) -> None:
    suite, rows = rows_of(path) if _there(path) else pytest.skip("configs/emoji is not there")
    assert suite.title and rows
    for row in rows:
        plus = row.config.cosegmentation.name == "fmwiss-plus"
        assert Path(row.file).stem == ("fmwiss-plus" if plus else row.config.method.name)
        if row.group.kind == "training":
            protocol = row.config.protocol
            if protocol.steps == "coco-to-voc":
                assert Path(row.file).parent.name == protocol.steps and protocol.setting == "disjoint"
            else:
                assert Path(row.file).parent.name == f"{protocol.steps}-{protocol.setting}"


def _there(path: Path) -> bool:
    return "emoji" not in path.stem or (SUITES.parent / "emoji").is_dir()


def test_the_matrix_of_methods_is_whole() -> None:
    for name in ("voc", "voc-mini", "emoji"):
        _, rows = rows_of(SUITES / f"{name}.yaml")
        weak, pixel = ([row for row in rows if row.supervision == kind] for kind in ("image", "pixel"))
        from_tags = [method for method in METHODS.values() if method.supervision == "image"]
        # fmwiss-plus is no method, but rows of its own
        assert len({(row.file, row.config.method.name) for row in weak}) == len(weak) == (len(from_tags) + 1) * 4
        masks = [row for row in pixel if method_class(row.config.method).supervision == "pixel"]
        from_masks = len(METHODS) - len(from_tags)
        assert len({(row.file, row.config.method.name) for row in masks}) == len(masks) == from_masks * 4
        assert {row.file for row in pixel} - {row.file for row in masks} < {row.file for row in weak}
        assert not any(method_class(row.config.method).supervision == "pixel" for row in weak)


@pytest.mark.parametrize("name", ["voc", "voc-mini", "emoji"])
def test_a_run_with_a_curve_is_no_other_run(name: str) -> None:
    """Rows that differ in nothing but how often they are validated would be trained twice."""
    experiments, runs = set(), set()
    for suite in (name, f"{name}-ablations"):
        for row in rows_of(SUITES / f"{suite}.yaml")[1]:
            if row.group.kind == "training":
                training = row.config.training.model_copy(update={"validate_every": 0})
                experiments.add(row.config.model_copy(update={"training": training}).model_dump_json())
                runs.add(row.config.model_dump_json())
    assert len(runs) == len(experiments)


@pytest.mark.parametrize("name", ["voc", "voc-mini", "emoji"])
def test_the_papers_figures_are_those_of_its_tables(name: str) -> None:
    """Each "all" is the mean over 21 labels of which the background is one that the columns do not show."""
    suite, _ = rows_of(SUITES / f"{name}.yaml")
    best: dict[str, float] = {}
    for group in suite.groups:
        n_old, n_new = map(int, group.name.split()[0].split("-"))
        for entry in group.entries:
            paper = getattr(entry, "paper", None)
            if paper is None:
                continue
            background = 21 * paper.all - n_old * paper.old - n_new * paper.new
            # what forgets its old classes forgets the background, too
            assert (0 if "masks" in group.name else 70) < background < 100, (group.name, entry.name, background)
            if entry.name != "Joint":
                best[group.name] = max(best.get(group.name, 0.0), paper.all)
    assert best == {
        "15-5 overlap": 73.3, "15-5 disjoint": 70.7, "10-10 overlap": 69.1, "10-10 disjoint": 64.6,
        "15-5 overlap, from masks": 70.1, "15-5 disjoint, from masks": 67.2,
        "10-10 overlap, from masks": 67.4, "10-10 disjoint, from masks": 64.7,
    }  # fmt: skip


def test_a_suite_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_suite("voc-mini").resolve() == (SUITES / "voc-mini.yaml").resolve()
    monkeypatch.chdir(tmp_path)
    assert find_suite("voc-mini").resolve() == (SUITES / "voc-mini.yaml").resolve()  # the source tree's
    suite_file(tmp_path / "configs" / "suites")
    assert find_suite("suite") == Path("configs/suites/suite.yaml")
    with pytest.raises(UserError, match=r"no suite 'voc-mimi'; the nearest one is voc-mini, and there are .*suite, "):
        find_suite("voc-mimi")


def test_a_group_and_the_suite_give_what_entries_leave_out(tmp_path: Path) -> None:
    group = {
        "name": "ablation",
        "config": "fmwiss.yaml",
        "overrides": {"method.beta": 0.5, "method.tau": 0.2},
        "entries": [{"name": 10, "overrides": {"method.beta": 0.7}}, {"name": "b", "seeds": [4]}],
    }
    suite, (first, second) = rows_of(suite_file(tmp_path, seeds=[2, 3], groups=[group]))
    assert (first.entry.name, first.config.method.beta, first.config.method.tau) == ("10", 0.7, 0.2)
    assert (second.config.method.beta, first.seeds, second.seeds) == (0.5, (2, 3), (4,))
    assert (first.file, first.overrides) == ("fmwiss.yaml", {"method.beta": 0.7, "method.tau": 0.2})
    assert suite.groups[0].kind == "training"


def test_an_entrys_overrides_lie_over_the_groups_key_by_key(tmp_path: Path) -> None:
    """However they are written: by key path, as mappings, or one of each."""
    nested = {"method": {"beta": 0.7}, "training": {"steps": {"epochs": 3}}}
    dotted = {"method.beta": 0.7, "training.steps.epochs": 3}
    ours = {"method": {"tau": 0.2, "beta": 0.1}, "training.steps": {"batch_size": 2}}
    for first in (ours, {"method.tau": 0.2, "method": {"beta": 0.1}, "training": {"steps": {"batch_size": 2}}}):
        for second in (nested, dotted):
            entry = {"name": "a", "overrides": second}
            group = {"name": "g", "config": "fmwiss.yaml", "overrides": first, "entries": [entry]}
            (row,) = rows_of(suite_file(tmp_path, groups=[group]))[1]
            assert (row.config.method.tau, row.config.method.beta) == (0.2, 0.7)
            assert (row.config.training.steps.batch_size, row.config.training.steps.epochs) == (2, 3)
            assert row.overrides == {"method.tau": 0.2, "training.steps.batch_size": 2, **dotted}


def test_names_choose_groups_and_entries(tmp_path: Path) -> None:
    groups = [{**SUITE["groups"][0], "name": name} for name in ("one", "two")]
    _, rows = rows_of(suite_file(tmp_path, groups=groups))
    labels = [row.label for row in choose(rows, [])]
    assert labels == ["one / FMWISS", "one / WILSON", "two / FMWISS", "two / WILSON"]
    assert [row.label for row in choose(rows, ["WILSON"])] == ["one / WILSON", "two / WILSON"]
    assert [row.label for row in choose(rows, ["two"])] == ["two / FMWISS", "two / WILSON"]
    assert [row.label for row in choose(rows, ["two", "WILSON"])] == ["two / WILSON"]
    with pytest.raises(UserError, match=r"--only wilson: .* the nearest is WILSON"):
        choose(rows, ["wilson"])


def test_names_that_choose_nothing_together_are_refused(tmp_path: Path) -> None:
    other = {"name": "two", "config": "fmwiss.yaml", "entries": [{"name": "B = 0"}]}
    _, rows = rows_of(suite_file(tmp_path, groups=[SUITE["groups"][0], other]))
    assert [row.label for row in choose(rows, ["two", "B = 0"])] == ["two / B = 0"]
    with pytest.raises(UserError, match=r"--only two: has none of the entries that the other --only name"):
        choose(rows, ["two", "WILSON"])
    with pytest.raises(UserError, match=r"--only WILSON: is an entry of none of the groups"):
        choose(rows, ["two", "B = 0", "WILSON"])


def pixel_suite(folder: Path) -> Path:
    """The two methods from tags, and beside them two from masks, of which one replays photographs."""
    for name in ("ft", "recall"):
        method = {**EXPERIMENT, "method": {"name": name}}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(method))
    entries = [
        {"name": "FT", "config": "ft.yaml"},
        {"name": "RECALL", "config": "recall.yaml", "note": "there is nothing to replay."},
    ]
    masks = {"name": "15-5, from masks", "supervision": "pixel", "entries": entries}
    return suite_file(folder, groups=[SUITE["groups"][0], masks])


def pixel_bench(path: Path, out: Path, data: Path, **options: Any) -> Bench:
    return Bench(str(path), Place(data, None, out / "cache", 1, "32-true"), out, **options)


def test_supervision_chooses_groups(tmp_path: Path, tiny_voc: Path) -> None:
    path = pixel_suite(tmp_path / "suite")
    weak = pixel_bench(path, tmp_path / "out", tiny_voc)
    assert [row.entry.name for row in weak.chosen] == ["FMWISS", "WILSON"] and weak.left_out == []
    assert [table.name for table in weak.tables()] == ["15-5"]
    masks = pixel_bench(path, tmp_path / "out", tiny_voc, supervision="pixel")
    assert [row.entry.name for row in masks.chosen] == ["FT"]
    assert [row.entry.name for row in masks.left_out] == ["RECALL"]
    assert any("left out" in line and "--replay" in line for line in masks.plan())
    (table,) = masks.tables()
    assert table.name == "15-5, from masks"
    assert "- RECALL: there is nothing to replay." in as_markdown(masks.suite, "suite", [table])
    with pytest.raises(UserError, match=r"--only FT: is of the groups with supervision pixel; add --supervision pixel"):
        pixel_bench(path, tmp_path / "out", tiny_voc, only=["FT"])
    with pytest.raises(UserError, match=r"--supervision pixel: the suite has no such group"):
        pixel_bench(suite_file(tmp_path / "other"), tmp_path / "out", tiny_voc, supervision="pixel")
    with pytest.raises(UserError, match=r"--replay .*: none of the chosen entries replays photographs"):
        pixel_bench(path, tmp_path / "out", tiny_voc, replay=tmp_path)


def test_what_is_replayed_is_part_of_a_runs_identity_and_its_place_is_not(tmp_path: Path, tiny_voc: Path) -> None:
    path = pixel_suite(tmp_path / "suite")
    for place in ("here", "there"):
        for name in BASE:
            (tmp_path / place / name).mkdir(parents=True)
            shutil.copy(tiny_voc / "JPEGImages/val_000000.jpg", tmp_path / place / name)
    options = {"supervision": "pixel", "only": ["RECALL"]}
    first = pixel_bench(path, tmp_path / "out", tiny_voc, replay=tmp_path / "here", **options)
    job = first.jobs[-1]
    assert job.config.method.replay == tmp_path / "here"  # type: ignore[union-attr]
    first.workspace.keep_identity(job)
    again = pixel_bench(path, tmp_path / "out", tiny_voc, replay=tmp_path / "there", **options)
    assert again.jobs[-1].folder == job.folder
    assert pixel_bench(path, tmp_path / "out", tiny_voc).jobs  # a folder is not needed to show what is finished
    (tmp_path / "there" / "ATTRIBUTION.md").write_text("no photograph")
    pixel_bench(path, tmp_path / "out", tiny_voc, replay=tmp_path / "there", **options)
    shutil.copy(tiny_voc / "JPEGImages/val_000001.jpg", tmp_path / "there" / BASE[0])
    with pytest.raises(UserError, match=r"was made from other data: replay is another one"):
        pixel_bench(path, tmp_path / "out", tiny_voc, replay=tmp_path / "there", **options)


def test_given_saliency_maps_are_part_of_a_runs_identity(tmp_path: Path, tiny_voc: Path) -> None:
    maps, path = tmp_path / "maps", suite_file(tmp_path / "suite")
    maps.mkdir()
    (maps / "a.png").write_bytes(b"12345")
    experiment = yaml.safe_load((path.parent / "wilson.yaml").read_text())
    experiment["method"] = {"name": "eps", "saliency": str(maps)}
    (path.parent / "wilson.yaml").write_text(yaml.safe_dump(experiment))
    bench = pixel_bench(path, tmp_path / "out", tiny_voc)
    job = next(job for job in bench.jobs if job.config.method.name == "eps")
    bench.workspace.keep_identity(job)
    pixel_bench(path, tmp_path / "out", tiny_voc)
    (maps / "a.png").write_bytes(b"1234")
    with pytest.raises(UserError, match=r"was made from other data: saliency is another one in .*maps now"):
        pixel_bench(path, tmp_path / "out", tiny_voc)
    shutil.rmtree(maps)
    with pytest.raises(UserError, match=r"entry WILSON of group 15-5: method\.saliency = .*maps: is no folder"):
        pixel_bench(path, tmp_path / "out", tiny_voc)
    assert pixel_bench(path, tmp_path / "out", tiny_voc, only=["FMWISS"]).tables()  # what is finished is shown


def test_a_key_that_an_earlier_version_did_not_have_counts_as_its_default(tmp_path: Path, tiny_voc: Path) -> None:
    path = suite_file(tmp_path / "suite")
    bench = pixel_bench(path, tmp_path / "out", tiny_voc)
    for job in bench.jobs:
        bench.workspace.keep_identity(job)
        kept = json.loads((job.folder / IDENTITY).read_text())
        if job.kind == "training":
            del kept["config"]["training"]["step0"]["loss"]
        else:
            assert "training.step0.loss" not in kept["config"]  # the base of an earlier version is found
        (job.folder / IDENTITY).write_text(json.dumps(kept))
    pixel_bench(path, tmp_path / "out", tiny_voc)
    for name in ("fmwiss", "wilson"):
        experiment = yaml.safe_load((path.parent / f"{name}.yaml").read_text())
        experiment["training"]["step0"]["loss"] = "cross-entropy"
        (path.parent / f"{name}.yaml").write_text(yaml.safe_dump(experiment))
    other = pixel_bench(path, tmp_path / "out", tiny_voc)
    assert not {job.folder for job in other.jobs} & {job.folder for job in bench.jobs}


def group_with(**changes: Any) -> dict[str, Any]:
    return {"groups": [{**SUITE["groups"][0], **changes}]}


def entry_with(**changes: Any) -> dict[str, Any]:
    return group_with(entries=[{"name": "A", "config": "fmwiss.yaml", **changes}], compare=[])


MASKS = {"kind": "pseudo-masks", "compare": []}

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "key of the suite": ({"titel": "x"}, "suite.yaml: unknown key titel; the nearest right key is title"),
    "key of a group": (group_with(curves=True), ", group 15-5: unknown key curves; the nearest right key is curve"),
    "key of an entry": (
        entry_with(overides={}),
        ", entry A of group 15-5: unknown key overides; the nearest right key is overrides",
    ),
    "key of the paper's figures": (
        entry_with(paper={"old": 1, "newer": 2}),
        ", entry A of group 15-5: unknown key paper.newer; the nearest right key is paper.new",
    ),
    "key of the other kind": (
        group_with(**MASKS, curve=True, entries=[{"name": "A"}]),
        ", group 15-5: unknown key curve (of groups of kind training alone); the nearest right key is",
    ),
    "supervision": (group_with(supervision="tags"), "supervision is tags but must be 'image' or 'pixel'"),
    "key of the other kind again": (group_with(split="dev"), "key split (of groups of kind pseudo-masks alone)"),
    "paper beside pseudo masks": (
        group_with(**MASKS, entries=[{"name": "A", "paper": {}}]),
        ", entry A of group 15-5: unknown key paper (of groups of kind training alone)",
    ),
    "kind": (group_with(kind="trainings"), "kind is trainings but must be 'training' or 'pseudo-masks'"),
    "seeds": ({"seeds": "all"}, "suite.yaml: seeds is all but must be a list"),
    "seed": ({"seeds": [-1]}, "seeds is -1 but must be greater than or equal to 0"),
    "seed that is none": ({"seeds": [True]}, "seeds is True but must be an integer"),
    "seed twice": ({"seeds": [0, 0]}, "seeds is [0, 0] but must be different whole numbers"),
    "key of a group that is true": (
        {"groups": [{**SUITE["groups"][0], True: 1}]},
        ", group 15-5: the key True must be text",
    ),
    "key of overrides that is nothing": (entry_with(overrides={None: 1}), "group 15-5: the key null must be text"),
    "no seeds": ({"seeds": []}, "seeds is [] but must be a longer list"),
    "percentage": (entry_with(paper={"old": 784}), "paper.old is 784 but must be less than or equal to 100"),
    "no groups": ({"groups": []}, "groups is [] but must be a longer list"),
    "groups as a mapping": ({"groups": {"a": 1}}, "groups is {'a': 1} but must be a list"),
    "group as text": ({"groups": ["a"]}, ", group 1: it is a but must be a mapping"),
    "group without a name": ({"groups": [{"entries": []}]}, ", group 1: name is missing and must be given"),
    "entry without a name": (entry_with(name=None), ", entry 1 of group 15-5: name is null but must be a string"),
    "pair of one": (group_with(compare=[["FMWISS"]]), "compare is [['FMWISS']] but must be a list of pairs"),
    "pair of a stranger": (group_with(compare=[["FMWISS", "EPS"]]), "compare names EPS, which is no entry"),
    "group twice": ({"groups": SUITE["groups"] * 2}, "groups names 15-5 twice"),
    "entry twice": (group_with(entries=SUITE["groups"][0]["entries"] * 2), "entries names FMWISS twice"),
    "no experiment": (entry_with(config=None), "entry A of group 15-5: has no config, and its group has none either"),
    "experiment that is not there": (entry_with(config="none.yaml"), "none.yaml; config is relative to the suite"),
    "override of an unknown key": (
        entry_with(overrides={"method.lamda_dcl": 1}),
        "entry A of group 15-5: unknown key method.lamda_dcl; the nearest right key is method.lambda_dcl",
    ),
    "override out of range": (
        entry_with(overrides={"method": {"beta": 2}}),
        "entry A of group 15-5: method.beta is 2 but must be less than or equal to 1",
    ),
    "masks that are the truth": (
        group_with(**MASKS, entries=[{"name": "A", "config": "fmwiss.yaml"}]),
        "entry A of group 15-5: cosegmentation.source is true-masks, which are the truth themselves",
    ),
    "override of the seed": (entry_with(overrides={"training": {"seed": 1}}), "give the seeds under seeds"),
    "curve of nothing": (group_with(curve=True), "entry FMWISS of group 15-5: its curve needs training.validate_every"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_a_suite_is_told(name: str, tmp_path: Path) -> None:
    changes, expected = WRONG[name]
    path = suite_file(tmp_path, **changes)
    with pytest.raises(UserError) as caught:
        resolve(load_suite(path), path)
    assert expected in str(caught.value) and str(caught.value).startswith(str(path))


def test_a_suite_that_is_no_mapping(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("[1, 2]")
    with pytest.raises(UserError, match=r"must be a YAML mapping of title, seeds and groups"):
        load_suite(tmp_path / "list.yaml")
    (tmp_path / "number.yaml").write_text("1: x")
    with pytest.raises(UserError, match=r"number.yaml: the key 1 must be text; put it into quotes"):
        load_suite(tmp_path / "number.yaml")
    with pytest.raises(UserError, match=r"there is no suite file"):
        load_suite(tmp_path / "none.yaml")


# ----------------------------------------------------------------------------------------------- what there is to do


def jobs_of(path: Path, out: Path, data: Path, seeds: Sequence[int] | None = None) -> list[Job]:
    return Workspace(out, VOCSource(data)).jobs(rows_of(path)[1], seeds)


def test_runs_of_equal_bases_share_one_per_seed(tmp_path: Path, tiny_voc: Path) -> None:
    path = suite_file(tmp_path, seeds=[0, 1])
    jobs = jobs_of(path, tmp_path / "out", tiny_voc)
    titles = [
        "15-5 / base model, seed 0", "15-5 / FMWISS, seed 0", "15-5 / WILSON, seed 0",
        "15-5 / base model, seed 1", "15-5 / FMWISS, seed 1", "15-5 / WILSON, seed 1",
    ]  # fmt: skip
    assert [job.title for job in jobs] == titles
    bases = {job.seed: job.folder for job in jobs if job.kind == "base"}
    assert all(job.base == bases[job.seed] for job in jobs if job.kind == "training") and len(set(bases.values())) == 2
    assert [job.config.training.seed for job in jobs] == [0, 0, 0, 1, 1, 1]
    assert [job.seed for job in jobs_of(path, tmp_path / "out", tiny_voc, seeds=[5])] == [5, 5, 5]


def base_folders(path: Path, out: Path, data: Path) -> set[Path]:
    return {job.folder for job in jobs_of(path, out, data) if job.kind == "base"}


def test_what_a_base_depends_on_makes_another(tmp_path: Path, tiny_voc: Path) -> None:
    entries = [
        {"name": "plain"},
        {"name": "of the step", "overrides": {"method.beta": 0.1, "copy_paste.bank_size": 9, "data.fraction": 0.5}},
        {"name": "of the base", "overrides": {"training.step0.epochs": 2}},
        {"name": "compared otherwise", "overrides": {"evaluation.image": "center-crop"}},
    ]
    path = suite_file(tmp_path, groups=[{"name": "g", "config": "fmwiss.yaml", "entries": entries}])
    jobs = {job.label: job for job in jobs_of(path, tmp_path / "out", tiny_voc) if job.kind == "training"}
    bases = [jobs[f"g / {entry['name']}"].base for entry in entries]
    assert bases[0] == bases[1] and len(set(bases)) == 3


def test_equal_experiments_are_one_run_whatever_they_are_called(tmp_path: Path, tiny_voc: Path) -> None:
    entries = [
        {"name": "default"},
        {"name": "said aloud", "overrides": {"method.beta": 0.9, "data.fraction": 1}},
        {"name": "how, not what", "overrides": {"data.workers": 1, "training.checkpoint_every": 7}},
        {"name": "another", "overrides": {"method.beta": 0.8}},
    ]
    groups = [{"name": "g", "config": "fmwiss.yaml", "entries": entries}]
    out, path = tmp_path / "out", suite_file(tmp_path, groups=groups)
    runs = [job for job in jobs_of(path, out, tiny_voc) if job.kind == "training"]
    assert [job.label for job in runs] == ["g / default", "g / another"]
    # renamed or moved to another place it is found again
    runs[0].folder.mkdir(parents=True)
    groups[0] = {**groups[0], "name": "new name", "entries": entries[:0:-1]}
    again = [job for job in jobs_of(suite_file(tmp_path, groups=groups), out, tiny_voc) if job.kind == "training"]
    assert [job.folder for job in again if job.label.endswith("how, not what")] == [runs[0].folder]


def test_methods_with_all_defaults_are_not_confused(tmp_path: Path, tiny_voc: Path) -> None:
    entries = []
    for name in ("wilson", "cam", "finetuning", "fmwiss"):
        suite_file(tmp_path)
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({**EXPERIMENT, "method": {"name": name}}))
        entries.append({"name": name, "config": f"{name}.yaml"})
    path = tmp_path / "four.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "g", "entries": entries}]}))
    assert len([job for job in jobs_of(path, tmp_path / "out", tiny_voc) if job.kind == "training"]) == 4


def test_other_photographs_are_other_runs(tmp_path: Path, tiny_voc: Path) -> None:
    path, data = suite_file(tmp_path), Path(shutil.copytree(tiny_voc, tmp_path / "voc"))
    before = [job.folder for job in jobs_of(path, tmp_path / "out", data)]
    assert [job.folder for job in jobs_of(path, tmp_path / "out", tiny_voc)] == before
    split = data / "ImageSets/Segmentation/val.txt"
    split.write_text("\n".join(split.read_text().split()[:-1]))
    assert not {job.folder for job in jobs_of(path, tmp_path / "out", data)} & set(before)


# ------------------------------------------------------------------------------------------------------ the figures


FIRST = {0: (50.0, 20.0, 40.0), 1: (52.0, 23.0, 42.0), 2: (51.0, 21.5, 42.5)}
SECOND = {0: (49.0, 21.0, 39.0), 1: (50.5, 20.0, 40.0)}


def stages_of(config: Config) -> tuple[str, str, str]:
    """What ``evaluate_pseudo_masks`` gives."""
    return (StoredPlusMasks if config.cosegmentation.name == "fmwiss-plus" else StoredPseudoMasks).stage_names


def pretend(job: Job, means: tuple[float, float | None, float], minutes: float = 6.0) -> None:
    """What a finished job leaves, as far as tables read it."""
    names = ("background", *BASE, *NEW)
    iou: dict[str, float | None] = {name: means[2] + place for place, name in enumerate(names)}
    iou["boat"] = None
    if job.kind == "pseudo-masks":
        stages = {
            stage: {"iou": {"sheep": value - 1, "sofa": value + 1}, "miou": value}
            for stage, value in zip(stages_of(job.config), means, strict=True)
        }
        job.folder.mkdir(parents=True)
        text = json.dumps({"split": "val", "images": 3, **stages, "minutes": minutes, "commit": "c" * 40})
        (job.folder / FIGURES).write_text(text)
        return
    for t in range(1 if job.kind == "base" else 2):
        step = job.folder / f"step{t}"
        step.mkdir(parents=True, exist_ok=True)
        figures = {
            "step": t,
            "images": 8,
            "miou": dict(zip(("old", "new", "all"), means if t else (means[0] + 1, None, means[2]), strict=True)),
            "pixel_accuracy": 80.0,
            "iou": iou,
            "split": "val",
            "training_images": 5,
            "minutes": {"all": minutes},
            "peak_memory_gib": 1.0,
            "diagnostic": t > 0 and job.config.method.name == "fmwiss",
        }
        machine = {"system": "s", "processor": "p", "cores": 2, "memory_gib": None, "devices": ["cpu"]}
        environment = {
            "fmwiss": "0", "commit": "a" * 40 + "+", "versions": {}, "machine": machine, "threads": 1, "processes": 1,
            "precision": "32-true", "finished": "2026-01-01T00:00+00:00",
        }  # fmt: skip
        log = [{"iteration": 0, "images": 5, "iterations": 6, "per_epoch": 2}]
        halfway = {"old": means[0] - 2, "new": 1.0, "all": means[2] - 2}
        log += [{"iteration": 2, "epoch": 1, "validation": {"miou": halfway}}] if t else []
        (step / "evaluation.json").write_text(json.dumps(figures))
        (step / "environment.json").write_text(json.dumps(environment))
        (step / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
        (step / "model.json").write_text(json.dumps({"steps": [list(BASE), list(NEW)][: t + 1]}))
    (job.folder / "config.yaml").write_text(yaml.safe_dump(job.config.model_dump(mode="json")))
    (job.folder / "report.html").touch()


@pytest.fixture
def finished(tmp_path: Path, tiny_voc: Path) -> tuple[Bench, Path]:
    """A suite whose runs are finished for three seeds of one method and two of the other."""
    path = suite_file(tmp_path, **group_with(curve=True, overrides={"training.validate_every": 1}), seeds=[0, 1, 2])
    bench = Bench(str(path), Place(tiny_voc), tmp_path / "out")
    for job in bench.jobs:
        figures = (FIRST if job.label.endswith("FMWISS") else SECOND).get(job.seed)
        if job.kind == "training" and figures:
            pretend(job, figures, minutes=6.0 + job.seed)
            bench.workspace.keep_identity(job)
    return bench, tmp_path / "out"


def test_means_and_deviations_are_numpys(finished: tuple[Bench, Path]) -> None:
    (table,) = finished[0].tables()
    for row, figures in zip(table.rows, (FIRST, SECOND), strict=True):
        values = np.array(list(figures.values()))
        for place, column in enumerate(("old", "new", "all")):
            summary = row.summary(column)
            assert summary.mean == pytest.approx(values[:, place].mean())
            assert summary.deviation == pytest.approx(values[:, place].std(ddof=1))
        assert row.iou("all")["sheep"].mean == pytest.approx(values[:, 2].mean() + 5)
        assert row.iou("all")["boat"] == Summary(None, None)
        assert row.base().mean == pytest.approx(values[:, 0].mean() + 1)
    assert table.rows[0].minutes() == Summary(7.0, 1.0)
    assert [row.missing for row in table.rows] == [(), (2,)]
    assert [row.diagnostic for row in table.rows] == [True, False]


def test_differences_are_paired_by_seed(finished: tuple[Bench, Path]) -> None:
    (table,) = finished[0].tables()
    (found,) = table.differences
    both = np.array([np.subtract(FIRST[seed], SECOND[seed]) for seed in (0, 1)])
    for place, column in enumerate(("old", "new", "all")):
        assert found.summary(column).mean == pytest.approx(both[:, place].mean())
        assert found.summary(column).deviation == pytest.approx(both[:, place].std(ddof=1))
    assert list(found.by_seed) == [0, 1]
    assert found.paper == {"old": pytest.approx(4.2), "new": pytest.approx(12.8), "all": pytest.approx(6.1)}
    backwards = difference(table.rows[1], table.rows[0], ["all"])
    assert backwards.summary("all").mean == pytest.approx(-both[:, 2].mean())


def test_one_value_has_no_deviation_and_none_has_no_mean() -> None:
    assert Summary.of([3.0]) == Summary(3.0, None)
    assert Summary.of([None, 2.0, 4.0]) == Summary(3.0, pytest.approx(math.sqrt(2)))
    assert Summary.of([None]) == Summary.of([]) == Summary(None, None)


def test_the_three_files_say_the_same(finished: tuple[Bench, Path]) -> None:
    bench, out = finished
    tables = bench.write()
    markdown, values = (out / "results.md").read_text(), json.loads((out / "results.json").read_text())
    with (out / "results.csv").open(newline="") as file:
        lines = {(line["entry"], line["figure"]): line for line in csv.DictReader(file)}
    (group,) = values["groups"]
    for row in group["rows"]:
        label = f"{row['name']} (diagnostic: true masks)" if row["diagnostic"] else row["name"]
        (shown,) = [line for line in markdown.splitlines() if line.startswith(f"| {label} |")]
        cells = [cell.strip() for cell in shown.strip("|").split("|")]
        for place, column in enumerate(("old", "new", "all")):
            mean, deviation = row["mean"][column], row["deviation"][column]
            assert cells[2 + place] == f"{mean:.1f} ± {deviation:.1f}"
            line = lines[row["name"], f"mIoU {column}"]
            assert (float(line["mean"]), float(line["deviation"])) == (mean, deviation)
            assert float(line["paper"]) == row["paper"][column] == float(cells[5 + place])
            by_seed = {str(run["seed"]): run["figures"][column] for run in row["runs"]}
            assert {key: float(line[f"seed {key}"]) for key in by_seed} == by_seed
        assert cells[8] == str(len(row["seeds"])) and cells[10] == "aaaaaaa+"
        assert float(lines[row["name"], "IoU sheep"]["mean"]) == row["iou"]["all"]["sheep"]["mean"]
        assert lines[row["name"], "IoU boat"]["mean"] == "" and row["iou"]["all"]["boat"]["mean"] is None
    (one,) = group["differences"]
    line = lines["FMWISS - WILSON", "mIoU all"]
    assert (float(line["mean"]), float(line["deviation"])) == (one["mean"]["all"], one["deviation"]["all"])
    assert f"| FMWISS - WILSON | +1.2 ± 0.4 | +1.0 ± 2.8 | {one['mean']['all']:+.1f} ± " in markdown
    assert "| +4.2 | +12.8 | +6.1 | 2 |" in markdown
    assert "Not finished: WILSON (seed 2)." in markdown and "![" in markdown
    assert markdown == as_markdown(bench.suite, "suite", tables) and as_csv(tables) == (out / "results.csv").read_text()
    assert as_json(bench.suite, "suite", tables) == (out / "results.json").read_text()


def test_a_curve_holds_the_epochs_and_the_end(finished: tuple[Bench, Path]) -> None:
    (table,) = finished[0].tables()
    points = table.rows[1].curve()
    assert [epoch for epoch, _ in points] == [1.0, 3.0]
    assert points[0][1]["all"].mean == pytest.approx(37.5) and points[1][1]["all"].mean == pytest.approx(39.5)


def test_the_figure_has_a_panel_for_each_table_and_curve(finished: tuple[Bench, Path]) -> None:
    bench, out = finished
    write_figure(bench.tables(), "title", out / "two.png")
    plain = [table.__class__(**{**vars(table), "curve": False}) for table in bench.tables()]
    write_figure(plain, "title", out / "one.png")
    with Image.open(out / "two.png") as two, Image.open(out / "one.png") as one:
        assert two.format == one.format == "PNG"
        assert two.width == 2 * one.width and two.height == one.height
        colours = {colour for count, colour in two.convert("RGB").getcolors(1 << 20) or [] if count > 500}
    assert {(31, 119, 180), (255, 127, 14), (44, 160, 44)} <= colours  # a bar each for old, new and all


def test_a_name_with_dollars_is_no_formula(tmp_path: Path, tiny_voc: Path) -> None:
    entries = [{"name": r"$\frac{", "config": "fmwiss.yaml"}, {"name": "5 $ and $ 6", "config": "wilson.yaml"}]
    groups = [{"name": r"$\nothing$", "curve": True, "overrides": {"training.validate_every": 1}, "entries": entries}]
    bench = Bench(str(suite_file(tmp_path, groups=groups, title="$^$")), Place(tiny_voc), tmp_path / "out")
    for job in bench.jobs:
        pretend(job, (50.0, 20.0, 40.0))
    bench.write()
    assert (tmp_path / "out/results.png").is_file()


def test_seeds_of_one_row_may_have_different_stages() -> None:
    full = Result(0, "a", {"init": 1.0, "ceiling": 3.0}, {"init": {"sofa": 1.0}, "ceiling": {"sofa": 3.0}}, 1.0, None)
    row = TableRow("N", "f", {}, (0, 1), (full, Result(1, "b", {"init": 2.0}, {"init": {"sofa": 2.0}}, 1.0, None)))
    assert row.iou("ceiling") == {"sofa": Summary(3.0, None)} and row.iou("init")["sofa"].mean == 1.5
    text = as_csv([Table("g", "", "pseudo-masks", ("init", "ceiling"), False, (row,), ())])
    lines = {line["figure"]: line for line in csv.DictReader(text.splitlines())}
    assert (lines["IoU ceiling, sofa"]["seed 0"], lines["IoU ceiling, sofa"]["seed 1"]) == ("3.0", "")


def test_tables_of_pseudo_masks_show_the_stages(tmp_path: Path, tiny_voc: Path) -> None:
    entries = [{"name": f"N = {n}", "overrides": {"cosegmentation.n_seeds": n}} for n in (1, 9)]
    group = {"name": "seeds", "kind": "pseudo-masks", "config": "fmwiss.yaml", "entries": entries, "overrides": COSEG}
    path = suite_file(tmp_path, groups=[{**group, "compare": [["N = 9", "N = 1"]]}])
    bench = Bench(str(path), Place(tiny_voc), tmp_path / "out", seeds=[0, 1])
    assert [job.kind for job in bench.jobs] == ["pseudo-masks"] * 4 and bench.jobs[0].split == "val"
    for number, job in enumerate(bench.jobs):
        pretend(job, (30.0, 31.0, 32.0 + number))
    (table,) = bench.write()
    assert table.columns == ("init", "seeds", "refined")
    markdown = (tmp_path / "out/results.md").read_text()
    assert "|  | init | seeds | refined | runs | minutes | commit |" in markdown
    assert "| N = 1 | 30.0 ± 0.0 | 31.0 ± 0.0 | 33.0 ± 1.4 | 2 |" in markdown
    assert "| N = 9 - N = 1 | +0.0 ± 0.0 | +0.0 ± 0.0 | +1.0 ± 0.0 | 2 |" in markdown
    lines = list(csv.DictReader((tmp_path / "out/results.csv").open(newline="")))
    assert [line["mean"] for line in lines if line["figure"] == "IoU refined, sofa"] == ["34.0", "35.0"]


def test_pictures_of_masks_stand_beside_each_other(tmp_path: Path, tiny_voc: Path) -> None:
    names = ("fmwiss", "fmwiss-plus")
    entries = [{"name": name, "overrides": {"cosegmentation.name": name}} for name in names]
    group = {"name": "Figure 5", "kind": "pseudo-masks", "config": "fmwiss.yaml", "entries": entries, "pictures": 2}
    path = suite_file(tmp_path, groups=[{**group, "overrides": COSEG}])
    bench = Bench(str(path), Place(tiny_voc), tmp_path / "out", seeds=[0])
    image, mask = torch.zeros(3, 20, 30, dtype=torch.uint8), torch.ones(1, 1, 1, dtype=torch.bool)
    for number, job in enumerate(bench.jobs):
        pretend(job, (30.0, 32.0, 34.0))
        for name in ("a", "b/d", "c")[: 3 - number]:  # one that the other entry lacks is not shown
            drawn = side_by_side(image, dict.fromkeys(stages_of(job.config), mask), ["sofa"])
            save_png(drawn, job.folder / "pictures" / f"{name}.png")
    (table,) = bench.write()
    assert table.photographs == ("a", "b/d") and table.sheet == "pictures-figure-5.png"
    assert "![The masks of Figure 5](pictures-figure-5.png)" in (tmp_path / "out/results.md").read_text()
    with Image.open(tmp_path / "out" / table.sheet) as sheet:
        assert sheet.width == 3 * 30 + 2 * 4
    (bench.jobs[0].folder / "pictures" / "a.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"the picture .*a\.png cannot be read, .*; remove .*seed0 to make its masks"):
        bench.write()


def test_masks_of_both_kinds_keep_all_their_stages(tmp_path: Path, tiny_voc: Path) -> None:
    entries = [{"name": name, "overrides": {"cosegmentation.name": name}} for name in ("fmwiss", "fmwiss-plus")]
    group = {"name": "masks", "kind": "pseudo-masks", "config": "fmwiss.yaml", "entries": entries, "overrides": COSEG}
    bench = Bench(str(suite_file(tmp_path, groups=[group])), Place(tiny_voc), tmp_path / "out", seeds=[0])
    for number, job in enumerate(bench.jobs):
        pretend(job, (30.0 + number, 32.0 + number, 34.0 + number))
    (table,) = bench.write()
    assert table.columns == ("init", "seeds", "propagated", "refined")
    markdown = (tmp_path / "out/results.md").read_text()
    assert "| fmwiss | 30.0 | 32.0 | - | 34.0 | 1 |" in markdown
    assert "| fmwiss-plus | 31.0 | - | 33.0 | 35.0 | 1 |" in markdown
    lines = list(csv.DictReader((tmp_path / "out/results.csv").open(newline="")))
    assert [line["mean"] for line in lines if line["figure"] == "IoU propagated, sofa"] == ["34.0"]


def test_what_is_finished_without_the_command_that_writes_is_shown_too(finished: tuple[Bench, Path]) -> None:
    """Whichever seeds and entries a command is about, the tables hold everything that is there."""
    bench, out = finished
    other = Bench(bench.name, bench.place, out, seeds=[0], only=["WILSON"])
    assert [job.title for job in other.jobs] == ["15-5 / base model, seed 0", "15-5 / WILSON, seed 0"]
    assert [len(row.results) for row in other.tables()[0].rows] == [3, 2]
    assert [row.missing for row in other.tables()[0].rows] == [(), ()]  # of WILSON seed 0 alone is wanted
    other = Bench(bench.name, bench.place, out, seeds=[7], only=["WILSON"])
    assert [row.missing for row in other.tables()[0].rows] == [(), (7,)]


def test_results_of_other_defaults_are_refused(finished: tuple[Bench, Path]) -> None:
    bench, out = finished
    path = next(job for job in bench.jobs if job.kind == "training").folder / IDENTITY
    kept = path.read_text()
    path.write_text(kept.replace('"hard_classes": "tagged"', '"hard_classes": "all"'))
    with pytest.raises(UserError, match=r"was started with method.hard_classes = all but tagged"):
        Bench(bench.name, bench.place, out)
    path.write_text(kept.replace('"image": "whole"', '"image": "center-crop"'))
    with pytest.raises(UserError, match=r"was started with evaluation.image = center-crop but whole"):
        Bench(bench.name, bench.place, out)
    path.write_text(kept.replace('"epochs": ', '"epoch": '))  # of a version without this key
    with pytest.raises(UserError, match=r"was started with training.step0.epochs = null but 1"):
        Bench(bench.name, bench.place, out)
    path.write_text(kept.replace('"hard_classes": "tagged",', ""))  # the default is what such a version did
    Bench(bench.name, bench.place, out)
    path.write_text("{")
    with pytest.raises(UserError, match=r"identity.json: cannot be read"):
        Bench(bench.name, bench.place, out)
    path.unlink()
    with pytest.raises(UserError, match=r"seed0: holds results and no identity.json"):
        Bench(bench.name, bench.place, out)


def test_results_of_another_precision_are_refused(finished: tuple[Bench, Path]) -> None:
    bench, out = finished
    with pytest.raises(UserError, match=r"was started with precision = 32-true but bf16-mixed is asked for now"):
        Bench(bench.name, Place(bench.place.data, precision="bf16-mixed"), out)


def test_results_of_other_files_behind_the_same_names_are_refused(tmp_path: Path, tiny_voc: Path) -> None:
    """As EmojiSeg's of another seed: the lists are the same."""
    data, table = Path(shutil.copytree(tiny_voc, tmp_path / "voc")), tmp_path / "tags.csv"
    table.write_text("file,tags\n")
    masks = {"name": "N", "kind": "pseudo-masks", "config": "fmwiss.yaml", "overrides": COSEG, "entries": [{"name": 1}]}
    tagged = {**masks, "name": "T", "overrides": {**COSEG, "data.tags": str(table)}}
    path, out = suite_file(tmp_path, groups=[*SUITE["groups"], masks, tagged]), tmp_path / "out"
    bench = Bench(str(path), Place(data), out)
    for job in bench.jobs:
        pretend(job, (1.0, 2.0, 3.0))
        bench.workspace.keep_identity(job)
    Bench(str(path), Place(data), out)
    photograph = next((data / "JPEGImages").glob("val*"))
    mask = next((data / "SegmentationClassAug").glob("train_aug*"))
    for file, key in ((photograph, "data.val.photographs"), (mask, "data.train_aug.masks"), (table, "tags")):
        kept = file.read_bytes()
        file.write_bytes(kept + b"\n")
        with pytest.raises(UserError, match=rf"was made from other data: {key} is another one in .*voc"):
            Bench(str(path), Place(data), out)
        file.write_bytes(kept)
    # pseudo masks do not depend on photographs of other lists
    shutil.rmtree(out / "bases")
    for run in out.glob("runs/15-5*"):
        shutil.rmtree(run)
    mask.write_bytes(mask.read_bytes() + b"\n")
    Bench(str(path), Place(data), out)


def test_pseudo_masks_of_other_defaults_are_refused(tmp_path: Path, tiny_voc: Path) -> None:
    group = {"name": "N", "kind": "pseudo-masks", "config": "fmwiss.yaml", "overrides": COSEG, "entries": [{"name": 1}]}
    path, out = suite_file(tmp_path, groups=[group]), tmp_path / "out"
    bench = Bench(str(path), Place(tiny_voc), out)
    (job,) = bench.jobs
    pretend(job, (1.0, 2.0, 3.0))
    bench.workspace.keep_identity(job)
    (job.folder / IDENTITY).write_text((job.folder / IDENTITY).read_text().replace('"k": 70.0', '"k": 80.0'))
    with pytest.raises(UserError, match=r"seed0 was started with cosegmentation.k = 80.0 but 70.0 is asked for now"):
        Bench(str(path), Place(tiny_voc), out)


def test_a_broken_result_is_told(finished: tuple[Bench, Path]) -> None:
    bench, out = finished
    path = next(out.glob("runs/*/seed1/step1/evaluation.json"))
    path.write_text("{")
    with pytest.raises(UserError, match=r"evaluation.json: cannot be read as JSON"):
        bench.tables()


# -------------------------------------------------------------------------------------------------------- the loop


class Pretending:
    """In place of the processes: jobs are done at once, or fail, or are interrupted."""

    done: list[str]
    problems: dict[str, str | type[BaseException]]

    def __init__(self, place: Place) -> None:
        assert place.precision == "32-true"

    def do(self, job: Job) -> str | None:
        self.done.append(job.title)
        problem = self.problems.get(job.title)
        if isinstance(problem, str):
            return problem
        if problem is not None:
            raise problem
        pretend(job, (50.0, 20.0, 40.0), minutes=30.0 if job.kind == "base" else 60.0)
        return None


@pytest.fixture
def pretending(monkeypatch: pytest.MonkeyPatch) -> type[Pretending]:
    monkeypatch.setattr("fmwiss.bench.run.Workers", Pretending)
    Pretending.done, Pretending.problems = [], {}
    return Pretending


def test_what_is_done_is_not_done_again_and_time_left_is_told(
    tmp_path: Path, tiny_voc: Path, pretending: type[Pretending]
) -> None:
    path, said = suite_file(tmp_path, seeds=[0, 1]), list[str]()
    bench = Bench(str(path), Place(tiny_voc), tmp_path / "out")
    pretending.problems = {"15-5 / base model, seed 1": KeyboardInterrupt}
    with pytest.raises(KeyboardInterrupt):
        bench.run(said.append)
    assert said == [
        "1 of 6: 15-5 / base model, seed 0; time left unknown",
        "15-5 / base model, seed 0: old 51.0, all 40.0; 30.0 minutes",
        "2 of 6: 15-5 / FMWISS, seed 0; about 2:30 h left",  # five, of which all that is known is half an hour
        "15-5 / FMWISS, seed 0: old 50.0, new 20.0, all 40.0; 60.0 minutes",
        "3 of 6: 15-5 / WILSON, seed 0; about 3:30 h left",
        "15-5 / WILSON, seed 0: old 50.0, new 20.0, all 40.0; 60.0 minutes",
        "4 of 6: 15-5 / base model, seed 1; about 2:30 h left",
    ]
    table = json.loads((tmp_path / "out/results.json").read_text())["groups"][0]
    assert [row["seeds"] for row in table["rows"]] == [[0], [0]]
    pretending.problems, pretending.done = {}, []
    again = Bench(str(path), Place(tiny_voc), tmp_path / "out")
    assert again.run(said.append) == []
    assert pretending.done == ["15-5 / base model, seed 1", "15-5 / FMWISS, seed 1", "15-5 / WILSON, seed 1"]
    table = json.loads((tmp_path / "out/results.json").read_text())["groups"][0]
    assert [row["seeds"] for row in table["rows"]] == [[0, 1], [0, 1]]
    pretending.done = []
    assert Bench(str(path), Place(tiny_voc), tmp_path / "out").run(said.append) == [] == pretending.done


def test_one_failure_does_not_lose_the_others(tmp_path: Path, tiny_voc: Path, pretending: type[Pretending]) -> None:
    path, said = suite_file(tmp_path, seeds=[0, 1]), list[str]()
    pretending.problems = {"15-5 / FMWISS, seed 0": "the disk is full", "15-5 / base model, seed 1": "no such encoder."}
    failures = Bench(str(path), Place(tiny_voc), tmp_path / "out").run(said.append)
    base_failed = "its base model failed (15-5 / base model, seed 1)"
    assert [(failure.job.title, failure.sentence) for failure in failures] == [
        ("15-5 / FMWISS, seed 0", "the disk is full"),
        ("15-5 / base model, seed 1", "no such encoder"),
        ("15-5 / FMWISS, seed 1", base_failed),
        ("15-5 / WILSON, seed 1", base_failed),
    ]
    assert pretending.done[-1] == "15-5 / base model, seed 1"
    table = json.loads((tmp_path / "out/results.json").read_text())["groups"][0]
    assert [row["seeds"] for row in table["rows"]] == [[], [0]]
    # a finished base is not trained again for a run that has taken it over
    pretending.problems, pretending.done = {}, []
    shutil.rmtree(next((tmp_path / "out/bases").glob("*seed-0-*")))
    run = next(job for job in Bench(str(path), Place(tiny_voc), tmp_path / "out").jobs if job.label.endswith("FMWISS"))
    (run.folder / "step0").mkdir(parents=True)
    (run.folder / "step0/model.json").touch()
    assert Bench(str(path), Place(tiny_voc), tmp_path / "out").run(said.append) == []
    assert pretending.done[:2] == ["15-5 / FMWISS, seed 0", "15-5 / base model, seed 1"]


def test_tables_that_cannot_be_written_stop_no_run_and_hide_no_failure(
    tmp_path: Path, tiny_voc: Path, pretending: type[Pretending], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("no such glyph")

    monkeypatch.setattr("fmwiss.bench.figure.write_figure", broken)
    pretending.problems = {"15-5 / FMWISS, seed 0": "the disk is full"}
    said: list[str] = []
    with pytest.raises(ValueError, match="glyph"):
        Bench(str(suite_file(tmp_path, seeds=[0, 1])), Place(tiny_voc), tmp_path / "out").run(said.append)
    assert len(pretending.done) == 6
    assert said.count("the tables could not be written: ValueError: no such glyph") == 3
    assert said[-1] == "failed: 15-5 / FMWISS, seed 0: the disk is full."


def test_what_a_run_would_refuse_is_refused_before_the_first(tmp_path: Path, tiny_voc: Path) -> None:
    entries = [{"name": "a"}, {"name": "b", "overrides": {"method.loss_stride": 7}}]
    path = suite_file(tmp_path, groups=[{"name": "g", "config": "fmwiss.yaml", "entries": entries}])
    with pytest.raises(UserError, match=r"suite.yaml, entry b of group g: method.loss_stride = 7 does not divide"):
        Bench(str(path), Place(tiny_voc), tmp_path / "out")
    assert len(Bench(str(path), Place(tiny_voc), tmp_path / "out", only=["a"]).jobs) == 2


def test_another_command_in_the_same_folder_is_refused(
    tmp_path: Path, tiny_voc: Path, pretending: type[Pretending]
) -> None:
    bench = Bench(str(suite_file(tmp_path)), Place(tiny_voc), tmp_path)
    with FileLock(tmp_path / ".lock"), pytest.raises(UserError, match="another fmwiss bench is at work there"):
        bench.run(print)


def bench_words(path: Path, data: Path, out: Path, *more: object) -> list[str]:
    return ["bench", str(path), "--data", str(data), "--out", str(out), *map(str, more)]


def test_a_dry_run_says_what_there_is_to_do_and_does_nothing(
    tmp_path: Path, tiny_voc: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = suite_file(tmp_path), tmp_path / "out"
    assert cli.run(bench_words(path, tiny_voc, out, "--dry-run", "--seeds", "3,4")) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 7 and printed[0].startswith("to do       15-5 / base model, seed 3  (bases/overlap-seed-3-")
    assert printed[-1] == "4 of 4 runs and 2 base models to do; time left unknown"
    assert not out.exists()
    (job, *_) = [job for job in jobs_of(path, out, tiny_voc, [3]) if job.kind == "training"]
    pretend(job, (1.0, 2.0, 3.0), minutes=45.0)
    Workspace(out, VOCSource(tiny_voc)).keep_identity(job)
    assert minutes_of(job) == 45.0
    assert cli.run(bench_words(path, tiny_voc, out, "--dry-run", "--seeds", "3", "--only", "FMWISS")) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == ["not", "finished", "0"]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--seeds", "0,x"], "--seeds 0,x: must be different whole numbers"),
        (["--seeds", "1,1"], "--seeds 1,1: must be different whole numbers"),
        (["--only", "EPS"], "--only EPS: the suite has no entry and no group of that name"),
        (["--devices", "none"], "--devices none: must be auto"),
        (["--precision", "8"], "--precision 8: must be one of"),
    ],
)
def test_wrong_options_are_told(
    more: list[str], expected: str, tmp_path: Path, tiny_voc: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(bench_words(suite_file(tmp_path), tiny_voc, tmp_path / "out", *more)) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_launcher_of_processes_is_refused(
    tmp_path: Path, tiny_voc: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.run(bench_words(suite_file(tmp_path), tiny_voc, tmp_path / "out")) == 2
    assert "call it once, with --devices N" in capsys.readouterr().err


def test_a_further_process_of_a_run_tells_in_a_sentence_what_went_wrong(
    tmp_path: Path, tiny_voc: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    job = jobs_of(suite_file(tmp_path), tmp_path / "out", tiny_voc)[0]
    assert worker._further_process(worker._as_text(job, Place(tmp_path / "none"))) == 2
    error = capsys.readouterr().err
    assert error.startswith("process 1 of the run: the data folder ") and error.count("\n") == 1


# ------------------------------------------------------------------------------------------------------ end to end


def wait_for(there: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 1800
    while not there():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)


def test_two_methods_and_two_seeds_killed_and_gone_on_with(
    tmp_path: Path, tiny_voc: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A command that is killed in a run, then the same command again."""
    typo = {**COSEG, "cosegmentation.vision_language.model": "efficientnett"}
    pairs = [{"name": f"N = {n}", "overrides": {"cosegmentation.n_seeds": n}} for n in (1, 3)]
    groups = [
        *SUITE["groups"],
        {"name": "broken", "entries": [{"name": "model", "config": "fmwiss.yaml", "seeds": [0], "overrides": typo}]},
        {"name": "N", "kind": "pseudo-masks", "config": "fmwiss.yaml", "overrides": COSEG, "seeds": [0],
         "pictures": 1, "entries": pairs},
    ]  # fmt: skip
    path, out = suite_file(tmp_path, seeds=[0, 1], groups=groups), tmp_path / "out"
    weights = tmp_path / "weights"
    weights.mkdir()
    for name in ("test_efficientnet", "test_vit"):
        torch.manual_seed(0)
        save_file(timm.create_model(name, pretrained=False).state_dict(), weights / f"{name}.safetensors")
    words = bench_words(path, tiny_voc, out, "--weights", weights, "--cache", tmp_path / "cache", "--devices", 1)
    program = [sys.executable, "-c", "from fmwiss.cli import main; main()", *words]

    process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: list(out.glob("runs/*/seed0/step1/metrics.jsonl")), process)
    (run,) = {file.parents[1] for file in out.glob("runs/*/seed0/step1/metrics.jsonl")}
    process.send_signal(signal.SIGKILL)
    first = process.communicate()[1]
    with FileLock(run / ".lock", timeout=60):  # the run's process does not outlive the command
        pass
    assert "1 of 9: 15-5 / base model, seed 0; time left unknown" in first
    (base,) = out.glob("bases/*")
    trained = (base / "step0/model.safetensors").stat()

    code = cli.run(words)
    printed, told = capfd.readouterr()
    assert code == 2, told
    assert "15-5 / FMWISS, seed 0 goes on; about" in told and "base model, seed 0;" not in told
    assert re.search(r"^failed: broken / model, seed 0: .*efficientnett", told, re.MULTILINE)
    assert told.splitlines()[-1] == "fmwiss: 1 of 9 jobs failed; the same command tries them again."
    assert "Traceback" not in told

    # one base a seed, trained once, and every run stands on its seed's
    again = (base / "step0/model.safetensors").stat()
    assert (again.st_ino, again.st_mtime_ns) == (trained.st_ino, trained.st_mtime_ns)
    bases = {load_config(folder / "config.yaml").training.seed: folder for folder in out.glob("bases/*")}
    assert sorted(bases) == [0, 1]
    weights_of = {seed: (folder / "step0/model.safetensors").read_bytes() for seed, folder in bases.items()}
    assert weights_of[0] != weights_of[1]
    runs = sorted(folder.parent for folder in out.glob("runs/*/seed*/step1"))
    assert len(runs) == 4
    for folder in runs:
        assert (folder / "step0/model.safetensors").read_bytes() == weights_of[int(folder.name[4:])]
        # the memory is the run's own: the base keeps none
        assert (folder / "step0/memory_bank.safetensors").exists() == ("fmwiss" in folder.parent.name)

    values = json.loads((out / "results.json").read_text())
    methods, broken, masks = values["groups"]
    for row in methods["rows"]:
        for run_values in row["runs"]:
            figures = json.loads((out / run_values["folder"] / "step1/evaluation.json").read_text())
            assert run_values["figures"] == figures["miou"] and run_values["iou"]["all"] == figures["iou"]
        means = np.array([[run["figures"][key] for key in ("old", "new", "all")] for run in row["runs"]])
        np.testing.assert_allclose(means.mean(0), [row["mean"][key] for key in ("old", "new", "all")])
        np.testing.assert_allclose(means.std(0, ddof=1), [row["deviation"][key] for key in ("old", "new", "all")])
    assert [row["diagnostic"] for row in methods["rows"]] == [True, False]
    assert broken["rows"][0]["seeds"] == [] and broken["rows"][0]["missing_seeds"] == [0]
    assert [len(row["runs"][0]["iou"]["refined"]) for row in masks["rows"]] == [2, 2]
    assert len(list((tmp_path / "cache").iterdir())) == 1  # one store for both
    assert len(list(out.glob("runs/n-n-1-*/seed0/pictures/*.png"))) == 1
    markdown = (out / "results.md").read_text()
    assert "| FMWISS (diagnostic: true masks) |" in markdown and "Not finished: model (seed 0)." in markdown
    assert "FMWISS - WILSON" in printed and "15-5, differences seed by seed" in printed
    with Image.open(out / "results.png") as picture:
        assert picture.format == "PNG"
