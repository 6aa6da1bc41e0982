"""The page's server: FastAPI on one address, for the one person who started it.

It answers requests that name it as people do (an address, ``localhost``, the ``--host`` given), so that no other
site's name can be pointed at it; it changes nothing without the token that only its own page knows; beyond this
machine it shows nothing without the key in the link that it prints. Paths hold numbers, never file names.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fmwiss.errors import UserError
from fmwiss.review.session import Item, Order, Session, Show

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.responses import Response

TOKEN_HEADER = "X-Fmwiss-Token"
COOKIE = "fmwiss-review"
LARGEST_BODY = 1 << 20
MOST_ITEMS = 200
"""Cards that one request may ask for."""

_MISSING = "'fmwiss review' needs fastapi and uvicorn; install them with: pip install 'fmwiss[review]'"
_POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_ASSETS = {
    "report.css": ("fmwiss.reporting", "templates/report.css", "text/css"),
    "review.css": ("fmwiss.review", "page/review.css", "text/css"),
    "review.js": ("fmwiss.review", "page/review.js", "text/javascript"),
}


@dataclass(frozen=True)
class Access:
    """Who may do what.

    Attributes:
        host: address that the server listens on.
        port: its port.
        token: what requests that change something have to carry.
        key: what every request has to know, in the link or in the cookie that it leaves; empty on a loopback address.
    """

    host: str = "127.0.0.1"
    port: int = 0
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    key: str = ""

    @classmethod
    def at(cls, host: str, port: int) -> Access:
        """With a key unless the address is this machine's own."""
        return cls(host, port, key="" if _is_loopback(host) else secrets.token_urlsafe(16))

    @property
    def url(self) -> str:
        """The link to the page."""
        shown = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(self.host, self.host)
        name = f"[{shown}]" if ":" in shown else shown
        return f"http://{name}:{self.port}/" + (f"?key={self.key}" if self.key else "")

    def knows_host(self, header: str | None) -> bool:
        """Whether a Host header names this server: by an address or a name that no stranger can point here."""
        name = _host_name(header or "")
        own = {"localhost", self.host.lower(), *([socket.gethostname().lower()] if self.key else [])}
        return name in own or _is_address(name)


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _host_name(header: str) -> str:
    """``[::1]:8000`` -> ``::1``, ``localhost:8000`` -> ``localhost``."""
    header = header.strip().lower()
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.rpartition(":")[0] if header.rpartition(":")[2].isdecimal() and ":" in header else header


# ---------------------------------------------------------------------------------------------------------- the app


def build_app(session: Session, access: Access) -> FastAPI:
    """The page and what it asks for.

    Raises:
        UserError: fastapi is not installed.
    """
    try:
        from fastapi import Body, FastAPI, Query
        from fastapi.exceptions import RequestValidationError
        from starlette.concurrency import run_in_threadpool
        from starlette.exceptions import HTTPException
        from starlette.responses import JSONResponse, Response
    except ImportError as error:
        raise UserError(_MISSING) from error

    app = FastAPI(title="fmwiss review", docs_url=None, redoc_url=None, openapi_url=None)

    def refused(status: int, sentence: str) -> Response:
        return JSONResponse({"error": sentence}, status)

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        answer = _refusal(request, access)
        response = refused(*answer) if answer is not None else await call_next(request)
        response.headers["Content-Security-Policy"] = _POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        response.headers.setdefault("Cache-Control", "no-store")
        if answer is None and access.key and "key" in request.query_params:
            response.set_cookie(COOKIE, access.key, httponly=True, samesite="strict")
        return response

    @app.exception_handler(UserError)
    async def told(request: Request, error: Exception) -> Response:
        return refused(409, str(error))

    @app.exception_handler(HTTPException)
    async def not_there(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return refused(error.status_code, str(error.detail))

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "the request"
        return refused(400, f"{where}: {first['msg']}")

    def item_of(number: int) -> Item:
        if not 0 <= number < len(session.items):
            raise HTTPException(404, f"there is no mask {number}; there are {len(session.items)}, from 0")
        return session.items[number]

    def state() -> dict[str, Any]:
        return {"counts": session.counts(), "threshold": session.threshold(), "undoable": session.undoable}

    @app.get("/")
    def page() -> Response:
        text = (files("fmwiss.review") / "page" / "index.html").read_text(encoding="utf-8")
        return Response(text.replace("{{ token }}", access.token), media_type="text/html")

    @app.get("/assets/{name}")
    def asset(name: str) -> Response:
        if name not in _ASSETS:
            raise HTTPException(404, "there is no such file")
        package, path, kind = _ASSETS[name]
        return Response((files(package) / path).read_bytes(), media_type=kind)

    @app.get("/api/session")
    def about() -> dict[str, Any]:
        return {
            "title": session.title,
            "step": session.step,
            "status": session.status,
            "photographs": len(session.photographs),
            "masks": len(session.items),
            "file": str(session.path),
            "classes": [{"name": name, "colour": session.colours[name]} for name in session.classes],
            "terms": sorted({term for item in session.items for term in item.terms}),
            "vision_language": session.words.config.name,
            **state(),
        }

    @app.get("/api/numbers")
    def numbers(
        name: Annotated[str | None, Query(alias="class")] = None, show: Show = "open", order: Order = "worst"
    ) -> dict[str, Any]:
        if name is not None and name not in session.classes:
            raise HTTPException(404, f"step {session.step} has no class {name}; it has {', '.join(session.classes)}")
        return {"numbers": session.numbers(name, show, order)}

    @app.get("/api/items")
    def items(numbers: str) -> dict[str, Any]:
        asked = numbers.split(",")
        if len(asked) > MOST_ITEMS or not all(word.isdecimal() and len(word) < 10 for word in asked):
            raise HTTPException(400, f"numbers must be up to {MOST_ITEMS} whole numbers with commas between them")
        return {"items": [session.describe(item_of(int(word))) for word in asked]}

    @app.get("/api/photographs/{number}")
    def photograph(number: int, side: Annotated[int, Query(ge=1, le=4096)] = 480) -> Response:
        if not 0 <= number < len(session.photographs):
            raise HTTPException(404, f"there is no photograph {number}; there are {len(session.photographs)}, from 0")
        content = session.thumbnail(number, side)
        return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    @app.get("/api/levels/{number}")
    def levels(number: int) -> Response:
        height, width, values = session.levels(item_of(number))
        return Response(struct.pack("<HH", height, width) + values, media_type="application/octet-stream")

    @app.get("/api/words")
    async def words(word: str, name: Annotated[str | None, Query(alias="class")] = None) -> dict[str, Any]:
        if name is not None and name not in session.classes:
            raise HTTPException(404, f"step {session.step} has no class {name}; it has {', '.join(session.classes)}")
        return await run_in_threadpool(session.look, word, name)

    @app.post("/api/decide")
    def decide(
        numbers: Annotated[list[int], Body(min_length=1, max_length=MOST_ITEMS)],
        decision: Annotated[Literal["accept", "reject", "absent"] | None, Body()],
    ) -> dict[str, Any]:
        chosen = [item_of(number) for number in numbers]
        session.decide(chosen, decision)
        return {"items": [session.describe(item) for item in chosen], **state()}

    @app.post("/api/undo")
    def undo() -> dict[str, Any]:
        return {"items": [session.describe(item) for item in session.undo()], **state()}

    @app.post("/api/threshold")
    def threshold(value: Annotated[float | None, Body(embed=True)]) -> dict[str, Any]:
        session.keep_threshold(value)
        return state()

    return app


def _refusal(request: Request, access: Access) -> tuple[int, str] | None:
    """Why a request is not answered, with a status; None if it is."""
    host = request.headers.get("host")
    if not access.knows_host(host):
        name = _host_name(host or "") or "nothing"
        return 421, f"this server is not called {name}; open {access.url.partition('?')[0]}"
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        navigates = request.method == "GET" and request.url.path == "/"
        if not navigates:
            return 403, "another site may not ask for this"
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("//")[2].lower() != (host or "").lower():
        return 403, "another site may not ask for this"
    if access.key:
        shown = request.query_params.get("key") or request.cookies.get(COOKIE) or ""
        if not hmac.compare_digest(shown.encode(), access.key.encode()):
            return 403, "open the page by the whole link that 'fmwiss review' printed; it holds a key"
    if request.method in ("GET", "HEAD"):
        return None
    if not hmac.compare_digest(request.headers.get(TOKEN_HEADER, "").encode(), access.token.encode()):
        return 403, f"the header {TOKEN_HEADER} is missing or wrong; reload the page"
    length = request.headers.get("content-length", "")
    if not length.isdecimal() or int(length) > LARGEST_BODY:
        return 413, f"a request has to tell its length, at most {LARGEST_BODY} bytes"
    return None


# ---------------------------------------------------------------------------------------------------------- serving


def check_installed() -> None:
    """Raises UserError where the packages of the extra ``review`` are missing."""
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(_MISSING) from error


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
    import errno

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

    class Server(uvicorn.Server):
        async def startup(self, sockets: Sequence[socket.socket] | None = None) -> None:
            await super().startup(sockets=list(sockets or ()))
            ready()

    app = build_app(session, access)
    config = uvicorn.Config(app, log_level="warning", server_header=False, ws="none", lifespan="off")
    with closing(listening), suppress(KeyboardInterrupt):
        Server(config).run(sockets=[listening])
