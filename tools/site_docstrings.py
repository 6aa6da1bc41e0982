"""What the docstrings' Sphinx roles become in the site: links to the pages of what they name."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):`(~?)([\w.]+)`")
LITERAL_BLOCK = re.compile(r"::$", re.MULTILINE)
EXAMPLE = re.compile(r"^( *)Example:$", re.MULTILINE)


class SphinxRoles(griffe.Extension):
    """Turns roles into links where the name is shown, else into code, and other notations into griffe's."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        self._visit(pkg, pkg)

    def _visit(self, item: griffe.Object, package: griffe.Module) -> None:
        if item.docstring is not None:
            text = ROLE.sub(lambda found: self._link(found, item, package), item.docstring.value)
            item.docstring.value = EXAMPLE.sub(r"\1Examples:", LITERAL_BLOCK.sub(":", text))
        for member in item.members.values():
            if isinstance(member, griffe.Object):
                self._visit(member, package)

    def _link(self, found: re.Match[str], item: griffe.Object, package: griffe.Module) -> str:
        short, name = found.groups()
        shown = name.rpartition(".")[2] if short else name
        target = self._target(name, item, package)
        return f"[`{shown}`][{target}]" if target else f"`{shown}`"

    def _target(self, name: str, item: griffe.Object, package: griffe.Module) -> str | None:
        """Path of what a name in an object's docstring stands for, if the site shows it."""
        try:
            path = name if name.startswith(f"{package.name}.") else item.resolve(name)
        except griffe.NameResolutionError:
            return None
        if not path.startswith(f"{package.name}."):
            return None
        try:
            found = package[path.removeprefix(f"{package.name}.")]
            found = found.final_target if isinstance(found, griffe.Alias) else found
        except (KeyError, griffe.AliasResolutionError, griffe.CyclicAliasError):
            return None
        private = any(part.startswith("_") for part in found.path.split("."))
        return found.path if found.has_docstrings and not private else None
