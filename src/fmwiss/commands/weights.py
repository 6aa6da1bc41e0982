"""The commands ``fmwiss weights list``, ``get``, ``check`` and ``convert``."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fmwiss.commands.terminal import say
from fmwiss.errors import UserError

app = typer.Typer(help="Pretrained weights: what there is, getting, checking and converting it.", no_args_is_help=True)

Folder = Annotated[
    Path | None,
    typer.Option("--weights", help="Folder of weights; by default the one in FMWISS_WEIGHTS.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Unverified = Annotated[
    bool, typer.Option("--unverified", help="Take a file whose digest is another one than the published.")
]


@app.command("list")
def list_weights(weights: Folder = None, as_json: AsJson = False) -> None:
    """Print the weights that fmwiss knows by name, and which of them the folder has."""
    with contextlib.redirect_stdout(sys.stderr):
        from fmwiss.foundation.obtain import listing
        from fmwiss.foundation.registry import ENTRIES
        from fmwiss.foundation.weights import weights_folder

        folder = weights_folder(weights)
        text = listing(folder)
    if as_json:
        print(text)
        return
    for entry in ENTRIES:
        there = "there" if folder is not None and (folder / entry.file).is_file() else "-"
        print(f"{there:<6} {entry.name:<36} {round(entry.size / 1e6):>5} MB  {entry.licence:<26} {entry.page}")


@app.command()
def get(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As 'fmwiss weights list' has it.", show_default=False)],
    weights: Folder = None,
    unverified: Unverified = False,
) -> None:
    """Download weights into the folder and convert them; a broken download goes on."""
    with contextlib.redirect_stdout(sys.stderr):
        import fmwiss.models  # noqa: F401  # makes Wide-ResNet known to timm
        from fmwiss.foundation.obtain import find_entry, obtain
        from fmwiss.reporting.progress import track

        entry = find_entry(name)
        path = obtain(entry, _target(weights), say, verify=not unverified, track=track)
    print(path)


@app.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Safetensors or checkpoint.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Say what a file of weights holds, which model it fits, and its SHA-256; nothing in it is run."""
    with contextlib.redirect_stdout(sys.stderr):
        import fmwiss.models  # noqa: F401
        from fmwiss.foundation.obtain import check as check_file

        found = check_file(file, say)
    if as_json:
        print(json.dumps(asdict(found)))
        return
    print(f"{found.file}: {found.tensors} tensors, {found.parameters} parameters")
    print(f"fits: {found.model or 'no model that it names'}")
    print(f"sha256: {found.sha256}")
    if found.published is not None:
        print(f"published digest: {'the same' if found.published else 'ANOTHER ONE'}")
    if found.published is False:
        raise UserError(f"{file} is not the published file of {found.entry}; download it again")


@app.command()
def convert(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Checkpoint as its authors published it.", show_default=False)
    ],
    weights: Folder = None,
    name: Annotated[
        str | None, typer.Option("--as", metavar="NAME", help="Which weights they are, where the file does not tell.")
    ] = None,
    unverified: Unverified = False,
) -> None:
    """Write a checkpoint as safetensors into the folder, under the name by which fmwiss finds it."""
    with contextlib.redirect_stdout(sys.stderr):
        import fmwiss.models  # noqa: F401
        from fmwiss.foundation.obtain import convert as convert_file
        from fmwiss.foundation.obtain import find_entry

        entry = find_entry(name) if name is not None else None
        path = convert_file(file, _target(weights), entry, say, verify=not unverified)
    print(path)


def _target(weights: Path | None) -> Path:
    """The folder to write to; unlike one that is read from it may not exist yet."""
    from fmwiss.foundation.weights import WEIGHTS_VARIABLE

    named = weights or (Path(os.environ[WEIGHTS_VARIABLE]) if os.environ.get(WEIGHTS_VARIABLE) else None)
    if named is None:
        raise UserError(f"give the folder for the weights with --weights, or set {WEIGHTS_VARIABLE}")
    if named.exists() and not named.is_dir():
        raise UserError(f"--weights {named} is a file; give a folder")
    return named
