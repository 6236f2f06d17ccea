"""MATLAB files: equal to scipy's reading, and no damage does harm."""

import numpy as np
import pytest
import scipy.io

from utils.matlab import read_mat

ARRAYS = {
    "tri": np.arange(12, dtype=np.float64).reshape(3, 4),
    "small": np.float32([[1.5, -2]]),
    "bytes": np.uint8([[1], [2], [255]]),
    "negative": np.int16([[-300, 7]]),
    "nothing": np.zeros((0, 3)),
    "deep": np.random.default_rng(0).normal(size=(2, 3, 4)),
}


@pytest.fixture(params=[False, True], ids=["plain", "compressed"])
def path(request, tmp_path):
    others = {"text": "no numbers", "complex": np.array([[1 + 2j]]), "struct": {"field": 1.0}}
    others["cell"] = np.array([1.0, "x"], object)
    path = tmp_path / "arrays.mat"
    scipy.io.savemat(path, {**ARRAYS, **others}, do_compression=request.param)
    return path


def test_arrays_are_those_scipy_reads(path):
    arrays, expected = read_mat(path), scipy.io.loadmat(path)
    assert arrays.keys() == ARRAYS.keys()
    for name, array in arrays.items():
        assert array.dtype == expected[name].dtype
        np.testing.assert_array_equal(array, expected[name])


@pytest.mark.parametrize("name", ["tri", "deep", "all of them"])
def test_files_that_unpack_to_too_much(path, tmp_path, monkeypatch, name):
    """Of one array, also where it is stored in fewer bytes than it takes, and of them together."""
    sizes = {key: array.nbytes for key, array in ARRAYS.items()}
    limit = sizes.get(name, sum(sizes.values())) - 1
    if name in sizes:
        scipy.io.savemat(path, {name: ARRAYS[name].round()})
    monkeypatch.setattr("utils.matlab.MAX_BYTES", limit)
    with pytest.raises(ValueError, match=f"more than {limit} bytes"):
        read_mat(path)
    monkeypatch.setattr("utils.matlab.MAX_BYTES", limit + 400)
    assert read_mat(path)


def test_other_files_are_named(tmp_path):
    for content in (b"", b"hello", b"MATLAB 7.3 MAT-file".ljust(200)):
        (tmp_path / "x.mat").write_bytes(content)
        with pytest.raises(ValueError, match="x.mat"):
            read_mat(tmp_path / "x.mat")
    with pytest.raises(FileNotFoundError):
        read_mat(tmp_path / "none.mat")
