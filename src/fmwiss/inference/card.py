"""The model card, ``README.md`` of a shared model: generated from its record, with nothing claimed beyond it."""

from __future__ import annotations

import re
from typing import Any

import yaml
from jinja2 import Environment as Templates
from jinja2 import PackageLoader, StrictUndefined

from fmwiss.inference.record import ModelRecord, StepRecord

CARD = "README.md"
_TASK = {"type": "image-segmentation", "name": "Semantic segmentation"}


def model_card(record: ModelRecord, name: str) -> str:
    """The card in Markdown with YAML in front, as the Hugging Face hub reads it.

    Args:
        record: what is known about the model.
        name: what :func:`fmwiss.load` takes for it: ``owner/name``, or the folder's name.
    """
    templates = Templates(
        loader=PackageLoader("fmwiss.inference", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters["text"] = _text
    templates.filters["code"] = _code
    templates.filters["per_cent"] = lambda value: "-" if value is None else f"{value:.1f}"
    page = templates.get_template("card.md").render(
        record=record,
        name=name,
        title=name.rpartition("/")[2],
        experiment=record.experiment,
        evaluated=[step for step in record.steps if step.figures is not None],
        last=_last_evaluated(record),
        commits={step.step: _commit(step) for step in record.steps},
        minutes=sum(sum(step.figures.minutes.values()) for step in record.steps if step.figures is not None),
        settings=_settings(record.experiment["method"]) if record.experiment else [],
    )
    return f"---\n{yaml.safe_dump(_metadata(record, name), sort_keys=False, allow_unicode=True)}---\n\n{page}"


def _metadata(record: ModelRecord, name: str) -> dict[str, Any]:
    """The card's head."""
    head: dict[str, Any] = {} if record.license is None else {"license": record.license}
    head |= {
        "library_name": record.library_name,
        "pipeline_tag": "image-segmentation",
        "tags": ["fmwiss", "semantic-segmentation", "incremental-learning", "weakly-supervised"],
    }
    last = _last_evaluated(record)
    if last is None or last.figures is None or last.figures.miou.all is None:
        return head
    # a result needs the name and the type of its data set; the hub has none for data of one's own
    data = record.dataset or "own data"
    kind = re.sub(r"[^\w.-]+", "-", data).strip("-").lower()
    result = {
        "task": _TASK,
        "dataset": {"name": data, "type": kind, "split": last.figures.split},
        "metrics": [{"type": "mean_iou", "name": "mean IoU in per cent", "value": round(last.figures.miou.all, 2)}],
    }
    return {**head, "model-index": [{"name": name.rpartition("/")[2], "results": [result]}]}


def _last_evaluated(record: ModelRecord) -> StepRecord | None:
    return next((step for step in reversed(record.steps) if step.figures is not None), None)


def _commit(step: StepRecord) -> str:
    """The commit that trained a step, short; ``+`` behind it where the tree had changes."""
    commit = step.environment.commit if step.environment else None
    if commit is None:
        return "-" if step.environment is None else f"version {step.environment.fmwiss}"
    return commit[:10] + ("+" if commit.endswith("+") else "")


def _settings(section: dict[str, Any]) -> list[tuple[str, str]]:
    """A section's constants, its name and what is nested left out."""
    plain = {key: value for key, value in section.items() if key != "name" and not isinstance(value, dict | list)}
    return [(key, "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value))
            for key, value in plain.items()]


def _text(value: object) -> str:
    """Words of a user's for a line or a cell of Markdown, which they must neither leave nor mark up."""
    line = re.sub(r"\s+", " ", str(value))
    return re.sub(r"([\\`*_{}\[\]<>|#~])", r"\\\1", line)


def _code(value: object) -> str:
    """A name as code, which nothing in it can end."""
    return "`" + re.sub(r"[`|\s]+", " ", str(value)) + "`"
