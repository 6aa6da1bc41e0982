"""What commands do that is more than a call of the library; :mod:`fmwiss.cli` has their options."""
