"""Progress: a bar on a terminal, rare lines elsewhere, nothing on standard output."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from fmwiss.reporting import progress
from fmwiss.reporting.progress import track


def test_items_pass_unchanged_and_short_work_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    assert list(track(iter("abc"), "work", 3)) == ["a", "b", "c"]
    assert capfd.readouterr() == ("", "")


def test_long_work_prints_lines_with_time_left(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    losses = iter("abcdefgh")
    list(track(range(6), lambda: f"step [1] {next(losses)}", total=16, completed=10))
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines() == ["step [1] a: 13/16, 0:00:12 left", "step [1] b: 16/16, 0:00:00 left"]


def test_other_processes_are_silent(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    assert list(track([1, 2], "work")) == [1, 2]
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    screen = io.StringIO()
    monkeypatch.setattr(
        progress, "Console", lambda stderr: Console(file=screen, force_terminal=True, width=100, legacy_windows=False)
    )
    return screen


def test_a_terminal_gets_a_bar(terminal: io.StringIO) -> None:
    assert list(track([1, 2], "work [x]")) == [1, 2]
    assert "work [x]" in terminal.getvalue() and "2/2" in terminal.getvalue()


def test_a_bar_inside_a_bar_and_one_left_early(terminal: io.StringIO) -> None:
    for _ in track([1, 2], "outer"):
        assert list(track([1, 2, 3], "inner")) == [1, 2, 3]
    for _ in track([1, 2], "left"):
        break
    assert list(track([1], "last")) == [1]
    for text in ("outer", "inner", "left", "last"):
        assert text in terminal.getvalue()
