"""train: whole runs on generated photographs, and what it refuses."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from filelock import FileLock
from PIL import Image
from safetensors.torch import load_file, save_file

from fmwiss.config import Config, load_config
from fmwiss.data.folder import FolderSource
from fmwiss.data.memory import MemoryBank
from fmwiss.data.protocols import Protocol
from fmwiss.data.tags import TagIndex
from fmwiss.data.voc import VOCSource
from fmwiss.errors import UserError
from fmwiss.evaluation import evaluate_run
from fmwiss.models import load_segmenter
from fmwiss.reporting.records import Environment, Gallery
from fmwiss.reporting.report import write_report
from fmwiss.training.run import _Run, train

BASE = ("aeroplane", "bicycle", "bird", "boat")


def configure(experiment: dict[str, Any], **changes: Any) -> Config:
    """The experiment with ``section__key=value`` changes."""
    values = copy.deepcopy(experiment)
    for dotted, value in changes.items():
        *sections, key = dotted.split("__")
        section = values
        for name in sections:
            section = section.setdefault(name, {})
        section[key] = value
    return Config.model_validate(values)


def same_weights(first: Path, second: Path) -> bool:
    a, b = (load_file(path / "model.safetensors") for path in (first, second))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def base(shared_experiment: dict[str, Any], tiny_voc: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose step 0 is done."""
    folder = tmp_path_factory.mktemp("base") / "run"
    results = train(configure(shared_experiment), tiny_voc, None, folder, step=0)
    assert list(results) == [0]
    return folder


@pytest.fixture
def run(base: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may go on with."""
    return Path(shutil.copytree(base, tmp_path / "run"))


def test_step_0_leaves_a_model_figures_a_memory_and_a_log(
    base: Path, tiny_voc: Path, experiment: dict[str, Any]
) -> None:
    assert load_config(base / "config.yaml") == configure(experiment)
    step = base / "step0"
    assert sorted(path.name for path in step.iterdir()) == [
        "confusion.json",
        "environment.json",
        "evaluation.json",
        "gallery",
        "memory_bank.safetensors",
        "metrics.jsonl",
        "model.json",
        "model.safetensors",
        "photographs.safetensors",
        "tensorboard",
    ]
    model = load_segmenter(base)
    assert model.class_names == ("background", *BASE)
    assert model.architecture.resize == 48
    figures = json.loads((step / "evaluation.json").read_text())
    evaluation = evaluate_run(base, tiny_voc)
    assert {name: figures[name] for name in evaluation.as_dict()} == evaluation.as_dict()
    assert (figures["split"], figures["training_images"], figures["diagnostic"]) == ("val", 12, False)
    assert set(figures["minutes"]) == {"preparation", "training", "finishing", "all"}
    confusion = json.loads((step / "confusion.json").read_text())
    assert confusion == {"names": list(model.class_names), "pixels": [list(row) for row in evaluation.confusion]}
    environment = Environment.model_validate_json((step / "environment.json").read_text())
    assert environment.versions["torch"] == torch.__version__ and environment.machine.devices == ["cpu"]
    bank = MemoryBank.load(step / "memory_bank.safetensors")
    assert {name: len(bank[name]) for name in BASE} == dict.fromkeys(BASE, 3)


def test_step_1_from_true_masks_is_marked_as_diagnostic(run: Path, tiny_voc: Path, experiment: dict[str, Any]) -> None:
    results = train(configure(experiment), tiny_voc, None, run)
    assert list(results) == [1]
    assert load_segmenter(run).class_names == ("background", *BASE, "sheep", "sofa")
    figures = json.loads((run / "step1" / "evaluation.json").read_text())
    assert figures["diagnostic"] is True
    assert figures["pasted_instances"] == dict.fromkeys(BASE, 3)
    assert results[1].images == 8
    gallery = gallery_of(run, 1)
    assert {stage for one in gallery.training for stage in one.stages} == {"true masks"}
    assert "diagnostic: true masks" in (run / "report.html").read_text()
    assert train(configure(experiment), tiny_voc, None, run) == {}  # nothing is left to do


@pytest.mark.parametrize(
    ("name", "stages"),
    [("fmwiss", ("init", "seeds", "refined")), ("fmwiss-plus", ("init", "propagated", "refined"))],
)
def test_step_1_from_foundation_models_opens_no_mask_of_a_training_photograph(
    name: str, stages: tuple[str, ...], run: Path, tiny_voc: Path, experiment: dict[str, Any], tmp_path: Path
) -> None:
    """The masks are deleted after step 0 has read the tags from them."""
    data, weights = Path(shutil.copytree(tiny_voc, tmp_path / "voc")), tmp_path / "weights"
    for mask in (data / "SegmentationClassAug").glob("train_aug_*.png"):
        mask.unlink()
    weights.mkdir()
    torch.manual_seed(0)
    save_file(timm.create_model("test_efficientnet").state_dict(), weights / "test_efficientnet.safetensors")
    foundation = {
        "name": name,
        "vision_language": {"name": "imagenet-names", "model": "test_efficientnet", "tag": None, "input_size": 96},
        "self_supervised": {"model": "test_vit", "pretrained": False, "input_size": 96},
    }
    config = configure(experiment, cosegmentation=foundation)
    fresh = tmp_path / "fresh"
    results = train(config, data, weights, fresh, cache=tmp_path / "cache", base=run)
    assert list(results) == [1]
    lines = [json.loads(line) for line in (fresh / "step1" / "metrics.jsonl").read_text().splitlines()]
    assert all(value >= 0 for line in lines if "losses" in line for value in line["losses"].values())
    assert json.loads((fresh / "step1" / "evaluation.json").read_text())["diagnostic"] is False
    gallery = gallery_of(fresh, 1)
    assert gallery.training and all(one.truth is None for one in gallery.training)
    for one in gallery.training:
        tagged = [name for name in ("sheep", "sofa") if name in one.tags]
        assert {stage: list(masks) for stage, masks in one.stages.items()} == dict.fromkeys(stages, tagged)
        assert list(one.maps) == ["background", *tagged] and one.sample is not None and list(one.sample.masks) == tagged
    assert any(one.sample is not None and one.sample.pasted for one in gallery.training)


def gallery_of(run: Path, step: int) -> Gallery:
    """A step's gallery, whose pictures are those that it names and can be opened."""
    folder = run / f"step{step}/gallery"
    text = (folder / "gallery.json").read_text()
    files = {path.name for path in folder.iterdir()} - {"gallery.json"}
    assert files == set(re.findall(r"[\w-]+\.(?:jpg|png)", text))
    for name in files:
        with Image.open(folder / name) as picture:
            picture.load()
    return Gallery.model_validate_json(text)


def test_the_gallery_holds_what_the_step_did_to_validation_photographs(
    run: Path, tiny_voc: Path, experiment: dict[str, Any]
) -> None:
    """Each figure against the two models' predictions, photograph by photograph."""
    train(configure(experiment), tiny_voc, None, run)
    source, gallery = VOCSource(tiny_voc), gallery_of(run, 1)
    assert (gallery.split, gallery.compared, gallery.new_classes) == ("val", 8, ["sheep", "sofa"])
    assert [one.id for one in gallery.validation] == source.ids("val")  # so few that all are shown
    table = Protocol((BASE, ("sheep", "sofa"))).label_table(1, source.class_names)
    models = {when: load_segmenter(run, step) for step, when in enumerate(("before", "after"))}
    for one in gallery.validation:
        truth = table[source.read_mask(one.id).long()]
        for when, model in models.items():
            expected = iou_by_class(truth, model.predict(source.read_image(one.id)), gallery.class_names)
            found = {n: getattr(f, when) for n, f in one.iou.items() if getattr(f, when) is not None}
            assert found == pytest.approx(expected)
            there = [name for name, figures in one.iou.items() if figures.in_truth]
            assert there == [name for label, name in enumerate(gallery.class_names) if (truth == label).any()]
            mean = sum(expected[name] for name in there) / len(there)
            assert getattr(one, f"miou_{when}") == pytest.approx(mean)
        assert one.truth and one.before and one.miou_before is not None and one.miou_after is not None
        assert "drawn" in one.chosen
        assert ("lost" in one.chosen) == (one.miou_after < one.miou_before)


def iou_by_class(truth: torch.Tensor, predicted: torch.Tensor, names: list[str]) -> dict[str, float]:
    """Of the classes that are in one of them."""
    ious = {}
    for label, name in enumerate(names):
        first, second = truth == label, (predicted == label) & (truth != 255)
        if (first | second).any():
            ious[name] = 100 * int((first & second).sum()) / int((first | second).sum())
    return ious


def test_the_base_of_an_earlier_version_is_compared_all_the_same(
    run: Path, base: Path, tiny_voc: Path, experiment: dict[str, Any], tmp_path: Path
) -> None:
    """Where step 0 left no counts of photographs, its model is run over them once more."""
    plain = Path(shutil.copytree(base, tmp_path / "plain"))
    for name in ("photographs.safetensors", "confusion.json", "environment.json"):
        (plain / "step0" / name).unlink()
    shutil.rmtree(plain / "step0/gallery")
    for folder in (run, plain):
        train(configure(experiment), tiny_voc, None, folder)
    assert gallery_of(plain, 1) == gallery_of(run, 1)
    assert "step 0: no confusion matrix, environment or gallery" in (plain / "report.html").read_text()


def test_train_writes_the_report(base: Path, run: Path, tiny_voc: Path, experiment: dict[str, Any]) -> None:
    assert "Run report" in (base / "report.html").read_text()
    (run / "report.html").unlink()
    train(configure(experiment), tiny_voc, None, run, step=0)  # nothing to do; the report is made all the same
    first = (run / "report.html").read_text()
    train(configure(experiment), tiny_voc, None, run)
    assert "learnt in step 1" in (run / "report.html").read_text() and "learnt in step 1" not in first
    write_report([run], run / "again.html")
    assert (run / "again.html").read_text() == (run / "report.html").read_text()


def test_fine_tuning_takes_over_a_base_and_needs_no_memory(
    run: Path, tiny_voc: Path, experiment: dict[str, Any], tmp_path: Path
) -> None:
    (run / "step0" / "memory_bank.safetensors").unlink()
    config = configure(experiment, method={"name": "finetuning"}, copy_paste__bank_size=7)
    out = tmp_path / "finetuning"
    assert list(train(config, tiny_voc, None, out, base=run)) == [1]
    figures = json.loads((out / "step1/evaluation.json").read_text())
    assert figures["diagnostic"] is True  # the true masks are its pseudo masks
    assert not (out / "step1/memory_bank.safetensors").exists()
    assert not any(one.maps for one in gallery_of(out, 1).training)
    lines = [json.loads(line) for line in (out / "step1/metrics.jsonl").read_text().splitlines()]
    assert [set(line["losses"]) for line in lines if "losses" in line] == [{"all_bce"}] * 2


def test_a_base_trained_for_another_method_has_a_memory(
    tiny_voc: Path, experiment: dict[str, Any], tmp_path: Path
) -> None:
    first = configure(experiment, method={"name": "finetuning"}, training__step0__epochs=1)
    train(first, tiny_voc, None, tmp_path / "base", step=0)
    config = configure(experiment, training__step0__epochs=1, training__steps__epochs=1)
    assert list(train(config, tiny_voc, None, tmp_path / "run", base=tmp_path / "base")) == [1]


def test_wilson_learns_from_tags_alone(
    run: Path, tiny_voc: Path, experiment: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No mask of a training photograph, no foundation model, no memory."""
    data, out = Path(shutil.copytree(tiny_voc, tmp_path / "voc")), tmp_path / "wilson"
    for mask in (data / "SegmentationClassAug").glob("train_aug_*.png"):
        mask.unlink()
    (run / "step0" / "memory_bank.safetensors").unlink()
    monkeypatch.setattr("fmwiss.training.run.open_pseudo_masks", None)
    config = configure(experiment, method={"name": "wilson", "localizer_epochs": 1}, cosegmentation={})
    assert list(train(config, data, None, out, base=run)) == [1]
    lines = [json.loads(line) for line in (out / "step1/metrics.jsonl").read_text().splitlines()]
    first = {"image_label", "prior", "features"}
    assert [set(line["losses"]) for line in lines if "losses" in line] == [
        first,
        first | {"self_supervision", "all_bce"},
    ]
    assert json.loads((out / "step1/evaluation.json").read_text())["diagnostic"] is False
    shown = gallery_of(out, 1).training
    assert any("sheep" in one.maps for one in shown)  # what the localizer says in the end
    assert [step.out_channels for step in load_segmenter(out).classifier.steps] == [5, 2]  # type: ignore[union-attr]


LOCATORS = {"cam": {"tags"}, "seam": {"tags", "dark", "er", "ecr"}, "ss": {"image_label", "self_supervision"}}
LOCATORS["eps"] = {"tags", "saliency"}


@pytest.mark.parametrize("name", LOCATORS)
def test_a_locator_makes_the_masks_before_the_student_learns(
    name: str, run: Path, tiny_voc: Path, experiment: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = Path(shutil.copytree(tiny_voc, tmp_path / "voc")), tmp_path / name
    for mask in (data / "SegmentationClassAug").glob("train_aug_*.png"):
        mask.unlink()
    monkeypatch.setattr("fmwiss.training.run.open_pseudo_masks", None)
    method = {"name": name, "scales": [0.5, 1.0], "locator": {"epochs": 1, "batch_size": 4}}
    method |= {"pretraining_epochs": 0} if name == "ss" else {}
    vit = {"model": "test_vit", "pretrained": False, "input_size": 64}
    config = configure(experiment, method=method, cosegmentation={"self_supervised": vit})
    assert list(train(config, data, None, out, base=run)) == [1]
    figures = json.loads((out / "step1/evaluation.json").read_text())
    masks = list((out / "step1/locator/masks").iterdir())
    assert len(masks) == figures["training_images"]
    assert figures["diagnostic"] is False
    assert not (out / "step1/locator/state").exists()
    lines = [json.loads(line) for line in (out / "step1/locator/metrics.jsonl").read_text().splitlines()]
    assert [set(line["losses"]) for line in lines if "losses" in line] == [LOCATORS[name]]
    assert all(load_file(path)["map"].max() <= 2 for path in masks)
    assert len(list((out / "step1/locator").glob("saliency/*"))) == (len(masks) if name == "eps" else 0)
    assert not any(one.maps for one in gallery_of(out, 1).training)


def test_eps_learns_from_the_saliency_maps_that_are_given(
    run: Path, tiny_voc: Path, experiment: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is asked of a self-supervised model, and other maps make other losses."""
    monkeypatch.setattr("fmwiss.training.run.build_saliency", None)
    maps, source = tmp_path / "maps", VOCSource(tiny_voc)
    maps.mkdir()
    method = {"name": "eps", "scales": [1.0], "locator": {"epochs": 1, "batch_size": 4}, "saliency": str(maps)}
    config, losses = configure(experiment, method=method), {}
    for value in (0, 255):
        for image_id in source.ids("train_aug"):
            Image.new("L", source.image_size(image_id)[::-1], value).save(maps / f"{image_id}.png")
        out = tmp_path / f"eps{value}"
        assert list(train(config, tiny_voc, None, out, base=run)) == [1]
        assert not (out / "step1/locator/saliency").exists()
        lines = [json.loads(line) for line in (out / "step1/locator/metrics.jsonl").read_text().splitlines()]
        losses[value] = next(line["losses"] for line in lines if "losses" in line)
    assert losses[0]["tags"] == losses[255]["tags"] and losses[0]["saliency"] != losses[255]["saliency"]
    half = configure(experiment, method=method, data__fraction=0.5)
    train(half, tiny_voc, None, tmp_path / "half", base=run)
    used = {path.stem for path in (tmp_path / "half/step1/locator/masks").iterdir()}
    for path in maps.iterdir():
        if path.stem not in used:
            path.unlink()
    train(half, tiny_voc, None, tmp_path / "again", base=run)  # the others need no map
    with pytest.raises(UserError, match=r"\.png: is missing, the first of \d+ missing saliency maps"):
        train(config, tiny_voc, None, tmp_path / "bare")  # before step 0 is trained
    assert not (tmp_path / "bare/step0").exists()
    shutil.rmtree(maps)
    with pytest.raises(UserError, match=r"method\.saliency = .*maps: is no folder"):
        train(config, tiny_voc, None, tmp_path / "none", base=run)
    assert not (tmp_path / "none").exists()


def test_masks_that_are_there_are_not_made_again(
    run: Path, tiny_voc: Path, experiment: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = {"name": "cam", "scales": [1.0], "locator": {"epochs": 1, "batch_size": 4}}
    config, out = configure(experiment, method=method), tmp_path / "cam"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("fmwiss.methods.cam.CAM.training_step", _interrupt)
        train(config, tiny_voc, None, out, base=run)
    before = {path.name: path.read_bytes() for path in (out / "step1/locator/masks").iterdir()}
    with pytest.raises(UserError, match=r"background_score = 0.2 but 0.5"):
        train(configure(experiment, method={**method, "background_score": 0.5}), tiny_voc, None, out)
    monkeypatch.setattr("fmwiss.methods.cam.CAMLocator.training_step", _interrupt)
    time_file = out / "step1/locator/time.json"
    assert 0 <= json.loads(time_file.read_text())["seconds"] < 600
    time_file.write_text('{"seconds": 7200.0}')
    assert list(train(config, tiny_voc, None, out)) == [1]
    minutes = json.loads((out / "step1/evaluation.json").read_text())["minutes"]
    assert 120 <= minutes["preparation"] <= minutes["all"] < 125  # the interrupted process counts
    assert {path.name: path.read_bytes() for path in (out / "step1/locator/masks").iterdir()} == before


def _interrupt(*arguments: Any) -> None:
    raise KeyboardInterrupt


def test_what_does_not_fit_is_found_before_anything_is_done(
    tiny_voc: Path, experiment: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"localizer_epochs = 5 leaves none of training.steps.epochs = 2"):
        train(configure(experiment, method={"name": "wilson"}), tiny_voc, None, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_single_class_steps_whose_classes_enter_the_memory(
    run: Path, tiny_voc: Path, experiment: dict[str, Any], tmp_path: Path
) -> None:
    changes = {
        "protocol__steps": [list(BASE), ["sheep"], ["sofa"]],
        "copy_paste__learnt_classes": True,
        "copy_paste__min_area": 0.0,
        "method__warmup_epochs": 0,
        "training__steps__epochs": 1,
    }
    config = configure(experiment, **changes)
    out = tmp_path / "three"
    shutil.copytree(run / "step0", out / "step0")
    results = train(config, tiny_voc, None, out)
    assert list(results) == [1, 2]
    assert results[2].step == 2
    assert list(results[2].iou) == ["background", *BASE, "sheep", "sofa"]
    bank = MemoryBank.load(out / "step2" / "memory_bank.safetensors")
    assert set(bank.classes) >= set(BASE)
    model = load_segmenter(out)
    assert [step.out_channels for step in model.classifier.steps] == [5, 1, 1]  # type: ignore[union-attr]


def test_steps_must_come_in_order(tiny_voc: Path, experiment: dict[str, Any], tmp_path: Path) -> None:
    config = configure(experiment)
    with pytest.raises(UserError, match="step 0"):
        train(config, tiny_voc, None, tmp_path / "run", step=1)
    for step in (2, -1):
        with pytest.raises(UserError, match="0 to 1"):
            train(config, tiny_voc, None, tmp_path / "run", step=step)


def test_without_a_memory_nothing_is_pasted(
    tiny_voc: Path, experiment: dict[str, Any], tmp_path: Path, run: Path
) -> None:
    (run / "step0" / "memory_bank.safetensors").unlink()
    with pytest.raises(UserError, match="memory bank"):
        train(configure(experiment), tiny_voc, None, run)
    out = tmp_path / "none"
    shutil.copytree(run / "step0", out / "step0")
    config = configure(experiment, copy_paste__bank_size=0, training__steps__epochs=1, method__warmup_epochs=0)
    assert list(train(config, tiny_voc, None, out)) == [1]
    assert not (out / "step1" / "memory_bank.safetensors").exists()
    assert json.loads((out / "step1/evaluation.json").read_text())["pasted_instances"] == {}


def test_no_photograph_has_the_steps_classes(
    tiny_voc: Path, experiment: dict[str, Any], run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "cows"
    shutil.copytree(run / "step0", out / "step0")
    with pytest.raises(UserError, match="cow"):
        train(configure(experiment, protocol__steps=[list(BASE), ["cow"]]), tiny_voc, None, out)


def test_a_model_of_another_encoder_is_refused(
    tiny_voc: Path, experiment: dict[str, Any], run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "other"
    shutil.copytree(run / "step0", out / "step0")
    with pytest.raises(UserError, match="test_byobnet"):
        train(configure(experiment, segmenter__encoder="test_byobnet"), tiny_voc, None, out)


def test_a_share_of_the_photographs(base: Path, tiny_voc: Path, experiment: dict[str, Any], tmp_path: Path) -> None:
    config = configure(experiment, data__fraction=0.5, training__steps__epochs=1)
    train(config, tiny_voc, None, tmp_path / "half", base=base)
    tags = json.loads((base / "tags.json").read_text())["tags"]
    whole = sum("sheep" in names or "sofa" in names for names in tags.values())
    half = json.loads((tmp_path / "half/step1/evaluation.json").read_text())["training_images"]
    assert half == round(whole / 2) < whole


# ------------------------------------------------------------------------------------------------- another run's base


def test_the_base_of_another_run_is_taken_over(
    base: Path, tiny_voc: Path, experiment: dict[str, Any], tmp_path: Path
) -> None:
    config = configure(experiment, method__alpha=0.1, data__workers=1, training__steps__epochs=1)
    out = tmp_path / "taken"
    with pytest.raises(UserError, match="seed"):
        train(configure(experiment, training__seed=1), tiny_voc, None, tmp_path / "worse", base=base)
    with pytest.raises(UserError, match="not finished"):
        (tmp_path / "empty").mkdir()
        train(config, tiny_voc, None, tmp_path / "empty-handed", base=tmp_path / "empty")
    # a run without copy-paste does not care for the memory that lies there
    train(configure(experiment, copy_paste__bank_size=0), tiny_voc, None, tmp_path / "bankless", step=0, base=base)
    results = train(config, tiny_voc, None, out, step=0, base=base)
    assert results == {}
    assert same_weights(base / "step0", out / "step0")
    assert (out / "step0" / "memory_bank.safetensors").is_file()
    (out / "step0" / "own").touch()
    train(config, tiny_voc, None, out, step=0, base=base)
    assert (out / "step0" / "own").exists()  # a run keeps the base that it has


def test_a_base_with_another_memory_gets_the_one_that_the_run_wants(
    base: Path, tiny_voc: Path, experiment: dict[str, Any], tmp_path: Path
) -> None:
    """As a run that trains the base itself keeps it; the model is the other run's."""
    wanted = configure(experiment, copy_paste__bank_size=2)
    train(wanted, tiny_voc, None, tmp_path / "taken", step=0, base=base)
    assert same_weights(base / "step0", tmp_path / "taken/step0")
    train(wanted, tiny_voc, None, tmp_path / "own", step=0)
    theirs, taken, own = (
        MemoryBank.load(path / "step0/memory_bank.safetensors")
        for path in (base, tmp_path / "taken", tmp_path / "own")
    )
    assert [max(bank.count(name) for name in bank.classes) for bank in (theirs, taken)] == [3, 2]
    assert taken.classes == own.classes
    for name in own.classes:
        assert [i.jpeg.tobytes() for i in taken[name]] == [i.jpeg.tobytes() for i in own[name]]
    with pytest.raises(UserError, match="bank_size = 2 but 3"):
        train(configure(experiment), tiny_voc, None, tmp_path / "taken")


def test_a_run_that_pastes_nothing_hands_no_memory_on(
    base: Path, tiny_voc: Path, experiment: dict[str, Any], tmp_path: Path
) -> None:
    """Its configuration would say of another run's memory what is not so."""
    wilson = configure(experiment, method={"name": "wilson", "localizer_epochs": 1}, copy_paste__bank_size=2)
    train(wilson, tiny_voc, None, tmp_path / "wilson", step=0, base=base)
    assert not (tmp_path / "wilson/step0/memory_bank.safetensors").exists()
    wanted = configure(experiment, copy_paste__bank_size=2)
    # as earlier versions did, with a file that does not tell what it was made with
    bank = MemoryBank.load(base / "step0/memory_bank.safetensors")
    assert bank.made_with == {"bank_size": 3, "min_area": 0.01}
    bank.made_with = None
    for number in range(2):
        train(wanted, tiny_voc, None, tmp_path / f"{number}", step=0, base=tmp_path / "wilson")
        taken = MemoryBank.load(tmp_path / f"{number}/step0/memory_bank.safetensors")
        assert max(taken.count(name) for name in taken.classes) == 2
        bank.save(tmp_path / "wilson/step0/memory_bank.safetensors")


def test_a_base_brings_the_tags_along(base: Path, tiny_voc: Path, experiment: dict[str, Any], tmp_path: Path) -> None:
    """With another run's base, too, the masks of the training photographs are not needed to know their tags."""
    train(configure(experiment), tiny_voc, None, tmp_path / "run", step=0, base=base)
    assert (tmp_path / "run/tags.json").read_bytes() == (base / "tags.json").read_bytes()


# ------------------------------------------------------------------------------------------------ what is found at once


def test_a_failed_start_does_not_bind_the_folder(tiny_voc: Path, experiment: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="resnett18"):
        train(configure(experiment, segmenter__encoder="resnett18"), tiny_voc, None, tmp_path, step=0)
    config = configure(experiment, training__step0__epochs=1)
    assert list(train(config, tiny_voc, None, tmp_path, step=0)) == [0]
    with pytest.raises(UserError, match=r"training.step0.epochs = 1 but 2"):
        train(configure(experiment, training__step0__epochs=2), tiny_voc, None, tmp_path, step=0)


def test_a_base_alone_binds_what_it_depends_on(
    base: Path, tiny_voc: Path, experiment: dict[str, Any], tmp_path: Path
) -> None:
    """After a failed step 1 its settings may be corrected, as long as the base is the same; afterwards no more."""
    names = {"name": "imagenet-names", "model": "efficientnett"}
    typo = configure(experiment, cosegmentation={"source": "foundation", "vision_language": names})
    with pytest.raises(UserError, match="efficientnett"):
        train(typo, tiny_voc, None, tmp_path, base=base)
    with pytest.raises(UserError, match=r"data.flip = 0.5 but 0.0"):
        train(configure(experiment, data__flip=0.0), tiny_voc, None, tmp_path)
    assert load_config(tmp_path / "config.yaml") == typo
    config = configure(experiment, method__alpha=0.1, training__steps__epochs=1)
    assert list(train(config, tiny_voc, None, tmp_path)) == [1]
    assert load_config(tmp_path / "config.yaml") == config
    with pytest.raises(UserError, match=r"method.alpha = 0.1 but 0.5"):
        train(configure(experiment, training__steps__epochs=1), tiny_voc, None, tmp_path)


def test_a_killed_step_binds_the_folder(run: Path, tiny_voc: Path, experiment: dict[str, Any]) -> None:
    (run / "step1/state/00000002").mkdir(parents=True)
    with pytest.raises(UserError, match=r"method.alpha = 0.5 but 0.1"):
        train(configure(experiment, method__alpha=0.1), tiny_voc, None, run)


def test_a_base_that_saw_later_classes_is_no_disjoint_base(
    tiny_voc: Path, experiment: dict[str, Any], tmp_path: Path
) -> None:
    disjoint = configure(experiment, protocol__setting="disjoint", training__step0__epochs=1)
    train(disjoint, tiny_voc, None, tmp_path / "base", step=0)
    steps = [list(BASE), ["sheep", "cow"]]
    other = configure(experiment, protocol={"setting": "disjoint", "steps": steps}, training__step0__epochs=1)
    with pytest.raises(UserError, match=r"protocol.steps = .*sofa.* says .*cow"):
        train(other, tiny_voc, None, tmp_path / "other", step=0, base=tmp_path / "base")


def test_two_commands_do_not_share_a_folder(run: Path, tiny_voc: Path, experiment: dict[str, Any]) -> None:
    with FileLock(run / ".lock"), pytest.raises(UserError, match="another fmwiss train is at work"):
        train(configure(experiment), tiny_voc, None, run)


def test_a_missing_validation_list_is_found_before_training(
    tiny_voc: Path, experiment: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="no split 'vall'"):
        train(configure(experiment, data__val_split="vall"), tiny_voc, None, tmp_path, step=0)
    assert not any(tmp_path.glob("step*"))


def test_a_base_of_other_classes_is_refused(run: Path, tiny_voc: Path, experiment: dict[str, Any]) -> None:
    """As it comes about when a named split meets another data set than the one that the base was trained on."""
    description = run / "step0" / "model.json"
    description.write_text(description.read_text().replace('"boat"', '"umbrella"'))
    with pytest.raises(UserError, match=r"learnt aeroplane, bicycle, bird, umbrella, and for .* needs one of aero"):
        train(configure(experiment), tiny_voc, None, run)


def test_what_nobody_tells_about_shows_no_absence(tmp_path: Path) -> None:
    """data.negatives draws from photographs with a row alone: where there is none, the class may well be."""
    (tmp_path / "images").mkdir()
    for number in range(6):
        Image.new("RGB", (32, 32)).save(tmp_path / f"images/{number}.jpg")
    (tmp_path / "tags.csv").write_text("file,tags\n0.jpg,owl\n1.jpg,dog\n2.jpg,\n")
    source = FolderSource(tmp_path, tags=tmp_path / "tags.csv")
    ids = list(source.photographs.paths)
    tags = TagIndex.load_or_build(source, ids, str(tmp_path / "tags.csv"), tmp_path / "cache.json")
    run = SimpleNamespace(
        config=Config.model_validate({"data": {"negatives": 9}}), source=source,
        protocol=Protocol([["dog"], ["owl"]], "overlap"),
    )
    assert _Run._negatives(run, 1, tags, ids, 1) == ["1", "2"]  # type: ignore[arg-type]
