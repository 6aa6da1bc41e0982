"""Teach a semantic-segmentation model new classes from photographs that carry only tags."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fmwiss.errors import UserError

__version__ = "0.1.0.dev0"

if TYPE_CHECKING:
    from fmwiss.inference import Model, Prediction, load

__all__ = ["Model", "Prediction", "UserError", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """The names of the public interface, imported when they are first used: torch takes seconds to load."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fmwiss import inference

    globals()[name] = value = getattr(inference, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
