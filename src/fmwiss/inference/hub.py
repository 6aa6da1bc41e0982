"""Models in folders and on the Hugging Face hub. Only safetensors and JSON are fetched and read."""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmwiss.errors import UserError
from fmwiss.files import write_atomically
from fmwiss.foundation.weights import first_line, hub_host_found
from fmwiss.inference.card import CARD, model_card
from fmwiss.inference.record import RECORD, ModelRecord, record_of
from fmwiss.models import Segmenter, load_segmenter
from fmwiss.run_folders import last_step, step_of_run

if TYPE_CHECKING:
    from fmwiss.inference.model import Model

DESCRIPTION = "model.json"
FETCHED = ("*.json", "*.safetensors")
"""What is downloaded of a repository; whatever else is in it stays there."""
_PART = r"[A-Za-z0-9](?:[\w.-]*\w)?"
_REPOSITORY = re.compile(rf"{_PART}/{_PART}")


def open_model(
    path: str | Path, step: int | None, revision: str | None
) -> tuple[Segmenter, tuple[Path, int | None]]:
    """The model at a place, on the CPU, and what its record is made of; arguments and errors as :func:`fmwiss.load`."""
    folder = Path(path)
    if folder.is_dir():
        if revision is not None:
            raise UserError(f"{path}: is a folder, and a folder has no revision; leave the revision out")
        return _open_folder(folder, step)
    if folder.exists():
        raise UserError(f"{path}: is a file; give the folder of a run or of a saved model")
    name = str(path)
    if not _REPOSITORY.fullmatch(name):
        raise UserError(
            f"{path}: there is no such run; give the folder that `fmwiss train --out` or save_pretrained wrote, or a "
            "model on the hub as owner/name"
        )
    if step is not None:
        raise UserError(f"{path}: there is no such run, and a model on the hub has no steps; leave the step out")
    return _open_folder(_fetch(name, revision), None)


def _open_folder(folder: Path, step: int | None) -> tuple[Segmenter, tuple[Path, int | None]]:
    if not (folder / DESCRIPTION).is_file():
        step = last_step(folder) if step is None else step
        return load_segmenter(folder, step), (folder, step)
    if step is not None:
        raise UserError(f"{folder}: is a single model, without steps; leave the step out, or give the run's folder")
    number = step_of_run(folder)
    origin = (folder, None) if number is None else (Path(os.path.abspath(folder)).parent, number)
    return Segmenter.load(folder), origin


def _fetch(name: str, revision: str | None) -> Path:
    """The folder of the hub client's cache with a repository's safetensors and JSON."""
    import huggingface_hub
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        # without a network the client tries for long; what it has already is taken then
        folder = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=list(FETCHED), local_files_only=not hub_host_found()
        )
    except RevisionNotFoundError as error:
        raise UserError(f"{name}: on the hub there is no revision {revision}") from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{name}: there is neither a folder nor a model on the hub of this name, or it is private and you are not "
            "logged in (hf auth login)"
        ) from error
    except _hub_errors() as error:
        raise UserError(
            f"{name}: there is no such folder, and the hub could not give a model of this name ({first_line(error)})"
        ) from error
    if not (Path(folder) / DESCRIPTION).is_file():
        raise UserError(f"{name}: is on the hub, but is no model of fmwiss: it holds no {DESCRIPTION}")
    return Path(folder)


def _hub_errors() -> tuple[type[Exception], ...]:
    """What the client raises where the hub refuses, or cannot be reached."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # the HTTP library beneath, whose errors the client lets through, is another one from version to version
    return OSError, HFValidationError, *HfHubHTTPError.__bases__


def save_pretrained(
    model: Model, folder: Path, *, license: str | None, dataset: str | None, name: str | None = None
) -> None:
    """See :meth:`fmwiss.Model.save_pretrained`; ``name`` is what the card calls the model, by default the folder's."""
    record = _record(model, license, dataset)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; give a folder to save the model in")
    if (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: is a run's folder; give another one to save the model in")
    if step_of_run(folder) is not None:
        raise UserError(f"{folder}: is the folder of a run's step; give another one to save the model in")
    model.segmenter.save(folder)
    _write(folder / RECORD, json.dumps(record.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n")
    _write(folder / CARD, model_card(record, name or folder.resolve().name))


def card_of(model: Model, name: str, license: str | None, dataset: str | None) -> str:
    """The card that a model would get under a name; see :meth:`fmwiss.Model.save_pretrained`."""
    return model_card(_record(model, license, dataset), name)


def _record(model: Model, license: str | None, dataset: str | None) -> ModelRecord:
    """What is known about a model, with what the user says."""
    stated = {"license": _stated(license), "dataset": _stated(dataset)}
    record = record_of(model.segmenter, model.origin)
    return record.model_copy(update={key: value for key, value in stated.items() if value is not None})


def push_to_hub(
    model: Model,
    repo_id: str,
    *,
    license: str,
    dataset: str | None,
    private: bool,
    revision: str | None,
    message: str | None,
    api: Any,
) -> str:
    """See :meth:`fmwiss.Model.push_to_hub`."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import LocalTokenNotFoundError

    if not _REPOSITORY.fullmatch(repo_id):
        raise UserError(f"{repo_id}: is no name of a repository; give owner/name")
    if not _stated(license):
        raise UserError("a model that is published needs a licence; name it, as in license='cc-by-4.0'")
    api = api or HfApi(library_name="fmwiss")
    with tempfile.TemporaryDirectory(prefix="fmwiss-") as temporary:
        folder = Path(temporary)
        save_pretrained(model, folder, license=license, dataset=dataset, name=repo_id)
        try:
            address = str(api.create_repo(repo_id, private=private, exist_ok=True))
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                revision=revision,
                commit_message=message or f"fmwiss model of {len(model.class_names)} labels",
            )
        except LocalTokenNotFoundError as error:
            raise UserError(f"{repo_id}: to publish, log in to the hub first (hf auth login)") from error
        except _hub_errors() as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            if status in (401, 403):
                raise UserError(
                    f"{repo_id}: the hub does not let you write there; log in (hf auth login) with a token that may, "
                    "or give a name of your own"
                ) from error
            raise UserError(f"{repo_id}: could not be published ({first_line(error)})") from error
    return address


def _stated(text: str | None) -> str | None:
    """What the user says about the model, on one line; None where it is nothing."""
    line = " ".join((text or "").split())
    return line or None


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
