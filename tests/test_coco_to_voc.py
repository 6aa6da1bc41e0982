"""From the archives of COCO, COCO-Stuff, VOC and SBD, in miniature, to the layout of the paper's Table 3."""

import csv
import json
import time
from pathlib import Path

import pytest
import yaml

from coco_miniature import ARCHIVES, STEP0, VAL, VOC_VAL, serve, write_archives
from fmwiss.bench.suite import find_suite, load_suite, resolve
from fmwiss.bench.tables import MARKDOWN
from fmwiss.cli import run
from fmwiss.config import load_config
from fmwiss.foundation.tiny import CLIP, CLIP_TAG, RESNET, VIT

LIMIT = 180.0
"""Seconds from the archives to the table of the methods that learn from tags; 21 where nothing else is at work."""

CONFIGS = Path(__file__).parents[1] / "configs"
TINY = {
    "data": {"crop_size": 48, "workers": 0},
    "segmenter": {"encoder": RESNET, "decoder_channels": 16, "atrous_rates": [1, 2, 3]},
    "training": {
        "step0": {"epochs": 1, "batch_size": 3}, "steps": {"epochs": 1, "batch_size": 3},
    },
    "evaluation": {"crop_size": 48, "batch_size": 4},
    "copy_paste": {"bank_size": 2},
}
COSEGMENTATION = {
    "vision_language": {"model": CLIP, "tag": CLIP_TAG, "input_size": 80},
    "self_supervised": {"model": VIT, "checkpoint": None, "input_size": 80},
}


def test_the_suite_is_the_papers_table() -> None:
    path = find_suite(str(CONFIGS / "suites/coco-to-voc.yaml"))
    suite = load_suite(path)
    rows = {row.entry.name: row for row in resolve(suite, path)}
    masks = {name: row.entry.paper.by_column() for name, row in rows.items() if row.supervision == "pixel"}
    assert list(masks) == ["FT", "LwF", "ILT", "MiB", "PLOP"]
    assert masks["MiB"] == {"old": 34.9, "new": 47.8, "all": 38.7, "voc-val new": 73.2}
    weak = {name: row for name, row in rows.items() if row.supervision == "image"}
    paper = {name: row.entry.paper.by_column() for name, row in weak.items() if row.entry.paper is not None}
    assert paper["FMWISS"] == {"old": 39.9, "new": 44.7, "all": 41.6, "voc-val new": 63.6}
    assert paper["WILSON"] == {"old": 39.8, "new": 41.0, "all": 40.6, "voc-val new": 55.7}
    assert list(paper) == ["CAM", "SEAM", "SS", "EPS", "WILSON", "FMWISS"]
    for row in rows.values():
        config = row.config
        assert (config.segmenter.encoder, config.segmenter.output_stride) == ("wide_resnet38_a2", 8)
        assert (config.data.crop_size, config.data.also, config.protocol.setting) == (448, ("voc-val",), "disjoint")
        assert config.training.steps.batch_size == 24
    assert rows["WILSON"].config.method.alpha == 0.9 and rows["FMWISS"].config.method.alpha == 0.5
    assert rows["FMWISS"].config.training.steps.epochs == 40


def test_from_the_archives_to_the_papers_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started = time.monotonic()
    monkeypatch.delenv("FMWISS_WEIGHTS", raising=False)
    write_archives(tmp_path / "archives")
    data = tmp_path / "data"
    with serve(tmp_path / "archives") as server:
        server.breaks["train2017.zip"] = [500]
        for name in ARCHIVES:
            assert run(["data", name, "--out", str(data), "--mirror", server.url, "--unverified"]) == 0
    suite = {
        "title": "Miniature",
        "groups": [
            {
                "name": "COCO-to-VOC",
                "further": ["voc-val new"],
                "headings": {"old": "COCO 1-60", "new": "COCO 61-80", "all": "COCO all", "voc-val new": "VOC 61-80"},
                "overrides": TINY,
                "compare": [["FMWISS", "WILSON"]],
                "entries": [
                    {
                        "name": "WILSON",
                        "config": str(CONFIGS / "coco-to-voc/wilson.yaml"),
                        "overrides": {
                            "method": {"localizer_epochs": 0, "pamr_iterations": 1},
                            "training": {"steps": {"constant_epochs": 0}},
                        },
                        "paper": {"old": 39.8, "new": 41.0, "all": 40.6, "further": {"voc-val new": 55.7}},
                    },
                    {
                        "name": "FMWISS",
                        "config": str(CONFIGS / "coco-to-voc/fmwiss.yaml"),
                        "overrides": {"cosegmentation": COSEGMENTATION, "method": {"warmup_epochs": 1}},
                        "paper": {"old": 39.9, "new": 44.7, "all": 41.6, "further": {"voc-val new": 63.6}},
                    },
                ],
            },
            {
                "name": "COCO-to-VOC, from masks",
                "supervision": "pixel",
                "further": ["voc-val new"],
                "overrides": TINY,
                "entries": [{"name": "MiB", "config": str(CONFIGS / "coco-to-voc/mib.yaml")}],
            },
        ],
    }
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite))
    out = tmp_path / "out"
    arguments = ["bench", str(tmp_path / "suite.yaml"), "--data", str(data), "--out", str(out)]
    capsys.readouterr()
    assert run([*arguments, "--cache", str(tmp_path / "cache")]) == 0, capsys.readouterr().err

    table = (out / MARKDOWN).read_text()
    head = next(line for line in table.splitlines() if "COCO 1-60" in line)
    columns = ["COCO 1-60", "COCO 61-80", "COCO all", "VOC 61-80"]
    shown = [cell.strip() for cell in head.strip("|").split("|")]
    assert shown[2:10] == [*columns, *(f"paper: {column}" for column in columns)]
    rows = {row["figure"]: row for row in csv.DictReader((out / "results.csv").open()) if row["entry"] == "FMWISS"}
    assert float(rows["mIoU VOC 61-80"]["paper"]) == 63.6 and float(rows["mIoU VOC 61-80"]["mean"]) >= 0
    for method in ("wilson", "fmwiss"):
        (folder,) = (out / "runs").glob(f"*{method}-*/seed0")
        config = load_config(folder / "config.yaml")
        assert config.data.source == "coco-to-voc"
        base, last = (json.loads((folder / f"step{t}/evaluation.json").read_text()) for t in (0, 1))
        assert base["training_images"] == len(STEP0) and last["training_images"] == 5  # all of train_aug
        assert base["images"] == last["images"] == len(VAL) and "also" not in base
        assert last["also"]["voc-val"]["images"] == len(VOC_VAL) and len(last["iou"]) == 81
        assert last["also"]["voc-val"]["miou"]["new"] == pytest.approx(
            sum(there := [last["also"]["voc-val"]["iou"][n] for n in list(last["iou"])[61:]
                          if last["also"]["voc-val"]["iou"][n] is not None]) / len(there)
        )
        assert "on 2 photographs of voc-val: mean IoU" in (folder / "report.html").read_text()
    # the same model, compared once more by the command
    assert run(["evaluate", str(folder), "--data", str(data), "--split", "voc-val", "--json"]) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert time.monotonic() - started < LIMIT
    assert again["iou"] == pytest.approx(last["also"]["voc-val"]["iou"], abs=1e-6, nan_ok=True)

    # the same photographs, with VOC's masks in place of tags
    assert run([*arguments, "--supervision", "pixel"]) == 0, capsys.readouterr().err
    (folder,) = (out / "runs").glob("*mib-*/seed0")
    last = json.loads((folder / "step1/evaluation.json").read_text())
    assert last["training_images"] == 5 and last["also"]["voc-val"]["images"] == len(VOC_VAL) and len(last["iou"]) == 81


def test_a_column_of_a_list_that_is_not_compared_is_refused(
    tmp_path: Path, tiny_voc: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = {
        "groups": [
            {
                "name": "x", "further": ["val new"],
                "entries": [{"name": "a", "config": str(CONFIGS / "voc/15-5-overlap/fmwiss.yaml")}],
            }
        ]
    }
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite))
    arguments = ["bench", str(tmp_path / "suite.yaml"), "--data", str(tiny_voc), "--out", str(tmp_path / "out")]
    assert run(arguments) == 2
    assert "is not compared with val; add it to its data.also" in capsys.readouterr().err
    suite["groups"][0]["further"] = ["val mean"]
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite))
    assert run(arguments) == 2
    assert "further is" in capsys.readouterr().err
