"""The commands ``fmwiss data voc``, ``sbd``, ``coco`` and ``coco-stuff``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from fmwiss.commands.terminal import say
from fmwiss.errors import UserError

Out = Annotated[
    Path, typer.Option("--out", help="Folder in which 'voc' and 'coco' come to be.", show_default=False)
]
Mirror = Annotated[
    str | None,
    typer.Option("--mirror", metavar="URL", help="Address under which the archives lie, in place of their own."),
]
Unverified = Annotated[
    bool, typer.Option("--unverified", help="Take archives whose digests are others than the published.")
]
Keep = Annotated[bool, typer.Option("--keep", help="Leave the archives in 'downloads'.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what there is to download, and do nothing.")]

_HELP = {
    "voc": "Download PASCAL VOC 2012 (2.0 GB).",
    "sbd": "Download SBD (1.4 GB) and make VOC's train_aug with its masks; needs VOC.",
    "coco": "Download COCO 2017: photographs and instances (20.4 GB).",
    "coco-stuff": "Download COCO-Stuff's maps of COCO 2017 (0.7 GB).",
}


def register(app: typer.Typer) -> None:
    """Add the commands to ``fmwiss data``."""
    for name, text in _HELP.items():
        app.command(name, help=f"{text} A broken download goes on.")(_command(name))


def _command(name: str) -> Callable[..., None]:
    def command(
        out: Out,
        mirror: Mirror = None,
        unverified: Unverified = False,
        keep: Keep = False,
        dry_run: DryRun = False,
    ) -> None:
        from fmwiss.data.published import cost, prepare
        from fmwiss.reporting.progress import track

        if out.exists() and not out.is_dir():
            raise UserError(f"--out {out} is a file; give a folder")
        if mirror is not None and not mirror.startswith(("http://", "https://")):
            raise UserError(f"--mirror {mirror}: must begin with http:// or https://")
        say(f"{cost(name, out)}.")
        if not dry_run:
            prepare(name, out, say, mirror=mirror, verify=not unverified, keep=keep, track=track)

    return command
