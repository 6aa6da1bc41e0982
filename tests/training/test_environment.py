"""What is written down of versions and machine."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric

from fmwiss.training import environment
from fmwiss.training.environment import describe_environment


def test_versions_and_machine_are_those_of_this_process() -> None:
    found = describe_environment(Fabric(accelerator="cpu", devices=1))
    assert found.versions["python"] == platform.python_version() and found.versions["torch"] == torch.__version__
    assert "unknown" not in found.versions.values()
    assert (found.processes, found.precision, found.machine.devices) == (1, "32-true", ["cpu"])
    assert found.machine.cores >= 1 and found.threads == torch.get_num_threads() and found.machine.processor
    assert platform.node() not in found.model_dump_json() or len(platform.node()) < 4


def git(folder: Path, *words: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True)


def test_the_commit_is_that_of_the_source_tree_with_its_changes(tmp_path: Path) -> None:
    package = tmp_path / "src" / "fmwiss"
    package.mkdir(parents=True)
    assert environment._commit(package) is None
    (package / "a.py").write_text("1")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    commit = environment._commit(package)
    assert commit is not None and len(commit) == 40
    (package / "a.py").write_text("2")
    assert environment._commit(package) == commit + "+"
    # an installed package that lies in somebody else's repository is not of that commit
    installed = tmp_path / ".venv" / "lib" / "fmwiss"
    installed.mkdir(parents=True)
    assert environment._commit(installed) is None


def test_the_commit_is_that_of_the_import(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tree that changes while a step is trained is not what trained it."""
    before = environment.source_commit()
    monkeypatch.setattr(environment, "_git", lambda *_: "f" * 40)
    assert environment.source_commit() == before != "f" * 40 + "+"


def test_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", "")
    assert environment._commit(tmp_path / "src" / "fmwiss") is None
