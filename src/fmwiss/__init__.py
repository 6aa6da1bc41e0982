"""Teach a semantic-segmentation model new classes from photographs that carry only tags."""

__version__ = "0.1.0.dev0"
