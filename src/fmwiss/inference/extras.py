"""Packages that only some uses need."""

from __future__ import annotations

import importlib.util

from fmwiss.errors import UserError


def require(what: str, extra: str, *modules: str) -> None:
    """Raise :class:`UserError` where one of the modules is not installed.

    Args:
        what: what they are needed for, as a sentence begins.
        extra: the extra of this package that brings them.
        modules: by the names under which they are imported.
    """
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(f"{what} needs {' and '.join(missing)}, not installed here; pip install 'fmwiss[{extra}]'")
