"""Fetching large files over unsteady connections, and unpacking archives that one need not trust."""

from __future__ import annotations

import hashlib
import http.client
import shutil
import stat
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import urlsplit

import fmwiss
from fmwiss.errors import UserError

CHUNK = 1 << 20
ATTEMPTS = 6
"""Failures in a row, without a byte between them, after which a download is given up."""
TIMEOUT = 60.0
"""Seconds without a byte after which a connection counts as broken."""
Say = Callable[[str], None]
Track = Callable[..., Iterator[Any]]
"""Shows progress: :func:`fmwiss.reporting.progress.track`, or one that shows nothing."""


def silently(
    iterable: Iterable[Any], description: object, total: int | None = None, completed: int = 0
) -> Iterator[Any]:
    """The items, and no progress."""
    return iter(iterable)


@dataclass(frozen=True)
class Remote:
    """A file to be fetched.

    Attributes:
        url: where it is.
        size: bytes; about right where it is not known exactly.
        digest: ``md5:...`` or ``sha256:...`` as somebody published it, or None.
    """

    url: str
    size: int
    digest: str | None = None

    @property
    def name(self) -> str:
        """The file's name."""
        return PurePosixPath(urlsplit(self.url).path).name


def gigabytes(size: int) -> str:
    """A size as people read it."""
    return f"{size / 1e9:.1f} GB" if size >= 5e8 else f"{size / 1e6:.1f} MB"


def file_digest(path: Path, kind: str, track: Track = silently) -> str:
    """Hexadecimal digest of a file, ``md5`` or ``sha256``."""
    digest = hashlib.new(kind)
    size = path.stat().st_size
    with path.open("rb") as file:
        for block in track(iter(lambda: file.read(CHUNK), b""), f"checking {path.name}", -(-size // CHUNK)):
            digest.update(block)
    return digest.hexdigest()


def check_digest(path: Path, digest: str, track: Track = silently) -> None:
    """Compare a file with its published digest, ``KIND:HEX``.

    Raises:
        UserError: it is another file.
    """
    kind, _, wanted = digest.partition(":")
    found = file_digest(path, kind, track)
    if found != wanted.lower():
        raise UserError(f"{path} is not the published file: its {kind.upper()} is {found} and must be {wanted}")


def fetch(
    remote: Remote, path: Path, say: Say, *, verify: bool = True, pause: float = 1.0, track: Track = silently
) -> None:
    """Download a file; what an earlier, broken download left in ``PATH.part`` is gone on from.

    A server that says that its file has changed, or that cannot give a part of a file, begins anew. A connection that
    breaks is opened again, after a growing pause.

    Args:
        remote: what to fetch.
        path: where it is put, whole or not at all.
        say: is told what happens.
        verify: compare with the published digest.
        pause: seconds before the first new attempt.
        track: shows progress.

    Raises:
        UserError: the server has no such file, cannot be reached, or gives another file than the published one; the
            disk has no room.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    if part.is_file() and not (verify and remote.digest) and not _tag_file(part).is_file():
        say(f"{remote.name}: nothing tells what an earlier download had left; beginning anew.")
        part.unlink()
    resumed = part.is_file() and part.stat().st_size > 0
    _check_room(path, remote.size - (part.stat().st_size if resumed else 0))
    failures = 0
    while True:
        before = part.stat().st_size if part.is_file() else 0
        try:
            if _continue(remote, part, say, track):
                break
            problem = "the connection broke"
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):
                said = f"the server says {error.code} {error.reason}"
                raise UserError(f"{remote.url} cannot be downloaded: {said}") from error
            problem = f"the server says {error.code} {error.reason}"
        except (http.client.HTTPException, urllib.error.URLError, TimeoutError, ConnectionError) as error:
            problem = str(getattr(error, "reason", error)) or type(error).__name__
        failures = 1 if part.is_file() and part.stat().st_size > before else failures + 1
        if failures >= ATTEMPTS:
            raise UserError(
                f"{remote.url} cannot be downloaded ({problem}); give the same command again later, it goes on where "
                f"it was, or put the file there yourself as {path}"
            )
        time.sleep(min(60.0, pause * 2 ** (failures - 1)))
        say(f"{remote.name}: {problem}; trying again.")
    if verify and remote.digest is not None:
        try:
            check_digest(part, remote.digest, track)
        except UserError:
            part.unlink()
            _tag_file(part).unlink(missing_ok=True)
            if not resumed:
                raise
            say(f"{remote.name}: what an earlier download had left was of another file; beginning anew.")
            fetch(remote, path, say, verify=verify, pause=pause, track=track)
            return
    part.replace(path)
    _tag_file(part).unlink(missing_ok=True)


def _continue(remote: Remote, part: Path, say: Say, track: Track) -> bool:
    """Fetch what is missing over one connection; returns whether the file is whole then."""
    have = part.stat().st_size if part.is_file() else 0
    tag_file = _tag_file(part)
    tag = tag_file.read_text(encoding="ascii").strip() if tag_file.is_file() else ""
    headers = {"User-Agent": f"fmwiss/{fmwiss.__version__}", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if tag:
            headers["If-Range"] = tag
    request = urllib.request.Request(remote.url, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        error.close()
        whole = str(error.headers.get("Content-Range", "")).rpartition("/")[2]
        if whole == str(have):
            return True
        part.unlink()  # longer than the file is, so that it is another one
        return False
    with closing(response):
        starts_at = have if response.status == 206 and _range_start(response) == have else 0
        if have and not starts_at:
            say(f"{remote.name}: the server begins anew.")
        length = response.headers.get("Content-Length")
        total = starts_at + int(length) if length is not None and length.isdecimal() else None
        tag = response.headers.get("ETag", "")
        if not tag or tag.startswith("W/"):  # If-Range takes strong ones and dates
            tag = response.headers.get("Last-Modified", "")
        if tag:
            tag_file.write_text(tag, encoding="ascii", errors="ignore")
        else:
            tag_file.unlink(missing_ok=True)
        with part.open("ab" if starts_at else "wb") as file:
            blocks = _blocks(response)
            steps = None if total is None else -(-total // CHUNK)
            for block in track(blocks, f"{remote.name}, MB", steps, starts_at // CHUNK):
                file.write(block)
    return total is None or part.stat().st_size == total


def _blocks(response: Any) -> Iterator[bytes]:
    while block := response.read(CHUNK):
        yield block


def _range_start(response: Any) -> int | None:
    given = str(response.headers.get("Content-Range", "")).removeprefix("bytes ").partition("-")[0]
    return int(given) if given.isdecimal() else None


def _tag_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.etag")


def _check_room(path: Path, size: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise UserError(
            f"{path.parent} has {gigabytes(free)} left and {path.name} needs {gigabytes(size)}; free some space or "
            "give another folder"
        )


def unpack(archive: Path, folder: Path, inside: str = "", track: Track = silently) -> None:
    """Unpack a zip or tar file into a folder that appears when it is whole.

    Only files and folders are taken: no links, no devices, and nothing that would lie outside.

    Args:
        archive: the file.
        folder: must not exist yet.
        inside: folder in the archive that becomes ``folder``; the archive itself by default.
        track: shows progress.

    Raises:
        UserError: the archive is broken, lacks ``inside``, or holds a name that leads out of the folder; ``folder``
            exists.
    """
    if folder.exists():
        raise UserError(f"{folder} exists; remove it to unpack {archive.name} anew")
    temporary = folder.with_name(f".{folder.name}.unpacking")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        members = _zip_members if zipfile.is_zipfile(archive) else _tar_members
        for name, content in members(archive, track):
            target = temporary.joinpath(*_safe_parts(name, archive))
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                shutil.copyfileobj(content, file, CHUNK)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.filename:
            raise  # of what is written, such as a full disk
        raise UserError(f"{archive} cannot be unpacked ({error}); remove it to download it anew") from error
    else:
        wanted = temporary / inside
        if not wanted.is_dir():
            raise UserError(f"{archive} holds no folder {inside}; it is another archive than the published one")
        wanted.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _zip_members(archive: Path, track: Track) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(archive) as opened:
        for member in track(opened.infolist(), f"unpacking {archive.name}"):
            kind = stat.S_IFMT(member.external_attr >> 16)
            if member.is_dir() or kind not in (0, stat.S_IFREG):
                _safe_parts(member.filename, archive)
                continue
            with opened.open(member) as content:
                yield member.filename, content


def _tar_members(archive: Path, track: Track) -> Iterator[tuple[str, IO[bytes]]]:
    with tarfile.open(archive) as opened:
        for member in track(opened, f"unpacking {archive.name}"):
            content = opened.extractfile(member) if member.isreg() else None
            if content is None:
                _safe_parts(member.name, archive)
                continue
            with content:
                yield member.name, content


def _safe_parts(name: str, archive: Path) -> tuple[str, ...]:
    """The folders and the name of a member, or an error where they lead elsewhere."""
    path = PurePosixPath(name.replace("\\", "/"))
    parts = tuple(part for part in path.parts if part != ".")
    if path.is_absolute() or ".." in parts or any(":" in part for part in parts[:1]):
        raise UserError(f"{archive} holds {name!r}, which leads out of its folder; it is not to be trusted")
    return parts
