"""Sample the frames of a video at a constant rate by timestamp, upright and of limited size."""

from __future__ import annotations

import math
import os
import stat
import struct
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from PIL import Image

from whiten.errors import ConfigError, ImageError, MissingExtraError, UnreadableError, one_line

# fmt: off
VIDEO_SUFFIXES = frozenset([
    ".mp4", ".m4v", ".mov", ".qt", ".mkv", ".mk3d", ".webm", ".avi", ".divx", ".amv",
    ".mpg", ".mpeg", ".mpe", ".m1v", ".m2v", ".m2p", ".vob", ".tod",
    ".ts", ".mts", ".m2ts", ".m2t", ".trp", ".tp",
    ".flv", ".f4v", ".wmv", ".asf", ".3gp", ".3gpp", ".3g2", ".3gp2", ".ogv", ".ogm",
    ".mxf", ".gxf", ".rm", ".rmvb", ".wtv", ".dv", ".nut", ".ivf",
    ".h264", ".264", ".hevc", ".h265", ".265",
])
# fmt: on
MAX_FRAMES = 60
MAX_SIDE = 1024  # pixels: more than any model uses
MAX_PIXELS = 8192 * 8192  # of a coded frame; one takes 200 MB

# Containers that hold their own streams. Playlists name other files, and any file may be one,
# whatever its name.
_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,h264,hevc,ivf,"
    "mxf,gxf,rm,wtv,dv,nut"
)
_FALLBACK_RATE = Fraction(25)  # for a video that states none, with frames without timestamps
# By whether the sides change places, and whether x and y of the result run backwards.
_TURNS = {
    (False, True, False): Image.Transpose.FLIP_LEFT_RIGHT,
    (False, False, True): Image.Transpose.FLIP_TOP_BOTTOM,
    (False, True, True): Image.Transpose.ROTATE_180,
    (True, False, False): Image.Transpose.TRANSPOSE,
    (True, True, False): Image.Transpose.ROTATE_270,
    (True, False, True): Image.Transpose.ROTATE_90,
    (True, True, True): Image.Transpose.TRANSVERSE,
}


def sample_frames(
    path: str | os.PathLike[str], *, fps: float = 1.0, max_frames: int = MAX_FRAMES
) -> Iterator[tuple[int, Image.Image]]:
    """Yield the frames that a player shows at 0, 1/fps, 2/fps, … seconds, at most `max_frames`.

    Timestamps decide, so variable frame rates are handled; a frame shown at several of these times
    is yielded once. Rotation, mirroring and non-square pixels are applied as in a player, and
    frames are reduced to at most `MAX_SIDE`. Damaged frames are left out.

    Args:
        path: a file; the first of several video streams is used.
        fps: frames per second.
        max_frames: maximum number of frames, from the beginning.

    Yields:
        The time at which the frame is first shown, in milliseconds since the first frame, and the
        upright RGB image.

    Raises:
        ConfigError: fps is not positive, or max_frames less than 1.
        ImageError: the file is empty, damaged, without video, or larger than `MAX_PIXELS`. A
            truncated video yields the frames before the break.
        UnreadableError: the file is missing or cannot be read now, or memory ran out.
        MissingExtraError: PyAV is not installed.
    """
    check_sampling(fps, max_frames)
    av = _require_av()
    _refuse_no_file(path)
    shown: tuple[float, Any] | None = None
    count, wanted = 0, 0
    try:
        # A name with a colon would be taken for a protocol.
        with (
            open(path, "rb") as file,
            av.open(file, container_options={"format_whitelist": _CONTAINERS}) as container,
        ):
            stream = _video_stream(av, container)
            seconds, shape = _Clock(stream), stream.sample_aspect_ratio
            for frame in _decoded(av, container, stream):
                now = seconds(frame)
                # Timestamps are rounded: a millionth of an interval makes no difference.
                if shown is not None and now * fps > wanted + 1e-6:
                    yield round(1000 * shown[0]), _upright(shown[1], shape)
                    wanted = math.ceil(now * fps - 1e-6)
                    count += 1
                    if count == max_frames:
                        return
                shown = now, frame
    except (OSError, ValueError, MemoryError, av.error.FFmpegError) as error:
        # FFmpeg's own errors are about the content, unless memory ran out.
        is_content = isinstance(error, av.error.FFmpegError | ValueError)
        if isinstance(error, MemoryError) or not is_content:
            raise UnreadableError(_reason(error)) from error
        if shown is None:
            raise ImageError(f"damaged, or no video: {_reason(error)}") from error
    if shown is None:
        raise ImageError("no frame of it can be decoded")
    if shown[0] * fps >= wanted - 1e-6:
        yield round(1000 * shown[0]), _upright(shown[1], shape)


def stated_seconds(path: str | os.PathLike[str]) -> float:
    """Return the length that a video's header states; 0 if it states none, or cannot be read."""
    try:
        av = _require_av()
        _refuse_no_file(path)
        with (
            open(path, "rb") as file,
            av.open(file, container_options={"format_whitelist": _CONTAINERS}) as container,
        ):
            return float((container.duration or 0) / av.time_base)
    except (ImageError, MissingExtraError, OSError, ValueError, MemoryError):
        return 0.0  # FFmpeg's errors are some of these


def check_sampling(fps: float, max_frames: int) -> None:
    """Refuse an invalid rate or number of frames.

    Raises:
        ConfigError: the rate is not positive, or the number is less than 1.
    """
    if not (math.isfinite(fps) and fps > 0):
        raise ConfigError(f"fps must be a positive number, not {fps}")
    if max_frames < 1:
        raise ConfigError(f"max-frames must be at least 1, not {max_frames}")


def _require_av() -> Any:
    try:
        import av
    except ImportError as error:
        raise MissingExtraError("reading videos", "video") from error
    return av


def _refuse_no_file(path: str | os.PathLike[str]) -> None:
    """Refuse a file that is missing or empty, or that blocks on reading, as a pipe does."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise UnreadableError(_reason(error)) from error
    except ValueError as error:  # a path with a null byte
        raise ImageError(_reason(error)) from error
    if not stat.S_ISREG(status.st_mode):
        raise ImageError("not a file but a folder, a pipe or a device")
    if status.st_size == 0:
        raise ImageError("empty file")


def _video_stream(av: Any, container: Any) -> Any:
    """Return the first video stream that is not a cover picture, decoded by one thread."""
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            break
    else:
        raise ImageError("no video stream in it, only sound or data")
    context = stream.codec_context
    if context is None:
        raise ImageError("its video is of an unknown kind")
    _refuse_large(context)
    context.thread_count = 1  # several videos are read in parallel
    return stream


def _decoded(av: Any, container: Any, stream: Any) -> Iterator[Any]:
    """Yield whole frames; packets that cannot be decoded are skipped."""
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.error.FFmpegError as error:
            if isinstance(error, MemoryError):
                raise
            continue
        for frame in frames:
            if not frame.is_corrupt:
                _refuse_large(frame)
                yield frame


def _refuse_large(size: Any) -> None:
    if size.width * size.height > MAX_PIXELS:
        raise ImageError(
            f"frames of {size.width}x{size.height} pixels, above the limit of {MAX_PIXELS:,}"
        )


class _Clock:
    """Seconds since the first frame, which never decrease.

    If the timestamps of a joined file start again, time continues from the previous frame.
    """

    def __init__(self, stream: Any) -> None:
        self._step = float(1 / (stream.average_rate or _FALLBACK_RATE))
        self._now: float | None = None
        self._offset = 0.0

    def __call__(self, frame: Any) -> float:
        stamp: float | None = frame.time
        if self._now is None:
            self._offset = -(stamp or 0.0)
            self._now = 0.0
        elif stamp is None:
            self._now += self._step
        elif stamp + self._offset < self._now:
            self._offset = self._now + self._step - stamp
            self._now += self._step
        else:
            self._now = stamp + self._offset
        return self._now


def _upright(frame: Any, shape: Fraction | None) -> Image.Image:
    """Convert a frame to what a player shows, with its longer side at most `MAX_SIDE`.

    Args:
        shape: aspect ratio of a pixel, width by height.
    """
    width, height = frame.width, frame.height
    if shape and 0 < shape < 1:
        height = height / shape
    elif shape and shape > 1:
        width = width * shape
    scale = min(1, MAX_SIDE / max(width, height))
    size = [max(1, round(side * scale)) for side in (width, height)]
    image: Image.Image = frame.to_image(width=size[0], height=size[1], interpolation="AREA")
    turn = _TURNS.get(_display(frame))
    return image if turn is None else image.transpose(turn)


def _display(frame: Any) -> tuple[bool, bool, bool]:
    """Return how a player places a frame: a key of `_TURNS`, or one that it lacks.

    The display matrix (a, b, u, c, d, v, x, y, w) takes the pixel (x, y) to (ax + cy, bx + dy), see
    FFmpeg's libavutil/display.h.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return False, False, False
    a, b, _, c, d = struct.unpack("=5i", bytes(matrix)[:20])
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, c < 0, b < 0
    return False, a < 0, d < 0


def _reason(error: BaseException) -> str:
    return (getattr(error, "strerror", None) or one_line(error)).lower()
