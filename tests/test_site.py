"""The documentation's site: it builds offline, loads nothing from other hosts; its formulas are there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from filelock import FileLock
from markdown import Markdown
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

import site_commands
import site_docstrings
import site_mathematics
from browser import Chromium
from fmwiss.cli import app

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "docs").rglob("*.md"))

OFFLINE = """
import socket, sys

def refuse(*arguments, **others):
    raise OSError("the site must build without network")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
sys.argv = ["mkdocs", "build", "--strict", "--site-dir", sys.argv[1]]
from mkdocs.__main__ import cli
cli()
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; all processes of a test run share one."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder = shared / "site"
    with FileLock(shared / "site.lock"):
        if not (folder / "complete").is_file():
            environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "OMP_NUM_THREADS": "1"}
            words = [sys.executable, "-c", OFFLINE, str(folder)]
            built = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
            assert built.returncode == 0, built.stdout + built.stderr
            (folder / "complete").touch()
    return folder


LOADING = {"embed": "src", "object": "data", "use": "href"} | dict.fromkeys(
    ("script", "img", "iframe", "source", "video", "audio"), "src"
)
"""What of an element names a file that the browser loads."""


class Elements(HTMLParser):
    """What a page loads, where it links to, and what can be linked to in it."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.styles = ""
        self.formulas = 0
        self.inside: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        self.styles += values.get("style", "")
        self.formulas += "formula" in values.get("class", "").split()
        self.inside = [tag]
        if tag in LOADING and LOADING[tag] in values:
            self.loaded.append(values[LOADING[tag]])
        elif tag == "link" and values.get("rel") not in ("canonical", "prev", "next"):
            self.loaded.append(values["href"])
        elif tag == "a" and "href" in values:
            self.links.append(values["href"])
        self.loaded += [part.split()[0] for part in values.get("srcset", "").split(",") if part.strip()]

    def handle_data(self, data: str) -> None:
        if self.inside == ["style"]:
            self.styles += data

    def handle_endtag(self, tag: str) -> None:
        self.inside = []


def elsewhere(address: str) -> bool:
    """Whether an address names a host."""
    return bool(urlsplit(address).netloc)


def test_every_module_and_page_is_there(site: Path) -> None:
    for source in SOURCES:
        page = source.relative_to(ROOT / "docs").with_suffix(".html")
        page = page.with_name("index.html") if page.name == "README.html" else page
        assert (site / page).is_file(), page
    for page, text in {
        "reference/fmwiss/losses/pixel_bce.html": "Binary cross-entropy of every class on its own",
        "reference/fmwiss/methods/index.html": "METHODS",
        "reference/fmwiss/config.html": "load_config",
        "contributing.html": "Adding a method",
        "changelog.html": "Unreleased",
        "configuration.html": "points_per_class",
        "commands.html": "fmwiss pseudo-masks",
    }.items():
        assert text in (site / page).read_text(encoding="utf-8"), page
    written = {path.name for path in (ROOT / "src").rglob("*.py") if not path.name.startswith("__")}
    shown = {path.with_suffix(".py").name for path in (site / "reference").rglob("*.html")}
    assert {name for name in written - shown if not name.startswith("_")} <= {"cli.py"} | {
        path.name for path in (ROOT / "src" / "fmwiss" / "commands").glob("*.py")
    }


def test_nothing_is_loaded_from_another_host(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 50
    for page in pages:
        elements = Elements(page)
        assert elements.loaded, page
        assert [address for address in elements.loaded if elsewhere(address)] == [], page
        assert "http" not in elements.styles, page
    for style in site.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        asked = re.findall(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)", text)
        assert [part for pair in asked for part in pair if elsewhere(part)] == [], style


def test_every_link_within_the_site_leads_somewhere(site: Path) -> None:
    anchors = {page.resolve(): Elements(page).anchors for page in site.rglob("*.html")}
    for page in anchors:
        if page.name == "404.html":  # its addresses are a server's
            continue
        for link in Elements(page).links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), (page, link)
            if parts.fragment and target.suffix == ".html":
                assert unquote(parts.fragment) in anchors[target] | {"__tabbed_1_1"}, (page, link)


def test_every_formula_is_drawn(site: Path) -> None:
    total = 0
    for source in SOURCES:
        text = source.read_text(encoding="utf-8")
        expected = len(re.findall(r"^```math$", text, re.MULTILINE)) + len(re.findall(site_mathematics.INLINE, text))
        page = site / source.relative_to(ROOT / "docs").with_suffix(".html")
        page = page.with_name("index.html") if page.name == "README.html" else page
        assert Elements(page).formulas == expected, source
        total += expected
    assert total > 100


@pytest.mark.parametrize("page", SOURCES, ids=lambda page: page.name)
def test_formulas_are_written_so_that_github_shows_them_too(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for line in text.splitlines():
        rest = re.sub(site_mathematics.INLINE, "", line)
        assert "$`" not in rest and "`$" not in rest, line
        for formula in re.findall(site_mathematics.INLINE, line):
            # a bar would end a table's cell
            assert not (line.startswith("|") and "|" in formula), line


def test_a_formula_is_what_matplotlib_draws() -> None:
    drawn = site_mathematics.svg(r"\alpha^2")
    outline = TextPath((0, 0), r"$\alpha^2$", prop=FontProperties(size=1000, math_fontfamily="cm"))
    numbers = [float(word) for word in re.findall(r"-?\d+", re.search(r' d="([^"]+)"', drawn)[1])]  # type: ignore[index]
    left, bottom, right, top = outline.get_extents().extents
    # control points may lie beyond the outline, so only from within
    assert min(numbers[::2]) == pytest.approx(left, abs=30) and max(numbers[::2]) == pytest.approx(right, abs=30)
    assert min(numbers[1::2]) == pytest.approx(-top, abs=30) and max(numbers[1::2]) == pytest.approx(-bottom, abs=30)
    x, y, width, height = map(float, re.search(r'viewBox="([^"]+)"', drawn)[1].split())  # type: ignore[index]
    assert x < left and y < -top and x + width > right and y + height > -bottom


def test_a_formula_stands_on_the_line() -> None:
    below = [float(re.search(r"vertical-align:-([\d.]+)em", site_mathematics.svg(tex))[1]) for tex in ("x", "x_{i_j}")]  # type: ignore[index]
    edge = site_mathematics.MAGNIFICATION * site_mathematics.EDGE / site_mathematics.EM
    assert below[0] == pytest.approx(edge, abs=0.02)
    assert below[1] > below[0] + 0.1


def test_fractions_are_large_on_lines_of_their_own() -> None:
    heights = [
        float(re.search(r"height:([\d.]+)em", site_mathematics.svg(r"\frac{1}{2}", display))[1])  # type: ignore[index]
        for display in (False, True)
    ]
    assert heights[1] > 1.2 * heights[0]


@pytest.mark.parametrize("tex", [r"\unknowncommand x", r"\frac{1}", "a_", r"\begin{cases} 1 \end{cases}"])
def test_what_cannot_be_set_ends_the_build(tex: str) -> None:
    with pytest.raises(site_mathematics.FormulaError, match="mathtext cannot set"):
        site_mathematics.svg(tex)


def test_formulas_are_found_in_markdown_and_nowhere_else() -> None:
    convert = Markdown(extensions=[site_mathematics.Mathematics(), "tables"]).convert
    assert convert("with $`x_i`$ and `$`, 5 $ and `x`").count("<svg") == 1
    assert convert("| a |\n|---|\n| $`x`$ |").count("<td><svg") == 1
    assert "<svg" not in convert(r"\$`x`$ stays")
    assert "<svg" not in convert("about ``$`x`$``, which is code")
    assert "&lt;" in convert("$`a < b`$") and "a < b<" not in convert("$`a < b`$")


def test_every_command_has_its_options_on_the_page() -> None:
    page = site_commands.page()
    for command in app.registered_commands:
        assert command.callback is not None
        name = command.name or command.callback.__name__
        assert f"\n## fmwiss {name}\n" in page
    assert "\n## fmwiss data emoji\n" in page
    train = page.partition("\n## fmwiss train\n")[2].partition("\n## ")[0]
    assert "| `--data PATH` | required | Data set, laid out as data.source says. |" in train
    assert "| `--precision TEXT` | `32-true` |" in train and "| `--set KEY=VALUE` |  |" in train
    assert "&lt;timm name>" in train and "`fmwiss train [OPTIONS] CONFIG`".strip("`") in train
    assert "| `--image whole,center-crop` |" in page and "| `--open` |  |" in page


def test_roles_in_docstrings_become_links_to_what_is_public() -> None:
    import griffe

    extensions = griffe.load_extensions(site_docstrings.SphinxRoles)
    package = griffe.load("fmwiss", search_paths=[ROOT / "src"], extensions=extensions)
    assert package["data.batches"].docstring is not None
    texts = {
        name: package[name].docstring.value  # type: ignore[union-attr]
        for name in ("config", "losses.dense_contrastive.NOT_DRAWN", "pamr.pixel_affinity", "cosegmentation")
    }
    assert "[`UserError`][fmwiss.errors.UserError]" in texts["config"]
    link = "[`sample_points`][fmwiss.losses.dense_contrastive.sample_points]"
    assert link in texts["losses.dense_contrastive.NOT_DRAWN"]
    assert "`_offsets`" in texts["pamr.pixel_affinity"] and "[`_offsets`]" not in texts["pamr.pixel_affinity"]
    assert "::\n" not in texts["cosegmentation"]


WIDER = """[...document.querySelectorAll("article > *")].filter((node) =>
    node.getBoundingClientRect().right > innerWidth + 0.5).map((node) => node.outerHTML.slice(0, 120))"""


@pytest.mark.parametrize("width", [390, 1440])
def test_pages_from_the_disk_ask_nobody_and_fit_the_window(site: Path, chromium: Chromium, width: int) -> None:
    for name in ("index", "methods/fmwiss", "methods/wilson", "configuration", "reference/fmwiss/pseudo_masks"):
        chromium.visit(site / f"{name}.html", width)
        assert chromium.evaluate("document.documentElement.scrollWidth") <= width, name
        assert chromium.evaluate(WIDER) == [], name
        assert chromium.problems == [], name
        assert [url for url in chromium.requests if not url.startswith(("file:", "data:"))] == [], name
        small = "[...document.querySelectorAll('.formula')].filter((f) => f.getBoundingClientRect().height < 5).length"
        assert chromium.evaluate(small) == 0, name


def test_the_search_works_from_the_disk(site: Path, chromium: Chromium) -> None:
    chromium.visit(site / "index.html", 1440)
    found = chromium.evaluate(
        """(async () => {
            const field = document.querySelector("[data-md-component=search-query]");
            field.focus();
            field.value = "railroad";  // a word of one page alone, so that it does not depend on ranks
            field.dispatchEvent(new Event("keyup"));
            field.dispatchEvent(new Event("input"));
            for (let turn = 0; turn < 600; turn++) {
                const links = document.querySelectorAll(".md-search-result__link");
                if (links.length) return [...links].map((link) => link.getAttribute("href"));
                await new Promise((resolve) => setTimeout(resolve, 100));
            }
            return [];
        })()"""
    )
    assert any("methods/eps.html" in link for link in found)
    assert [url for url in chromium.requests if not url.startswith(("file:", "data:", "about:"))] == []
