"""What the documentation shows works, and what it links to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fmwiss.methods import METHODS

NAMES = [*(section.model_fields["name"].default for section in METHODS), "fmwiss-plus"]

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


@pytest.mark.parametrize("name", NAMES)
def test_a_method_has_its_page_and_its_experiments(name: str) -> None:
    assert (ROOT / "docs" / "methods" / f"{name}.md").is_file()
    assert f"docs/methods/{name}.md" in (ROOT / "README.md").read_text(encoding="utf-8")
    for protocol in filter(Path.is_dir, ROOT.glob("configs/*/*-*")):
        assert (protocol / f"{name}.yaml").is_file(), protocol


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def anchors(page: Path) -> set[str]:
    """Where a page can be linked to: its headings as GitHub and the site spell them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_a_heading(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text(encoding="utf-8")):
        assert anchor in anchors(page.parent / target if target else page), (target, anchor)


def test_pictures_in_html_are_there() -> None:
    for page in PAGES:
        for target in re.findall(r"<img [^>]*src=\"([^\"]+)\"", page.read_text(encoding="utf-8")):
            assert (page.parent / target).is_file(), (page, target)


def test_commands_of_the_readme_are_ones_that_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for config in re.findall(r"configs/\S+\.yaml", text):
        assert (ROOT / config).is_file(), config
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make (\w+)", text):
        assert f"\n{target}:" in makefile, target
