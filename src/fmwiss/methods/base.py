"""What a method is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fmwiss.config import Config
from fmwiss.data.batches import Batch
from fmwiss.models import Segmenter

if TYPE_CHECKING:
    from fmwiss.methods.offline import Locator

Supervision = Literal["pixel", "image"]


class Method(nn.Module, ABC):
    """A way of learning one step: it owns its losses and extra modules; the trainer knows only what stands here.

    Those of steps after 0 are made as ``Class(student, old_model, options, freeze_batch_norm)`` with their section of
    the configuration; see :data:`fmwiss.methods.METHODS`.

    Args:
        student: the model that learns.
        freeze_batch_norm: keep the student's batch norm statistics.
    """

    supervision: ClassVar[Supervision]
    pastes_instances: ClassVar[bool] = False
    """Whether old classes' instances are pasted from the memory bank, as ``copy_paste`` says."""
    takes_negatives: ClassVar[bool] = False
    """Whether photographs without a class of the step may be among those of a step, as ``data.negatives`` says."""
    frozen: ClassVar[tuple[str, ...]] = ()
    """Names of submodules that never change: they stay in evaluation mode and out of checkpoints."""
    warmup_epochs: int = 0
    """Epochs before and on top of the configured ones."""

    @classmethod
    def check(cls, options: Any, config: Config) -> None:
        """Raise UserError where the method's options do not fit the rest of the experiment; asked before all else."""

    @classmethod
    def learns_from_pseudo_masks(cls, options: Any) -> bool:
        """Whether batches must have co-segmentation's pseudo masks; without them no foundation model is built."""
        return False

    def __init__(self, student: Segmenter, freeze_batch_norm: bool = False) -> None:
        super().__init__()
        self.student = student
        self.freeze_batch_norm = freeze_batch_norm
        self.epoch = 0
        self.seed = 0
        """The run's, for draws that are keyed by photograph; the loop sets it."""

    @abstractmethod
    def training_step(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Named, weighted losses of a mini-batch; they sum to the objective.

        ``generator`` is the source of the method's own draws, keyed by seed and iteration.
        """

    def forward(self, batch: Mapping[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        """:meth:`training_step` as Fabric must call it, through ``forward``, for its precision and DDP to take part.

        ``batch`` holds the fields of a :class:`Batch`: mixed precision rebuilds inputs and cannot rebuild a frozen
        dataclass.
        """
        return self.training_step(Batch(**batch), generator)

    def extent(self, batch: Batch) -> dict[str, Tensor]:
        """How much a batch has of what each named loss is a mean over, such as pixels: scalars, the same names always.

        By these the parts of a batch that is spread over processes, or accumulated, make up the whole (see
        :mod:`fmwiss.training.parts`). Losses that are not named count by photographs, as do those whose share is known
        only when they are computed.
        """
        return {}

    def locator(self) -> Locator | None:
        """What learns before the student, from the same photographs and tags, to make the masks for the student."""
        return None

    def extra_heads(self) -> list[nn.Module]:
        """Modules beside the student that learn, at the heads' rate."""
        return []

    def start_rare(self, prior: float) -> None:
        """Let classes be rare at first in the outputs beside the student's; for methods that have such outputs."""
        return

    def parameter_groups(self, learning_rate: float, head_rate: float) -> list[dict[str, object]]:
        """The encoder at ``learning_rate``; decoder, classifiers and extra heads at ``head_rate`` times it.

        Of a model of another library the decoder and the old head are at ``learning_rate``, too.
        """
        heads = [*self.student.heads(), *self.extra_heads()]
        before = self.student.learnt_before()
        return [
            {"params": [p for module in before for p in module.parameters()], "lr": learning_rate},
            {"params": [p for head in heads for p in head.parameters()], "lr": learning_rate * head_rate},
        ]

    def start_epoch(self, epoch: int) -> None:
        """Enter an epoch, counted from the first warm-up epoch, and set every module's mode for it."""
        self.epoch = epoch
        self.train()

    def train(self, mode: bool = True) -> Method:
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).eval()
        if mode and self.freeze_batch_norm:
            for module in self.student.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def probability_maps(self, images: Tensor) -> Tensor | None:
        """What supervises the student on ``(B, 3, H, W)`` images: a module's probabilities ``(B, |Y_t|, h, w)``.

        None where a method has no such module. Drawn at the end of a step, for people to look at.
        """
        return None

    def learnt_state(self) -> dict[str, Tensor]:
        """What a checkpoint must keep of the method: all parameters and buffers of modules that change."""
        return {name: value for name, value in self.state_dict().items() if name.partition(".")[0] not in self.frozen}

    def load_learnt_state(self, state: dict[str, Tensor]) -> None:
        """Take back what :meth:`learnt_state` gave."""
        fixed = {name: value for name, value in self.state_dict().items() if name.partition(".")[0] in self.frozen}
        self.load_state_dict({**fixed, **state})
