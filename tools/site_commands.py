"""The commands' page of the site, from the declarations of the program's own commands."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

import typer
from typer.models import ArgumentInfo, OptionInfo

from fmwiss.cli import app

HEAD = """# Commands

Every command and its options, as `fmwiss COMMAND --help` gives them. Results go to standard output, everything else to
standard error; wrong input gets one sentence and exit code 2.
"""

KINDS = {int: "INTEGER", float: "NUMBER", str: "TEXT", Path: "PATH"}


def page() -> str:
    """The page's Markdown."""
    return "\n".join([HEAD, *_lines(app, "fmwiss")])


def _lines(program: typer.Typer, name: str) -> Iterator[str]:
    """The commands of a program, and those of the programs inside it."""
    for command in program.registered_commands:
        assert command.callback is not None
        if not command.hidden:
            yield from _command(command.callback, f"{name} {command.name or _dashed(command.callback.__name__)}")
    for group in program.registered_groups:
        assert group.typer_instance is not None
        yield from _lines(group.typer_instance, f"{name} {group.name}")


def _command(function: Callable[..., Any], name: str) -> Iterator[str]:
    arguments, options = [], []
    hints = typing.get_type_hints(function, include_extras=True)
    for parameter in inspect.signature(function).parameters.values():
        if get_origin(hints[parameter.name]) is not Annotated:
            continue  # the command's own context
        kind, *about = get_args(hints[parameter.name])
        info = next(part for part in about if isinstance(part, ArgumentInfo | OptionInfo))
        default = parameter.default
        if isinstance(info, ArgumentInfo):
            arguments.append((_placeholder(info, parameter.name), info, default))
        elif not info.hidden:
            options.append((_option(info, parameter.name, kind), info, default))
    usage = " ".join([name, *("[OPTIONS]" for _ in options[:1]), *(shown for shown, _, _ in arguments)])
    yield from (f"## {name}", "", _text(inspect.getdoc(function)), "", "```text", usage, "```", "")
    for title, parts in (("argument", arguments), ("option", options)):
        if parts:
            yield from (f"| {title} | default | what |", "|---|---|---|")
            for shown, info, default in parts:
                yield f"| {_code(shown)} | {_default(default)} | {_text(info.help)} |"
            yield ""


def _placeholder(info: ArgumentInfo, name: str) -> str:
    return info.metavar or _dashed(name).upper()


def _option(info: OptionInfo, name: str, kind: Any) -> str:
    # inside Annotated typer takes the first declaration for a default, until the command is made
    declared = [word for word in (info.default, *(info.param_decls or ())) if str(word).startswith("-")]
    words = declared or [f"--{_dashed(name)}"]
    value = info.metavar or _kind(kind)
    return "\n".join(f"{word} {value}".rstrip() for word in words)


def _kind(kind: Any) -> str:
    inner = [part for part in get_args(kind) if part is not NoneType]
    if inner:
        return _kind(inner[0])
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ",".join(str(choice.value) for choice in kind)
    return "" if kind is bool else KINDS.get(kind, "TEXT")


def _default(value: Any) -> str:
    if value is inspect.Parameter.empty:
        return "required"
    value = getattr(value, "value", value)
    return "" if value in (None, False) else _code(str(value))


def _code(text: str) -> str:
    return "<br>".join(f"`{line}`" for line in text.replace("|", r"\|").splitlines())


def _text(text: str | None) -> str:
    """Help in one paragraph that a table can hold, with code marked as such."""
    joined = " ".join((text or "").split()).replace("|", r"\|").replace("<", "&lt;")
    return re.sub(r"(?<!\w)'([^']+)'(?!\w)", r"`\1`", joined)


def _dashed(name: str) -> str:
    return name.replace("_", "-")
