"""Downloading VOC 2012, SBD, COCO 2017 and COCO-Stuff, and laying them out as fmwiss reads them.

In the folder that is given come to be ``voc`` (:class:`~fmwiss.data.voc.VOCSource`; with SBD's masks its
``train_aug``) and ``coco`` (:class:`~fmwiss.data.coco_stuff.CocoSource`). What is there already is not done again; an
archive is unpacked beside its place and renamed, so that what is there is whole.
"""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fmwiss.data.voc import VOC_CLASSES, VOID, voc_palette
from fmwiss.downloads import Remote, Say, Track, check_digest, fetch, gigabytes, silently, unpack
from fmwiss.errors import UserError
from fmwiss.files import write_atomically

TRAIN_AUG = 10_582
"""Photographs of the augmented training list of VOC at full size, whose ``val`` has 1,449."""
_FULL_VAL = 1_449


@dataclass(frozen=True)
class Archive:
    """What becomes of an archive.

    Attributes:
        remote: where it is, its size in bytes, and its digest where one is published.
        folder: what it becomes, in the folder given.
        inside: which folder of the archive that is.
    """

    remote: Remote
    folder: str
    inside: str = ""


@dataclass(frozen=True)
class Published:
    """A data set."""

    name: str
    archives: tuple[Archive, ...]
    page: str
    """Where its terms of use are."""


_COCO = "http://images.cocodataset.org"
PUBLISHED: dict[str, Published] = {
    one.name: one
    for one in (
        Published(
            "voc",
            (
                Archive(
                    Remote(
                        "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
                        1_999_639_040,
                        "md5:6cd6e144f989b92b3379bac3b3de84fd",
                    ),
                    "voc",
                    "VOCdevkit/VOC2012",
                ),
            ),
            "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
        ),
        Published(
            "sbd",
            (
                Archive(
                    Remote(
                        "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/"
                        "benchmark.tgz",
                        1_420_000_000,
                        "md5:82b4d87ceb2ed10f6038a1cba92111cb",
                    ),
                    "sbd",
                    "benchmark_RELEASE/dataset",
                ),
            ),
            "http://home.bharathh.info/pubs/codes/SBD/download.html",
        ),
        Published(
            "coco",
            (
                Archive(
                    Remote(f"{_COCO}/zips/val2017.zip", 815_585_330, "md5:442b8da7639aecaf257c1dceb8ba8c80"),
                    "coco/images/val2017",
                    "val2017",
                ),
                Archive(
                    Remote(
                        f"{_COCO}/annotations/annotations_trainval2017.zip",
                        252_907_541,
                        "md5:f4bbac642086de4f52a3fdda2de5fa2c",
                    ),
                    "coco/annotations",
                    "annotations",
                ),
                Archive(
                    Remote(f"{_COCO}/zips/train2017.zip", 19_336_861_798, "md5:cced6f7f71b7629ddf16f17bbcfab6b2"),
                    "coco/images/train2017",
                    "train2017",
                ),
            ),
            "https://cocodataset.org/#termsofuse",
        ),
        Published(
            "coco-stuff",
            (
                Archive(
                    Remote(
                        "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/"
                        "stuffthingmaps_trainval2017.zip",
                        690_000_000,
                    ),
                    "coco/stuffthingmaps",
                ),
            ),
            "https://github.com/nightrome/cocostuff",
        ),
    )
}


def missing(name: str, out: Path) -> list[Archive]:
    """The archives of a data set that are not unpacked yet."""
    return [archive for archive in PUBLISHED[name].archives if not (out / archive.folder).is_dir()]


def cost(name: str, out: Path) -> str:
    """In one sentence, what preparing a data set will take."""
    todo = missing(name, out)
    if not todo:
        return f"{name} is downloaded already"
    size = sum(archive.remote.size for archive in todo)
    return (
        f"{name}: about {gigabytes(size)} to download into {out} and as much again to unpack it; its terms of use: "
        f"{PUBLISHED[name].page}"
    )


def prepare(
    name: str,
    out: Path,
    say: Say,
    *,
    mirror: str | None = None,
    verify: bool = True,
    keep: bool = False,
    track: Track = silently,
    pause: float = 1.0,
) -> None:
    """Download a data set, unpack it and convert it, as far as that is not done yet.

    Args:
        name: ``voc``, ``sbd``, ``coco`` or ``coco-stuff``.
        out: the folder in which ``voc`` and ``coco`` come to be.
        say: is told what happens.
        mirror: address under which the archives lie by their names, in place of their own.
        verify: compare archives with their published digests.
        keep: leave the archives in ``downloads``.
        track: shows progress.
        pause: seconds before a broken connection is first opened again.

    Raises:
        UserError: a server cannot be reached, an archive or a file in it is not what it should be, the disk has no
            room; of ``sbd``: VOC, which it adds to, is not there.
    """
    if name == "sbd":
        _check_voc(out)
        if (out / "voc/SegmentationClassAug").is_dir() and (out / "voc/ImageSets/Segmentation/train_aug.txt").is_file():
            say(f"{out / 'voc/SegmentationClassAug'} is there already.")
            return
    todo = missing(name, out)
    out.mkdir(parents=True, exist_ok=True)
    needed = 2 * sum(archive.remote.size for archive in todo)
    free = shutil.disk_usage(out).free
    if mirror is None and free < needed:
        raise UserError(f"{out} has {gigabytes(free)} left and {name} needs {gigabytes(needed)}; give another --out")
    for archive in todo:
        remote = archive.remote
        if mirror is not None:
            remote = Remote(f"{mirror.rstrip('/')}/{remote.name}", 0, remote.digest)
        file = out / "downloads" / remote.name
        if not file.is_file():
            fetch(remote, file, say, verify=verify, track=track, pause=pause)
        elif verify and remote.digest is not None:
            check_digest(file, remote.digest, track)
        folder = out / archive.folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        unpack(file, folder, archive.inside, track)
        if not keep:
            file.unlink()
        say(f"{folder} is there.")
    downloads = out / "downloads"
    if downloads.is_dir() and not any(downloads.iterdir()):
        downloads.rmdir()
    if name == "sbd":
        count = add_sbd(out / "sbd", out / "voc", track)
        say(f"train_aug lists {count} photographs; their masks are in {out / 'voc/SegmentationClassAug'}.")
        if not keep:
            shutil.rmtree(out / "sbd")


def _check_voc(out: Path) -> None:
    for name in ("SegmentationClass", "ImageSets/Segmentation"):
        if not (out / "voc" / name).is_dir():
            raise UserError(f"{out / 'voc'} has no {name}, to which SBD adds; give 'fmwiss data voc --out {out}' first")


def add_sbd(sbd: Path, voc: Path, track: Track = silently) -> int:
    """Make ``SegmentationClassAug`` and ``train_aug`` of VOC, with the masks of Hariharan et al. (ICCV 2011).

    A photograph that VOC itself has a mask of keeps that; ``train_aug`` is VOC's ``train`` and everything of SBD that
    is not in VOC's ``val``.

    Args:
        sbd: holds ``cls/*.mat``, ``train.txt`` and ``val.txt``.
        voc: VOC 2012.
        track: shows progress.

    Returns:
        Photographs in ``train_aug``.

    Raises:
        UserError: a file is missing or spoilt, or the full VOC's list has another length than the published one.
    """
    lists = voc / "ImageSets/Segmentation"
    validation = frozenset(_read_list(lists / "val.txt"))
    everything = {*_read_list(sbd / "train.txt"), *_read_list(sbd / "val.txt"), *_read_list(lists / "train.txt")}
    chosen = sorted(everything - validation)
    if len(validation) == _FULL_VAL and len(chosen) != TRAIN_AUG:
        raise UserError(f"train_aug would list {len(chosen)} photographs, not {TRAIN_AUG}; is {sbd} the whole SBD?")
    folder, own = voc / "SegmentationClassAug", voc / "SegmentationClass"
    temporary = voc / ".SegmentationClassAug.making"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        for image_id in track([*chosen, *sorted(validation)], "converting masks"):
            mask = own / f"{image_id}.png"
            if mask.is_file():
                shutil.copyfile(mask, temporary / mask.name)
            else:
                _save_mask(read_sbd_mask(sbd / "cls" / f"{image_id}.mat"), temporary / mask.name)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    write_atomically(lists / "train_aug.txt", lambda path: path.write_text("".join(f"{i}\n" for i in chosen)))
    return len(chosen)


def read_sbd_mask(path: Path) -> NDArray[np.uint8]:
    """Label mask ``(H, W)`` of SBD: ``GTcls.Segmentation`` of a MATLAB file, 0 background, 1-20 VOC's classes.

    Raises:
        UserError: the file is missing, is no MATLAB file, or holds something else.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    if not path.is_file():
        raise UserError(f"the mask {path} is missing; is the archive of SBD whole?")
    try:
        content: dict[str, Any] = loadmat(path, variable_names=["GTcls"])
        mask = np.asarray(content["GTcls"][0, 0]["Segmentation"])
    except NotImplementedError as error:  # SciPy's word for files of this version
        raise UserError(f"the mask {path} is a MATLAB 7.3 file, which SBD has none of; is it its archive's?") from error
    except (MatReadError, ValueError, TypeError, KeyError, IndexError, OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"the mask {path} cannot be read as SBD's MATLAB file of a mask; is the archive of SBD whole?"
        ) from error
    known = mask.ndim == 2 and np.isin(np.unique(mask), [*range(len(VOC_CLASSES) + 1), VOID]).all()
    if not known:
        raise UserError(f"the mask {path} holds labels beyond {len(VOC_CLASSES)}; it is none of SBD's")
    return mask.astype(np.uint8)


def _save_mask(mask: NDArray[np.uint8], path: Path) -> None:
    picture = Image.fromarray(mask)
    picture.putpalette(voc_palette())
    picture.save(path)


def _read_list(path: Path) -> Iterable[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the list {path} is missing or unreadable; it must hold one image id a line") from error
    return [line.strip() for line in lines if line.strip()]
