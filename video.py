"""Follows the faces of a video, camera or stream; draws landmarks, mesh, pose; saves numbers.

python video.py -f in.mp4 -o out.mp4
python video.py -f 0 --show                                     # camera 0, in a window
python video.py -f rtsp://192.0.2.1/stream -o out.mp4           # a stream, until Ctrl-C
python video.py -f in.mp4 -o out.mp4 --draw mesh,pose --smooth strong --save jsonl,npz
python video.py -f in.mp4 --no-video --save npz                 # numbers only
"""

import argparse
import os
import sys
from pathlib import Path

import cv2

from utils import video_numbers
from utils.cli import at_least, comma_list, run_script, say, script_parser
from utils.files import check_writable
from utils.inference import DEFAULT_DRAWINGS
from utils.model_options import add_model_options, open_model
from utils.overlays import DRAWINGS
from utils.smoothing import STRENGTHS
from utils.video_io import CODECS, check_video_path, default_video
from utils.video_script import check_window, run_on_video

EPILOG = """\
--save writes beside the video, under its name:
  jsonl   one line a frame: {"frame", "time" (seconds), "faces": [{"id", "box", "landmarks", ...}]}
  csv     a line a face and frame, for spreadsheets: without parameters, rotation and roi box
  npz     arrays with one row a face and frame: frame, time, id, box, landmarks, parameters, ...;
          and frame_time, the seconds of every frame
  Fields, frames and units are those of utils.inference.Face; box is where the detector would put
  its box, score that of the face's last detection.

Where the program ffmpeg is installed, .mp4 and .mov are H.264, and the sound of a video file is
copied; else they are MPEG-4 Part 2, which browsers generally do not play (.webm they do).

Ctrl-C (in the window q or Esc) ends the run and keeps what is written by then. For a camera or a
stream that is the normal end: exit code 0.

exit code: 0 all done, 1 the video is damaged or was not finished, 2 wrong usage, 130 Ctrl-C
"""


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = script_parser(__doc__, EPILOG, "-f VIDEO [options]")
    add = parser.add_argument
    add("-f", "--files", required=True, metavar="VIDEO",
        help="a video, a camera's number, a stream (rtsp://...)")  # fmt: skip
    add("-o", "--out", type=Path, metavar="VIDEO",
        help="video to write (default: inference_output/NAME.mp4; with --show none); "
        f"{' '.join(CODECS)}")  # fmt: skip
    add("--no-video", action="store_true", help="write no video")
    add("--show", action="store_true", help="open a window")
    add("--draw", type=comma_list(DRAWINGS), default=DEFAULT_DRAWINGS, metavar="LIST",
        help=f"any of {','.join(DRAWINGS)} (default: {','.join(DEFAULT_DRAWINGS)})")  # fmt: skip
    add("--save", type=comma_list(video_numbers.FORMATS), default=(), metavar="LIST",
        help=f"numbers, any of {','.join(video_numbers.FORMATS)}")  # fmt: skip
    add("--smooth", choices=tuple(STRENGTHS), default="light", help="default: light")
    add("--detect-every", type=at_least(1), default=10, metavar="K",
        help="look for new faces every K frames (default: 10)")  # fmt: skip
    add_model_options(parser)
    options = parser.parse_args(arguments)
    resolve_paths(parser, options)
    return options


def resolve_paths(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """What is read, and where what goes.

    ``files``: the video's path, the camera's number, or the stream's address. ``video``: the path
    to write, None where none is wanted. ``base``: that path in any case; the files of numbers lie
    beside it.
    """
    if "://" not in options.files:
        is_camera = options.files.isdecimal() and not Path(options.files).exists()
        options.files = int(options.files) if is_camera else Path(options.files)
    is_file = isinstance(options.files, Path)
    if is_file and not options.files.is_file():
        fault = "not a video file" if options.files.exists() else "no such file"
        parser.error(f"{options.files}: {fault}, nor the number of a camera")
    options.base = options.out or default_video(options.files)
    options.video = options.base
    if options.no_video or (options.show and options.out is None):
        options.video = None
    if options.video is None and not options.save and not options.show:
        parser.error("nothing to do: --no-video without --save or --show")
    if options.video:
        try:
            check_video_path(options.video)
        except ValueError as error:
            parser.error(str(error))
        if is_file and options.video.exists() and options.video.samefile(options.files):
            parser.error(f"{options.video}: is the video to read; give another name with -o")
    for path in [options.video, *(video_numbers.file_of(options.base, f) for f in options.save)]:
        if path and path.is_dir():
            parser.error(f"{path}: is a folder; give a file to write with -o")


def main(arguments: list[str] | None = None) -> int:
    options = parse_options(arguments)
    if options.show:
        check_window()
    if options.video or options.save:
        check_writable(options.base.parent, "-o")  # tried before all the work
    model = open_model(options)
    say(model.description)
    try:
        return run_on_video(options, model)
    except (OSError, ValueError) as error:
        say(f"failed: {error}", sys.stderr)
        return 1


if __name__ == "__main__":
    # of a damaged video FFmpeg and OpenCV say much; we say it in one line
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    set_log_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel  # 4.8, 5
    set_log_level(0)  # silent
    run_script(main)
