"""The report: its numbers are those of the runs' files, and it is whole whatever the runs lack."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fmwiss.errors import UserError
from fmwiss.reporting.report import write_report


@pytest.fixture
def report(tmp_path: Path, read_page: Callable[[str], Any]) -> Callable[..., Any]:
    """Writes a report and reads it back as a tree."""

    def write(*runs: Path, worst_first: bool = False) -> Any:
        out = tmp_path / "page.html"
        write_report(runs, out, worst_first)
        return read_page(out.read_text(encoding="utf-8"))

    return write


def load(path: Path) -> Any:
    return json.loads(path.read_text())


def rows(table: Any) -> list[list[str]]:
    """The text of a table's cells, row by row, its head left out."""
    return [
        [cell.text for cell in row.children if not isinstance(cell, str) and cell.tag in ("td", "th")]
        for body in table.all("tbody")
        for row in body.all("tr")
    ]


def class_row(page: Any, name: str) -> Any:
    """The row of a class in the first chart of bars."""
    (row,) = [
        row
        for row in page.one(id="classes").all("table", "bars")[0].all("tr")
        if [head.text for head in row.all("th", scope="row")] == [name]
    ]
    return row


# ---------------------------------------------------------------------------------------------------------- one run


def test_the_table_holds_the_numbers_of_the_evaluations(make_run: Any, report: Any) -> None:
    run = make_run()
    page = report(run)
    table = page.one("table", "results")
    for row, step in zip(table.one("tbody").all("tr"), (0, 1), strict=True):
        figures = load(run / f"step{step}/evaluation.json")
        expected = {**figures["miou"], "pixel accuracy": figures["pixel_accuracy"]}
        for column, value in expected.items():
            cell = row.one("td", **{"data-column": column})
            if value is None:
                assert cell.text == "–"
            else:
                assert float(cell.one("data").attributes["value"]) == value
                assert cell.text == f"{value:.1f}"
        assert row.one("th").text == str(step)
        assert [cell.text for cell in row.all("td", "minor")] == [str(20 - step), "1.8", "1.25"]
    assert [cell.attributes["data-column"] for cell in table.all("td", "best")] == ["old"]
    assert "10 photographs of val" in page.one(id="results-text").text


def test_the_tiles_show_the_last_step_and_what_it_cost_the_old_classes(make_run: Any, report: Any) -> None:
    page = report(make_run())
    tiles = {tile.one("p", "tile-name").text: tile for tile in page.all("div", "tile")}
    assert {name: tile.one("p", "tile-value").text for name, tile in tiles.items()} == {
        "mIoU old": "48.8", "mIoU new": "30.1", "mIoU all": "53.2",
    }  # fmt: skip
    assert tiles["mIoU old"].one("span", "down").text == "−1.4 by step 1"
    assert not tiles["mIoU new"].all("span", "down") and not tiles["mIoU all"].all("span", "down")


def test_bars_are_as_long_as_the_iou_of_every_class(make_run: Any, report: Any) -> None:
    run = make_run()
    table, base = report(run).one(id="classes").all("table", "bars")
    known, new = table.all("tbody")
    assert [row.one("th").text for row in known.all("tr")] == [
        "background and known before", "background", "aeroplane", "potted plant",
    ]  # fmt: skip
    assert "new" in new.classes and [row.one("th").text for row in new.all("tr")] == ["learnt in step 1", "sheep"]
    before, after = (load(run / f"step{step}/evaluation.json")["iou"] for step in (0, 1))
    for row in [row for body in (known, new) for row in body.all("tr") if "group" not in row.classes]:
        name = row.one("th").text
        bars = {next(iter(bar.classes)): float(bar.attributes["width"].rstrip("%")) for bar in row.all("rect")}
        expected = {"before": before.get(name), "new" if name == "sheep" else "after": after[name]}
        assert bars == {kind: value for kind, value in expected.items() if value is not None}
        values = [float(cell.attributes["value"]) for cell in row.all("data")]
        assert values == [value for value in (before.get(name), after[name]) if value is not None]
    changes = {row.one("th").text: [c.text for c in row.all("span", "change")] for row in known.all("tr")[1:]}
    # the background of the two steps holds other classes' pixels
    assert changes == {"background": [], "aeroplane": ["−4.8"], "potted plant": ["+2.0"]}
    assert base.one("caption").text == "IoU in per cent."


def test_curves_show_what_was_logged(make_run: Any, report: Any) -> None:
    run = make_run()
    folds = report(run).one(id="curves").all("details")
    assert [fold.one("h3").text for fold in folds] == ["Step 1", "Step 0"]
    assert "open" in folds[0].attributes and "open" not in folds[1].attributes
    charts = {chart.one("figcaption").text.split(" old")[0]: chart for chart in folds[0].all("figure")}
    assert list(charts) == ["mIoU", "loss new_bce", "loss all_bce", "learning rate"]

    def points(name: str) -> dict[str, list[list[float]]]:
        lines = charts[name].all("span", "data")
        return {line.attributes["data-label"]: json.loads(line.attributes["data-points"]) for line in lines}

    log = [json.loads(line) for line in (run / "step1/metrics.jsonl").read_text().splitlines()]
    logged = [record for record in log if "losses" in record]
    for term in ("new_bce", "all_bce"):
        assert list(points(f"loss {term}").values()) == [[[r["epoch"], r["losses"][term]] for r in logged]]
    assert list(points("learning rate").values()) == [[[r["epoch"], r["learning_rate"]] for r in logged]]
    figures, earlier = (load(run / f"step{step}/evaluation.json")["miou"] for step in (1, 0))
    assert points("mIoU") == {
        "old": [[0, earlier["old"]], [1, 33.0], [2, figures["old"]]],
        "new": [[1, 11.0], [2, figures["new"]]],
        "all": [[1, 22.0], [2, figures["all"]]],
    }


def test_the_confusion_matrix_is_normalised_by_rows(make_run: Any, report: Any) -> None:
    run = make_run()
    confusion = load(run / "step1/confusion.json")
    names, pixels = confusion["names"], confusion["pixels"]
    first = report(run).one(id="confusion").all("details")[0]
    assert json.loads(first.one("svg").attributes["data-names"]) == names
    drawn = [cell for cell in first.all("rect") if "data-share" in cell.attributes]
    cells = {(int(cell.attributes["y"]), int(cell.attributes["x"])): cell for cell in drawn}
    for row, counts in enumerate(pixels):
        for column, count in enumerate(counts):
            if count == 0:
                assert (row, column) not in cells
                continue
            share = 100 * count / sum(counts)
            cell = cells[row, column]
            assert cell.attributes["data-share"] == f"{share:.2f}"
            pair = f"truth {names[row]}, predicted {names[column]}"
            assert cell.one("title").text == f"{pair}: {share:.1f} % ({count} pixels)"
            assert ("right" in cell.classes) == (row == column)
    shares = [(100 * pixels[r][c] / sum(pixels[r]), names[r], names[c]) for r in range(4) for c in range(4) if r != c]
    largest = max(shares)
    assert first.one("ol", "told").all("li")[0].text == f"{largest[1]} → {largest[2]} {largest[0]:.1f} %"


def test_a_class_without_pixels_has_an_empty_row(make_run: Any, report: Any, change_json: Any) -> None:
    run = make_run()
    change_json(run / "step1/confusion.json", pixels=[[5, 0, 0, 0], [0, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 9]])
    change_json(run / "step1/evaluation.json", iou={"background": 80.0, "aeroplane": None, "potted plant": 1.0})
    page = report(run)
    assert len([c for c in page.one(id="confusion").all("details")[0].all("rect") if "data-share" in c.attributes]) == 4
    row = class_row(page, "aeroplane")
    assert row.all("td")[2].text == "–" and not row.all("rect", "after")


def test_what_was_run_is_told(make_run: Any, report: Any) -> None:
    run = make_run()
    setup = report(run).one(id="setup")
    text = setup.text
    for part in ("Abacus 3000, 2 cores, 7.8 GiB of memory", "torch 2.6.0", "python 3.11.1", "0123456789 with changes"):
        assert part in text
    assert "time 3.6 min" in report(run).one("dl", "facts").text
    assert "Machine, steps 0 and 1" in text and "2026-01-02 03:04 UTC" in text and "1 process of 1 thread" in text
    config = setup.one("details", "config")
    assert "open" not in config.attributes
    assert config.one("code").children == [(run / "config.yaml").read_text()]
    assert rows(setup.one("table", "plain")) == [
        ["0", "20", "40", "0.5", "0.1", "1.5", "0.2", "1.8", "1.25"],
        ["1", "19", "40", "0.5", "0.1", "1.5", "0.2", "1.8", "1.25"],
    ]
    assert (
        "Step 0 learnt aeroplane, potted plant. Step 1 learnt sheep. "
        "Instances of old classes to paste: 8 of 2 classes, 3 (potted plant) to 5 each."
    ) in text


# --------------------------------------------------------------------------------------------------------- the gallery


def validation(page: Any, step: int = 0) -> list[Any]:
    """The cards of validation photographs in the n-th gallery."""
    return page.one(id="gallery").all("details")[step].all("div", "cards")[0].all("article")


def test_cards_show_the_photograph_the_truth_and_both_predictions(make_run: Any, report: Any) -> None:
    run = make_run()
    page = report(run)
    card = validation(page)[1]
    assert card.one("h5").text == "photo_1" and card.one("span", "why").text == "among the largest losses"
    assert card.one("p", "delta").text == "80.0 → 20.5 −59.5"
    captions = [panel.one("figcaption").text for panel in card.all("figure")]
    assert captions == ["photograph", "truth", "before: step 0 80.0", "after: step 1 20.5"]
    chips = [chip.text for chip in card.one("ul", "chips").all("li")]
    assert chips == ["aeroplane 80.0 → 20.5", "potted plant not there"]
    gallery = run / "step1/gallery"
    photograph = base64.b64encode((gallery / "validation-001.jpg").read_bytes()).decode()
    (rule,) = {cls for panel in card.all("div", "picture") for cls in panel.classes - {"picture"}}
    assert f'.{rule}{{background-image:url("data:image/jpeg;base64,{photograph}")}}' in page.all("style")[1].text
    sources = [image.attributes["src"].partition(",")[2] for image in card.all("img")]
    files = [f"validation-001-{kind}.png" for kind in ("truth", "before", "after")]
    assert sources == [base64.b64encode((gallery / file).read_bytes()).decode() for file in files]
    assert all(image.attributes["alt"] for image in page.all("img"))


def test_step_0_has_no_model_before_it(make_run: Any, report: Any) -> None:
    card = validation(report(make_run()), step=1)[1]
    assert card.one("p", "delta").text == "20.5"
    assert [panel.one("figcaption").text for panel in card.all("figure")][2:] == ["prediction of step 0 20.5"]


def test_training_photographs_show_tags_stages_maps_and_the_sample(make_run: Any, report: Any) -> None:
    page = report(make_run())
    cards = page.one(id="gallery").all("details")[0].all("div", "cards")[1].all("article")
    (card,) = cards
    assert [tag.text for tag in card.one("ul", "chips").all("li")] == ["aeroplane", "sheep"]
    assert [panel.one("figcaption").text for panel in card.all("figure")] == [
        "photograph", "init", "seeds", "refined", "map: background max 0.50", "map: sheep max 0.75",
        "training sample epoch 3", "its masks pasted: aeroplane",
    ]  # fmt: skip
    layers = [image.attributes["alt"] for image in card.all("figure")[-1].all("img")]
    assert layers == ["pseudo mask of sheep", "pasted aeroplane"]
    base = page.one(id="gallery").all("details")[1].all("div", "cards")[1].one("article")
    assert [panel.one("figcaption").text for panel in base.all("figure")] == [
        "photograph", "truth", "training sample epoch 3", "its masks epoch 3",
    ]  # fmt: skip


def test_worst_first(make_run: Any, report: Any) -> None:
    run = make_run()
    listed, worst = report(run), report(run, worst_first=True)
    assert [card.one("h5").text for card in validation(listed)] == ["photo_0", "photo_1", "photo_2"]
    assert [card.one("h5").text for card in validation(worst)] == ["photo_1", "photo_2", "photo_0"]
    assert [float(card.attributes["data-score"]) for card in validation(worst)] == [-59.5, 0.0, 10.0]
    # without a model before it, the lowest come first
    assert [card.one("h5").text for card in validation(worst, 1)] == ["photo_1", "photo_2", "photo_0"]
    for page, chosen in ((listed, "place"), (worst, "worst")):
        options = page.all("select")[0].all("option")
        assert [option.attributes["value"] for option in options if "selected" in option.attributes] == [chosen]


def test_the_legend_has_the_palettes_colours(make_run: Any, report: Any) -> None:
    legend = report(make_run()).one(id="gallery").all("ul", "legend")[0]
    colours = {entry.text: entry.one("span", "swatch").attributes["style"] for entry in legend.all("li")}
    assert colours["aeroplane"] == "background:#800000" and colours["sheep"] == "background:#804000"
    assert list(colours) == ["aeroplane", "potted plant", "sheep", "void (truth)"]


def test_a_method_without_pseudo_masks_and_maps(make_run: Any, report: Any, change_json: Any) -> None:
    run = make_run()
    path = run / "step1/gallery/gallery.json"
    (one,) = load(path)["training"]
    sample = {**one["sample"], "masks": {}, "pasted": None}
    change_json(path, training=[{**one, "stages": {}, "maps": {}, "sample": sample}])
    page = report(run)
    card = page.one(id="gallery").all("details")[0].all("div", "cards")[1].one("article")
    captions = [panel.one("figcaption").text for panel in card.all("figure")]
    assert captions == ["photograph", "training sample epoch 3"]
    assert "Maps:" not in page.one(id="gallery").text


# -------------------------------------------------------------------------------------------------------- several runs


def test_a_comparison_has_every_run_and_the_best_in_bold(make_run: Any, report: Any) -> None:
    first = make_run("first")
    second = make_run("second", ious=((91.0, 41.0, 61.0), (80.0, 45.0, 60.0, 25.0)), seconds=0.7)
    page = report(first, second)
    body = page.one("table", "results").one("tbody")
    assert [(row.one("th").text, row.all("td")[0].text) for row in body.all("tr")] == [
        ("first", "0"), ("second", "0"), ("first", "1"), ("second", "1"),
    ]  # fmt: skip
    best = [{cell.attributes["data-column"] for cell in row.all("td", "best")} for row in body.all("tr")]
    # `old` compares over all steps: 50.1, 51.0, 48.75, 52.5; the others within a step
    assert best == [set(), {"all"}, {"new", "all"}, {"old"}]
    assert all(cell.all("strong") for cell in body.all("td", "best"))
    row = class_row(page, "sheep")
    assert [float(bar.attributes["width"].rstrip("%")) for bar in row.all("rect")] == [30.125, 25.0]
    assert row.one("strong").text == "30.1"
    assert [line.attributes["x1"] for line in row.all("line", "earlier")] == []  # nobody knew it before
    charts = page.one(id="curves").all("details")[0].all("figure")
    assert [chart.one("figcaption").text for chart in charts] == [
        "mIoU old", "mIoU new", "mIoU all", "loss new_bce", "loss all_bce", "learning rate",
    ]  # fmt: skip
    for chart in charts:
        assert [line.attributes["data-label"] for line in chart.all("span", "data")] == ["first", "second"]
    titles = [fold.one("h3").text for fold in page.one(id="gallery").all("details")]
    assert titles == [
        "Step 1: the same photographs, side by side", "Step 1: first", "Step 1: second",
        "Step 0: the same photographs, side by side", "Step 0: first", "Step 0: second",
    ]  # fmt: skip
    together = [panel.one("figcaption").text for panel in validation(page)[1].all("figure")]
    assert together == ["photograph", "truth", "before: step 0 80.0", "first 20.5", "second 20.5"]


def test_a_base_that_runs_share_is_told_once(make_run: Any, report: Any) -> None:
    first, second = make_run("first"), make_run("second", ious=((90.0, 40.25, 60.0), (84.0, 45.0, 60.0, 25.0)))
    shutil.rmtree(second / "step0")
    shutil.copytree(first / "step0", second / "step0")
    third = make_run("third", seconds=0.9)
    page = report(first, second)
    assert [row.one("th").text for row in page.one("table", "results").one("tbody").all("tr")] == [
        "every run", "first", "second",
    ]  # fmt: skip
    assert [fold.one("h3").text for fold in page.one(id="gallery").all("details")][-1] == "Step 0: every run"
    page = report(first, second, third)
    labels = [row.one("th").text for row in page.one("table", "results").one("tbody").all("tr")]
    assert labels == ["first, second", "third", "first", "second", "third"]


def test_diagnostics_are_marked_and_do_not_compete(make_run: Any, report: Any) -> None:
    fair = make_run("fair")
    bound = make_run("bound", ious=((91.0, 1.0, 2.0), (99.0, 99.0, 99.0, 99.0)), source="true-masks", seconds=0.7)
    page = report(fair, bound)
    body = page.one("table", "results").one("tbody")
    row = body.all("tr")[3]
    assert row.one("th").text == "bound diagnostic: true masks" and not row.all("td", "best")
    assert [bool(r.all("span", "diagnostic")) for r in body.all("tr")] == [False, False, False, True]
    assert "diagnostics (trained with the true masks) do not compete" in page.one(id="results-text").text
    alone = report(bound)
    assert "upper bound, not a result" in alone.one("p", "alert").text
    assert alone.one("table", "results").all("span", "diagnostic")
    assert not report(fair).all("span", "diagnostic")


def test_runs_over_other_classes_do_not_compete(make_run: Any, report: Any, change_json: Any) -> None:
    first, second = make_run("first"), make_run("second", ious=((1.0, 2.0, 3.0), (1.0, 2.0, 3.0, 4.0)), seconds=0.7)
    assert len(report(first, second).one("table", "results").all("td", "best")) == 4
    for step in (0, 1):
        change_json(second / f"step{step}/evaluation.json", split="dev")
    # within each run `old` is still over the same classes and photographs
    best = report(first, second).one("table", "results").all("td", "best")
    assert {cell.attributes["data-column"] for cell in best} == {"old"}


def test_what_differs_between_configurations_is_listed(make_run: Any, report: Any) -> None:
    first, second = make_run("first"), make_run("second", source="true-masks", seconds=0.7)
    table = report(first, second).one(id="setup").all("table", "plain")[0]
    assert rows(table) == [["cosegmentation.source", "foundation", "true-masks"]]
    assert "The configurations are the same." in report(first, make_run("third", seconds=0.8)).one(id="setup").text


def test_runs_of_one_name_are_told_apart(make_run: Any, report: Any) -> None:
    first, second = make_run("a/run"), make_run("b/run", seconds=0.7)
    names = [item.text for item in report(first, second).one("header", "head").all("li")]
    assert names == ["a/run", "b/run"]


def test_more_runs_than_colours(make_run: Any, report: Any) -> None:
    runs = [make_run(f"run{number}", seconds=0.5 + number / 100) for number in range(10)]
    page = report(*runs)
    assert len(page.one(id="classes").all("details")[0].all("tr")[2].all("rect")) == 10
    swatches = page.one("header", "head").all("span", "swatch")
    assert [sorted(s.classes)[0] for s in swatches] == [f"run-{number % 8 + 1}" for number in range(10)]


# --------------------------------------------------------------------------------------------- what is odd or missing


def test_an_old_run_says_what_it_lacks_and_shows_the_rest(make_run: Any, report: Any) -> None:
    run = make_run()
    for step in ("step0", "step1"):
        shutil.rmtree(run / step / "gallery")
        for name in ("confusion.json", "environment.json"):
            (run / step / name).unlink()
    page = report(run)
    (note,) = page.one("header", "head").all("p", "note")
    assert note.text.startswith("run, steps 0 and 1: no confusion matrix, environment or gallery to be found")
    assert not page.all(id="gallery") and not page.all(id="confusion")
    assert len(page.one("table", "results").one("tbody").all("tr")) == 2 and page.all(id="curves")
    assert not [link for link in page.all("a") if link.attributes["href"] in ("#gallery", "#confusion")]


def test_a_bare_model_still_has_a_page(make_run: Any, report: Any) -> None:
    run = make_run(steps=1)
    for path in (run / "step0").iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "model.json":
            path.unlink()
    page = report(run)
    note = page.one("header", "head").one("p", "note").text
    lacks = "figures, log of losses, confusion matrix, environment or gallery"
    assert note.startswith(f"run, step 0: no {lacks} to be found")
    assert "There are no figures to show." in page.text
    assert page.one(id="setup").all("details", "config")


def test_a_picture_that_is_missing_leaves_a_gap(make_run: Any, report: Any) -> None:
    run = make_run()
    gallery = run / "step1/gallery"
    (gallery / "validation-001.jpg").unlink()
    (gallery / "validation-001-truth.png").unlink()
    (gallery / "training-000-map3.png").unlink()
    page = report(run)
    card = validation(page)[1]
    assert len(card.all("div", "lost")) == 4
    assert len(page.one(id="gallery").all("div", "lost")) == 5
    assert len(validation(page)[0].all("div", "lost")) == 0


def test_names_are_escaped(make_run: Any, report: Any, change_json: Any, tmp_path: Path) -> None:
    evil = "<b>\"x'</b></script>{{ 1 }}"
    run = make_run("<b>bold<!--")
    path = run / "step1/gallery/gallery.json"
    gallery = load(path)
    gallery["validation"][0]["id"] = evil
    gallery["training"][0]["tags"] = [evil]
    gallery["class_names"][3] = evil
    change_json(path, **gallery)
    change_json(run / "step1/model.json", steps=[["aeroplane", "potted plant"], [evil]])
    confusion = load(run / "step1/confusion.json")
    change_json(run / "step1/confusion.json", names=[*confusion["names"][:3], evil])
    figures = load(run / "step1/evaluation.json")
    change_json(run / "step1/evaluation.json", iou={**figures["iou"], evil: 7.0})
    log = (run / "step1/metrics.jsonl").read_text().replace('"new_bce"', json.dumps(evil))
    (run / "step1/metrics.jsonl").write_text(log)
    page = report(run)
    assert page.one("h1").text == "<b>bold<!--" and page.all("title")[0].text.startswith("<b>bold<!--")
    assert not page.all("b")
    assert validation(page)[0].one("h5").text == evil
    assert class_row(page, evil)
    assert json.loads(page.one(id="confusion").all("svg")[0].attributes["data-names"])[3] == evil
    assert len(page.all("script")) == 2


def test_losses_that_are_not_finite_do_not_break_the_page(make_run: Any, report: Any) -> None:
    run = make_run()
    path = run / "step1/metrics.jsonl"
    lines = path.read_text().splitlines()
    lines[2] = lines[2].replace('"new_bce": 0.2', '"new_bce": NaN')
    path.write_text("\n".join([*lines, '{"iteration": 50, "ep']))
    assert "NaN" in lines[2]
    chart = next(c for c in report(run).all("figure", "chart") if "new_bce" in c.text)
    assert len(json.loads(chart.one("span", "data").attributes["data-points"])) == 3


def test_the_page_needs_nothing_beside_itself(make_run: Any, report: Any, tmp_path: Path) -> None:
    report(make_run("first"), make_run("second", seconds=0.7))
    text = (tmp_path / "page.html").read_text()
    assert not re.search(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}", re.sub(r"base64,[^\"')]+", "", text))
    addresses = re.findall(r"""(?:src|href)=["']([^"']*)|url\(["']?([^"')]*)""", text)
    assert {(a or b)[:5] for a, b in addresses if not (a or b).startswith("#")} <= {"data:"}
    assert "default-src 'none'" in text and '<html lang="en">' in text


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("step1/evaluation.json", "{", r"evaluation.json: cannot be read as JSON"),
        ("step1/evaluation.json", "[]", r"evaluation.json: is not what fmwiss writes there"),
        ("step1/evaluation.json", '{"step": 1}', r"evaluation.json: is not what fmwiss writes there \(images"),
        ("step1/confusion.json", '{"names": ["a"], "pixels": [[1, 2]]}', "confusion.json: is not what"),
        ("step1/confusion.json", '{"names": ["a"], "pixels": [[-1]]}', "confusion.json: is not what"),
        ("step1/environment.json", "3", "environment.json: is not what"),
        ("step1/gallery/gallery.json", "{}", "gallery.json: is not what"),
        ("step1/model.json", "{}", "model.json: is not a model description"),
        ("step1/model.json", '{"steps": []}', "model.json: is not a model description"),
        ("config.yaml", "[", "is not valid YAML"),
    ],
)
def test_broken_files_are_told(make_run: Any, tmp_path: Path, file: str, content: str, message: str) -> None:
    run = make_run()
    (run / file).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        write_report([run], tmp_path / "page.html")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "page.html").exists()


def test_a_gallery_names_no_file_outside_its_folder(make_run: Any, tmp_path: Path, change_json: Any) -> None:
    run = make_run()
    path = run / "step1/gallery/gallery.json"
    for name in ("../../config.yaml", "/etc/passwd", "..", "a/b.png", "x.svg", "a.png\n"):
        gallery = load(path)
        gallery["validation"][0]["truth"] = name
        change_json(path, **gallery)
        with pytest.raises(UserError, match=r"gallery.json: is not what .*validation.0.truth"):
            write_report([run], tmp_path / "page.html")


def test_a_run_given_twice(make_run: Any, tmp_path: Path) -> None:
    run = make_run()
    with pytest.raises(UserError, match="given more than once"):
        write_report([run, run / "step0" / ".."], tmp_path / "page.html")
