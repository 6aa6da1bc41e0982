"""TeX in the documentation as pictures, drawn when the site is built.

Matplotlib's mathtext, which the library depends on anyway, sets the formulas in Computer Modern as SVG paths. So a page
asks nobody for a script or a font and looks alike in every browser; MathML would depend on the reader's fonts, and
MathJax is two megabytes of script. Mathtext knows a part of TeX, all of which GitHub's MathJax knows, too; what it does
not know ends the build.

The two notations are GitHub's: a fenced block ``math``, and ``$`...`$`` within a line.
"""

from __future__ import annotations

import re
from functools import cache
from html import escape
from typing import Any
from xml.etree.ElementTree import Element

from markdown import Extension, Markdown
from markdown.inlinepatterns import InlineProcessor
from matplotlib import rc_context
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.textpath import TextPath

INLINE = r"(?<![\\`])\$`([^`]+)`\$(?!`)"
EM = 1000.0
"""Units of the drawings per em."""

MAGNIFICATION = 1.15
"""Computer Modern's letters are smaller than those of the fonts around them."""

EDGE = 40.0
"""Units around a formula, for strokes that reach beyond its box."""


AIR = 0.06
"""Em between a formula and the text on either side, beside the text's own spaces."""


class FormulaError(ValueError):
    """A formula that cannot be set."""


@cache
def svg(tex: str, display: bool = False) -> str:
    """A formula as an ``<svg>`` element that stands on the text's base line.

    Args:
        tex: without dollar signs.
        display: large fractions, as a formula on a line of its own has them.

    Raises:
        FormulaError: mathtext does not know a command in it.
    """
    text = " ".join(tex.split())
    drawn = re.sub(r"\\frac(?![a-zA-Z])", r"\\dfrac", text) if display else text
    with rc_context({"mathtext.fontset": "cm"}):
        try:
            outline = TextPath((0, 0), f"${drawn}$", prop=FontProperties(size=EM))
        except ValueError as error:
            raise FormulaError(f"mathtext cannot set {text}: {str(error).strip().splitlines()[-1]}") from error
    left, bottom, right, top = outline.get_extents().extents
    box = (left - EDGE, -top - EDGE, right - left + 2 * EDGE, top - bottom + 2 * EDGE)
    width, height, below, edge = (MAGNIFICATION * length / EM for length in (box[2], box[3], EDGE - bottom, EDGE))
    style = f"width:{width:.3f}em;height:{height:.3f}em;vertical-align:{-below:.3f}em;margin:0 {AIR - edge:.3f}em"
    return (
        f'<svg class="formula" role="img" viewBox="{" ".join(f"{length:.0f}" for length in box)}" style="{style}">'
        f'<title>{escape(text)}</title><path d="{_commands(outline)}"/></svg>'
    )


def _commands(outline: Path) -> str:
    """An outline as the commands of an SVG path, y downwards, in whole units."""
    letters = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C", Path.CLOSEPOLY: "Z"}
    words = []
    for points, code in outline.iter_segments(simplify=False, curves=True):
        if code == Path.CLOSEPOLY:
            words.append("Z")
            continue
        numbers = [f"{-value if place % 2 else value:.0f}" for place, value in enumerate(points)]
        words.append(letters[code] + " ".join(numbers))
    return "".join(words)


def fence(source: str, language: str, css_class: str, options: dict[str, Any], md: Markdown, **others: Any) -> str:
    """A fenced block ``math``, as pymdownx.superfences asks for it."""
    return f'<div class="formulas">{svg(source, display=True)}</div>'


class Mathematics(Extension):
    """Python-Markdown's extension for formulas within a line."""

    def extendMarkdown(self, md: Markdown) -> None:
        # before code spans (190) and escapes (180)
        md.inlinePatterns.register(_Inline(INLINE, md), "formula", 195)


class _Inline(InlineProcessor):
    def handleMatch(  # type: ignore[override]
        self, m: re.Match[str], data: str
    ) -> tuple[str | Element, int, int]:
        return self.md.htmlStash.store(svg(m.group(1))), m.start(0), m.end(0)
