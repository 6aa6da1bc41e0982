"""Class names, however they are spelt."""

from __future__ import annotations

import unicodedata


def joined(name: str) -> str:
    """A name without case, spaces, hyphens and underscores, by which spellings are compared.

    Letters with accents are the same whether they are written as one character or as two.

    Example:
        >>> joined("TV-monitor") == joined("tv monitor") == joined("tv_monitor")
        True
    """
    return "".join(character for character in unicodedata.normalize("NFC", name.lower()) if character not in " _-")
