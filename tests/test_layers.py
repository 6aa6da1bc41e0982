"""What CONTRIBUTING.md says of the order of the packages: imports point down the list only."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import fmwiss

PACKAGE = Path(fmwiss.__file__).parent
CONTRIBUTING = Path(__file__).parents[1] / "CONTRIBUTING.md"


def layers() -> dict[str, int]:
    """Part of the package to its place in the list of CONTRIBUTING.md, 0 at the top."""
    found = re.search(r"Imports point down this list only: (.+?)\.\n", CONTRIBUTING.read_text(), re.DOTALL)
    assert found is not None
    return {name.strip(): place for place, layer in enumerate(found[1].split(";")) for name in layer.split(",")}


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """Lines and parts of the package that a module imports, those within functions among them."""
    for node in ast.walk(ast.parse(file.read_text())):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            whole = name.split(".")
            if whole[0] == "fmwiss" and len(whole) > 1:
                yield node.lineno, whole[1]


def test_imports_point_down() -> None:
    places = layers()
    assert all((PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file() for name in places)
    packages = {file.parent.name for file in PACKAGE.glob("*/__init__.py")}
    assert packages <= set(places)
    wrong, met = [], 0
    for file in sorted(PACKAGE.rglob("*.py")):
        own = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for line, other in imports(file):
            if own in places and other in places and other != own and (own, other) != ("cli", "demo"):
                met += 1
                if places[other] <= places[own]:
                    wrong.append(f"{file.relative_to(PACKAGE)}:{line} imports {other}")
    assert met > 100 and not wrong
