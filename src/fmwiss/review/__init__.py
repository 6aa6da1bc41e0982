"""``fmwiss review``: a local page on which people look at pseudo masks before a model learns from them."""
