"""The work of video.py: frames in; tracked, drawn, written, shown and saved."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from itertools import repeat, takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from tqdm import tqdm

from utils.cli import STOPPED, counted, say
from utils.errors import UnavailableError
from utils.memory import is_out_of_memory
from utils.overlays import Overlays
from utils.parallel import in_order
from utils.video_io import LONGEST_GAP, LONGEST_PAUSE, VideoReader, VideoWriter
from utils.video_numbers import VideoNumbers

if TYPE_CHECKING:
    from synergy3DMM import SynergyNet

WINDOW = "SynergyNet (q or Esc ends)"
ENDING_KEYS = (27, ord("q"))


class FrameWriter:
    """A ``VideoWriter`` that works in a thread of its own, while the next frame is made.

    A context manager; if its block ends by an exception, there is no video.

    Args:
        path, size, fps, longest_gap: of ``VideoWriter``.

    Attributes:
        video: the writer.
        files: after ``finish``, those that are there now.

    Raises:
        OSError, ValueError: of ``VideoWriter``.
    """

    def __init__(self, path: Path, size: tuple[int, int], fps: float, longest_gap: float) -> None:
        self.video = VideoWriter(path, size, fps, longest_gap)
        self.pool = ThreadPoolExecutor(1, "writer")
        self.writing: Future[None] | None = None
        self.files: list[Path] = []

    def __enter__(self) -> FrameWriter:
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is not None:
            self.abandon()

    def put(self, picture: np.ndarray, seconds: float) -> None:
        """Takes a frame, as ``VideoWriter.write``; raises what that raised for the one before."""
        if self.writing:
            self.writing.result()
        self.writing = self.pool.submit(self.video.write, picture, seconds)

    def failure(self) -> str | None:
        """Waits for the last frame; the ``reason`` why it was not written, None if it was.

        Raises any error that ``reason`` does not know.
        """
        error = self.writing.exception() if self.writing else None
        if error is None:
            return None
        if (known := reason(error)) is None:
            raise error
        return known

    def finish(self, sound_from: Path | None) -> str | None:
        """Closes the video, as ``VideoWriter.close``; of no frames none is made."""
        self.pool.shutdown()
        if not self.video.written:
            self.video.abandon()
            return None
        message = self.video.close(sound_from)
        self.files.append(self.video.path)
        return message

    def abandon(self) -> None:
        """Ends without a video."""
        self.pool.shutdown()  # waits for the last frame
        self.video.abandon()


def run_on_video(options: argparse.Namespace, model: SynergyNet) -> int:
    """Goes through a video or camera; says what happened; 0, or 1 if it did not come to its end.

    The next frame is read, and the last one written, while one is worked on. Ctrl-C, a damaged end,
    a full disk: what is finished by then is kept, complete and playable.

    Args:
        options: ``files`` (a path, the number of a camera, or the address of a stream), ``video``
            (path to write, or None), ``base`` (path beside which the numbers lie, as ``file_of``
            takes it), ``save``, ``draw``, ``smooth``, ``detect_every`` and ``show``.
        model: finds the faces.

    Raises:
        OSError, ValueError: nothing can be read, or the results cannot be written there.
    """
    tracker = model.tracker(options.smooth, options.detect_every)
    overlays = Overlays(model.face_model, options.draw)
    wants_pictures = options.video is not None or options.show
    done = faces_seen = 0
    is_stopped, failure = False, None
    reader = VideoReader(options.files, say)
    with (
        closing(reader),
        VideoNumbers(options.base, options.save) as numbers,
        open_writer(options.video, reader) as writer,
    ):
        try:
            with (
                closing_window(options.show),
                closing(ahead(reader)) as frames,
                tqdm(total=reader.count, unit="frame", smoothing=0.1) as bar,
            ):
                for seconds, frame in frames:
                    tracked = tracker(frame, overlays.dense and wants_pictures)
                    if wants_pictures:
                        picture = overlays(frame, [f for _, f in tracked], [i for i, _ in tracked])
                    if writer:
                        writer.put(picture, seconds)
                    numbers.add(done, seconds, tracked)
                    done += 1
                    faces_seen += bool(tracked)
                    bar.update()
                    if options.show and not show(picture):
                        break
        except KeyboardInterrupt:
            is_stopped = not reader.is_live  # it is how a camera is ended
            if writer:
                writer.video.is_ending = True
        except Exception as error:
            failure = reason(error)
            if failure is None:
                raise
        if writer:
            last_failure = writer.failure()
            failure = failure or last_failure
            try:
                message = writer.finish(reader.source if isinstance(reader.source, Path) else None)
                if message:
                    say(message)
                is_stopped = is_stopped or writer.video.was_stopped
            except OSError as error:  # that there is no video is what must be told
                is_stopped = False
                failure = "; ".join(filter(None, (failure, reason(error))))
    if is_stopped:
        failure = "stopped"
    if failure:
        say(f"failed: {reader.name}: {failure}", sys.stderr)
    written = [*(writer.files if writer else ()), *numbers.files]
    summary = f"{counted(tracker.last_id, 'face')} in {faces_seen} of {counted(done, 'frame')}"
    if written:
        summary += f"; written: {', '.join(map(str, written))}"
    say(f"{reader.name}: {summary}")
    if is_stopped:
        return STOPPED
    return 1 if failure or reader.is_damaged else 0


def open_writer(
    path: Path | None, reader: VideoReader
) -> AbstractContextManager[FrameWriter | None]:
    """What writes the frames of a reader to a path; None where no video is wanted."""
    if path is None:
        return nullcontext()
    # a pause in a file is shown for as long as it lasts; that a camera hung is not worth showing
    longest = min(max(reader.duration or 0, LONGEST_GAP), LONGEST_PAUSE)
    return FrameWriter(path, reader.size, reader.fps, longest)


def ahead(reader: VideoReader) -> Generator[tuple[float, np.ndarray], None, None]:
    """The frames of a reader, the next one read while one is worked on."""
    frames = iter(reader)
    with closing(in_order(lambda _: next(frames, None), repeat(None), workers=1)) as items:
        yield from takewhile(lambda item: item is not None, items)


def reason(error: BaseException) -> str | None:
    """What to say of an error after which all that is finished can be kept: one of the system, such
    as a full disk, or no more memory. None for any other error."""
    if isinstance(error, OSError) or is_out_of_memory(error):
        return str(error) or "not enough memory"
    return None


# ---------------------------------------------------------------------------------- the window


def check_window() -> None:
    """Raises UnavailableError, saying what to do, where no window can be opened."""
    wheel = "`make gui` installs the wheel that does (the `gui` extra, README 'Install')"
    if sys.platform == "linux" and not any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY"))):
        fault = "this session has no display"
        remedy = (
            f"start it in a session with one (OpenCV's headless wheel opens none there; {wheel})"
        )
    else:
        try:
            cv2.namedWindow(WINDOW, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)
            return
        except cv2.error:
            fault = "OpenCV's headless wheel opens none"
            remedy = wheel
    raise UnavailableError(
        f"--show needs a window, but {fault}; {remedy}; without --show the result is written to a "
        "file"
    )


@contextmanager
def closing_window(is_open: bool) -> Iterator[None]:
    try:
        yield
    finally:
        if is_open:
            cv2.destroyAllWindows()


def show(picture: np.ndarray) -> bool:
    """Shows a frame; False where the viewer wants to end."""
    cv2.imshow(WINDOW, picture)
    wants_end = cv2.waitKey(1) & 0xFF in ENDING_KEYS
    return not wants_end and cv2.getWindowProperty(WINDOW, cv2.WND_PROP_VISIBLE) >= 1
