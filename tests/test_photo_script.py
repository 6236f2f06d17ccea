"""What the scripts that go through photos share."""

from argparse import ArgumentTypeError, Namespace
from pathlib import Path

import numpy as np
import pytest

from utils.files import write_image
from utils.photo_script import comma_list, run_on_photos


def test_comma_list():
    parse = comma_list(("npz", "json", "obj"))
    assert parse("npz, JSON,") == ("npz", "json")
    assert parse("obj,npz,obj") == ("obj", "npz")
    for bad in ("", ",", "xml", "npz,csv"):
        with pytest.raises(ArgumentTypeError, match="comma-separated list of npz, json, obj"):
            parse(bad)


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

    options = Namespace(photos=photos, out=tmp_path, jobs=jobs, finished=None)
    assert run_on_photos(options, lambda image: [], save) == 1
    assert sorted(saved) == [("p0", 0), ("p1", 1), ("p3", 3), ("p4", 4), ("p6", 6)]
    out, err = capsys.readouterr()
    lines = [line for line in out.splitlines() if "no face found" in line]
    assert [Path(line.split(":")[0]).stem for line in lines] == ["p0", "p1", "p3", "p4", "p6"]
    assert "p2.png" in err and "p5.png: disk full" in err
    assert "5 photos without a face, 2 photos failed" in out
