"""Who may ask the review's server for what.

It answers requests that name it as people do (an address, ``localhost``, the ``--host`` given), so that no other
site's name can be pointed at it; it changes nothing without the token that only its own page knows; beyond this
machine it shows nothing without the key in the link that it prints.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.requests import Request

TOKEN_HEADER = "X-Fmwiss-Token"
COOKIE = "fmwiss-review"
LARGEST_BODY = 1 << 20


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


def refusal(request: Request, access: Access) -> tuple[int, str] | None:
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
