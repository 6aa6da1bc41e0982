"""Commands in modules of their own; :mod:`fmwiss.cli` puts them together."""
