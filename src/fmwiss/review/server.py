"""Listening and serving; without the extra ``review`` one sentence says what to install."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Sequence
from contextlib import closing, suppress

from fmwiss.errors import UserError
from fmwiss.review.access import Access
from fmwiss.review.session import Session


def check_installed() -> None:
    """Raises UserError where the packages of the extra ``review`` are missing."""
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(
            "'fmwiss review' needs fastapi and uvicorn; install them with: pip install 'fmwiss[review]'"
        ) from error


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Args:
        host: a name or an address of this machine.
        port: 0 takes a free one.

    Raises:
        UserError: the port is taken or may not be taken, or the host is none of this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise UserError(f"--host {host}: there is no such host; give one of this machine's addresses") from error
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise UserError(_why_not(error, host, port)) from error
    return listening


def _why_not(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"--port {port}: is taken by another program; give another one, or 0 for any that is free"
    if error.errno == errno.EACCES:
        return f"--port {port}: only an administrator may take it; give one from 1024"
    return f"--host {host}: is no address of this machine; give 127.0.0.1"


def serve(session: Session, access: Access, listening: socket.socket, ready: Callable[[], object]) -> None:
    """Serve the page until the process is interrupted.

    Args:
        session: what is reviewed.
        access: with the address of the socket.
        listening: from :func:`listen`; closed at the end.
        ready: called when the page can be opened.
    """
    check_installed()
    import uvicorn

    from fmwiss.review.app import build_app

    class Server(uvicorn.Server):
        async def startup(self, sockets: Sequence[socket.socket] | None = None) -> None:
            await super().startup(sockets=list(sockets or ()))
            ready()

    app = build_app(session, access)
    config = uvicorn.Config(app, log_level="warning", server_header=False, ws="none", lifespan="off")
    with closing(listening), suppress(KeyboardInterrupt):
        Server(config).run(sockets=[listening])
