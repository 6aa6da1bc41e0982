"""Write docs/configuration.md from the typed models in fmwiss.config: python tools/write_configuration_reference.py"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fmwiss.config import Config, sections_of

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"

HEAD = """# Configuration

<!-- Written by tools/write_configuration_reference.py from src/fmwiss/config.py; change it there. -->

One YAML file describes one experiment. Its key `base` may name another file, relative to itself, whose values it
overrides mapping by mapping; `--set path.to.key=value` overrides both (the value is YAML; repeatable). The section
`method` is a choice by its `name` (without one: `fmwiss`) and has the keys of that method only. Unknown keys and values
out of range are refused with the key's path and what would be right. Other paths than `base` are relative to
the folder in which the command runs. A run writes the resolved configuration to `config.yaml`.
"""


def reference() -> str:
    """The page's text."""
    return "\n".join([HEAD, *_sections(Config, "")])


def _sections(model: type[BaseModel], prefix: str, choice: str = "") -> list[str]:
    """A section's table and those inside it; ``choice`` is the name by which a section is chosen among several."""
    lines, inner = [], []
    for name, field in model.model_fields.items():
        sections = sections_of(field.annotation)
        for section in sections:
            inner += _sections(section, f"{prefix}{name}.", _name_of(section) if len(sections) > 1 else choice)
        if not sections:
            cells = (f"`{name}`", _values(field), f"`{_default(field)}`", (field.description or "").replace("|", r"\|"))
            lines.append("| " + " | ".join(cells) + " |")
    if lines:
        about = " ".join((model.__doc__ or "").split())
        title = prefix.rstrip(".") + (f": {choice}" if choice else "")
        head = [f"## {title}", "", about, "", "| key | values | default | meaning |", "|---|---|---|---|"]
        lines = [*head, *lines, ""]
    return lines + inner


def _name_of(section: type[BaseModel]) -> str:
    return str(section.model_fields["name"].default)


def _values(field: FieldInfo) -> str:
    text = _type(field.annotation)
    bounds = {"gt": "> {}", "ge": ">= {}", "lt": "< {}", "le": "<= {}"}
    limits = [
        form.format(f"{getattr(data, bound):g}")
        for data in field.metadata
        for bound, form in bounds.items()
        if getattr(data, bound, None) is not None
    ]
    return ", ".join([text, *limits])


def _type(annotation: Any) -> str:
    arguments = get_args(annotation)
    if get_origin(annotation) is None:
        names = {"str": "text", "float": "number", "int": "integer", "bool": "true, false", "NoneType": "null"}
        name = getattr(annotation, "__name__", str(annotation))
        return names.get(name, name.lower())
    if all(isinstance(argument, str) for argument in arguments):
        return ", ".join(f"`{argument}`" for argument in arguments)
    if all(isinstance(argument, int) for argument in arguments):
        return ", ".join(map(str, arguments))
    origin = get_origin(annotation)
    if origin in (list, tuple):
        kinds = dict.fromkeys(_type(argument) for argument in arguments if argument is not Ellipsis)
        count = f"{len(arguments)} " if origin is tuple and Ellipsis not in arguments else ""
        return f"list of {count}" + re.sub(r"\b(list|number|integer)\b", r"\1s", " or ".join(kinds))
    if origin is dict:
        return f"mapping of {_type(arguments[0])} to {_type(arguments[1])}"
    if hasattr(annotation, "__metadata__"):
        return _type(arguments[0])
    return " or ".join(_type(argument) for argument in arguments)


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    return value if isinstance(value, str) else json.dumps(value, default=str)


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
