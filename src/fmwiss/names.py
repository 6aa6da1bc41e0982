"""Class names, however they are spelt."""

from __future__ import annotations


def joined(name: str) -> str:
    """A name without case, spaces, hyphens and underscores, by which spellings are compared.

    Example:
        >>> joined("TV-monitor") == joined("tv monitor") == joined("tv_monitor")
        True
    """
    return "".join(character for character in name.lower() if character not in " _-")
