"""Which steps of a run are finished, and what is said of folders without one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fmwiss.errors import UserError
from fmwiss.reporting.runs import check_finished, read_runs
from fmwiss.run_folders import finished_step, finished_steps, holds_model, last_step, step_of_run


def test_finished_steps_of_a_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such run"):
        finished_steps(tmp_path / "run")
    run = tmp_path / "run"
    (run / "step1" / "state").mkdir(parents=True)
    assert finished_steps(run) == []
    with pytest.raises(UserError, match="no finished step"):
        last_step(run)
    for step in (0, 2, 10):
        (run / f"step{step}").mkdir()
        (run / f"step{step}" / "model.json").touch()
    assert finished_steps(run) == [0, 2, 10]
    assert last_step(run) == 10
    assert finished_step(run, 2) == 2
    with pytest.raises(UserError, match="step 1 is not finished"):
        finished_step(run, 1)


def test_a_folder_without_a_step_is_told_by_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run and no saved model"):
        last_step(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "segformer"}))
    with pytest.raises(UserError, match=r"its config.json is another library's; `fmwiss extend` takes such a model"):
        last_step(tmp_path)
    (tmp_path / "model.json").touch()
    with pytest.raises(UserError, match="is a saved model and no run; give the folder that `fmwiss train --out` wrote"):
        last_step(tmp_path)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(UserError, match="with the same --out goes on where it was"):
        finished_step(tmp_path, 1)


@pytest.mark.parametrize("read", [check_finished, lambda folder: read_runs([folder])], ids=["command", "library"])
def test_a_saved_model_is_no_run_to_report(read: object, tmp_path: Path) -> None:
    (tmp_path / "model.json").touch()
    assert callable(read)
    with pytest.raises(UserError, match=r"holds no config.yaml; give the folder that `fmwiss train --out` wrote"):
        read(tmp_path)


def test_folders_of_models(tmp_path: Path) -> None:
    step = tmp_path / "run" / "step3"
    step.mkdir(parents=True)
    assert step_of_run(step) is None and not holds_model(step) and not holds_model(tmp_path / "run")
    (tmp_path / "run" / "config.yaml").touch()
    assert step_of_run(step) == 3 and holds_model(step) and not holds_model(tmp_path / "run")
    (step / "model.json").touch()
    assert holds_model(tmp_path / "run") and not holds_model(tmp_path)
