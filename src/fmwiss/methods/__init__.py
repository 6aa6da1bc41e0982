"""Methods: one a file."""

from fmwiss.methods.base import Method
from fmwiss.methods.fmwiss import FMWISS
from fmwiss.methods.supervised import Supervised

__all__ = ["FMWISS", "Method", "Supervised"]
