"""One job of a suite in a process of its own: what fails there, or is killed there, ends nothing else."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import multiprocessing.connection
import os
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fmwiss.bench.plan import FIGURES, Job
from fmwiss.config import Config
from fmwiss.endings import end_when, how_it_ended, wait_for_another_parent, whose
from fmwiss.errors import UserError, sentence_of
from fmwiss.files import write_atomically

INTERRUPTED = 130
_LONGEST_SENTENCE = 4000  # it has to fit into a pipe's buffer


@dataclass(frozen=True)
class Place:
    """Where jobs find what they need, and what they run on."""

    data: Path
    weights: Path | None = None
    cache: Path | None = None
    devices: str | int = "auto"
    precision: str = "32-true"


class Workers:
    """Starts a process for every job.

    The processes are forks of one that has only imported (where the system can fork), so that they start at once and
    from the same state.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        methods = multiprocessing.get_all_start_methods()
        self._context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        if "forkserver" in methods:
            self._context.set_forkserver_preload([__name__, "fmwiss.training.run"])

    def do(self, job: Job) -> str | None:
        """Do a job; returns what went wrong, in one sentence, or None.

        Raises:
            KeyboardInterrupt: this process or the job's was interrupted; the job's has ended.
        """
        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_work, args=(_as_text(job, self.place), sender))
        process.start()
        sender.close()
        try:
            process.join()
        except BaseException:
            process.terminate()
            process.join()
            raise
        if process.exitcode == INTERRUPTED:
            raise KeyboardInterrupt
        if receiver.poll():
            with contextlib.suppress(EOFError):
                return str(receiver.recv())
        if process.exitcode:
            return f"its process {how_it_ended(process.exitcode)}; the same command goes on where it was"
        return None


def _as_text(job: Job, place: Place) -> str:
    values = {**asdict(job), **asdict(place), "config": job.config.model_dump(mode="json")}
    return json.dumps(values, default=str)


def _work(text: str, sender: multiprocessing.connection.Connection) -> None:
    """What a job's process does: the job; where it fails it sends why."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    sentinel = parent.sentinel
    end_when(lambda: multiprocessing.connection.wait([sentinel]))
    # Fabric starts the other processes of a run with several devices by this one's command: `-m THIS_MODULE JOB`.
    sys.argv = [__file__, text]
    sys.modules["__main__"].__spec__ = sys.modules[__name__].__spec__
    sentence = _try(text)
    if sentence is not None:
        sender.send(sentence[:_LONGEST_SENTENCE])


def _try(text: str) -> str | None:
    """Do a job; returns what went wrong, in one sentence, or None. An interrupt ends the process."""
    try:
        do_job(text)
    except KeyboardInterrupt:
        os._exit(INTERRUPTED)
    except Exception as error:
        sentence = sentence_of(error)
        if sentence is None:
            traceback.print_exc()
            sentence = f"stopped by a bug ({type(error).__name__}: {error}); its traceback is above"
        return sentence
    return None


def _further_process(text: str) -> int:
    """What another process of a run with several devices does; returns its exit code.

    The first one tells the command what went wrong, this one, which may be the only one that knows, the terminal.
    """
    sentence = _try(text)
    if sentence is None:
        return 0
    print(f"{whose(sentence.rstrip('.'))}.", file=sys.stderr)
    return 2


def do_job(text: str) -> None:
    """Do a job.

    Args:
        text: from :class:`Workers`, JSON.
    """
    job: dict[str, Any] = json.loads(text)
    with contextlib.redirect_stdout(sys.stderr):  # standard output is for results
        (_do_pseudo_masks if job["kind"] == "pseudo-masks" else _do_training)(job)


def _do_training(job: Mapping[str, Any]) -> None:
    from fmwiss.training.run import train

    train(
        Config.model_validate(job["config"]),
        Path(job["data"]),
        _path(job["weights"]),
        Path(job["folder"]),
        step=0 if job["kind"] == "base" else None,
        devices=job["devices"],
        precision=job["precision"],
        cache=_path(job["cache"]),
        base=_path(job["base"]),
    )


def _do_pseudo_masks(job: Mapping[str, Any]) -> None:
    """Make the masks, compare them with the truth, draw some of them, and write the figures last."""
    import torch

    from fmwiss.data.protocols import Protocol
    from fmwiss.data.source import open_source
    from fmwiss.data.tags import TagIndex
    from fmwiss.pseudo_masks import evaluate_pseudo_masks, open_pseudo_masks
    from fmwiss.reporting.pictures import save_png, side_by_side
    from fmwiss.reporting.progress import track
    from fmwiss.training.environment import source_commit

    started = time.monotonic()
    config, folder = Config.model_validate(job["config"]), Path(job["folder"])
    source, split = open_source(config.data, job["data"]), job["split"]
    protocol = Protocol.from_config(config.protocol, source.class_names)
    steps = protocol.steps if job["all_classes"] else protocol.steps[1:]
    names = tuple(name for step in steps for name in step)
    ids = source.ids(split)
    index = TagIndex.load_or_build(source, ids, config.data.tags, folder / "tags.json", track)
    tags = {image_id: index[image_id] & set(names) for image_id in ids if index[image_id] & set(names)}
    if not tags:
        raise UserError(f"{source.root}: no photograph of {split} is tagged with {', '.join(names) or 'a new class'}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    weights, cache = _path(job["weights"]), _path(job["cache"])
    masks = open_pseudo_masks(
        config.cosegmentation, source, list(tags), tags, weights, cache, device, config.training.seed, track
    )
    for image_id in list(tags)[: job["pictures"]]:
        tagged = [name for name in names if name in tags[image_id]]
        stages = masks.stages(image_id, tagged, epoch=0)
        save_png(side_by_side(source.read_image(image_id), stages, tagged), folder / "pictures" / f"{image_id}.png")
    found = evaluate_pseudo_masks(masks, source, list(tags), tags, names, progress=track)
    minutes = (time.monotonic() - started) / 60
    summary = {"split": split, **found, "minutes": round(minutes, 2), "commit": source_commit()}
    text = json.dumps(summary, indent=1) + "\n"
    write_atomically(folder / FIGURES, lambda path: path.write_text(text, encoding="utf-8"))


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


if __name__ == "__main__":  # a further process of a run with several devices
    end_when(wait_for_another_parent)
    sys.exit(_further_process(sys.argv[1]))
