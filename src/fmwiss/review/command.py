"""The command ``fmwiss review``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from fmwiss.errors import UserError
from fmwiss.review.access import Access
from fmwiss.review.server import check_installed, listen, serve
from fmwiss.review.session import Place, alone, find_target, open_session


def review(
    target: Path,
    place: Place,
    out: Path | None,
    step: int | None,
    overrides: Sequence[str],
    with_models: bool,
    host: str,
    port: int,
    open_it: bool,
) -> None:
    """Open the page and serve it until Ctrl-C.

    What can be wrong is found first: nothing is computed for a port that is taken.

    Args:
        target: a run's folder or an experiment file.
        place: where photographs, weights and stores are.
        out: folder for the review of an experiment file.
        step: whose classes; None for the first that is not finished.
        overrides: of the experiment file's keys.
        with_models: whether the run's models have a say in the order.
        host: address to listen on.
        port: its port; 0 for any that is free.
        open_it: open the page in the browser.

    Raises:
        UserError: whatever the user can set right.
    """
    check_installed()
    if not 0 <= port <= 65535:
        raise UserError(f"--port {port}: must be from 0 to 65535")
    found = find_target(target, out, overrides)
    listening = listen(host, port)
    try:
        access = Access.at(host, listening.getsockname()[1])
        with alone(found.folder):
            session = open_session(found, place, step, with_models)

            def ready() -> None:
                print(access.url, flush=True)
                print(_told(session.path, len(session.items), access), file=sys.stderr, flush=True)
                if open_it:
                    _open(access.url)

            serve(session, access, listening, ready)
    finally:
        listening.close()


def _told(path: Path, masks: int, access: Access) -> str:
    beyond = " Whoever has this link can look at the photographs and decide." if access.key else ""
    return f"{masks} masks to review at the address above; decisions go to {path}. Ctrl-C ends it.{beyond}"


def _open(url: str) -> None:
    import webbrowser

    if not webbrowser.open(url):
        print(f"No browser was found to open {url}.", file=sys.stderr)
