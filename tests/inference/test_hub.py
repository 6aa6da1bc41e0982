"""Saved models come back the same; cards say what the run says; the hub's client is asked for the right things."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.torch import save_file

import fmwiss
from fmwiss.errors import UserError
from fmwiss.inference import Model, hub
from fmwiss.inference.card import model_card
from fmwiss.inference.record import ModelRecord, read_record
from fmwiss.models import Segmenter

Lively: TypeAlias = Callable[..., Segmenter]
Scene: TypeAlias = Callable[..., Any]

FIGURES = {
    "step": 1,
    "images": 257,
    "miou": {"old": 48.71, "new": 33.16, "all": 46.67},
    "pixel_accuracy": 83.9,
    "iou": {"background": 83.6, "cat": 62.6, "potted plant": 33.5, "sheep": None},
    "split": "val",
    "training_images": 394,
    "minutes": {"pseudo masks": 2.0, "training": 7.4},
    "peak_memory_gib": 1.4,
}
ENVIRONMENT = {
    "fmwiss": "0.1.0",
    "commit": "9e8a71b0123456789+",
    "versions": {"torch": "2.9"},
    "machine": {"system": "Linux", "processor": "any", "cores": 2, "memory_gib": 4.0, "devices": ["cpu"]},
    "threads": 1,
    "processes": 1,
    "precision": "32-true",
    "finished": "2026-01-01T00:00+00:00",
}


@pytest.fixture
def told_run(run: Path) -> Path:
    """A run that has figures."""
    (run / "step1" / "evaluation.json").write_text(json.dumps(FIGURES))
    (run / "step1" / "environment.json").write_text(json.dumps(ENVIRONMENT))
    return run


@pytest.fixture
def saved(told_run: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "saved"
    fmwiss.load(told_run).save_pretrained(folder, license="cc-by-4.0", dataset="VOC, a tenth")
    return folder


# --------------------------------------------------------------------------------------------------- saved and loaded


def test_what_is_saved_is_loaded(told_run: Path, saved: Path, scene: Scene, tmp_path: Path) -> None:
    assert {path.name for path in saved.iterdir()} == {"model.safetensors", "model.json", "config.json", "README.md"}
    before, after = fmwiss.load(told_run), fmwiss.load(saved)
    state, own = before.segmenter.state_dict(), after.segmenter.state_dict()
    assert state.keys() == own.keys() and all(torch.equal(state[name], own[name]) for name in state)
    image = scene(60, 80)
    assert (before.predict(image) == after.predict(image)).all() and before.class_names == after.class_names
    assert (Model.from_pretrained(str(saved)).predict(image) == before.predict(image)).all()
    shutil.rmtree(told_run)  # a saved model needs its run no more, and keeps what is known through further saves
    again = tmp_path / "again"
    after.save_pretrained(again, dataset="another")
    assert read_record(again / "config.json") == read_record(saved / "config.json").model_copy(
        update={"dataset": "another"}
    )


def test_a_step_s_folder_knows_its_run(told_run: Path, tmp_path: Path) -> None:
    fmwiss.load(told_run / "step1").save_pretrained(tmp_path / "saved")
    assert read_record(tmp_path / "saved" / "config.json").steps[0].figures is not None


def test_a_model_of_which_nothing_is_known_is_saved_too(told_run: Path, tmp_path: Path) -> None:
    shutil.move(told_run / "step1", tmp_path / "alone")
    model = fmwiss.load(tmp_path / "alone")
    model.save_pretrained(tmp_path / "saved")
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "None are on record." in card and "Nothing is on record." in card and "model-index" not in card
    assert fmwiss.load(tmp_path / "saved").class_names == model.class_names


@pytest.mark.parametrize("step", ["step0", "step1"])
def test_a_step_of_a_run_is_not_saved_over(step: str, run: Path) -> None:
    model, before = fmwiss.load(run), (run / "step1" / "model.json").read_text()
    with pytest.raises(UserError, match=rf"{step}: is the folder of a run's step; give another one"):
        model.save_pretrained(run / step)
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "step1"]
    assert (run / "step1" / "model.json").read_text() == before


def test_weights_that_may_not_be_read_are_not_told_as_missing(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, weights = Path.open, saved / "model.safetensors"

    def refuse(path: Path, *args: Any, **options: Any) -> Any:
        if path == weights:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=r"model\.safetensors: cannot be read: Permission denied\.$"):
        fmwiss.load(saved)


def test_no_path_of_this_machine_is_published(saved: Path) -> None:
    config = (saved / "config.json").read_text()
    assert '"tags": "tags.csv"' in config
    for text in (config, (saved / "README.md").read_text(), (saved / "model.json").read_text()):
        assert "secret" not in text and "/home" not in text and str(saved.parent) not in text


def test_a_run_is_not_overwritten(told_run: Path, tmp_path: Path) -> None:
    model = fmwiss.load(told_run)
    with pytest.raises(UserError, match="is a run's folder"):
        model.save_pretrained(told_run)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file; give a folder"):
        model.save_pretrained(tmp_path / "file")


# --------------------------------------------------------------------------------------------------------------- card


def test_the_card_says_what_the_run_says(saved: Path) -> None:
    text = (saved / "README.md").read_text()
    _, head, page = text.split("---\n", 2)
    metadata = yaml.safe_load(head)
    assert (metadata["license"], metadata["library_name"], metadata["pipeline_tag"]) == (
        "cc-by-4.0", "fmwiss", "image-segmentation",
    )
    assert "| 0 | masks | cat, potted plant |" in page and "| 1 | tags | sheep |" in page
    assert "| 1 | 48.7 | 33.2 | 46.7 | 83.9 | 257 | VOC, a tenth, val | 9e8a71b012+ |" in page
    assert "| potted plant | 33.5 |" in page and "| sheep | - |" in page
    assert "`fmwiss`" in page and "seed 0" in page and "9 minutes in all" in page and "`alpha` 0.5" in page
    assert "learnt from 394 photographs of VOC, a tenth" in page
    assert "`test_efficientnet, DeepLabV3 decoder, output stride 16`" in page
    assert "`clip ViT-B-16-quickgelu` and `vit_large_patch16_224`" in page
    assert 'fmwiss.load("saved")' in page and "shorter side has 48 pixels" in page
    assert page.rstrip().endswith("cc-by-4.0")


def test_the_hub_s_own_reader_understands_the_card(saved: Path) -> None:
    data = huggingface_hub.ModelCard((saved / "README.md").read_text()).data
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("mean_iou", 46.67, "VOC, a tenth")
    assert data.license == "cc-by-4.0" and "semantic-segmentation" in data.tags


def test_the_card_names_foundation_models_only_where_they_were_used(told_run: Path) -> None:
    text = (told_run / "config.yaml").read_text()
    (told_run / "config.yaml").write_text(re.sub(r"source: foundation", "source: true-masks", text))
    card = hub.card_of(fmwiss.load(told_run), "me/model", None, None)
    assert "foundation models" not in card and "The encoder started" in card
    (told_run / "config.yaml").write_text(re.sub(r"pretrained: true", "pretrained: false", text))
    card = hub.card_of(fmwiss.load(told_run), "me/model", None, None)
    assert "foundation models" in card and "The encoder started" not in card


def test_a_card_without_a_licence_says_so(told_run: Path) -> None:
    text = hub.card_of(fmwiss.load(told_run), "me/model", None, None)
    assert "**None is stated.**" in text and "license:" not in text.split("---")[1] and "# model\n" in text


def test_names_of_users_neither_break_the_card_nor_mark_it_up() -> None:
    names = ["background", "a|b", "<script>", "`x`\n# y", "snow*man"]
    record = ModelRecord(
        fmwiss="0",
        class_names=names,
        classes_by_step=[names[1:]],
        network="any",
        working_size=None,
        license="x: [\ny",
        dataset="a: b\n---\n# c",
    )
    text = model_card(record, "o/n")
    assert yaml.safe_load(text.split("---\n")[1])["license"] == "x: [\ny"
    (row,) = [line for line in text.splitlines() if line.startswith("| 0 |")]
    assert row == r"| 0 | masks | a\|b, \<script\>, \`x\` \# y, snow\*man |"


def test_a_diagnostic_is_marked(told_run: Path) -> None:
    path = told_run / "step1" / "evaluation.json"
    path.write_text(json.dumps({**FIGURES, "diagnostic": True}))
    text = hub.card_of(fmwiss.load(told_run), "me/model", None, None)
    assert "| 1 (diagnostic) |" in text and "as a diagnostic" in text


# ---------------------------------------------------------------------------------------------------------------- hub


class FakeApi:
    """What is asked of the hub, and the files as they stand at that moment."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.files: dict[str, bytes] = {}
        self.error = error

    def create_repo(self, repo_id: str, **options: Any) -> str:
        self.calls.append(("create_repo", {"repo_id": repo_id, **options}))
        if self.error is not None:
            raise self.error
        return f"https://hub.invalid/{repo_id}"

    def create_branch(self, repo_id: str, **options: Any) -> None:
        self.calls.append(("create_branch", {"repo_id": repo_id, **options}))

    def upload_folder(self, *, folder_path: Path, **options: Any) -> None:
        self.calls.append(("upload_folder", options))
        self.files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}


def test_push_uploads_what_save_writes(told_run: Path, saved: Path) -> None:
    api = FakeApi()
    address = fmwiss.load(told_run).push_to_hub(
        "me/model", license="cc-by-4.0", dataset="VOC, a tenth", private=True, revision="next", api=api
    )
    assert address == "https://hub.invalid/me/model"
    assert api.calls == [
        ("create_repo", {"repo_id": "me/model", "private": True, "exist_ok": True}),
        ("create_branch", {"repo_id": "me/model", "branch": "next", "exist_ok": True}),
        (
            "upload_folder",
            {"repo_id": "me/model", "revision": "next", "commit_message": "fmwiss model of 4 labels"},
        ),
    ]
    for name in ("model.safetensors", "model.json", "config.json"):
        assert api.files[name] == (saved / name).read_bytes()
    assert 'fmwiss.load("me/model")' in api.files["README.md"].decode()


def test_the_client_has_every_option_that_is_used() -> None:
    import inspect

    api = huggingface_hub.HfApi
    used = {
        api.create_repo: ("repo_id", "private", "exist_ok"),
        api.create_branch: ("repo_id", "branch", "exist_ok"),
        api.upload_folder: ("repo_id", "folder_path", "revision", "commit_message"),
        huggingface_hub.snapshot_download: ("repo_id", "revision", "allow_patterns", "local_files_only"),
    }
    for function, options in used.items():
        assert set(options) <= set(inspect.signature(function).parameters)


def response(status: int) -> Any:
    """As much of an answer as the client's exceptions look at, whatever library it came by."""
    return SimpleNamespace(status_code=status, headers={}, request=SimpleNamespace(url="https://hub.invalid"))


PUSH_ERRORS: dict[str, tuple[Exception, str]] = {
    "not logged in": (LocalTokenNotFoundError("no token"), "log in to the hub first"),
    "not allowed": (HfHubHTTPError("403", response=response(403)), "does not let you write there"),
    "server": (HfHubHTTPError("500 Server Error", response=response(500)), "could not be published (500 Server Error)"),
    "network": (ConnectionError("unreachable"), "could not be published (unreachable)"),
    "client": (HfHubHTTPError.__bases__[0]("no route"), "could not be published (no route)"),
}


@pytest.mark.parametrize("name", PUSH_ERRORS)
def test_what_goes_wrong_while_pushing_is_told(name: str, told_run: Path) -> None:
    error, sentence = PUSH_ERRORS[name]
    with pytest.raises(UserError) as caught:
        fmwiss.load(told_run).push_to_hub("me/model", license="mit", api=FakeApi(error))
    assert sentence in str(caught.value)


@pytest.mark.parametrize("repository", ["model", "a/b/c", "me/", "../me/model", "me/mod el", "/me"])
def test_push_wants_a_name_and_a_licence(repository: str, told_run: Path) -> None:
    api, model = FakeApi(), fmwiss.load(told_run)
    with pytest.raises(UserError, match="give owner/name"):
        model.push_to_hub(repository, license="mit", api=api)
    with pytest.raises(UserError, match="needs a licence"):
        model.push_to_hub("me/model", license=" ", api=api)
    assert api.calls == []


@pytest.fixture
def fake_hub(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """``me/model`` is on the hub, which keeps to the patterns that it is asked for."""
    world = SimpleNamespace(asked=[], reachable=True, error=None)
    (saved / "weights.pkl").write_bytes(b"cos\nsystem\n.")
    (saved / "model.py").write_text("raise SystemExit")

    def download(repo_id: str, **options: Any) -> str:
        world.asked.append({"repo_id": repo_id, **options})
        if world.error is not None:
            raise world.error
        target = tmp_path / "cache" / repo_id
        target.mkdir(parents=True, exist_ok=True)
        for pattern in options["allow_patterns"]:
            for path in saved.glob(pattern):
                shutil.copy(path, target)
        return str(target)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(hub, "hub_host_found", lambda: world.reachable)
    monkeypatch.chdir(tmp_path)
    return world


def test_a_model_on_the_hub_is_loaded_by_name(fake_hub: SimpleNamespace, told_run: Path, scene: Scene) -> None:
    model = fmwiss.load("me/model", revision="v1")
    image = scene(50, 50)
    assert (model.predict(image) == fmwiss.load(told_run).predict(image)).all()
    fake_hub.reachable = False
    assert fmwiss.Model.from_pretrained("me/model").class_names == model.class_names
    asked = {"repo_id": "me/model", "allow_patterns": ["*.json", "*.safetensors"]}
    assert fake_hub.asked == [
        {**asked, "revision": "v1", "local_files_only": False},
        {**asked, "revision": None, "local_files_only": True},
    ]
    assert {path.suffix for path in Path("cache/me/model").iterdir()} == {".json", ".safetensors"}


FETCH_ERRORS: dict[str, tuple[Exception, str]] = {
    "no repository": (RepositoryNotFoundError("404", response=response(404)), "neither a folder nor a model on the"),
    "no revision": (RevisionNotFoundError("404", response=response(404)), "there is no revision v1"),
    "no network": (LocalEntryNotFoundError("not in the cache"), "the hub could not give a model of this name"),
}


@pytest.mark.parametrize("name", FETCH_ERRORS)
def test_what_goes_wrong_while_fetching_is_told(name: str, fake_hub: SimpleNamespace) -> None:
    fake_hub.error, sentence = FETCH_ERRORS[name]
    with pytest.raises(UserError) as caught:
        fmwiss.load("me/model", revision="v1")
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_a_repository_of_something_else_is_told(fake_hub: SimpleNamespace, saved: Path) -> None:
    (saved / "model.json").unlink()
    with pytest.raises(UserError, match=re.escape("no model of fmwiss: it holds no model.json")):
        fmwiss.load("me/model")


# -------------------------------------------------------------------------------------------------------- wrong input


def described(folder: Path, **changes: Any) -> None:
    path = folder / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def pickled(folder: Path) -> None:
    torch.save({"x": torch.zeros(1)}, folder / "model.safetensors")


def another(folder: Path) -> None:
    save_file({"x": torch.zeros(1)}, folder / "model.safetensors")


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors: cannot be read"),
    "truncated weights": (truncated, "model.safetensors: cannot be read"),
    "weights as pickle": (pickled, "model.safetensors: cannot be read"),
    "weights of another model": (another, "another architecture"),
    "description is no JSON": (lambda f: (f / "model.json").write_text("{"), "is not a model description"),
    "description is a list": (lambda f: (f / "model.json").write_text("[]"), "is not a model description"),
    "channels are a word": (lambda f: described(f, decoder_channels="many"), "decoder_channels: Input should be"),
    "classes are no lists": (lambda f: described(f, steps=["cat"]), "steps.0: Input should be"),
    "no classes": (lambda f: described(f, steps=[]), "steps: Tuple should have at least 1"),
    "encoder from elsewhere": (lambda f: described(f, encoder="hf-hub:evil/model"), "timm has no model"),
    "encoder in a folder": (lambda f: described(f, encoder="local-dir:/tmp/evil"), "timm has no model"),
    "a step of it": (lambda f: None, "is a single model, without steps"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_broken_saved_model_is_told(name: str, saved: Path) -> None:
    spoil, sentence = WRONG[name]
    spoil(saved)
    with pytest.raises(UserError) as caught:
        fmwiss.load(saved, step=1 if name == "a step of it" else None)
    assert sentence in str(caught.value)


RECORDS: dict[str, tuple[str, str]] = {
    "no JSON": ("{", "cannot be read as JSON"),
    "of another library": ('{"library_name": "timm"}', "is no model record of fmwiss (library_name"),
    "without classes": (
        '{"fmwiss": "1", "working_size": null, "classes_by_step": [], "network": ""}', "class_names: Field required"
    ),
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_broken_record_is_told_when_it_is_needed(name: str, saved: Path, tmp_path: Path) -> None:
    text, sentence = RECORDS[name]
    (saved / "config.json").write_text(text)
    model = fmwiss.load(saved)  # predicting does without
    with pytest.raises(UserError, match=re.escape(sentence)):
        model.save_pretrained(tmp_path / "again")


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("none", "there is no such run"),
        ("./none/none", "there is no such run"),
        ("a/b/c", "there is no such run"),
        ("file", "is a file; give the folder of a run or of a saved model"),
        ("empty", "is no run and no saved model"),
        ("begun", "holds no finished step; `fmwiss train` with the same --out goes on"),
        ("smp", "another library's; `fmwiss extend` takes such a model"),
        ("transformers", "another library's; `fmwiss extend` takes such a model"),
        ("half", "is no run and no saved model"),
    ],
)
def test_a_place_without_a_model_is_told(
    path: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun" / "step0").mkdir(parents=True)
    configs = {"smp": '{"_model_class": "Unet"}', "transformers": '{"model_type": "segformer"}', "half": "{"}
    for name, config in configs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(config)
    with pytest.raises(UserError, match=re.escape(sentence)):
        fmwiss.load(path)
