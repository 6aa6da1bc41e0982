"""What names on the command line stand for, and where results go."""

from __future__ import annotations

import errno
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fmwiss.errors import UserError
from fmwiss.inference.media import find_media
from fmwiss.inference.video import VideoWriter
from fmwiss.reporting.pictures import save_png

FILES = ("a.jpg", "b.PNG", "clip.mp4", "notes.txt", ".hidden.jpg", "sub/c.webp", "sub/deep/d.tiff", ".trash/e.jpg")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def results(names: list[str | Path], out: Path) -> dict[str, str]:
    return {medium.path.name: str(medium.overlay.relative_to(out)) for medium in find_media(names, out)}


def test_a_folder_stands_for_its_photographs_and_videos_with_sub_folders(photos: Path, tmp_path: Path) -> None:
    assert results([photos], tmp_path / "out") == {
        "a.jpg": "a_overlay.png",
        "b.PNG": "b_overlay.png",
        "clip.mp4": "clip_overlay.mp4",
        "c.webp": "sub/c_overlay.png",
        "d.tiff": "sub/deep/d_overlay.png",
    }


def test_what_lies_in_the_output_folder_is_not_taken_again(photos: Path) -> None:
    out = photos / "predictions"
    out.mkdir()
    save_png(Image.new("L", (4, 4)), out / "a.png")
    assert set(results([photos], out)) == {"a.jpg", "b.PNG", "clip.mp4", "c.webp", "d.tiff"}
    assert "a.png" not in results([f"{photos}/**/a.*"], out)


@pytest.mark.parametrize("above", ["", ".."])
def test_predictions_do_not_go_among_the_photographs(photos: Path, above: str) -> None:
    with pytest.raises(UserError, match=r"lie in --out .*; give another --out"):
        find_media([photos], photos / above)


def test_what_was_there_is_overwritten_only_if_it_was_a_prediction(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "masks"
    out.mkdir()
    for name in ("a.png", "sub/c_overlay.png"):
        (out / name).parent.mkdir(exist_ok=True)
        Image.new("L", (4, 4)).save(out / name)
        with pytest.raises(UserError, match=rf"would overwrite .*{name}, which is there .*; give another --out"):
            find_media([photos], out)
        save_png(Image.new("L", (4, 4)), out / name)
        find_media([photos], out)
    (out / "b.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"would overwrite .*b\.png"):
        find_media([photos], out)


def test_a_video_that_was_there_is_overwritten_only_if_it_was_a_prediction(photos: Path, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    there = tmp_path / "masks/clip_overlay.mp4"
    there.parent.mkdir()
    frame = Image.new("RGB", (32, 32), "red")
    with av.open(str(there), "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=5, width=32, height=32, pix_fmt="yuv420p")
        container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    with pytest.raises(UserError, match=r"would overwrite .*clip_overlay\.mp4, which is there .*; give another --out"):
        find_media([photos], there.parent)
    with VideoWriter(there, (32, 32), Fraction(5), Fraction(1, 5)) as ours:
        ours.write(frame, 0)
    find_media([photos], there.parent)
    there.write_bytes(b"")
    with pytest.raises(UserError, match=r"would overwrite .*clip_overlay\.mp4"):
        find_media([photos], there.parent)


def test_globs_files_and_a_file_named_twice(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert results([f"{photos}/**/*.[jtw]*"], out) == {  # as a shell has it: the text, too, and nothing hidden
        "a.jpg": "a_overlay.png",
        "notes.txt": "notes_overlay.png",
        "c.webp": "sub/c_overlay.png",
        "d.tiff": "sub/deep/d_overlay.png",
    }
    assert results([photos / "a.jpg", f"{photos}/a*"], out) == {"a.jpg": "a_overlay.png"}
    assert results([photos / "sub" / "c.webp"], out) == {"c.webp": "c_overlay.png"}


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path) -> None:
    odd = tmp_path / "photo[1].jpg"
    odd.touch()
    assert results([odd], tmp_path / "out") == {"photo[1].jpg": "photo[1]_overlay.png"}


def test_relative_globs(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos)
    assert results(["sub/*/*.tiff", "*.jpg"], Path("../out")) == {
        "d.tiff": "deep/d_overlay.png",
        "a.jpg": "a_overlay.png",
    }


def test_a_video_and_its_masks(photos: Path, tmp_path: Path) -> None:
    (medium,) = find_media([photos / "clip.mp4"], tmp_path)
    assert medium.is_video and medium.mask == tmp_path / "clip_masks"


def wrong(photos: Path) -> dict[str, tuple[list[str | Path], Path, str]]:
    out = photos.parent / "out"
    (photos / "a.webp").touch()
    (photos / "empty").mkdir()
    (photos / "nested.jpg").mkdir()
    return {
        "missing": ([photos / "none.jpg"], out, "there is no photograph"),
        "no match": ([f"{photos}/*.bmp"], out, "nothing matches"),
        "folders alone": ([f"{photos}/nested*"], out, "there is nothing to predict"),
        "empty folder": ([photos / "empty"], out, "is a folder without photographs and videos"),
        "two of one name": ([photos / "a.jpg", photos / "a.webp"], out, "would both be written to a.png; rename one"),
        "over a photograph": (
            [photos.parent / "b.jpg", photos / "b.png"], photos, "would overwrite the photograph"
        ),
        "output is a file": ([photos / "a.jpg"], photos / "notes.txt", "is a file where a folder is needed"),
    }


@pytest.mark.parametrize(
    "name",
    [
        "missing",
        "no match",
        "folders alone",
        "empty folder",
        "two of one name",
        "over a photograph",
        "output is a file",
    ],
)
def test_what_cannot_be_done_is_told_before_anything_is_done(name: str, photos: Path) -> None:
    (photos.parent / "b.jpg").touch()
    (photos / "b.png").touch()
    names, out, sentence = wrong(photos)[name]
    with pytest.raises(UserError) as caught:
        find_media(names, out)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
    assert out == photos or out.is_file() or not out.exists()


def test_frames_of_another_program_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "c.mp4").touch()
    frame = tmp_path / "out/c_masks/000000.png"
    frame.parent.mkdir(parents=True)
    save_png(Image.new("L", (4, 4)), frame)
    assert len(find_media([tmp_path / "c.mp4"], tmp_path / "out", frames=True)) == 1
    Image.new("L", (4, 4)).save(frame)
    with pytest.raises(UserError, match=r"such as .*000000\.png, which this version .* give another --out"):
        find_media([tmp_path / "c.mp4"], tmp_path / "out", frames=True)
    assert len(find_media([tmp_path / "c.mp4"], tmp_path / "out")) == 1  # where no masks are written


def test_two_clips_of_one_stem_are_told_by_what_is_written(tmp_path: Path) -> None:
    clips: list[str | Path] = [tmp_path / "c.mp4", tmp_path / "c.mov"]
    for clip in clips:
        Path(clip).touch()
    with pytest.raises(UserError, match=r"would both be written to c_overlay\.mp4; rename one"):
        find_media(clips, tmp_path / "out")


@pytest.mark.parametrize("where", ["run", "run/step1", "run/step0", "saved"])
def test_predictions_do_not_go_into_a_models_folder(where: str, run: Path, photos: Path, tmp_path: Path) -> None:
    (run / "step0").mkdir()
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/model.json").touch()
    with pytest.raises(UserError, match=r"is the folder of a run or a model, .* give another --out"):
        find_media([photos], tmp_path / where)
    (photos / "config.yaml").touch()  # anybody may have such a file
    find_media([photos / "a.jpg"], photos)


@pytest.mark.parametrize("place", ["", "sub"])
def test_a_folder_that_may_not_be_read_is_told(
    place: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir, closed = os.scandir, photos / place

    def scan(folder: str | Path) -> Any:
        if Path(folder) == closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", scan)
    with pytest.raises(UserError, match=f"the folder {closed} cannot be read: Permission denied"):
        find_media([photos], tmp_path / "out")
