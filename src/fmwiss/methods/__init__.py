"""Methods: one a file."""

from __future__ import annotations

from collections.abc import Callable

from fmwiss.config import (
    CAMConfig,
    CILConfig,
    Config,
    EPSConfig,
    FineTuningConfig,
    FMWISSConfig,
    FTConfig,
    ILTConfig,
    JointConfig,
    LwFConfig,
    LwFMCConfig,
    MethodConfig,
    MiBConfig,
    PLOPConfig,
    RECALLConfig,
    SDRConfig,
    SEAMConfig,
    SSConfig,
    WILSONConfig,
)
from fmwiss.errors import UserError
from fmwiss.methods.base import Method
from fmwiss.methods.cam import CAM
from fmwiss.methods.cil import CIL
from fmwiss.methods.eps import EPS
from fmwiss.methods.finetuning import FineTuning
from fmwiss.methods.fmwiss import FMWISS
from fmwiss.methods.ft import FT
from fmwiss.methods.ilt import ILT
from fmwiss.methods.joint import Joint
from fmwiss.methods.lwf import LwF
from fmwiss.methods.lwf_mc import LwFMC
from fmwiss.methods.mib import MiB
from fmwiss.methods.pixel import DistillingMethod, PixelMethod
from fmwiss.methods.plop import PLOP
from fmwiss.methods.recall import RECALL
from fmwiss.methods.sdr import SDR
from fmwiss.methods.seam import SEAM
from fmwiss.methods.ss import SS
from fmwiss.methods.supervised import Supervised
from fmwiss.methods.wilson import WILSON
from fmwiss.models import Segmenter

__all__ = [
    "CAM",
    "CIL",
    "EPS",
    "FMWISS",
    "FT",
    "ILT",
    "METHODS",
    "PLOP",
    "RECALL",
    "SDR",
    "SEAM",
    "SS",
    "WILSON",
    "DistillingMethod",
    "FineTuning",
    "Joint",
    "LwF",
    "LwFMC",
    "Method",
    "MiB",
    "PixelMethod",
    "Supervised",
    "build_method",
    "check_methods",
    "method_class",
    "takes_pseudo_masks",
]

METHODS: dict[type, type[Method]] = {
    FMWISSConfig: FMWISS,
    FineTuningConfig: FineTuning,
    WILSONConfig: WILSON,
    CAMConfig: CAM,
    SEAMConfig: SEAM,
    SSConfig: SS,
    EPSConfig: EPS,
    JointConfig: Joint,
    FTConfig: FT,
    LwFConfig: LwF,
    LwFMCConfig: LwFMC,
    ILTConfig: ILT,
    MiBConfig: MiB,
    PLOPConfig: PLOP,
    CILConfig: CIL,
    SDRConfig: SDR,
    RECALLConfig: RECALL,
}
"""By the type of the configuration's section ``method``, what learns the steps after 0."""


def method_class(options: MethodConfig) -> type[Method]:
    """What the options configure, for the questions that are asked before it is built."""
    return METHODS[type(options)]


def takes_pseudo_masks(options: MethodConfig) -> bool:
    """Whether the method that the options configure learns from co-segmentation's pseudo masks."""
    return method_class(options).learns_from_pseudo_masks(options)


def check_methods(config: Config) -> None:
    """Raise UserError where the options of step 0's method or of the later steps' do not fit the rest."""
    Supervised.check(config.training.step0, config)
    method = method_class(config.method)
    method.check(config.method, config)
    if config.data.negatives == 0:
        return
    if not method.takes_negatives:
        raise UserError(
            f"data.negatives = {config.data.negatives:g}: method {config.method.name} learns from photographs with a "
            "new class alone; give 0"
        )
    if not getattr(config.method, "untagged_absent", True):
        raise UserError(
            f"data.negatives = {config.data.negatives:g}: what has no tag teaches something only where that means that "
            "the class is absent; set method.untagged_absent, or give 0"
        )


def build_method(
    options: MethodConfig, student: Segmenter, old_model: Segmenter, freeze_batch_norm: bool = False
) -> Method:
    """The method that the options configure.

    Args:
        options: section ``method``.
        student: the model of step t, already grown by the new classes.
        old_model: the model of step t - 1; the method may freeze and keep it.
        freeze_batch_norm: keep the student's batch norm statistics.
    """
    method: Callable[..., Method] = method_class(options)
    return method(student, old_model, options, freeze_batch_norm)
