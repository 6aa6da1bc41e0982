"""What a step that learns from masks is told beside them, kept in the folders of the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader

from fmwiss.data.batches import Batch, collate
from fmwiss.data.datasets import MaskDataset
from fmwiss.data.replay import InterleavedDataset, ReplayDataset, ReplayFolder
from fmwiss.errors import UserError
from fmwiss.files import write_atomically
from fmwiss.methods.pixel import Carrying, PixelMethod, Surveying
from fmwiss.methods.recall import RECALL
from fmwiss.models import Segmenter
from fmwiss.reporting.progress import track
from fmwiss.training.located import KeptMaps

SURVEY = "survey.safetensors"
"""What a method found out of the step's photographs before it learnt."""
REPLAY = "replay"
"""Labels of replayed photographs, a file each."""


@dataclass(frozen=True)
class PixelStep:
    """Makes and keeps what a method asks for by what it is; all processes call it.

    Nothing that is there is made again, so that a step that was interrupted goes on with what it began with.

    Args:
        folder: the run's.
        step: number of the step, from 1.
        fabric: of the run.
        batch_size: photographs of a pass over all of them.
        workers: loader processes.
        dataset_of: a step's photographs with the masks that it may see.
    """

    folder: Path
    step: int
    fabric: Fabric
    batch_size: int
    workers: int
    dataset_of: Callable[[int], MaskDataset]

    def prepare(self, method: PixelMethod, name: str, more_follow: bool) -> None:
        """Tell the method what earlier steps left and what it finds in this step's photographs.

        Args:
            method: what will learn.
            name: its own.
            more_follow: whether the protocol has later steps.
        """
        method.to(self.fabric.device)
        if isinstance(method, Carrying):
            steps = [self._left_by_base(method, name), *(self._left_by(t, name) for t in range(1, self.step))]
            method.use_carried(steps, more_follow)
        if isinstance(method, Surveying):
            path = self.folder / f"step{self.step}" / SURVEY
            self._once(path, lambda: method.eval().survey(self._batches(self.step)))
            method.use_survey(_load(path))

    def keep_carried(self, method: PixelMethod, name: str, more_follow: bool) -> None:
        """Write what later steps need; the first process alone calls it."""
        if isinstance(method, Carrying) and more_follow:
            _save(method.carried(), _carried(self.folder / f"step{self.step}", name))

    def interleaved(self, method: RECALL, own: MaskDataset, replay: ReplayFolder) -> InterleavedDataset:
        """The step's samples with replayed ones behind them, whose labels are made here if they are not there."""
        maps = KeptMaps(self.folder / f"step{self.step}" / REPLAY, method.old_model.class_names)
        missing = maps.missing(replay.ids)
        self.fabric.barrier()  # every process has looked before the first one writes
        method.eval()
        for image_id in track(missing[self.fabric.global_rank :: self.fabric.world_size], "labelling replay"):
            image = method.old_model.to_working_size(replay.read_image(image_id))
            maps.write(image_id, method.replay_labels(image, replay.class_of[image_id]).cpu())
        self.fabric.barrier()
        replayed = ReplayDataset(replay, maps, own.transform, own.seed)
        return InterleavedDataset(own, replayed, method.options.replay_share)

    def _left_by_base(self, method: Carrying, name: str) -> dict[str, Tensor]:
        """Step 0's part, made from its model and photographs: it knows nothing of the later steps' method."""
        base = self.folder / "step0"
        path = _carried(base, name)

        def make() -> dict[str, Tensor]:
            model = Segmenter.load(base).to(self.fabric.device)
            return method.carried_from_base(model, self._batches(0))

        self._once(path, make)
        return _load(path)

    def _left_by(self, t: int, name: str) -> dict[str, Tensor]:
        path = _carried(self.folder / f"step{t}", name)
        if not path.is_file():
            raise UserError(
                f"{path}: what step {t} left for later ones is missing; remove {path.parent} to train it again"
            )
        return _load(path)

    def _once(self, path: Path, make: Callable[[], Mapping[str, Tensor]]) -> None:
        """Write what ``make`` gives unless the file is there; the first process does it, the others wait."""
        if self.fabric.is_global_zero and not path.is_file():
            # what is drawn later is the same whether or not this is there already
            precision = self.fabric.autocast() if self.fabric.device.type == "cuda" else nullcontext()
            with torch.random.fork_rng(devices=[]), precision:
                _save(make(), path)
        self.fabric.barrier()

    def _batches(self, t: int) -> Iterator[Batch]:
        """A step's photographs as they are cropped in its first epoch, in order."""
        dataset = self.dataset_of(t)
        order = [(0, index) for index in range(len(dataset))]
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        loader: Any = DataLoader(dataset, batch_sampler=batches, num_workers=self.workers, collate_fn=collate)
        for batch in track(loader, f"looking at step {t}'s photographs", total=len(batches)):
            yield batch.to(self.fabric.device)


def _carried(step: Path, name: str) -> Path:
    return step / f"carried-{name}.safetensors"


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    values = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    write_atomically(path, lambda temporary: save_file(values, temporary))


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({error}); delete it, and it is made again") from error
