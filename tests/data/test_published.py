import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from coco_miniature import (
    ARCHIVES,
    SBD_TRAIN,
    VOC_TRAIN,
    VOC_VAL,
    Server,
    serve,
    write_archives,
)
from fmwiss.cli import run
from fmwiss.data.published import PUBLISHED, cost, prepare, read_sbd_mask
from fmwiss.data.voc import VOCSource
from fmwiss.errors import UserError


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archives")
    write_archives(folder)
    return folder


@pytest.fixture
def server(archives: Path) -> Iterator[Server]:
    with serve(archives) as running:
        yield running


def _prepare(name: str, out: Path, server: Server, **options: bool) -> list[str]:
    said: list[str] = []
    prepare(name, out, said.append, mirror=server.url, verify=False, pause=0.0, **options)
    return said


def test_archives_have_the_published_names_and_digests() -> None:
    for name, files in ARCHIVES.items():
        assert {archive.remote.name for archive in PUBLISHED[name].archives} == set(files)
    digests = {archive.remote.name: archive.remote.digest for one in PUBLISHED.values() for archive in one.archives}
    assert digests.pop("stuffthingmaps_trainval2017.zip") is None  # nobody has published one
    assert all(digest is not None and digest.startswith("md5:") and len(digest) == 36 for digest in digests.values())


def test_coco_is_laid_out_though_connections_break(server: Server, tmp_path: Path) -> None:
    server.breaks["train2017.zip"] = [300, 1000]
    said = _prepare("coco", tmp_path, server)
    _prepare("coco-stuff", tmp_path, server)
    assert (tmp_path / "coco/images/train2017/000000000009.jpg").is_file()
    assert (tmp_path / "coco/images/val2017/000000000139.jpg").is_file()
    assert (tmp_path / "coco/annotations/instances_train2017.json").is_file()
    assert (tmp_path / "coco/stuffthingmaps/val2017/000000000139.png").is_file()
    assert not (tmp_path / "downloads").exists() and len([s for s in said if "trying again" in s]) == 2
    server.seen.clear()
    _prepare("coco", tmp_path, server)  # everything is there
    assert not server.seen


def test_what_is_there_is_not_done_again_and_archives_can_be_kept(server: Server, tmp_path: Path) -> None:
    _prepare("coco", tmp_path, server, keep=True)
    assert sorted(path.name for path in (tmp_path / "downloads").iterdir()) == sorted(ARCHIVES["coco"])
    os.rename(tmp_path / "coco/images/val2017", tmp_path / "elsewhere")
    server.seen.clear()
    _prepare("coco", tmp_path, server)
    assert (tmp_path / "coco/images/val2017").is_dir() and not server.seen


def test_sbd_becomes_train_aug(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give 'fmwiss data voc"):
        _prepare("sbd", tmp_path, server)
    _prepare("voc", tmp_path, server)
    _prepare("sbd", tmp_path, server)
    source = VOCSource(tmp_path / "voc")
    assert source.ids("train_aug") == sorted([*VOC_TRAIN, *SBD_TRAIN, "2008_000015"])  # less VOC's val
    # VOC's own mask, with void, where there is one
    assert (source.read_mask("2007_000032") == 255).any()
    assert source.mask_path("2007_000032").parent.name == "SegmentationClassAug"
    assert set(source.read_mask("2008_000002").unique().tolist()) == {0, 15}
    with Image.open(source.mask_path("2008_000002")) as picture:
        assert picture.mode == "P" and picture.getpalette()[45:48] == [192, 128, 128]
    for image_id in VOC_VAL:
        assert source.mask_path(image_id).parent.name == "SegmentationClassAug"
    assert not (tmp_path / "sbd").exists()
    server.seen.clear()
    assert "there already" in _prepare("sbd", tmp_path, server)[0] and not server.seen


def test_the_size_comes_first_and_nothing_is_done_when_dry(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "coco", "--out", str(tmp_path / "x"), "--dry-run"]) == 0
    assert "coco: about 20.4 GB to download" in capsys.readouterr().err and not (tmp_path / "x").exists()
    (tmp_path / "coco/annotations").mkdir(parents=True)
    assert "20.2 GB" in cost("coco", tmp_path)


def test_digests_are_compared(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["data", "voc", "--out", str(tmp_path), "--mirror", server.url]
    assert run(arguments) == 2
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("voc: about 2.0 GB to download") and "is not the published file" in told[-1]
    assert not (tmp_path / "voc").exists()
    assert run([*arguments, "--unverified"]) == 0
    assert (tmp_path / "voc/JPEGImages").is_dir()


def test_an_archive_that_is_there_is_compared_too(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Put there by hand it may be anything; with the right digest it goes on, as a downloaded one does."""
    name = "VOCtrainval_11-May-2012.tar"
    arguments = ["data", "voc", "--out", str(tmp_path), "--mirror", server.url]
    file = tmp_path / "downloads" / name
    file.parent.mkdir()
    file.write_bytes((server.folder / name).read_bytes())
    assert run(arguments) == 2
    assert f"{name} is not the published file" in capsys.readouterr().err
    assert file.is_file() and not (tmp_path / "voc").exists() and not server.seen
    (archive,) = PUBLISHED["voc"].archives
    remote = replace(archive.remote, digest=f"md5:{hashlib.md5(file.read_bytes()).hexdigest()}")
    right = replace(PUBLISHED["voc"], archives=(replace(archive, remote=remote),))
    monkeypatch.setitem(PUBLISHED, "voc", right)
    assert run(arguments) == 0
    assert (tmp_path / "voc/JPEGImages").is_dir() and not server.seen
    assert run([*arguments[:3], str(tmp_path / "again"), *arguments[4:]]) == 0 and server.seen


def test_a_killed_download_goes_on_in_another_process(server: Server, tmp_path: Path) -> None:
    size = (server.folder / "train2017.zip").stat().st_size
    (tmp_path / "downloads").mkdir()
    part = tmp_path / "downloads/train2017.zip.part"
    whole = (server.folder / "train2017.zip").read_bytes()
    part.write_bytes(whole[: size // 2])
    part.with_name("train2017.zip.part.etag").write_text(f'"{hash(whole) & 0xFFFFFFFF:x}"')
    arguments = ["data", "coco", "--out", str(tmp_path), "--mirror", server.url, "--unverified"]
    done = subprocess.run(
        [sys.executable, "-c", "from fmwiss.cli import main; main()", *arguments],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    assert ("train2017.zip", f"bytes={size // 2}-") in server.seen and done.stdout == ""
    assert (tmp_path / "coco/images/train2017/000000000064.jpg").is_file()


def _broken_mat(kind: str, path: Path) -> None:
    if kind == "truncated":
        savemat(path, {"GTcls": {"Segmentation": np.eye(64, dtype=np.uint8)}}, do_compression=True)
        path.write_bytes(path.read_bytes()[:-40])
    elif kind == "garbled":  # what zlib finds
        savemat(path, {"GTcls": {"Segmentation": np.eye(64, dtype=np.uint8)}}, do_compression=True)
        content = bytearray(path.read_bytes())
        content[140:150] = bytes(10)
        path.write_bytes(content)
    elif kind == "text":
        path.write_text("no MATLAB file")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "MATLAB 7.3":  # header text, no subsystem, version 2.0, little endian
        path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(116) + bytes(8) + b"\x00\x02IM")
    elif kind == "other":
        savemat(path, {"GTinst": {"Segmentation": np.zeros((2, 2))}})
    else:
        savemat(path, {"GTcls": {"Segmentation": np.full((2, 2), 21, dtype=np.uint8)}})


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("truncated", "cannot be read as SBD's MATLAB file of a mask; is the archive of SBD whole"),
        ("garbled", "cannot be read as SBD's MATLAB file of a mask; is the archive of SBD whole"),
        ("text", "cannot be read as SBD's MATLAB file"),
        ("empty", "cannot be read as SBD's MATLAB file"),
        ("MATLAB 7.3", "is a MATLAB 7.3 file, which SBD has none of"),
        ("other", "cannot be read as SBD's MATLAB file"),
        ("labels", "holds labels beyond 20"),
    ],
)
def test_a_spoilt_mask_of_sbd_is_one_sentence(kind: str, sentence: str, tmp_path: Path) -> None:
    _broken_mat(kind, tmp_path / "x.mat")
    with pytest.raises(UserError, match=rf"the mask .*x\.mat {sentence}"):
        read_sbd_mask(tmp_path / "x.mat")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["voc", "--out", "file"], "--out file is a file"),
        (["voc", "--out", "out", "--mirror", "ftp://x"], "must begin with http:// or https://"),
        (["sbd", "--out", "out"], "give 'fmwiss data voc --out out' first"),
        (["imagenet", "--out", "out"], "No such command"),
        (["coco"], "--out"),
    ],
)
def test_bad_input_gets_one_sentence(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert run(["data", *arguments]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("fmwiss: ") and sentence in told
