"""The work of video.py: frames in; tracked, drawn, written, shown and saved."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import repeat, takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from tqdm import tqdm

from utils.cli import STOPPED, say
from utils.errors import UnavailableError
from utils.memory import is_out_of_memory
from utils.overlays import Overlays
from utils.parallel import in_order
from utils.results import counted
from utils.video_io import LONGEST_GAP, VideoReader, VideoWriter
from utils.video_numbers import VideoNumbers

if TYPE_CHECKING:
    from synergy3DMM import SynergyNet

WINDOW = "SynergyNet (q or Esc ends)"
ENDING_KEYS = (27, ord("q"))
STOPPED_EARLY = "stopped"


def run_on_video(
    options: argparse.Namespace, model: SynergyNet, reader: VideoReader | None = None
) -> int:
    """Goes through a video or camera; says what happened; 0, or 1 if it did not come to its end.

    The next frame is read, and the last one written, while one is worked on. Ctrl-C, a damaged end,
    a full disk: what is finished by then is kept, complete and playable.

    Args:
        options: ``files`` (a path, or the number of a camera), ``video`` (path to write, or None),
            ``numbers`` (path that ``file_of`` takes), ``save``, ``draw``, ``smooth``,
            ``detect_every`` and ``show``.
        model: finds the faces.
        reader: in place of that of ``files``.

    Raises:
        OSError, ValueError: nothing can be read, or the results cannot be written there.
    """
    reader = reader or VideoReader(options.files, say)
    tracker = model.tracker(options.smooth, options.detect_every)
    overlays = Overlays(model.face_model, options.draw)
    wanted = options.video is not None or options.show  # a picture is
    done = faces_seen = 0
    failure: str | None = None
    written: list[Path] = []
    bar = tqdm(total=reader.count, unit="frame", smoothing=0.1)
    with VideoNumbers(options.numbers, options.save) as numbers, ThreadPoolExecutor(1) as pool:
        writer: VideoWriter | None = None
        if options.video:
            # what a file shows lasts as long as the file; a camera that hangs is another matter
            gap = max(reader.duration or 0, LONGEST_GAP)
            writer = VideoWriter(options.video, reader.size, reader.fps, gap)
        writing: Future | None = None
        try:
            with closing_window(options.show), closing(ahead(reader)) as frames:
                for seconds, frame in frames:
                    tracked = tracker(frame, overlays.dense and wanted)
                    if wanted:
                        ids, faces = [i for i, _ in tracked], [face for _, face in tracked]
                        picture = overlays(frame, faces, ids)
                    if writing:
                        writing.result()
                    if writer:
                        writing = pool.submit(writer.write, picture, seconds)
                    numbers.add(done, seconds, tracked)
                    done += 1
                    faces_seen += bool(tracked)
                    bar.update()
                    if options.show and not show(picture):
                        break
        except KeyboardInterrupt:
            if not reader.is_live:  # a camera has no other end
                failure = STOPPED_EARLY
        except OSError as error:
            failure = str(error)
        except BaseException as error:
            if not is_out_of_memory(error):
                if writing:
                    writing.exception()  # waits
                if writer:
                    writer.abandon()
                raise
            failure = str(error) or "not enough memory"
        finally:
            bar.close()
            reader.close()
        if writer:
            error = writing.exception() if writing else None  # waits for the last frame
            if error and not (isinstance(error, OSError) or is_out_of_memory(error)):
                writer.abandon()
                raise error
            if error:
                failure = failure or str(error) or "not enough memory"
            try:
                if writer.written:
                    message = writer.close(None if reader.is_live else reader.source)
                    written.append(options.video)
                    if message:
                        say(message)
                    if writer.was_stopped:
                        failure = STOPPED_EARLY
                else:
                    writer.abandon()
            except OSError as error:
                failure = str(error)
    if failure:
        say(f"failed: {reader.name}: {failure}", sys.stderr)
    written += numbers.written
    summary = f"{counted(tracker.last_id, 'face')} in {faces_seen} of {counted(done, 'frame')}"
    if written:
        summary += f"; written: {', '.join(map(str, written))}"
    say(f"{reader.name}: {summary}")
    if failure == STOPPED_EARLY:
        return STOPPED
    return 1 if failure or reader.is_damaged else 0


def ahead(reader: VideoReader) -> Iterator[tuple[float, np.ndarray]]:
    """The frames of a reader, the next one read while one is worked on."""
    frames = iter(reader)
    items = in_order(lambda _: next(frames, None), repeat(None), workers=1)
    yield from takewhile(lambda item: item is not None, items)


# ---------------------------------------------------------------------------------- the window


def check_window() -> None:
    """Raises UnavailableError, saying what to do, where no window can be opened."""
    if sys.platform == "linux" and not any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY"))):
        reason = "this session has no display"
        remedy = "start it in a session with one"
    else:
        try:
            cv2.namedWindow(WINDOW, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)
            return
        except cv2.error:
            reason = "OpenCV's headless wheel opens none"
            remedy = "`make gui` installs the wheel that does (the `gui` extra, README 'Install')"
    raise UnavailableError(
        f"--show needs a window, but {reason}; {remedy}; without --show the result is written to a "
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


def default_video(source: Path | int) -> Path:
    """Where a video goes when nothing is said."""
    name = f"camera_{source}" if isinstance(source, int) else source.stem
    return Path("inference_output") / f"{name}.mp4"
