import hashlib
import io
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from coco_miniature import Server, serve
from fmwiss import downloads
from fmwiss.downloads import Remote, fetch, gigabytes, unpack
from fmwiss.errors import UserError

CONTENT = bytes(range(256)) * 4096  # 1 MiB
NAME = "file.bin"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / NAME).write_bytes(CONTENT)
    with serve(tmp_path / "served") as running:
        yield running


def remote(server: Server, digest: str | None = None, name: str = NAME) -> Remote:
    return Remote(f"{server.url}/some/{name}?x=1", len(CONTENT), digest)


def get(server: Server, path: Path, **options: object) -> list[str]:
    said: list[str] = []
    fetch(remote(server, **options), path, said.append, pause=0.0)  # type: ignore[arg-type]
    return said


def test_a_file_is_fetched_whole_and_leaves_nothing_else(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "out" / NAME
    get(server, path, digest=f"sha256:{hashlib.sha256(CONTENT).hexdigest()}")
    assert path.read_bytes() == CONTENT and list(path.parent.iterdir()) == [path]


def test_a_broken_connection_goes_on_where_it_was(server: Server, tmp_path: Path) -> None:
    server.breaks[NAME] = [len(CONTENT) // 2, 1000]
    said = get(server, tmp_path / NAME)
    assert (tmp_path / NAME).read_bytes() == CONTENT
    half = len(CONTENT) // 2
    assert server.seen == [(NAME, None), (NAME, f"bytes={half}-"), (NAME, f"bytes={half + 1000}-")]
    assert len([line for line in said if "trying again" in line]) == 2


def test_another_process_goes_on_where_one_was_killed(server: Server, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT[:5000])
    get(server, tmp_path / NAME, digest=f"md5:{hashlib.md5(CONTENT).hexdigest()}")
    assert (tmp_path / NAME).read_bytes() == CONTENT and server.seen == [(NAME, "bytes=5000-")]


def test_a_whole_part_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT)
    get(server, tmp_path / NAME, digest=f"md5:{hashlib.md5(CONTENT).hexdigest()}")
    assert (tmp_path / NAME).read_bytes() == CONTENT and server.seen == [(NAME, f"bytes={len(CONTENT)}-")]


def test_a_part_of_which_nothing_is_known_is_not_gone_on_from(server: Server, tmp_path: Path) -> None:
    """Neither a digest nor the server's mark would tell that it was a page of a proxy."""
    (tmp_path / f"{NAME}.part").write_bytes(b"<html>500</html>")
    said = get(server, tmp_path / NAME)
    assert (tmp_path / NAME).read_bytes() == CONTENT and server.seen == [(NAME, None)]
    assert "nothing tells what an earlier download had left" in said[0]


def test_a_server_without_ranges_begins_anew(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.breaks[NAME] = [5000]
    said = get(server, tmp_path / NAME)
    assert (tmp_path / NAME).read_bytes() == CONTENT and any("begins anew" in line for line in said)


def test_a_file_that_has_changed_meanwhile_begins_anew(server: Server, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(b"old" * 100)
    (tmp_path / f"{NAME}.part.etag").write_text('"old"')
    get(server, tmp_path / NAME)
    assert (tmp_path / NAME).read_bytes() == CONTENT


def test_what_was_left_of_another_file_is_found_by_the_digest(server: Server, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(b"other")
    get(server, tmp_path / NAME, digest=f"sha256:{hashlib.sha256(CONTENT).hexdigest()}")
    assert (tmp_path / NAME).read_bytes() == CONTENT
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT + b"longer")
    get(server, tmp_path / NAME)
    assert (tmp_path / NAME).read_bytes() == CONTENT


def test_another_file_than_the_published_is_refused(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not the published file: its MD5 is"):
        get(server, tmp_path / NAME, digest="md5:0123")
    assert not (tmp_path / NAME).exists() and not (tmp_path / f"{NAME}.part").exists()
    fetch(remote(server, "md5:0123"), tmp_path / NAME, lambda _: None, verify=False)
    assert (tmp_path / NAME).is_file()


def test_a_busy_server_is_asked_again_and_a_missing_file_is_not(server: Server, tmp_path: Path) -> None:
    server.refuses[NAME] = [503, 429]
    get(server, tmp_path / NAME)
    assert len(server.seen) == 3
    server.seen.clear()
    with pytest.raises(UserError, match="the server says 404"):
        get(server, tmp_path / "x", name="nothing")
    assert len(server.seen) == 1


def test_a_server_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads.time, "sleep", lambda _: None)
    with pytest.raises(UserError, match="give the same command again later"):
        fetch(Remote("http://127.0.0.1:9/file", 1), tmp_path / "file", lambda _: None)


def test_a_full_disk_is_told_first(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"needs 1000000000\.0 GB"):
        fetch(Remote(f"{server.url}/{NAME}", 10**18), tmp_path / NAME, lambda _: None)
    assert not server.seen and gigabytes(1_500_000) == "1.5 MB"


def _zip(path: Path, name: str, mode: int = 0) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/good", "x")
        entry = zipfile.ZipInfo(name)
        entry.external_attr = mode << 16
        archive.writestr(entry, "/etc/passwd")


def _tar(path: Path, name: str, kind: bytes = tarfile.REGTYPE) -> None:
    with tarfile.open(path, "w") as archive:
        for member, type_ in (("a/good", tarfile.REGTYPE), (name, kind)):
            entry = tarfile.TarInfo(member)
            entry.type = type_
            entry.linkname = "/etc"
            entry.size = 1 if type_ == tarfile.REGTYPE else 0
            archive.addfile(entry, io.BytesIO(b"x"))


@pytest.mark.parametrize("name", ["../out", "a/../../out", "/out", "..\\out", "C:\\out"])
@pytest.mark.parametrize("make", [_zip, _tar])
def test_nothing_is_unpacked_elsewhere(make: Callable[[Path, str], None], name: str, tmp_path: Path) -> None:
    make(tmp_path / "archive", name)
    with pytest.raises(UserError, match="leads out of its folder"):
        unpack(tmp_path / "archive", tmp_path / "deep" / "folder")
    assert not (tmp_path / "deep" / "folder").exists() and not list(tmp_path.rglob("out*"))
    assert not list((tmp_path / "deep").iterdir())


def test_links_are_left_out(tmp_path: Path) -> None:
    _zip(tmp_path / "archive.zip", "a/link", stat.S_IFLNK | 0o777)
    unpack(tmp_path / "archive.zip", tmp_path / "from_zip")
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
        _tar(tmp_path / "archive.tar", "a/link", kind)
        if kind == tarfile.LNKTYPE:
            continue
        unpack(tmp_path / "archive.tar", tmp_path / f"from_tar{kind!r}")
    for folder in tmp_path.glob("from*"):
        assert [path.name for path in folder.rglob("*")] == ["a", "good"]


def test_an_inner_folder_can_be_taken(tmp_path: Path) -> None:
    _tar(tmp_path / "archive.tar", "b/other")
    unpack(tmp_path / "archive.tar", tmp_path / "folder", inside="a")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["good"]
    with pytest.raises(UserError, match="holds no folder c"):
        unpack(tmp_path / "archive.tar", tmp_path / "other", inside="c")
    with pytest.raises(UserError, match="exists"):
        unpack(tmp_path / "archive.tar", tmp_path / "folder")
    assert not (tmp_path / "other").exists()


def test_a_broken_archive_is_told(tmp_path: Path) -> None:
    _zip(tmp_path / "whole.zip", "a/b")
    content = (tmp_path / "whole.zip").read_bytes()
    (tmp_path / "half.zip").write_bytes(content[: len(content) // 2])
    (tmp_path / "none.tar").write_bytes(b"nothing")
    for name in ("half.zip", "none.tar"):
        with pytest.raises(UserError, match="cannot be unpacked"):
            unpack(tmp_path / name, tmp_path / "folder")
        assert not (tmp_path / "folder").exists()
