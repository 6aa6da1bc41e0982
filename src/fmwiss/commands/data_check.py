"""``fmwiss data check``: what is wrong with a data set, on the terminal and in a picture."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from fmwiss.data.check import Check, Finding, Layout, check_data
from fmwiss.errors import UserError
from fmwiss.reporting.contact_sheet import Row, contact_sheet
from fmwiss.reporting.pictures import save_png
from fmwiss.reporting.progress import track

SHOWN = 20
"""Errors, or warnings, that the terminal shows; ``--json`` shows all."""
STANDING_OUT = 10
"""Findings whose photographs are drawn, above those of the classes."""
NAMED = 5
"""Photographs that the terminal names of one finding."""


def check_command(root: Path, layout: Layout | None, tags: Path | None, picture: Path | None, as_json: bool) -> None:
    """Check a data set, print what is found, and write the picture.

    Args:
        root: the folder.
        layout: as ``data.source`` calls it; None: as it looks.
        tags: a tags file other than the folder's own.
        picture: where the photographs are drawn; None: ``NAME-check.png`` in the working directory.
        as_json: print one JSON object.

    Raises:
        UserError: ``root`` is a file, or something was found on which training would stop, after everything is printed.
    """
    if root.is_file():
        raise UserError(f"{root} is a file; give the folder of photographs, and other tags than its own by --tags")
    path = picture or Path(f"{root.resolve().name or 'data'}-check.png")
    if path.is_dir():
        raise UserError(f"--picture {path} is a folder; give the name of a file in it, as in {path / 'check.png'}")
    check = check_data(root, layout, tags, track)
    drawn = _draw(check, path)
    if as_json:
        print(json.dumps({**check.as_dict(), "picture": str(path) if drawn else None}))
    else:
        _print(check)
    if drawn:
        print(f"The photographs are drawn in {path}.", file=sys.stderr)
    if check.errors:
        count = len(check.errors)
        raise UserError(
            f"{root} has {count} {'fault' if count == 1 else 'faults'} on which training would stop, the first: "
            f"{check.errors[0].message}"
        )


def _print(check: Check) -> None:
    from rich.console import Console

    from fmwiss.reporting.tables import text_table

    tagged = sum(1 for names in check.tags.values() if names)
    print(
        f"{check.root}, layout '{check.layout}': {len(check.photographs)} photographs, {check.masks} with masks, "
        f"{tagged} with tags or classes in their masks"
    )
    if check.classes:
        rows = [[name, str(n_tags), str(n_masks)] for name, (n_tags, n_masks) in check.classes.items()]
        Console().print(text_table(["class", "tags", "masks"], rows))
    _print_findings("errors", check.errors)
    _print_findings("warnings", check.warnings)
    if not check.findings:
        print("Nothing is wrong.")


def _print_findings(title: str, findings: Sequence[Finding]) -> None:
    if not findings:
        return
    print(f"{title}: {len(findings)}")
    for finding in findings[:SHOWN]:
        ids = [] if finding.kind in ("unreadable", "mask") else finding.photographs
        rest = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
        print(f"  {finding.kind}: {finding.message}{': ' if ids else ''}{', '.join(ids[:NAMED])}{rest}")
    if len(findings) > SHOWN:
        print(f"  and {len(findings) - SHOWN} more; --json prints all")


def _draw(check: Check, path: Path) -> bool:
    """Draw photographs of findings and of each class; False where there is none to draw."""
    source = check.source
    if source is None or not check.sizes:
        return False
    faulty = {image_id for finding in check.errors if finding.kind == "mask" for image_id in finding.photographs}
    rows = [
        Row(finding.kind, finding.message, there)
        for finding in check.findings
        if (there := [image_id for image_id in finding.photographs if image_id in check.sizes])
    ][:STANDING_OUT]
    for name in check.classes:
        ids = [image_id for image_id in check.sizes if name in check.tags.get(image_id, ())]
        rows.append(Row(name, f"{len(ids)} photograph{'s' if len(ids) != 1 else ''}", ids))
    if not rows:
        rows = [Row("photographs", "", list(check.sizes))]

    def read(image_id: str) -> tuple[Tensor, Tensor | None]:
        masked = source.has_mask(image_id) and image_id not in faulty
        return source.read_image(image_id), source.read_mask(image_id) if masked else None

    save_png(contact_sheet(rows, read, track), path)
    return True
