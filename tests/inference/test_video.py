"""Videos: what is written comes back, at its times, upright, and as far as a file goes."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fmwiss.errors import UserError
from fmwiss.inference.video import VideoReader, VideoWriter, is_our_video

av = pytest.importorskip("av", reason="videos need PyAV (fmwiss[video])")


def picture(number: int, size: tuple[int, int] = (48, 64)) -> Image.Image:
    pixels = np.full((*size, 3), 40, np.uint8)
    pixels[: size[0] // 2, : size[1] // 2] = (10 * number, 200, 90)
    return Image.fromarray(pixels)


def write(path: Path, times: list[int], size: tuple[int, int] = (48, 64)) -> Path:
    with VideoWriter(path, size, Fraction(25), Fraction(1, 1000)) as writer:
        for number, time in enumerate(times):
            writer.write(picture(number, size), time)
    return path


def test_frames_come_back_at_their_times(tmp_path: Path) -> None:
    times = [1000, 1040, 1080, 1500, 1540, 2000]  # the first one is the start; frames need not come evenly
    with VideoReader(write(tmp_path / "a.mp4", times)) as reader:
        frames = list(reader)
        assert reader.frames == 6
        seconds = [float(frame.pts * reader.time_base) for frame in frames]
    np.testing.assert_allclose(np.diff(seconds), np.diff(times) / 1000, atol=2e-3)
    for number, frame in enumerate(frames):
        assert frame.image.shape == (3, 48, 64)
        expected = np.array(picture(number)).transpose(2, 0, 1)
        assert np.abs(frame.image.numpy().astype(int) - expected).mean() < 6


def test_an_odd_side_gets_a_white_line(tmp_path: Path) -> None:
    with VideoReader(write(tmp_path / "a.mp4", [0, 40], size=(47, 63))) as reader:
        frame = next(iter(reader))
    assert frame.image.shape == (3, 48, 64)
    assert frame.image[:, -1].float().mean() > 200 and frame.image[:, 30, 40].float().mean() < 90


def test_a_video_that_breaks_off_gives_what_comes_before(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(50):
            noise = Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
            container.mux(stream.encode(av.VideoFrame.from_image(noise)))
        container.mux(stream.encode())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found: list[Any] = []
    with VideoReader(path) as reader:
        try:
            for frame in reader:
                found.append(frame)
        except UserError as error:
            assert "breaks off after" in str(error)
    assert 5 < len(found) < 45


def test_a_video_that_changes_its_size_ends_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fmwiss.inference import video

    sizes = iter([(4, 6), (4, 6), (6, 4)])
    monkeypatch.setattr(video, "_upright", lambda _: torch.zeros(3, *next(sizes), dtype=torch.uint8))
    with VideoReader(write(tmp_path / "a.mp4", [0, 40, 80])) as reader:
        frames = iter(reader)
        assert [next(frames).image.shape for _ in range(2)] == [(3, 4, 6)] * 2
        with pytest.raises(UserError, match="changes its size after 2 frames"):
            next(frames)


def test_a_video_filmed_on_its_side_is_turned(tmp_path: Path) -> None:
    class Side:
        """A frame as a telephone's: the file says how it is to be turned."""

        rotation = 90

        def to_ndarray(self, format: str) -> Any:
            assert format == "rgb24"
            pixels = np.zeros((2, 3, 3), np.uint8)
            pixels[0, 2] = 255  # the upper right corner
            return pixels

    from fmwiss.inference.video import _upright

    turned = _upright(Side())
    assert turned.shape == (3, 3, 2) and turned[0].tolist() == [[255, 0], [0, 0], [0, 0]]  # counterclockwise


@pytest.mark.parametrize("content", [b"", b"no video" * 99, None])
def test_what_is_no_video_is_told(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read, it is truncated or no video"):
        VideoReader(path)


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(UserError, match="has no pictures, only sound"):
        VideoReader(path)


def test_without_any_stream_it_is_truncated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.mp4", [0, 40])
    container = SimpleNamespace(streams=SimpleNamespace(video=(), audio=()), close=lambda: None)
    monkeypatch.setattr(av, "open", lambda _: container)
    with pytest.raises(UserError, match="cannot be read, it is truncated or no video"):
        VideoReader(path)


def test_a_damaged_video_is_none_of_ours(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.mp4", [0, 40, 80])
    assert is_our_video(whole)
    content, damaged = whole.read_bytes(), tmp_path / "damaged.mp4"
    for length in range(0, len(content) - 200, 23):
        damaged.write_bytes(content[:length])
        assert not is_our_video(damaged)


@pytest.mark.parametrize("kind", ["EOFError", "PatchWelcomeError", "MemoryError"])
def test_what_ffmpeg_raises_is_no_video_of_ours(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> None:
        raise getattr(av.error, kind)(1, "damaged")

    monkeypatch.setattr(av, "open", fail)
    assert not is_our_video(tmp_path / "a.mp4")


@pytest.mark.parametrize(("done", "sentence"), [(1, "after 1 frame;"), (2, "after 2 frames;")])
def test_frames_are_counted_in_words(
    done: int, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fmwiss.inference import video

    sizes = iter([(4, 6)] * done + [(6, 4)])
    monkeypatch.setattr(video, "_upright", lambda _: torch.zeros(3, *next(sizes), dtype=torch.uint8))
    with VideoReader(write(tmp_path / "a.mp4", [0, 40, 80])) as reader, pytest.raises(UserError) as caught:
        list(reader)
    assert sentence in str(caught.value)
