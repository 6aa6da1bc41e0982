"""What commands do beyond a line or two; their options stand in ``cli.py``."""
