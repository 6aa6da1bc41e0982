"""Getting, converting and checking pretrained weights: what ``fmwiss weights`` does."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
import torch
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors.torch import save_file
from torch import Tensor

from fmwiss.downloads import Remote, Say, Track, check_digest, fetch, file_digest, silently
from fmwiss.errors import UserError
from fmwiss.files import write_atomically
from fmwiss.foundation.checkpoints import read_state
from fmwiss.foundation.inplace_abn import convert as convert_inplace_abn
from fmwiss.foundation.inplace_abn import family_of, is_inplace_abn
from fmwiss.foundation.registry import ENTRIES, Entry
from fmwiss.foundation.self_supervised import rename_keys
from fmwiss.foundation.weights import check_architecture, first_line, read_shapes, require_hub

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
_FAMILIES = {"wide_resnet": "wide-resnet38-iabn", "resnet": "resnet101-iabn"}
"""Of InPlace-ABN's networks."""


def find_entry(name: str) -> Entry:
    """The entry of this name, or of its file's.

    Raises:
        UserError: there is none; the message gives the nearest names.
    """
    for entry in ENTRIES:
        if name in (entry.name, entry.file, entry.file.removesuffix(".safetensors")):
            return entry
    near = difflib.get_close_matches(name.lower(), [entry.name.lower() for entry in ENTRIES], n=3, cutoff=0.4)
    names = [entry.name for entry in ENTRIES if entry.name.lower() in near]
    raise UserError(
        f"there are no weights called '{name}'; the nearest names: "
        f"{', '.join(names) or 'none'} (all: fmwiss weights list)"
    )


def obtain(entry: Entry, folder: Path, say: Say, *, verify: bool = True, track: Track = silently) -> Path:
    """Put weights into a folder as safetensors under the name by which they are found.

    Args:
        entry: which.
        folder: made where it is missing.
        say: is told what happens.
        verify: compare a download with its published digest, if there is one.
        track: shows progress.

    Returns:
        The file.

    Raises:
        UserError: they cannot be reached or are not what they should be; the message says which file to put where.
    """
    target = folder / entry.file
    if target.is_file():
        _check_model(entry, target)
        say(f"{target} is there already.")
        return target
    original = None if entry.original is None else folder / entry.original
    if original is not None and original.is_file():
        say(f"{original} is there; it is converted.")
        return convert(original, folder, entry, say, verify=verify)
    say(f"{entry.name}: about {round(entry.size / 1e6)} MB, licence: {entry.licence} ({entry.page}).")
    if entry.kind in ("clip", "timm"):
        return _from_hub(entry, target)
    assert original is not None
    if entry.url is None:
        raise UserError(
            f"{entry.name} must be downloaded by hand: put {entry.original}, linked from {entry.page}, into {folder} "
            "and give the same command again"
        )
    try:
        fetch(Remote(entry.url, entry.size, entry.digest), original, say, verify=verify, track=track)
    except UserError as error:
        raise UserError(f"{error} (from {entry.page}, as {original})") from error
    if entry.digest is None:
        say(f"{original.name}: nobody has published its digest; its SHA-256 is {file_digest(original, 'sha256')}.")
    converted = convert(original, folder, entry, say, verify=False)
    original.unlink()
    return converted


def _from_hub(entry: Entry, target: Path) -> Path:
    repository = _hub_repository(entry)
    advice = f"put {target.name}, the safetensors file of {repository} on the hub, into {target.parent}"
    require_hub(repository, entry.name, advice)
    stem = "open_clip_model" if entry.kind == "clip" else "model"
    error: Exception | None = None
    for file in (f"{stem}.safetensors", "open_clip_pytorch_model.bin" if entry.kind == "clip" else "pytorch_model.bin"):
        try:
            local = Path(huggingface_hub.hf_hub_download(repository, file))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as problem:
            error = problem
            continue
        _write(read_state(local), target)
        try:
            _check_model(entry, target)
        except UserError:
            target.unlink()
            raise
        return target
    assert error is not None
    raise UserError(f"weights of {entry.name} are not to be had ({first_line(error)}); {advice}") from error


def _hub_repository(entry: Entry) -> str:
    if entry.kind == "clip":
        import open_clip  # a second or two, which a list of weights does without

        known: Mapping[str, Any] = open_clip.get_pretrained_cfg(entry.model, entry.tag or "")
        return str(known["hf_hub"]).strip("/")
    config = timm.get_pretrained_cfg(entry.model)
    assert config is not None, "the registry names models with published weights only"
    return str(config.hf_hub_id)


def convert(path: Path, folder: Path, entry: Entry | None, say: Say, *, verify: bool = True) -> Path:
    """Write a checkpoint of its authors as safetensors in the key names that fmwiss reads.

    Args:
        path: the checkpoint, pickled (read without running code) or safetensors.
        folder: where the file is put, under its entry's name.
        entry: which weights they are; None: as far as the file's name and its keys tell.
        say: is told what happens.
        verify: compare the checkpoint with its published digest, if there is one.

    Returns:
        The file.

    Raises:
        UserError: the file cannot be read or recognised, or is not what it should be.
    """
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}")
    state = read_state(path)
    entry = entry or recognise(path, state)
    if verify and entry.digest is not None:
        check_digest(path, entry.digest)
    if entry.kind == "inplace-abn":
        if not is_inplace_abn(state) or _FAMILIES[family_of(state)] != entry.name:
            raise UserError(f"{path} does not hold {entry.name}: its keys begin with {next(iter(state))}")
        renamed = convert_inplace_abn(state, path)
    elif entry.kind in ("dino", "ibot"):
        renamed = rename_keys(state)
    else:
        renamed = state
    if entry.kind != "clip":
        shapes = {key: tuple(tensor.shape) for key, tensor in renamed.items()}
        check_architecture(entry.model, shapes, path, needs_classifier=False)
    target = folder / entry.file
    _write(renamed, target)
    say(f"{path} is converted: {target}.")
    return target


def recognise(path: Path, state: Mapping[str, Tensor]) -> Entry:
    """Which entry a checkpoint is, by its name, else by its keys.

    Raises:
        UserError: neither tells; vision transformers of DINO and iBOT have the same keys.
    """
    # iBOT's checkpoints of every size are called the same on its authors' server
    by_name = next((entry for entry in ENTRIES if path.name in (entry.original, entry.file)), None)
    if by_name is not None:
        return by_name
    if is_inplace_abn(state):
        return find_entry(_FAMILIES[family_of(state)])
    raise UserError(f"{path} tells neither by its name nor by its keys which weights it holds; give --as NAME")


def _write(state: Mapping[str, Tensor], target: Path) -> None:
    tensors = {key: tensor.detach().contiguous().clone() for key, tensor in state.items()}
    write_atomically(target, lambda temporary: save_file(tensors, temporary))


@dataclass(frozen=True)
class Finding:
    """What ``fmwiss weights check`` says of a file."""

    file: str
    model: str | None
    """The model that the weights fit; None if it is not known."""
    entry: str | None
    tensors: int
    parameters: int
    sha256: str
    published: bool | None
    """Whether a published digest is the file's own; None where none is known."""


def check(path: Path, progress: Callable[[str], None] = lambda _: None) -> Finding:
    """Look at a file of weights: can it be read without running code, and which model does it fit?

    Args:
        path: safetensors, or a checkpoint of its authors.
        progress: is told what is done.

    Raises:
        UserError: it is unreadable, holds no weights, or holds others than its name says.
    """
    if not path.is_file():
        raise UserError(f"there is no file of weights {path}")
    entry = next((one for one in ENTRIES if path.name in (one.file, one.original)), None)
    if path.suffix == ".safetensors":
        shapes = read_shapes(path)
        if entry is not None:
            _check_model(entry, path)
            model: str | None = entry.model
        elif timm.is_model(path.stem.partition(".")[0]):
            model = path.stem
            check_architecture(path.stem.partition(".")[0], shapes, path, needs_classifier=False)
        else:
            model = None
    else:
        progress(f"{path} is read without running code.")
        state = read_state(path)
        entry = entry or (recognise(path, state) if is_inplace_abn(state) else None)
        renamed = convert_inplace_abn(state, path) if is_inplace_abn(state) else rename_keys(state)
        shapes = {key: tuple(tensor.shape) for key, tensor in renamed.items()}
        model = entry.model if entry is not None else None
        if model is not None and entry is not None and entry.kind != "clip":
            check_architecture(model, shapes, path, needs_classifier=False)
    published = None
    if entry is not None and entry.digest is not None and path.name != entry.file:
        kind, _, wanted = entry.digest.partition(":")
        published = file_digest(path, kind) == wanted
    return Finding(
        file=str(path),
        model=model,
        entry=entry.name if entry is not None else None,
        tensors=len(shapes),
        parameters=sum(
            torch.Size(shape).numel() for key, shape in shapes.items() if not key.endswith(_BUFFERS)
        ),
        sha256=file_digest(path, "sha256"),
        published=published,
    )


def _check_model(entry: Entry, path: Path) -> None:
    """Whether a safetensors file fits its entry's model."""
    shapes = read_shapes(path)
    if entry.kind != "clip":
        check_architecture(entry.model, shapes, path, needs_classifier=False)
        return
    import open_clip

    with torch.device("meta"):
        model: Any = open_clip.create_model(entry.model)
    for key, tensor in model.state_dict().items():
        if key.endswith((".weight", ".bias")) and shapes.get(key) != tuple(tensor.shape):
            raise UserError(
                f"{path} does not fit the open_clip model {entry.model}: {key} is {shapes.get(key)} in place of "
                f"{tuple(tensor.shape)}"
            )


def as_json(entry: Entry, folder: Path | None) -> dict[str, Any]:
    """An entry, and whether the folder has it."""
    return {
        "name": entry.name,
        "kind": entry.kind,
        "model": entry.model,
        "file": entry.file,
        "licence": entry.licence,
        "page": entry.page,
        "url": entry.url,
        "digest": entry.digest,
        "there": folder is not None and (folder / entry.file).is_file(),
    }


def listing(folder: Path | None) -> str:
    """All entries as a JSON list."""
    return json.dumps([as_json(entry, folder) for entry in ENTRIES], indent=1)
