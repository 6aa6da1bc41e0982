"""write_atomically: the old file or the new one, never a half, and nothing left over."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest

from fmwiss.errors import sentence_of
from fmwiss.files import write_atomically


def test_makes_the_folder_and_the_file(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "file.txt"
    write_atomically(target, lambda path: path.write_text("new"))
    assert target.read_text() == "new"
    assert os.listdir(target.parent) == ["file.txt"]


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")

    def write(path: Path) -> None:
        path.write_text("half")
        assert target.read_text() == "old"
        assert path.parent == tmp_path  # a rename is atomic within one file system only
        path.write_text("whole")

    write_atomically(target, write)
    assert target.read_text() == "whole"


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("no")])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, failure: BaseException) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")

    def write(path: Path) -> None:
        path.write_text("half")
        raise failure

    with pytest.raises(type(failure)):
        write_atomically(target, write)
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


@pytest.mark.parametrize("kind", [PermissionError, FileNotFoundError])
def test_an_error_is_about_the_file_that_was_asked_for(tmp_path: Path, kind: type[OSError]) -> None:
    target = tmp_path / "file.txt"

    def write(path: Path) -> None:
        raise kind(errno.EACCES, "Permission denied", str(path))

    with pytest.raises(kind) as caught:
        write_atomically(target, write)
    assert (caught.value.filename, caught.value.errno) == (str(target), errno.EACCES)
    assert sentence_of(caught.value) == f"{target}: Permission denied"


def test_an_error_of_the_rename_and_of_other_files(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        write_atomically(tmp_path / "folder", lambda path: path.write_text("new"))
    assert str(caught.value) == f"[Errno {errno.EISDIR}] Is a directory: '{tmp_path / 'folder'}'"
    with pytest.raises(FileNotFoundError) as caught:
        write_atomically(tmp_path / "file.txt", lambda path: (tmp_path / "source").read_text())
    assert caught.value.filename == str(tmp_path / "source")


def test_a_writer_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "file.txt", lambda path: None)
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")

    def write(path: Path) -> None:
        path.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        write_atomically(target, write)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert target.read_text() == "old"
    write_atomically(target, lambda path: path.write_text("new"))
    assert target.read_text() == "new"
