"""The review's page and what it asks for, as a FastAPI application; needs the extra ``review``."""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Annotated, Any, Literal

from fastapi import Body, FastAPI, Query
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from fmwiss.errors import UserError, sentence_of
from fmwiss.review.access import COOKIE, Access, refusal
from fmwiss.review.session import Item, Order, Session, Show

MOST_ITEMS = 200
"""Cards that one request may ask for."""

_POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_ASSETS = {
    "report.css": ("fmwiss.reporting", "templates/report.css", "text/css"),
    "review.css": ("fmwiss.review", "page/review.css", "text/css"),
    "review.js": ("fmwiss.review", "page/review.js", "text/javascript"),
}


def build_app(session: Session, access: Access) -> FastAPI:
    """The page and what it asks for; paths hold numbers, never file names."""
    app = FastAPI(title="fmwiss review", docs_url=None, redoc_url=None, openapi_url=None)

    def refused(status: int, sentence: str) -> Response:
        return JSONResponse({"error": sentence}, status)

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        answer = refusal(request, access)
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

    @app.exception_handler(OSError)
    async def not_written(request: Request, error: Exception) -> Response:
        return refused(507, sentence_of(error) or "the file cannot be written")

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
