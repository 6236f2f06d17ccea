"""The 3DMM: its algebra against the formula, both ways of storing it, and files that are bad."""

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
import scipy.io
import torch
from conftest import Evil, tiny_face_arrays, write_face_folder

from utils.morphable_model import load_morphable_model, split_camera

# ---------------------------------------------------------------------------------------- algebra


def vertices_slowly(arrays: dict[str, np.ndarray], parameters: np.ndarray) -> np.ndarray:
    """(62,) parameters -> (3, N): A (u + W_shp alpha + W_exp beta) + t, then y = 121 - y."""
    mean = (arrays["u_shp"].astype(np.float64) + arrays["u_exp"]).ravel()
    points = []
    for start in range(0, len(mean), 3):
        point = mean[start : start + 3].copy()
        for row in range(3):
            point[row] += arrays["w_shp_sim"][start + row].astype(np.float64) @ parameters[12:52]
            point[row] += arrays["w_exp_sim"][start + row].astype(np.float64) @ parameters[52:62]
        camera = parameters[:12].reshape(3, 4)
        x, y, z = (camera[row, :3] @ point + camera[row, 3] for row in range(3))
        points.append([x, 121 - y, z])
    return np.array(points).T


def test_vertices_follow_the_formula(face_model, parameters):
    vertices = face_model.vertices(parameters)
    assert vertices.shape == (6, 3, 150) and vertices.dtype == np.float32
    expected = [vertices_slowly(tiny_face_arrays(), p.astype(np.float64)) for p in parameters]
    assert np.abs(vertices - np.stack(expected)).max() < 1e-3


def test_an_upright_face_is_upright_in_the_crop(face_model):
    camera = np.float32([1e-3, 0, 0, 60, 0, 1e-3, 0, 60, 0, 0, 1e-3, 0])
    crop = face_model.vertices(np.concatenate([camera, np.zeros(50, np.float32)])[None])[0]
    expected = face_model.mean * np.float32([[1e-3], [-1e-3], [1e-3]]) + [[60], [61], [0]]
    np.testing.assert_allclose(crop, expected, atol=1e-4)


def test_landmarks_are_vertices(face_model, parameters):
    landmarks = face_model.landmarks(parameters)
    assert landmarks.shape == (6, 3, 68)
    at_vertices = face_model.vertices(parameters)[:, :, face_model.landmark_indices]
    np.testing.assert_allclose(landmarks, at_vertices, atol=1e-4)


def test_shapes_are_vertices_without_the_camera(face_model, parameters):
    shapes = face_model.shapes(parameters).astype(np.float64)
    camera = split_camera(parameters).astype(np.float64)
    crop = camera[:, :, :3] @ shapes + camera[:, :, 3:]
    crop[:, 1] = 121 - crop[:, 1]
    np.testing.assert_allclose(crop, face_model.vertices(parameters), atol=1e-3)


@pytest.mark.parametrize("what", ["landmarks", "vertices", "shapes", "dewhiten", "whiten"])
def test_torch_equals_numpy(face_model, parameters, what):
    ours = getattr(face_model, what)(parameters)
    theirs = getattr(face_model.to_torch(), what)(torch.from_numpy(parameters))
    assert theirs.dtype == torch.float32
    scale = np.abs(ours).max()
    np.testing.assert_allclose(theirs.numpy() / scale, ours / scale, atol=1e-6)


class Watched(np.ndarray):
    """Refuses products that numpy leaves to the threads of its BLAS, which spin on after them."""

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        assert ufunc is not np.matmul or inputs[0].shape[-1] == 3, "no camera's product"
        inputs = [np.asarray(array) for array in inputs]
        return np.asarray(getattr(ufunc, method)(*inputs, **options)).view(Watched)


def test_the_bases_are_not_multiplied_by_blas(face_model, parameters):
    watched = face_model.map(lambda array: np.asarray(array).view(Watched))
    vertices = watched.vertices(parameters)
    assert isinstance(vertices, Watched)
    np.testing.assert_allclose(np.asarray(vertices), face_model.vertices(parameters), atol=1e-4)
    with pytest.raises(AssertionError, match="camera"):
        parameters[:, 12:] @ watched.basis.reshape(50, -1)


def test_no_face_gives_no_vertices(face_model, parameters):
    assert face_model.vertices(parameters[:0]).shape == (0, 3, 150)
    assert face_model.landmarks(parameters[:0]).shape == (0, 3, 68)


def test_whitening(face_model):
    whitened = np.random.default_rng(0).normal(size=(5, 62)).astype(np.float32)
    dewhitened = face_model.dewhiten(whitened)
    expected = whitened * face_model.param_std + face_model.param_mean
    np.testing.assert_array_equal(dewhitened, expected)
    np.testing.assert_allclose(face_model.whiten(dewhitened), whitened, atol=1e-4)


def test_gradients_reach_the_parameters(face_model, parameters):
    leaf = torch.from_numpy(parameters).requires_grad_()
    face_model.to_torch().landmarks(leaf).square().sum().backward()
    assert (leaf.grad != 0).all()


# --------------------------------------------------------------------------------- the two layouts


def algebra(model) -> list[np.ndarray]:
    return [getattr(model, name) for name in ("mean", "basis", "param_mean", "param_std")]


def test_folder_and_npz_are_one_model(face_folder, face_npz):
    folder, npz = load_morphable_model(face_folder), load_morphable_model(face_npz)
    assert folder.fingerprint == npz.fingerprint
    assert (folder.source, npz.source) == (str(face_folder), str(face_npz))
    names = ["triangles", "landmark_indices", "landmark_mean", "landmark_basis"]
    for name in (*names, "uv", "kept_vertices", "kept_triangles"):
        np.testing.assert_array_equal(getattr(folder, name), getattr(npz, name))


def test_layout_of_the_arrays(face_folder):
    arrays, model = tiny_face_arrays(), load_morphable_model(face_folder)
    assert model.num_vertices == 150
    assert model.triangles.dtype == np.int32 and model.triangles.min() == 0
    np.testing.assert_array_equal(model.triangles[7], arrays["tri"][:, 7] - 1)
    np.testing.assert_array_equal(model.kept_triangles[7], arrays["deletedTri"][:, 7] - 1)
    np.testing.assert_array_equal(model.landmark_indices, arrays["keypoints_sim"][::3] // 3)
    for i in (0, 39, 40, 49):
        column = np.concatenate([arrays["w_shp_sim"], arrays["w_exp_sim"]], 1)[:, i]
        np.testing.assert_array_equal(model.basis[i].T.ravel(), column)


@pytest.mark.parametrize("absent", [["keptInd"], ["deletedTri"], ["uv", "keptInd", "deletedTri"]])
def test_textured_mesh_lists_and_uv_may_be_absent(tmp_path, absent):
    arrays = tiny_face_arrays()
    for name in absent:
        del arrays[name]
    model = load_morphable_model(write_face_folder(tmp_path, arrays))
    assert (model.uv is None) == ("uv" in absent)
    assert model.kept_vertices is model.kept_triangles is None


def test_how_crops_are_counted_is_the_files_word(tmp_path):
    arrays = tiny_face_arrays()
    for stored, is_exact in ((None, False), (np.int8(0), False), (np.int64(1), True), (True, True)):
        more = {} if stored is None else {"pixel_centres": stored}
        np.savez(tmp_path / "face.npz", **arrays, **more)
        assert load_morphable_model(tmp_path / "face.npz").pixel_centres is is_exact
    for wrong in (np.float32(0.5), np.int8([1]), "yes"):
        np.savez(tmp_path / "face.npz", **arrays, pixel_centres=wrong)
        refused(tmp_path / "face.npz", "pixel_centres")


def test_half_precision_bases_with_scales(tmp_path):
    arrays = tiny_face_arrays()
    exact = algebra(load_morphable_model(write_face_folder(tmp_path / "exact", arrays)))
    for name in ("w_shp", "w_exp"):
        scale = 1e-4 * np.abs(arrays[f"{name}_sim"]).max(0)  # small: half precision alone loses it
        arrays[f"{name}_scale"] = scale.astype(np.float32)
        arrays[f"{name}_sim"] = (arrays[f"{name}_sim"] / scale).astype(np.float16)
    np.savez_compressed(tmp_path / "half.npz", **arrays)
    half = algebra(load_morphable_model(tmp_path / "half.npz"))
    for ours, expected in zip(half, exact, strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, expected, atol=1e-3 * np.abs(expected).max())


def test_long_whitening_is_cut_to_62(tmp_path, face_model):
    arrays = tiny_face_arrays()
    rest = np.full(40, 7, np.float32)
    for name in ("param_mean", "param_std"):
        arrays[name] = np.concatenate([arrays[name], rest])
    model = load_morphable_model(write_face_folder(tmp_path, arrays))
    assert model.param_mean.shape == model.param_std.shape == (62,)
    assert model.fingerprint == face_model.fingerprint


def test_another_topology(tmp_path):
    arrays = tiny_face_arrays()
    keep = slice(0, 3 * 149)
    arrays = {k: v[keep] if k[:2] in ("u_", "w_") else v for k, v in arrays.items()}
    arrays["uv"] = arrays["uv"][:149]
    arrays["keypoints_sim"] = np.arange(204)
    arrays["tri"] = np.array([[1], [2], [149]])
    for name in ("keptInd", "deletedTri"):
        del arrays[name]
    model = load_morphable_model(write_face_folder(tmp_path, arrays))
    assert model.num_vertices == 149
    assert model.vertices(model.param_mean[None]).shape == (1, 3, 149)


# ------------------------------------------------------------------------------------- fingerprint


def test_fingerprint_stays(face_model, face_folder):
    fingerprint = load_morphable_model(face_folder).fingerprint
    assert len(fingerprint) == 16
    same = [face_model, face_model.to_torch(), face_model.to_torch().map(torch.Tensor.double)]
    assert {model.fingerprint for model in same} == {fingerprint}


@pytest.mark.parametrize("name", ["mean", "basis", "param_mean", "param_std", "landmark_indices"])
def test_fingerprint_tells_models_apart(face_model, name):
    array = getattr(face_model, name).copy()
    last = (-1,) * array.ndim
    array[last] = array[last] + 1 if array.dtype.kind == "i" else array[last] * 1.0001 + 1e-3
    assert replace(face_model, **{name: array}).fingerprint != face_model.fingerprint


# --------------------------------------------------------------------------------------- bad files

FILES = ["u_shp", "u_exp", "w_shp_sim", "w_exp_sim", "keypoints_sim"]


def refused(path, *words: str, error=ValueError) -> None:
    """Reading fails with one message that names the path and the words."""
    with pytest.raises(error) as caught:
        load_morphable_model(path)
    for word in (str(path), *words):
        assert word in str(caught.value)


@pytest.mark.parametrize("name", [*(f"{n}.npy" for n in FILES), "param_whitening.pkl", "tri.mat"])
def test_missing_file(tmp_path, name):
    folder = write_face_folder(tmp_path, tiny_face_arrays())
    (folder / name).unlink()
    refused(folder, name, error=FileNotFoundError)


def test_missing_model(tmp_path):
    refused(tmp_path / "nothing", error=FileNotFoundError)
    refused(tmp_path, "u_shp.npy", "tri.mat", "param_whitening.pkl", error=FileNotFoundError)


@pytest.mark.parametrize("name", [*(f"{n}.npy" for n in FILES), "param_whitening.pkl", "tri.mat"])
@pytest.mark.parametrize("length", [0, 5, 200])
def test_damaged_file(tmp_path, name, length):
    folder = write_face_folder(tmp_path, tiny_face_arrays())
    (folder / name).write_bytes((folder / name).read_bytes()[:length])
    with pytest.raises(ValueError) as caught:
        load_morphable_model(folder)
    assert str(folder / name) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"text"])
def test_damaged_npz(tmp_path, content):
    (tmp_path / "face.npz").write_bytes(content)
    refused(tmp_path / "face.npz")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("u_shp", lambda a: a[:-1]),
        ("u_shp", lambda a: a[:0]),
        ("u_exp", lambda a: a[:-3]),
        ("w_shp_sim", lambda a: a[:, :39]),
        ("w_exp_sim", lambda a: a.T),
        ("w_exp_sim", lambda a: a + np.nan),
        ("u_shp", lambda a: a * np.inf),
        ("u_shp", lambda a: a.astype(str)),
        ("keypoints_sim", lambda a: a[:-3]),
        ("keypoints_sim", lambda a: a + 1),  # not the xyz of one vertex
        ("keypoints_sim", lambda a: a[::-1]),
        ("keypoints_sim", lambda a: a + 0.5),
        ("keypoints_sim", lambda a: a + 300),  # beyond the last vertex
        ("keypoints_sim", lambda a: a - 3 * a[0] - 3),
        ("param_mean", lambda a: a[:61]),
        ("param_std", lambda a: a * 0),
        ("param_std", lambda a: -a),
        ("tri", lambda a: a.T),
        ("tri", lambda a: a - 1),  # 0-based
        ("tri", lambda a: a + 1),
        ("tri", lambda a: a + 0.5),
        ("uv", lambda a: a[:-1]),
        ("uv", lambda a: a * 256),  # texels
        ("uv", lambda a: a - 0.01),
        ("keptInd", lambda a: a + 150),
        ("deletedTri", lambda a: a + 1),
    ],
)
@pytest.mark.parametrize("layout", ["folder", "npz"])
def test_misshapen_arrays_are_named(tmp_path, name, change, layout):
    arrays = tiny_face_arrays()
    with np.errstate(invalid="ignore"):
        arrays[name] = change(arrays[name])
    if layout == "folder":
        refused(write_face_folder(tmp_path, arrays), name)
    else:
        np.savez(tmp_path / "face.npz", **arrays)
        refused(tmp_path / "face.npz", name)


@pytest.mark.parametrize(
    ("names", "change", "said"),
    [
        (("u_shp", "u_exp"), lambda a: a / 1e3, "in micrometres, the unit here"),
        (("u_shp", "u_exp"), lambda a: a / 1e6, "in micrometres, the unit here"),
        (("tri",), lambda a: a[::-1], "exchange two rows of tri"),
        # OpenCV's axes; y and z exchanged; landmarks in the opposite order
        (("u_shp", "u_exp"), lambda a: a.reshape(-1, 3) * [1, -1, -1], "x right, y up and z"),
        (("u_shp", "u_exp"), lambda a: a.reshape(-1, 3)[:, [0, 2, 1]], "x right, y up and z"),
        (("keypoints_sim",), lambda a: a.reshape(-1, 3)[::-1].ravel(), "keypoints_sim"),
        ((), None, ""),
    ],
)
def test_other_peoples_conventions_are_told(tmp_path, caplog, names, change, said):
    arrays = tiny_face_arrays()
    np.savez(tmp_path / "face.npz", **arrays | {name: change(arrays[name]) for name in names})
    load_morphable_model(tmp_path / "face.npz")
    assert len(caplog.messages) == bool(said)
    assert all(said in message and "face.npz" in message for message in caplog.messages)


@pytest.mark.parametrize(
    ("name", "count", "said"),
    [("w_shp_sim", 20, "20 directions; the layout has 40"), ("w_exp_sim", 5, "5 directions")],
)
def test_fewer_directions_are_to_be_filled_up(tmp_path, name, count, said):
    arrays = tiny_face_arrays()
    np.savez(tmp_path / "face.npz", **arrays | {name: arrays[name][:, :count]})
    refused(tmp_path / "face.npz", said)


def test_models_as_they_were_read_are_pickled_as_their_files_name(tmp_path):
    np.savez(tmp_path / "face.npz", **tiny_face_arrays())
    model = load_morphable_model(tmp_path / "face.npz")
    assert copy.deepcopy(model) is copy.copy(model) is model
    stored = pickle.dumps(model)
    assert len(stored) < 1000 and pickle.loads(stored) is pickle.loads(stored)
    again = pickle.loads(stored)
    assert again.fingerprint == model.fingerprint and not again.triangles.flags.writeable
    changed = replace(model, uv=None)
    assert pickle.loads(pickle.dumps(changed)).uv is None

    changed = model.mean + 1
    copied = pickle.loads(pickle.dumps(replace(model, mean=changed)))
    np.testing.assert_array_equal(copied.mean, changed)


def test_models_of_relative_paths_are_found_from_other_folders(tmp_path, monkeypatch):
    np.savez(tmp_path / "face.npz", **tiny_face_arrays())
    monkeypatch.chdir(tmp_path)
    model = load_morphable_model("face.npz")
    monkeypatch.chdir("/")
    assert pickle.loads(pickle.dumps(model)).fingerprint == model.fingerprint


def test_a_pickled_models_file_must_be_there_unchanged(tmp_path):
    path = tmp_path / "face.npz"
    np.savez(path, **tiny_face_arrays())
    stored = pickle.dumps(load_morphable_model(path))
    np.savez(path, **tiny_face_arrays(seed=1))
    with pytest.raises(ValueError, match=r"face\.npz: another face model .*than the pickled"):
        pickle.loads(stored)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="is not there any more"):
        pickle.loads(stored)


def test_only_the_whitening_that_is_used_is_checked(tmp_path):
    arrays = tiny_face_arrays()
    longer = {n: np.append(arrays[n], np.full(40, np.nan)) for n in ("param_mean", "param_std")}
    model = load_morphable_model(write_face_folder(tmp_path, arrays | longer))
    np.testing.assert_array_equal(model.param_mean, arrays["param_mean"].astype(np.float32))


def test_what_all_faces_share_cannot_be_changed_by_one(tmp_path):
    model = load_morphable_model(write_face_folder(tmp_path, tiny_face_arrays()))
    for name in ("triangles", "uv", "landmark_indices", "kept_vertices", "kept_triangles"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(model, name)[:] = 0


def test_misshapen_scale_and_missing_array_in_npz(tmp_path):
    arrays = tiny_face_arrays() | {"w_shp_scale": np.ones((450, 1), np.float32)}
    np.savez(tmp_path / "scale.npz", **arrays)
    refused(tmp_path / "scale.npz", "w_shp_scale")
    for kind in (bool, complex):
        arrays = tiny_face_arrays() | {"w_exp_scale": np.ones(10, np.float32)}
        arrays["w_exp_sim"] = arrays["w_exp_sim"].astype(kind)
        np.savez(tmp_path / "kind.npz", **arrays)
        refused(tmp_path / "kind.npz", "w_exp_sim must be numbers")
    arrays = tiny_face_arrays()
    del arrays["w_exp_sim"]
    np.savez(tmp_path / "missing.npz", **arrays)
    refused(tmp_path / "missing.npz", "w_exp_sim")


def test_whitening_that_is_no_dict_of_two(tmp_path):
    folder = write_face_folder(tmp_path, tiny_face_arrays())
    whitening = {"param_mean": np.zeros(62), "param_std": np.ones(62)}
    for name in whitening:
        content = whitening | {name: whitening[name].tolist()}
        (folder / "param_whitening.pkl").write_bytes(pickle.dumps(content))
        refused(folder, f"{name} must be an array")
    for content in ([1, 2], {"param_mean": np.zeros(62)}):
        (folder / "param_whitening.pkl").write_bytes(pickle.dumps(content))
        refused(folder, "param_whitening.pkl", "param_std")


def test_triangles_under_another_name(tmp_path):
    folder = write_face_folder(tmp_path, tiny_face_arrays())
    scipy.io.savemat(folder / "tri.mat", {"triangles": np.ones((3, 4))})
    refused(folder, "tri.mat")


@pytest.mark.parametrize("name", ["param_whitening.pkl", "u_shp.npy", "face.npz"])
def test_malicious_pickles_do_not_run(tmp_path, name):
    folder, trace = write_face_folder(tmp_path / "3dmm_data", tiny_face_arrays()), tmp_path / "run"
    evil = np.array([Evil(trace)], dtype=object)
    path = folder
    if name == "param_whitening.pkl":
        content = {"param_mean": Evil(trace), "param_std": np.ones(62, np.float32)}
        (folder / name).write_bytes(pickle.dumps(content))
    elif name == "u_shp.npy":
        np.save(folder / name, evil, allow_pickle=True)
    else:
        path = tmp_path / name
        np.savez(path, **tiny_face_arrays() | {"u_shp": evil})
    with pytest.raises(ValueError, match=name):
        load_morphable_model(path)
    assert not trace.exists()
