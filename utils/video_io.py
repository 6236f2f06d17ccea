"""Reading frames from video files and cameras; writing videos that are playable whatever happens.

OpenCV does the decoding and encoding (its wheels bring FFmpeg's libraries); the ``ffmpeg`` program,
where it is installed, encodes H.264, which these wheels cannot, and copies the sound.
"""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import lru_cache
from itertools import chain, repeat, takewhile
from pathlib import Path
from urllib.parse import urlsplit

import cv2
import numpy as np

from utils.draw import fit_into
from utils.errors import first_line
from utils.files import partial_beside, replace_file
from utils.pictures import to_bgr8

CODECS = {".mp4": "mp4v", ".mov": "mp4v", ".mkv": "mp4v", ".avi": "MJPG", ".webm": "VP80"}
# With ffmpeg these get H.264, which browsers and phones play, in place of MPEG-4 Part 2.
H264_SUFFIXES = (".mp4", ".mov")
# No B-frames: frames come in the order of their times. Quality as good as the source's; the matrix
# is the one that ffmpeg converts by.
H264 = "-c:v libx264 -preset veryfast -crf 18 -bf 0 -pix_fmt yuv420p -colorspace smpte170m".split()
DEFAULT_FPS = 25.0  # where a file or camera tells none that can be true
HIGHEST_FPS = 240  # some containers give the unit of their times instead
READ_ATTEMPTS = 8  # frames that may be damaged in a row before the rest counts as lost
MISSING_SHARE = 0.02  # of the claimed frames may be missing: containers only estimate them
LONGEST_GAP = 2.0  # seconds between frames that are filled by repeating; beyond: a new beginning
LONGEST_PAUSE = 3600.0  # the same of a file, whose pauses are true, but whose times may be wrong
# What the programs may take a stranger's file for: no list of other files (HLS, DASH, ffconcat),
# whose content would come into the video.
CONTAINERS = (
    "-format_whitelist",
    "apng,asf,av1,avi,dhav,dv,flv,gif,h264,hevc,ivf,jpeg_pipe,m4v,matroska,mjpeg,mov,mpeg,mpegts,"
    "mpegvideo,mpjpeg,mxf,nut,obu,ogg,rm,swf,vc1,wtv,yuv4mpegpipe",
)
PROBED_FRAMES = 25  # of a file, to learn at what rate its frames come
# Where a file's first frames come so many times faster than it claims, the claim is an average over
# pauses, and not the rate at which to show its frames.
UNSTEADY = 1.5

Say = Callable[[str], None]
Source = Path | int | str  # a file, a camera's number, a stream's address


class VideoReader:
    """The frames of a video file or camera, one after the other.

    All frames have the size of the first: should it change on the way, they are scaled to fit and
    centred on black, because a written video has one size. What cannot be decoded is left out; a
    damaged end ends the video. Both are told once to ``say``.

    Args:
        source: a file's path, the number of a camera, or the address of a stream (a text with
            ``://``).
        say: gets one line about anything out of the ordinary.

    Attributes:
        size: (width, height) of the frames.
        fps: frames a second, as the file or camera claims; ``DEFAULT_FPS`` where that cannot be
            true. Of a file whose frames come much faster than it claims (a screen recording with
            pauses claims the average), the rate at which they come.
        duration: seconds, as the file claims; None where it does not, and for cameras.
        count: frames, as the file claims; None where it does not, and for cameras.
        is_live: it is a camera, or a stream that claims no number of frames.
        is_damaged: after the last frame: noticeably fewer could be read than the file claims.

    Raises:
        FileNotFoundError, IsADirectoryError: there is no such file.
        ValueError: no frame can be read: not a video, damaged, or no such camera or stream.
    """

    def __init__(self, source: Source, say: Say) -> None:
        if isinstance(source, str) and "://" not in source:
            source = Path(source)  # OpenCV would open it unchecked, a playlist too
        self.source, self.say = source, say
        self.name = name_of(source)
        is_file = isinstance(source, Path)
        if is_file:
            if source.is_dir():
                raise IsADirectoryError(f"{source}: a folder, expected a video file")
            if not source.exists():
                raise FileNotFoundError(f"{source}: no such file, nor the number of a camera")
            if _is_playlist(source):
                raise ValueError(f"{source}: a playlist, which names other files; give a video")
        self.capture = _open_capture(source)
        self.is_damaged = self.size_changed = False
        self.pixel_aspect = _pixel_aspect(self.capture)
        self.first = self._next() if self.capture.isOpened() else None
        if self.first is None:
            self.capture.release()
            reason = "not a video in a format that OpenCV reads, or damaged"
            if not is_file:
                reason = "is it connected, free and permitted?"
            raise ValueError(f"{self.name}: no frame can be read; {reason}")
        self.size = (self.first.shape[1], self.first.shape[0])
        fps = self.capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if 0 < fps <= HIGHEST_FPS else DEFAULT_FPS
        count = self.capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.count = int(count) if 0 < count < 1e9 and not isinstance(source, int) else None
        self.is_live = self.count is None and not is_file
        self.duration = None if self.count is None else self.count / self.fps
        if is_file:
            rate = _rate_of_frames(source)
            if UNSTEADY * self.fps < rate <= HIGHEST_FPS:
                self.fps = rate
            elif fps > HIGHEST_FPS:
                say(f"{self.name}: says {fps:g} frames a second; taken as {self.fps:g}")
        self.started = time.monotonic()

    def __iter__(self) -> Iterator[tuple[float, np.ndarray]]:
        """(seconds since the first frame, (H, W, 3) uint8 BGR) of each frame, once."""
        frame, self.first = self.first, None
        if frame is None:  # read already; else the file would be called damaged
            return
        number, origin, last = 0, None, -1.0
        while frame is not None:
            if self.is_live:
                seconds = time.monotonic() - self.started
            else:
                seconds = self.capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            origin = seconds if origin is None else origin
            seconds -= origin
            # not every container has times, and some have wrong ones
            if not np.isfinite(seconds) or seconds <= last:
                seconds = last + 1 / self.fps if number else 0.0
            last = seconds
            yield seconds, self._fit(frame)
            number += 1
            frame = self._next()
        if _is_short(number, self.count or 0) and not (
            isinstance(self.source, Path) and _is_whole(self.source, number)
        ):
            self.is_damaged = True
            self.say(f"{self.name}: damaged, {number} of {self.count} frames could be read")

    def close(self) -> None:
        self.capture.release()

    def _next(self) -> np.ndarray | None:
        for _ in range(READ_ATTEMPTS):
            with suppress(cv2.error, ValueError):  # a frame that cannot be decoded
                done, frame = self.capture.read()
                if done and frame is not None and frame.size:
                    return self._square(to_bgr8(frame))
        return None

    def _square(self, frame: np.ndarray) -> np.ndarray:
        """The frame in square pixels, as players show it."""
        if self.pixel_aspect == 1:
            return frame
        width = max(round(frame.shape[1] * self.pixel_aspect), 1)
        return cv2.resize(frame, (width, frame.shape[0]), interpolation=cv2.INTER_AREA)

    def _fit(self, frame: np.ndarray) -> np.ndarray:
        width, height = self.size
        if frame.shape[:2] == (height, width):
            return frame
        if not self.size_changed:
            self.size_changed = True
            self.say(
                f"{self.name}: the frames' size changes from {width}x{height} to "
                f"{frame.shape[1]}x{frame.shape[0]}; they are fitted into the first"
            )
        fitted = fit_into(frame, height, width)
        h, w = fitted.shape[:2]
        left, top = (width - w) // 2, (height - h) // 2
        edges = (top, height - h - top, left, width - w - left)
        return cv2.copyMakeBorder(fitted, *edges, cv2.BORDER_CONSTANT)  # black


def _is_playlist(path: Path) -> bool:
    """Whether FFmpeg may take a file, whatever its name, for a list of others, and open these."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(20).startswith((b"#EXTM3U", b"ffconcat version"))


def _open_capture(source: Source) -> cv2.VideoCapture:
    if not isinstance(source, Path):
        return cv2.VideoCapture(source)
    path = source.resolve()  # a name that begins like an option or address is a file's all the same
    if not _is_text(path):  # it would crash OpenCV
        with tempfile.TemporaryDirectory() as folder:
            link = Path(folder) / f"video{path.suffix}"
            link.symlink_to(path)
            return cv2.VideoCapture(str(link))  # stays open when the link is gone
    return cv2.VideoCapture(path.as_posix())


def _rate_of_frames(source: Path) -> float:
    """Frames a second by the median interval of a file's first frames; 0 where it has no times."""
    capture = _open_capture(source)
    times = []
    with suppress(cv2.error):  # a damaged frame
        while len(times) < PROBED_FRAMES and capture.grab():
            times.append(capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)
    capture.release()
    interval = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    return 1 / interval if interval > 0 else 0.0


def _pixel_aspect(capture: cv2.VideoCapture) -> float:
    """Width over height of a file's pixels; 1 where it tells nothing, or what cannot be true."""
    wide, high = (capture.get(p) for p in (cv2.CAP_PROP_SAR_NUM, cv2.CAP_PROP_SAR_DEN))
    if not (wide > 0 and high > 0 and 0.2 <= wide / high <= 5):
        return 1.0
    # OpenCV turns the frames as the file tells, but not this ratio
    is_turned = capture.get(cv2.CAP_PROP_ORIENTATION_META) % 180 == 90
    return high / wide if is_turned else wide / high


def _is_whole(source: Path, number: int) -> bool:
    """Whether a file has no more to show than ``number`` frames, as far as ffprobe can tell.

    What files claim includes what an edit list hides, and where only their length is known, sound
    that is longer than the picture.
    """
    lines, is_fine = _probe(source, "packet=flags:stream=nb_frames")
    packets = [line for line in lines if line[0] in "K_"]
    claimed = sum(int(n) for n in (line.strip(",") for line in lines) if n.isdecimal())
    # what an edit list hides is among the packets; what a file was cut short of is not
    is_cut = _is_short(len(packets), claimed)
    shown = sum("D" not in flags for flags in packets)  # D: to be discarded
    return is_fine and not is_cut and not _is_short(number, shown)


def _is_short(number: int, claimed: int) -> bool:
    """Whether noticeably fewer frames are there than are claimed."""
    return claimed - number > max(MISSING_SHARE * claimed, 1)


def _probe(source: Path, entries: str, *options: str) -> tuple[list[str], bool]:
    """What ffprobe says of a file's first picture stream.

    Returns:
        Its lines, and whether it found no fault; no lines and False where it is not installed.
    """
    ffprobe = shutil.which("ffprobe")
    if ffprobe is None:
        return [], False
    command = [ffprobe, "-v", "error", *CONTAINERS, "-select_streams", "v:0", *options]
    command += ["-show_entries", entries, "-of", "csv=p=0", f"file:{source}"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    return done.stdout.split(), not (done.returncode or done.stderr)


def _picture_begins(source: Path) -> float:
    """Seconds from a file's beginning to its first frame, as far as ffprobe can tell."""
    # looks at ten seconds: what comes before the first key frame cannot be decoded
    times, _ = _probe(source, "format=start_time:frame=pts_time", "-read_intervals", "%+10")
    try:
        first, *_, start = [float(line.strip(",")) for line in times]
        return first - start
    except ValueError:
        return 0.0


def _is_text(path: Path) -> bool:
    """Whether all of a path's bytes are characters."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


@lru_cache(maxsize=4)
def encodes_h264(ffmpeg: str) -> bool:
    """Whether an ffmpeg program was built with the encoder of H.264."""
    command = [ffmpeg, "-v", "error", "-encoders"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError:  # it does not run here
        return False
    return " libx264 " in done.stdout


class H264Writer:
    """What ``VideoWriter`` uses of OpenCV's ``cv2.VideoWriter``, by the ffmpeg program."""

    def __init__(self, ffmpeg: str, path: Path, fps: float, size: tuple[int, int]) -> None:
        raw = ["-f", "rawvideo", "-pix_fmt", "bgr24", "-s", f"{size[0]}x{size[1]}"]
        command = [ffmpeg, "-v", "error", "-y", *raw, "-r", f"{fps:.6f}", "-i", "-", "-an", *H264]
        # the index stands first, so that a page shows the video before it is loaded whole
        command += ["-movflags", "+faststart", f"file:{path}"]
        self.errors = tempfile.TemporaryFile()
        # Ctrl-C is for us: the video is to be ended, not left as it is
        own_group = {"start_new_session": True}
        if sys.platform == "win32":
            own_group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self.errors,
            **own_group,
        )

    def isOpened(self) -> bool:
        return True

    def write(self, frame: np.ndarray) -> None:
        """Raises OSError, with ffmpeg's reason, if it has ended."""
        try:
            self.process.stdin.write(np.ascontiguousarray(frame).data)
        except OSError as error:
            self.process.wait()
            self.errors.seek(0)
            reason = first_line(self.errors.read().decode(errors="replace").strip() or str(error))
            raise OSError(f"ffmpeg ended: {reason}") from error

    def release(self) -> None:
        try:
            with suppress(OSError):  # it has ended: the file tells what is in it
                self.process.stdin.close()
            self.process.wait()
        except KeyboardInterrupt:
            self.process.wait()  # it ends soon, and only then is the video whole
            raise
        self.errors.close()


class VideoWriter:
    """A video that appears under its name, complete, with ``close``; until then nothing is there.

    Frames are given with their time and repeated or left out where they stray from the steady rate
    of a video, so that it lasts as long as what it shows, whatever a camera does.

    Args:
        path: its suffix, one of ``CODECS``, decides the format.
        size: (width, height) of the frames; an odd last column or row is cut off.
        fps: frames a second.
        longest_gap: seconds between two frames that are filled by repeating the first of them;
            what comes later than that is shown at once.

    Attributes:
        written: frames, repeated ones too.
        was_stopped: Ctrl-C came while the video was closed; it is there, without the sound.

    Raises:
        OSError: it cannot be written there.
        ValueError: another suffix, a name that is no text, a size below 2x2, or an OpenCV that
            cannot write the format.
    """

    def __init__(
        self, path: Path, size: tuple[int, int], fps: float, longest_gap: float = LONGEST_GAP
    ) -> None:
        check_video_path(path)
        self.path, self.fps, self.written = path, fps, 0
        self.last = 0.0  # time of the last frame, seconds
        self.shift = 0.0  # seconds of gaps that were longer than ``longest_gap``, left out
        self.longest_gap = longest_gap
        self.was_stopped = False
        self.is_ending = False  # set by another thread: a gap is filled no further
        self.shown: np.ndarray | None = None  # the last frame
        self.shape = (size[1], size[0], 3)  # of the frames that come
        self.size = (size[0] // 2 * 2, size[1] // 2 * 2)
        if min(self.size) < 2:
            raise ValueError(f"{path}: a video has at least 2x2 pixels, not {size[0]}x{size[1]}")
        path.parent.mkdir(parents=True, exist_ok=True)
        # OpenCV needs the video's own suffix, so that `.partial` is the name of a folder around it
        self.folder = partial_beside(path.with_name("video"))
        self.folder.mkdir(mode=0o700)
        self.partial = self.folder / f"video{path.suffix.lower()}"
        self.writer: cv2.VideoWriter | H264Writer | None = None
        try:
            self.writer = self._begin()
        except BaseException:
            self.abandon()
            raise
        if not self.writer.isOpened():
            self.abandon()
            raise ValueError(
                f"{path}: this OpenCV cannot write {path.suffix} files; take another suffix of "
                f"{' '.join(CODECS)}, or install the opencv-python-headless wheel"
            )

    def _begin(self) -> cv2.VideoWriter | H264Writer:
        suffix, ffmpeg = self.partial.suffix, shutil.which("ffmpeg")
        if suffix in H264_SUFFIXES and ffmpeg and encodes_h264(ffmpeg):
            return H264Writer(ffmpeg, self.partial, self.fps, self.size)
        code = cv2.VideoWriter_fourcc(*CODECS[suffix])
        return cv2.VideoWriter(str(self.partial), code, self.fps, self.size)

    def write(self, frame: np.ndarray, seconds: float) -> None:
        """Adds (H, W, 3) uint8 BGR of the writer's size, shown from ``seconds`` on.

        Raises:
            OSError: the disk is nearly full; what was written so far can be closed.
            ValueError: another shape or dtype: ffmpeg would take its bytes for other frames.
        """
        if frame.dtype != np.uint8 or frame.shape != self.shape:
            raise ValueError(
                f"{self.path}: expected a frame of shape {self.shape} uint8, got {frame.dtype} of "
                f"shape {frame.shape}"
            )
        if seconds - self.last > self.longest_gap:
            self.shift += seconds - self.last - 1 / self.fps
        self.last = seconds
        # how many more frames are written than are due by now
        ahead = self.written - (seconds - self.shift) * self.fps
        if ahead > 1 + 1e-3:
            return  # left out: frames come faster than the video's rate
        frame = frame[: self.size[1], : self.size[0]]
        missing = round(-ahead) if ahead < -1 - 1e-3 else 0
        before = frame if self.shown is None else self.shown
        gap = takewhile(lambda _: not self.is_ending, repeat(before, missing))
        for shown in chain(gap, [frame]):
            if not self._has_room():
                raise OSError(errno.ENOSPC, "no space left for more of the video", str(self.path))
            self.writer.write(shown)
            self.written += 1
        self.shown = frame.copy()  # the caller may read the next one into the same array

    def _has_room(self) -> bool:
        """Whether the disk has room for one frame more and the index.

        OpenCV's writer does not tell of a full disk, and a video that lacks its index, which is
        written last, may be lost as a whole.
        """
        # ffmpeg has frames under way that are not on the disk yet
        frames = 16 if isinstance(self.writer, H264Writer) else 1
        needed = 2**19 + 64 * self.written + frames * 3 * self.size[0] * self.size[1]
        try:
            disk = shutil.disk_usage(self.folder)
        except OSError:
            return True  # a file system that does not tell
        return disk.total == 0 or disk.free >= needed

    def close(self, sound_from: Path | None = None) -> str | None:
        """Ends the video and gives it its name.

        Args:
            sound_from: the video whose sound is copied.

        Returns:
            One line that says why the sound was not copied, or that the video has another name
            (``path``) because the old one could not be replaced; None where nothing is to be said.

        Raises:
            OSError: it could not be written, for example because the disk is full.
        """
        try:
            try:
                self.writer.release()
                self._check()
                message = self._add_sound(sound_from) if sound_from else None
            except KeyboardInterrupt:  # the pictures are there, and were longer work
                self.was_stopped = True
                message = "the sound is not copied: stopped" if sound_from else None
            try:
                replace_file(self.partial, self.path)
            except PermissionError as error:  # Windows: the old one is open in a player
                old, self.path = self.path, _free_name(self.path)
                replace_file(self.partial, self.path)
                kept = f"{old}: cannot be replaced ({error.strerror}); the new video is {self.path}"
                message = f"{kept}; {message}" if message else kept
        finally:
            self.abandon()
        return message

    def abandon(self) -> None:
        """Ends without a video."""
        if isinstance(self.writer, H264Writer):
            self.writer.process.kill()  # nothing happens where it has ended
        if self.writer is not None:
            self.writer.release()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _readable(self, path: Path) -> int:
        """How many frames of a video of ours can be read."""
        capture = cv2.VideoCapture(str(path))
        capture.set(cv2.CAP_PROP_POS_FRAMES, self.written - 1)
        # without an index it stays at the beginning
        is_whole = capture.read()[0] and capture.get(cv2.CAP_PROP_POS_FRAMES) == self.written
        capture.release()
        if is_whole:
            return self.written
        capture = cv2.VideoCapture(str(path))  # not every container can be searched
        count = sum(1 for _ in iter(capture.grab, False))
        capture.release()
        return count

    def _check(self) -> None:
        """Raises OSError if not all frames can be read again; OpenCV's writer does not tell."""
        count = self._readable(self.partial)
        if count < self.written:
            raise OSError(
                f"{self.path}: the video could not be written completely ({count} of "
                f"{self.written} frames can be read); is the disk full?"
            )

    def _add_sound(self, source: Path) -> str | None:
        ffmpeg = shutil.which("ffmpeg")
        if ffmpeg is None:
            return "sound, if there is any, is not copied: that takes the program ffmpeg"
        together = self.partial.with_stem("with_sound")
        late = _picture_begins(source)  # this video begins with the source's first frame
        others = ("libopus", "libvorbis") if self.path.suffix.lower() == ".webm" else ("aac",)
        for codec in ("copy", *others):  # not every container takes every sound
            command = [ffmpeg, "-v", "error", "-nostdin", "-y"]
            command += ["-i", f"file:{self.partial}"]
            command += [*CONTAINERS, "-itsoffset", f"{-late:.6f}", "-i", f"file:{source}"]
            # The source's picture is read too, into nothing: so ffmpeg counts the times of picture
            # and sound from one beginning.
            command += ["-map", "1:v:0", "-c", "copy", "-f", "null", "-"]
            command += ["-map", "0:v", "-map", "1:a?", "-c:v", "copy", "-c:a", codec, "-ss", "0"]
            command += ["-t", f"{self.written / self.fps:.3f}", f"file:{together}"]
            done = subprocess.run(command, capture_output=True, text=True, errors="replace")
            if done.returncode == 0:
                # ffmpeg, too, does not always tell of a full disk
                if self._readable(together) < self.written - 1:
                    return "the sound is not copied: there may be no room for it on the disk"
                self.partial = together  # ``close`` gives it its name
                return None
        reason = first_line(done.stderr.strip() or "no reason given")
        return f"the sound is not copied: ffmpeg says {reason!r}"


def _free_name(path: Path) -> Path:
    """The first of NAME_1, NAME_2, ... that is not taken."""
    number = 1
    while (free := path.with_stem(f"{path.stem}_{number}")).exists():
        number += 1
    return free


def check_video_path(path: Path) -> None:
    """Raises ValueError for a suffix that no video can be written with, or a name of no text."""
    if path.suffix.lower() not in CODECS:
        raise ValueError(f"{path}: a video to write ends in {', '.join(CODECS)}")
    if not _is_text(path):  # it would crash OpenCV
        raise ValueError(f"{path}: the name of a video to write must be text; give another")


def name_of(source: Source) -> str:
    """What messages call it: of a stream's address what is no secret."""
    if isinstance(source, int):
        return f"camera {source}"
    if isinstance(source, Path):
        return str(source)
    address = urlsplit(source)
    if "@" in source and "@" not in address.netloc:  # a password that is not quoted
        return f"{address.scheme}://{source.rpartition('@')[2].partition('?')[0]}"
    return f"{address.scheme}://{address.netloc.rpartition('@')[2]}{address.path}"


def default_video(source: Source) -> Path:
    """Where a video goes when nothing is said."""
    name = source.stem if isinstance(source, Path) else "stream"
    if isinstance(source, int):
        name = f"camera_{source}"
    return Path("inference_output") / f"{name}.mp4"
