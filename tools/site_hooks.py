"""MkDocs' hooks for the documentation's site (mkdocs.yml).

The pages in docs/ are written to be read where the repository is read, too. What that needs done for the site is here:
formulas (site_mathematics.py), CONTRIBUTING.md and CHANGELOG.md as pages, a page for every module and for the commands,
and links into the source, which lead to the module's page.
"""

from __future__ import annotations

import ast
import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tools")]

import site_commands  # noqa: E402
import site_mathematics  # noqa: E402

PACKAGE = ROOT / "src" / "fmwiss"

FROM_OUTSIDE = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Pages of the repository that are not in docs/, and where they are in the site."""

COMMANDS = "commands.md"
REFERENCE = "reference"
WITHOUT_PAGE = ("fmwiss.cli", "fmwiss.commands")
"""Modules that are described by what they do on the command line."""

LINK = re.compile(r"(?<=\]\()([^)\s#]+)(#[^)\s]*)?(?=\))")
FENCED = re.compile(r"^( *)(```|~~~).*?^\1\2", re.MULTILINE | re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Formulas, and the navigation's entries that stand for several pages."""
    config.markdown_extensions.append(site_mathematics.Mathematics())  # type: ignore[arg-type]
    fences = config.mdx_configs.setdefault("pymdownx.superfences", {}).setdefault("custom_fences", [])
    fences.append({"name": "math", "class": "math", "format": site_mathematics.fence})
    named = set(_pages(config.nav))
    config.nav = _expanded(config.nav, named, Path(config.docs_dir))
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The pages that are not files of docs/."""
    for origin, page in FROM_OUTSIDE.items():
        _add(files, config, page, (ROOT / origin).read_text(encoding="utf-8"))
    _add(files, config, COMMANDS, site_commands.page())
    modules = list(_modules())
    _add(files, config, f"{REFERENCE}/README.md", _overview(modules))
    for name in modules:
        _add(files, config, _page_of(name), f"---\ntitle: {name}\n---\n\n::: {name}\n")
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links that lead out of docs/ lead to pages of the site.

    Raises:
        PluginError: there is no page for what a link leads to.
    """
    origin = {page_: origin for origin, page_ in FROM_OUTSIDE.items()}.get(page.file.src_uri)
    place = posixpath.dirname(origin if origin is not None else f"docs/{page.file.src_uri}")

    def replace(found: re.Match[str]) -> str:
        target, anchor = found.group(1), found.group(2) or ""
        if re.match(r"[a-z]+:", target):
            return found.group(0)
        path = posixpath.normpath(posixpath.join(place, target))
        return posixpath.relpath(_uri(path, page), posixpath.dirname(page.file.src_uri) or ".") + anchor

    kept: list[str] = []
    for place_in_text, part in enumerate(_without_fences(markdown)):
        kept.append(part if place_in_text % 2 else LINK.sub(replace, part))
    return "".join(kept)


def _uri(path: str, page: Page) -> str:
    """The page of the site for a path of the repository."""
    if (ROOT / path).is_dir() and (ROOT / path / "README.md").is_file():
        path += "/README.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path in FROM_OUTSIDE:
        return FROM_OUTSIDE[path]
    if path.startswith("src/") and path.endswith(".py"):
        name = ".".join(Path(path).relative_to("src").with_suffix("").parts).removesuffix(".__init__")
        if name in _modules():
            return _page_of(name)
    raise PluginError(f"{page.file.src_uri}: there is no page in the site for {path}, which it links to")


def _without_fences(markdown: str) -> list[str]:
    """The text in parts of which every second one is a fenced block."""
    parts, start = [], 0
    for block in FENCED.finditer(markdown):
        parts += [markdown[start : block.start()], block.group(0)]
        start = block.end()
    return [*parts, markdown[start:]]


def _add(files: Files, config: MkDocsConfig, uri: str, text: str) -> None:
    files.append(File.generated(config, uri, content=text))


def _pages(nav: Any) -> Iterator[str]:
    """Every page that a navigation names."""
    if isinstance(nav, str):
        yield nav
    else:
        for entry in nav.values() if isinstance(nav, dict) else nav:
            yield from _pages(entry)


def _expanded(nav: Any, named: set[str], docs: Path) -> Any:
    """A navigation in which FOLDER/FILES and MODULES are what they stand for."""
    if isinstance(nav, dict):
        return {title: _expanded(entry, named, docs) for title, entry in nav.items()}
    if not isinstance(nav, list):
        return nav
    entries: list[Any] = []
    for entry in nav:
        if entry == "MODULES":
            entries += _module_tree()
        elif isinstance(entry, str) and Path(entry).name == "FILES":
            folder = (docs / entry).parent
            pages = (path.relative_to(docs).as_posix() for path in sorted(folder.glob("*.md")))
            entries += [page for page in pages if page not in named]
        else:
            entries.append(_expanded(entry, named, docs))
    return entries


def _modules() -> dict[str, str]:
    """Public modules with the first sentence of their docstrings, packages before their modules."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py"), key=lambda path: (path.parent, path.name != "__init__.py", path.name)):
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        if any(part.startswith("_") for part in name.split(".")) or name.startswith(WITHOUT_PAGE):
            continue
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        found[name] = " ".join(text.partition("\n\n")[0].split())
    return found


def _page_of(name: str) -> str:
    """Where the page of a module is in the site."""
    path = PACKAGE.parent.joinpath(*name.split("."))
    ending = "/index.md" if path.is_dir() else ".md"
    return posixpath.join(REFERENCE, *name.split(".")) + ending


def _module_tree() -> list[Any]:
    """Navigation: the package's modules, and one entry a subpackage with its own."""
    tree: dict[str, list[Any]] = {}
    for name in _modules():
        group = ".".join(name.split(".")[:2])
        page = _page_of(name)
        tree.setdefault(group, []).append(page if page.endswith("index.md") else {name.rpartition(".")[2]: page})
    return [
        pages[0] if len(pages) == 1 and isinstance(pages[0], dict) else {group.rpartition(".")[2]: pages}
        for group, pages in tree.items()
    ]


def _overview(modules: list[str]) -> str:
    """The page of all modules."""
    about = _modules()
    lines = ["# Python modules", "", "| module | what |", "|---|---|"]
    for name in modules:
        what = about[name].replace("|", r"\|").replace("``", "`")
        lines.append(f"| [`{name}`]({posixpath.relpath(_page_of(name), REFERENCE)}) | {what} |")
    return "\n".join([*lines, ""])
