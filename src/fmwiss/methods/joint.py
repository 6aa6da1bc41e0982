"""Joint: all classes in one training, the papers' upper bound."""

from __future__ import annotations

from typing import Any

from fmwiss.config import Config
from fmwiss.errors import UserError
from fmwiss.methods.ft import FT


class Joint(FT):
    """A new student learns all classes so far from all their masks by cross-entropy; nothing comes from the old model.

    Arguments as of :class:`~fmwiss.methods.pixel.PixelMethod`.
    """

    joint = True

    @classmethod
    def check(cls, options: Any, config: Config) -> None:
        super().check(options, config)
        if config.training.steps.freeze_batch_norm:
            raise UserError(
                "training.steps.freeze_batch_norm = True would keep the batch norm statistics of a model that has "
                "learnt nothing, as Joint begins with a new one; set it to false."
            )
