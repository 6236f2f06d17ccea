"""The fuzzers of the native kernels (``make fuzz``) on a few random inputs, under sanitizers."""

import shutil
import subprocess

import pytest
from conftest import ROOT

KERNELS = {
    "sim3dr": ("Sim3DR", ["Sim3DR/mesh.cpp", "Sim3DR/rasterizer.cpp"]),
    "fused_norm": ("backbone_nets", ["backbone_nets/fused_norm_kernel.cpp"]),
}


@pytest.mark.parametrize("name", KERNELS)
def test_a_few_inputs(tmp_path, name):
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("needs g++ or clang++")
    folder, sources = KERNELS[name]
    program = tmp_path / name
    build = [compiler, "-std=c++17", "-g1", "-O0", "-pthread", "-I", folder, "-o", program]
    build += [
        "-fsanitize=address,undefined,float-cast-overflow",
        "-fno-sanitize-recover=all",
        "-ffp-contract=off",
    ]
    build += [f"tests/native/fuzz_{name}.cpp", "tests/native/fuzz_main.cpp", *sources]
    built = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    if "cannot find" in built.stderr and "san" in built.stderr:
        pytest.skip(f"{compiler} has no sanitizer libraries")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([program, "1000"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
