"""What the scripts that go through photos share."""

import threading
import time
from argparse import ArgumentTypeError, Namespace
from pathlib import Path

import numpy as np
import pytest

from utils.files import write_image
from utils.photo_script import comma_list, in_order, run_on_photos


def test_comma_list():
    parse = comma_list(("npz", "json", "obj"))
    assert parse("npz, JSON,") == ("npz", "json")
    assert parse("obj,npz,obj") == ("obj", "npz")
    for bad in ("", ",", "xml", "npz,csv"):
        with pytest.raises(ArgumentTypeError, match="comma-separated list of npz, json, obj"):
            parse(bad)


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_in_order(jobs):
    """Results in the order of the tasks, at most ``jobs`` at once, few waiting."""
    running, most, started = 0, 0, 0
    lock = threading.Lock()

    def work(number: int) -> int:
        nonlocal running, most, started
        with lock:
            running, started = running + 1, started + 1
            most = max(most, running)
        time.sleep(0.001 * (number % 5))
        with lock:
            running -= 1
        return number

    for expected, number in enumerate(in_order(work, ((n,) for n in range(60)), jobs)):
        assert number == expected
        assert started <= number + 1 + 3 * jobs
    assert number == 59 and most <= jobs


@pytest.mark.parametrize("jobs", [1, 3])
def test_an_unexpected_fault_ends_the_run(jobs):
    done = []

    def work(number: int) -> None:
        if number == 4:
            raise ZeroDivisionError
        done.append(number)

    with pytest.raises(ZeroDivisionError):
        list(in_order(work, ((n,) for n in range(100)), jobs))
    assert {0, 1, 2, 3} <= set(done) and len(done) < 20


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_bad_photo_costs_nothing_but_itself(tmp_path, capsys, jobs):
    photos = []
    for i in range(7):
        photos.append((f"p{i}", tmp_path / f"p{i}.png"))
        write_image(photos[-1][1], np.full((9, 8, 3), i, np.uint8))
    photos[2][1].write_bytes(b"no picture")
    saved = []

    def save(name: str, path: Path, image: np.ndarray, faces: list) -> None:
        if name == "p5":
            raise OSError("disk full")
        saved.append((name, int(image[0, 0, 0])))

    options = Namespace(photos=photos, out=tmp_path, jobs=jobs)
    assert run_on_photos(options, lambda image: [], save) == 1
    assert sorted(saved) == [("p0", 0), ("p1", 1), ("p3", 3), ("p4", 4), ("p6", 6)]
    out, err = capsys.readouterr()
    lines = [line for line in out.splitlines() if "no face found" in line]
    assert [Path(line.split(":")[0]).stem for line in lines] == ["p0", "p1", "p3", "p4", "p6"]
    assert "p2.png" in err and "p5.png: disk full" in err
    assert "5 photos without a face, 2 photos failed" in out
