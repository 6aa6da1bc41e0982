"""Videos by PyAV: frames in, overlays out. PyAV is imported when a video is opened, not before."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fmwiss.errors import UserError
from fmwiss.inference.extras import require

if TYPE_CHECKING:
    import av

ENCODERS = ("libx264", "libopenh264", "mpeg4")
"""The first one that PyAV was built with is used."""

_SIGNATURE = "fmwiss"


class Frame(NamedTuple):
    """One frame, upright."""

    image: Tensor
    """uint8 RGB ``(3, H, W)``."""
    pts: int
    """When it is shown, in units of the video's ``time_base``."""


class VideoReader:
    """Frames of the first video stream of a file, one after the other.

    Args:
        path: any container and codec that FFmpeg knows.

    Raises:
        UserError: the file is no video or cannot be read; PyAV is not installed.
    """

    def __init__(self, path: Path) -> None:
        require_video(path)
        import av

        self.path = path
        try:
            self._container = av.open(str(path))
        except (av.FFmpegError, OSError, ValueError) as error:
            raise UserError(_unreadable(path)) from error
        if not self._container.streams.video:
            only_sound = bool(self._container.streams.audio)  # what breaks off early has no streams at all
            self._container.close()
            raise UserError(f"{path} has no pictures, only sound" if only_sound else _unreadable(path))
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        self.time_base: Fraction = self._stream.time_base or Fraction(1, 1000)
        self.rate: Fraction = self._stream.average_rate or self._stream.guessed_rate or Fraction(25)

    @property
    def frames(self) -> int | None:
        """How many there are, as far as the file tells."""
        if self._stream.frames:
            return int(self._stream.frames)
        if self._container.duration is None:
            return None
        return max(1, round(self._container.duration / 1_000_000 * self.rate))

    def __iter__(self) -> Iterator[Frame]:
        """
        Raises:
            UserError: the file breaks off, a frame cannot be decoded or is of another size than those before; these
                have been given.
        """
        import av

        before, done = -1, 0
        size: torch.Size | None = None
        try:
            for frame in self._container.decode(self._stream):
                # a file without times, or with times that run back, gets those of its frame rate
                pts = frame.pts if frame.pts is not None else before + round(1 / (self.rate * self.time_base))
                before = max(pts, before + 1)
                image = _upright(frame)
                if image.shape != (size := size or image.shape):
                    raise UserError(
                        f"{self.path} changes its size after {_frames(done)}; only what comes before can be used"
                    )
                yield Frame(image, before)
                done += 1
        except (av.FFmpegError, OSError) as error:
            raise UserError(f"{self.path} breaks off after {_frames(done)}") from error
        if not done:
            raise UserError(f"{self.path} has no frames")

    def close(self) -> None:
        """Let go of the file."""
        self._container.close()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class VideoWriter:
    """Pictures of one size to an MP4 file, without sound; use it as a context manager.

    Args:
        path: the file.
        size: height and width of the pictures; an odd side gets one more white line, which the codec needs.
        rate: frames per second, as the source has it on average.
        time_base: in which the times of frames are given.
    """

    def __init__(self, path: Path, size: tuple[int, int], rate: Fraction, time_base: Fraction) -> None:
        import av

        self._container: av.container.OutputContainer = av.open(str(path), "w", format="mp4")
        self._container.metadata["comment"] = _SIGNATURE
        encoder = next(name for name in ENCODERS if name in av.codecs_available)
        options = {"crf": "20", "preset": "fast"} if encoder == "libx264" else {}
        stream: Any = self._container.add_stream(encoder, rate=rate, options=options)
        self.height, self.width = size[0] + size[0] % 2, size[1] + size[1] % 2
        stream.height, stream.width, stream.pix_fmt = self.height, self.width, "yuv420p"
        stream.time_base = stream.codec_context.time_base = time_base
        if encoder == "mpeg4":
            stream.bit_rate = self.height * self.width * 4
        self._stream, self._time_base = stream, time_base
        self._first: int | None = None

    def write(self, picture: Image.Image, pts: int) -> None:
        """Append an RGB picture, shown from ``pts`` on; the first one's is the start."""
        import av

        if picture.size != (self.width, self.height):
            padded = Image.new("RGB", (self.width, self.height), (255, 255, 255))
            padded.paste(picture, (0, 0))
            picture = padded
        if self._first is None:
            self._first = pts
        frame = av.VideoFrame.from_image(picture)
        frame.pts, frame.time_base = pts - self._first, self._time_base
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Write what the codec still holds, and the file's end."""
        self._container.mux(self._stream.encode())
        self._container.close()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._container.close()


def is_our_video(path: Path) -> bool:
    """Whether a file is a video of :class:`VideoWriter`'s; without PyAV, which writes them, it is none."""
    try:
        import av
    except ImportError:
        return False
    try:
        with av.open(str(path)) as container:
            return container.metadata.get("comment") == _SIGNATURE
    except (av.FFmpegError, OSError, ValueError):  # not all that FFmpeg finds wrong is one of Python's own
        return False


def require_video(path: Path) -> None:
    """Raise :class:`UserError` where PyAV, which videos need, is not installed."""
    require(f"the video {path}", "video", "av")


def _unreadable(path: Path) -> str:
    return f"{path} cannot be read, it is truncated or no video"


def _frames(number: int) -> str:
    return f"{number} frame{'s' if number != 1 else ''}"


def _upright(frame: av.VideoFrame) -> Tensor:
    """A frame as uint8 RGB ``(3, H, W)``, turned as the file says (telephones film on their side)."""
    pixels = np.asarray(frame.to_ndarray(format="rgb24"))
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return torch.from_numpy(np.ascontiguousarray(np.rot90(pixels, turns))).permute(2, 0, 1)
